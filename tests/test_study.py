import json

import pytest
import yaml

from stda import BadInput, study
from stda.sections import Arm, may_be_baseline
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
        ("classification: {arms: [{arm: a, synthetic: oversample}, {arm: h, real_share: 0.5}]}", "no arm without"),
        ("classification: {arms: [{arm: a, real_share: 0}]}", "classification.arms.0.real_share is 0: it should be"),
        ("classification: {arms: [{arm: a, select: best}]}", "classification.arms.0.select is 'best'"),
        ("classification: {tries: 10}", "classification.tries is 10: it should be less than or equal to 9."),
        ("pggan: {count: 3, balance: true}", "pggan has count and balance; choose one of them"),
        ("data: {val_fraction: 0.3, test_fraction: 0.4, oracle_fraction: 0.3}", "leave less than a tenth to train on"),
        ("data: {replicates_per_split: 0}", "data.replicates_per_split is 0"),
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
        ("classification: {network: resnet18}", "explainability.attention_methods and explainability.recomputed name"),
        (
            "{classification: {network: mobilenet_v2}, explainability: {methods: [lrp_z], recomputed: [], "
            "attention_methods: [gradient]}}",
            "explainability.methods name 'lrp_z', which cannot explain mobilenet_v2",
        ),
        ("explainability: {recomputed: [pattern_net]}", "explainability.recomputed names 'pattern_net'"),
        ("explainability: {region_size: 99}", "explainability.region_size is 99; images have 32 px"),
    ],
)
def test_bad_params_are_one_sentence_that_names_the_key(tmp_path, text, said):
    with pytest.raises(BadInput) as error:
        load(write(tmp_path, text))
    assert said in str(error.value)
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


ORACLES = "data: {oracle_fraction: 0.2}\n"


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ("synthetic: noised, labels: wrong", "adds no image of unsure label; leave out labels and min_confidence"),
        ("synthetic: oracle, min_confidence: 0.5", "adds no image of unsure label; leave out labels"),
        ("labels: shuffled", "adds no image of unsure label; leave out labels"),
        ("synthetic: self-training, labels: wrong", "has no style; give self-training the labels pseudo or soft"),
        ("loss: logit-adjusted", "mends the class frequencies twice"),
        ("protocol: pretrain", "has protocol pretrain but adds no image; give it synthetic: nst"),
        ("synthetic: wgan, count: 3, balance: true", "has count and balance; choose one of them"),
        ("select: diverse", "selects among a generator's images but has synthetic none"),
        ("synthetic: oversample, select: confident", "selects among a generator's images but has synthetic oversample"),
        ("synthetic: wgan, real_share: 0.5", "has real_share 0.5 and adds wgan; a subset is for the learning curve"),
        ("synthetic: wgan, spend: wgan", "spends the seconds of wgan on training; let it add no image"),
        ("spend: nst, real_share: 0.5", "spends the seconds of nst on training; let it add no image"),
        ("synthetic: wgan, ratio: 2.0", "asks for ratio 2.0 but wgan.ratio makes only 0.5"),
        ("synthetic: dcgan, count: 9", "asks for count 9 but dcgan.count makes only 8"),
        ("synthetic: dcgan, count: 2, classes: [a, z]", "asks for class z but dcgan.classes makes only a, b"),
        ("synthetic: wgan, protocol: synthetic-only", "trains on synthetic images only; set wgan.all_classes: true"),
        ("synthetic: wgan, protocol: pretrain, pretrain_share: 0.001", "gives pretrain_share 0.001 of 300 steps"),
    ],
)
def test_knobs_of_an_arm_that_collide_are_one_sentence_with_its_name(tmp_path, arm, said):
    text = ORACLES + "dcgan: {count: 8, classes: [a, b]}\n" + "classification: {arms: [{arm: a}, {arm: odd, %s}]}"
    with pytest.raises(BadInput) as error:
        load(write(tmp_path, text % arm))
    assert f"arm 'odd' {said}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arm",
    [
        "synthetic: wgan, count: 300",  # more than half of some class or not: only the data knows
        "synthetic: wgan, balance: true",
        "synthetic: dcgan, count: 8, classes: [a]",
        "synthetic: dcgan, ratio: 3.0",  # dcgan goes by count
        "synthetic: wgan, labels: wrong, select: confident, min_confidence: 0.5",
        "synthetic: oracle, balance: true, protocol: pretrain",
        "real_share: 0.25, loss: weighted, sampler: shuffle",
        "spend: pggan, spend_on: ensemble",
        "synthetic: nst, protocol: synthetic-only",
    ],
)
def test_knobs_of_an_arm_that_fit_together(tmp_path, arm):
    text = ORACLES + "dcgan: {count: 8, classes: [a, b]}\n" + "classification: {arms: [{arm: a}, {arm: odd, %s}]}"
    assert load(write(tmp_path, text % arm)).arm("odd").arm == "odd"


def test_an_oracle_needs_images_that_are_held_back(tmp_path):
    arms = "classification: {arms: [{arm: a}, {arm: best, synthetic: oracle}]}"
    with pytest.raises(
        BadInput, match=r"arm 'best' adds held-back real images but none are; set data\.oracle_fraction"
    ):
        load(write(tmp_path, "data: {oracle_fraction: 0.0}\n" + arms))
    assert load(write(tmp_path, ORACLES + arms)).arm("best").kind == "oracle"


@pytest.mark.parametrize(
    ("knobs", "kind", "baseline"),
    [
        ({}, "real", True),
        ({"synthetic": "self-training"}, "real", True),
        ({"synthetic": "augmented"}, "real", True),
        ({"spend": "wgan"}, "real", True),
        ({"synthetic": "oversample"}, "placebo", True),
        ({"synthetic": "noised"}, "placebo", True),
        ({"synthetic": "blurred"}, "placebo", True),
        ({"synthetic": "wgan", "labels": "wrong"}, "placebo", False),
        ({"synthetic": "nst", "labels": "shuffled"}, "placebo", False),
        ({"synthetic": "oracle"}, "oracle", False),
        ({"real_share": 0.5}, "subset", False),
        ({"synthetic": "wgan"}, "synthetic", False),
    ],
)
def test_kinds_of_arms_and_which_may_be_the_baseline(knobs, kind, baseline):
    arm = Arm(**knobs)
    assert arm.kind == kind
    assert may_be_baseline(arm.kind, arm.synthetic) == baseline


EVERY_KNOB = """
study: {replicates: 4}
data: {oracle_fraction: 0.15, split_by: image, replicates_per_split: 2, val_fraction: 0.15}
wgan: {count: 64, classes: [a, b]}
dcgan: {balance: true, all_classes: true}
classification:
  tries: 3
  spend_limit: 2.5
  arms:
    - {arm: plain}
    - {arm: fixed, synthetic: wgan, count: 32, classes: [b], select: diverse}
    - {arm: even, synthetic: dcgan, balance: true, select: confident, protocol: synthetic-only}
    - {arm: deal, synthetic: wgan, count: 64, labels: shuffled}
    - {arm: lie, synthetic: wgan, count: 64, labels: wrong}
    - {arm: half, real_share: 0.5}
    - {arm: longer, spend: pggan}
    - {arm: deep, spend: nst, spend_on: ensemble}
    - {arm: best, synthetic: oracle, balance: true}
    - {arm: noise, synthetic: noised}
    - {arm: blur, synthetic: blurred, loss: focal}
"""


def test_a_study_with_every_knob_survives_writing(tmp_path):
    one = load(write(tmp_path, EVERY_KNOB))
    assert load(write(tmp_path, dump(one, header="x"), "mine.yml")) == one
    content = json.dumps({"name": one.name, **one.model_dump(mode="json")})
    assert load(write(tmp_path, content, "study.json")) == one
    assert (one.arm("fixed").classes, one.arm("half").real_share, one.data.replicates_per_split) == (["b"], 0.5, 2)


def test_a_generator_whose_seconds_are_spent_is_run(tmp_path):
    assert load(write(tmp_path, EVERY_KNOB)).generators == ["nst", "dcgan", "wgan", "pggan"]
    arms = [{"arm": "a"}, {"arm": "longer", "spend": "dcgan"}]
    assert validate({"classification": {"arms": arms}}, where="x").generators == ["dcgan"]


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
