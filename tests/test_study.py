import json

import pytest
import yaml

from stda import BadInput, study
from stda.study import Study, dump, load, sub_seed, validate


def write(tmp_path, text, name="mine.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wgan: {stepz: 3}", "'wgan.stepz' is not a parameter; did you mean 'steps'?"),
        ("wgn: {steps: 3}", "'wgn' is not a parameter; did you mean 'wgan'?"),
        ("wgan: {steps: many}", "wgan.steps is 'many': it should be a valid integer."),
        ("wgan: {ratio: -1}", "wgan.ratio is -1: it should be greater than 0."),
        ("data: {image_size: 0}", "data.image_size is 0: it should be greater than or equal to 16."),
        ("data: {skip_unreadable: 1}", "data.skip_unreadable is 1: it should be a valid boolean."),
        ("data: {source: foo}", "data.source is 'foo': it should be 'phantom'"),
        ("data: {source: folder}", "data.root is empty"),
        ("classification: {arms: []}", "classification.arms is []"),
        ("classification: {arms: [{arm: a, ratio: -1}]}", "classification.arms.0.ratio is -1"),
        ("classification: {arms: [{arm: a, sampelr: x}]}", "did you mean 'sampler'"),
        ("classification: {arms: [{arm: a}, {arm: a}]}", "arm 'a' is given twice"),
        ("classification: {arms: [{arm: A B}]}", "arm name 'A B'"),
        ("classification: {arms: [{arm: w, synthetic: wgan}]}", "no arm without synthetic images"),
        ("classification: {arms: [{arm: a}, {arm: w, synthetic: wgan, ratio: 2.0}]}", "wgan.ratio makes only 0.5"),
        (
            "classification: {arms: [{arm: a, loss: weighted}]}",
            "arm 'a' mends the class frequencies twice, by its sampler and by loss weighted; give it sampler: shuffle",
        ),
        ("data: {judge: vgg}", "data.judge is 'vgg'"),
        ("results: {smallest_effect: 0}", "results.smallest_effect is 0: it should be greater than 0."),
        ("wgan: {steps: 3, steps: 4}", "'steps' is given twice"),
        ("wgan: [", "is not valid YAML"),
        ("- a", "must hold sections"),
        ("wgan: 3", "wgan is 3"),
        ("pggan: {batch_sizes: [16, 8]}", "pggan.batch_sizes has 2 numbers; from 4 to 32 px there are 4 sizes"),
        (
            "pggan: {phase_images: 8000}",
            "phase_images is 8000, which takes 3000 steps before the last phase; pggan.steps",
        ),
        ("dcgan: {watch_images: 9}", "dcgan.watch_images is 9"),
        ("wgan: {keep: best, watch_every: 0}", "wgan.keep 'best' and wgan.patience go by looks: set wgan.watch_every"),
        ("data: {image_size: 48}", "data.image_size is 48; the GANs need a power of 2"),
        ("classification: {network: alexnet}", "alexnet needs at least 63"),
        ("classification: {weights: cache}", "vgg8 has no pretrained weights"),
        ("explainability: {methods: [gradiant]}", "explainability.methods.0 is 'gradiant'"),
        ("explainability: {region_size: 99}", "explainability.region_size is 99; images have 32 px"),
    ],
)
def test_bad_params_are_one_sentence_that_names_the_key(tmp_path, text, said):
    with pytest.raises(BadInput) as error:
        load(write(tmp_path, text))
    assert said in str(error.value)
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_number_in_short_scientific_notation_is_a_number(tmp_path):
    assert load(write(tmp_path, "wgan: {learning_rate: 1e-4}")).wgan.learning_rate == 1e-4


def test_unknown_study_names_the_known_ones():
    with pytest.raises(BadInput, match=r"no study 'quack'.*quick"):
        load("quack")


def test_quick_yaml_is_the_schema_written_out():
    path = study.find("quick")
    header = "\n".join(line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    assert path.read_text() == dump(Study(), header=header), "regenerate params/quick.yaml with stda.study.dump"
    assert load("quick") == Study()


@pytest.mark.parametrize("name", [p.stem for p in (study.project_root() / "params").glob("*.yaml")])
def test_every_shipped_study_is_valid_and_survives_dumping(name, tmp_path):
    one = load(name, data_root=str(tmp_path))
    again = load(write(tmp_path, dump(one, header="x"), f"{name}.yaml"), data_root=str(tmp_path))
    assert again == one


def test_a_resolved_study_keeps_its_name(tmp_path):
    content = {"name": "abc", **Study().model_dump(mode="json")}
    assert load(write(tmp_path, json.dumps(content), "study.json")) == Study(name="abc")


def test_generators_are_those_that_arms_use():
    arms = [{"arm": "a"}, {"arm": "p", "synthetic": "pggan"}, {"arm": "d", "synthetic": "dcgan"}]
    assert validate({"classification": {"arms": arms}}, where="x").generators == ["dcgan", "pggan"]


def test_data_root_replaces_the_one_in_the_file(tmp_path):
    path = write(tmp_path, "data: {source: folder, root: /nowhere}")
    assert load(path, data_root=str(tmp_path)).data.root == str(tmp_path)


def test_dump_tells_what_every_key_means():
    text = dump(Study(), header="x")
    assert yaml.safe_load(text)["results"] == Study().results.model_dump()
    assert all("#" in line for line in text.splitlines() if line.startswith("  ") and "arm" not in line)


def test_sub_seeds_are_stable_and_differ_by_name():
    seeds = {sub_seed(0, "r0", name) for name in ("a", "b", "c")} | {sub_seed(1, "r0", "a"), sub_seed(0, "r0", "a", 1)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sub_seed(0, "r0", "a") == 6352684336498887002  # changing this would change every published number
