import errno
import json

import pytest

from stda import BadInput, runs
from stda.runs import Job
from stda.sections import DEFAULT_ARMS, STAGES
from stda.study import Study, load, sub_seed, validate

VALUES = {
    stage: runs.parameters(Study(), next(job for job in runs.jobs(Study()) if job.stage == stage)) for stage in STAGES
}


@pytest.fixture(autouse=True)
def roots(tmp_path, monkeypatch):
    monkeypatch.setenv("STDA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("STDA_REPORTS", str(tmp_path / "reports"))


def test_jobs_come_after_what_they_need():
    study, seen = Study(), set()
    for job in runs.jobs(study):
        assert set(runs.needs(study, job)) <= seen
        seen.add(job)
    assert len(seen) == len(runs.jobs(study)) == 2 * (1 + 4 + len(DEFAULT_ARMS) + 1) + 1


def test_an_arm_needs_its_own_generator_only():
    assert runs.needs(Study(), Job("classification", 1, "wgan")) == [Job("data", 1), Job("wgan", 1)]
    assert runs.needs(Study(), Job("classification", 0, "oversample")) == [Job("data", 0)]


def test_results_wait_for_everything_else_where_the_classifiers_look_too():
    study = Study()
    assert runs.needs(study, Job("results")) == runs.jobs(study)[:-1]
    assert Job("explainability", 1) in runs.needs(study, Job("results"))


@pytest.mark.parametrize("job", runs.jobs(Study()))
def test_keys_and_parameters_of_every_job(job):
    assert Job.parse(job.key) == job
    assert len(runs.parameters(Study(), job)) <= 15
    json.dumps(runs.parameters(Study(), job))


def test_a_finished_stage_says_what_made_it(tmp_path):
    run = runs.begin("data", VALUES["data"])
    run.path("table.csv").write_text("a\n")
    run.folder("in_domain").joinpath("x.json").write_text("{}")
    assert not run.final.exists()
    folder = run.finish(headline="two files", machine={"device": "cpu"}, leaked=0.5)
    assert folder == tmp_path / "runs/quick/r0/data"
    manifest = runs.read_manifest(folder)
    assert manifest["outputs"] == {name: runs.sha256(folder / name) for name in ("in_domain/x.json", "table.csv")}
    assert manifest["parameters"] == VALUES["data"]
    assert manifest["facts"] == {"leaked": 0.5}
    assert manifest["software"]["torch"]
    assert not list(folder.parent.glob(".*"))


def test_inputs_are_recorded_with_their_digests():
    first = runs.begin("data", VALUES["data"])
    first.path("table.csv").write_text("a\n")
    first.finish(headline="x")
    second = runs.begin("nst", VALUES["nst"])
    assert second.upstream("data") == first.final
    inputs = runs.read_manifest(second.finish(headline="y"))["inputs"]
    assert inputs == {"r0/data": {"table.csv": runs.sha256(first.final / "table.csv")}}


def test_a_new_result_replaces_the_old_one_whole():
    for text in ("old", "new"):
        run = runs.begin("data", VALUES["data"])
        run.path(f"{text}.txt").write_text(text)
        folder = run.finish(headline=text)
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "new.txt"]


def test_an_interrupted_stage_does_not_look_finished_and_leaves_the_old_result():
    first = runs.begin("data", VALUES["data"])
    first.finish(headline="old")
    second = runs.begin("data", VALUES["data"])
    second.path("half.txt").write_text("half")
    assert runs.read_manifest(first.final)["headline"] == "old"
    third = runs.begin("data", VALUES["data"])
    assert not third.path("half.txt").exists()


def test_checkpoints_outlive_an_interrupted_stage_and_go_with_a_finished_one():
    run = runs.begin("wgan", VALUES["wgan"])
    run.checkpoints.mkdir()
    (run.checkpoints / "x").write_text("half way")
    again = runs.begin("wgan", VALUES["wgan"])
    assert (again.checkpoints / "x").read_text() == "half way"
    again.finish(headline="done")
    assert not again.checkpoints.exists()


def test_settings_are_all_parameters_by_name():
    values = runs.parameters(Study(), Job("wgan", 0))
    run = runs.begin("wgan", {**values, "steps": 3, "options": {"augment": "adaptive"}})
    assert run.settings["steps"] == 3
    assert run.settings["augment"] == "adaptive"
    assert run.settings["watch_every"] == 50
    assert "options" not in run.settings


def test_missing_upstream_tells_what_to_run_first():
    with pytest.raises(BadInput, match=r"Run notebooks/01_data.ipynb first"):
        runs.begin("wgan", VALUES["wgan"]).upstream("data")
    with pytest.raises(BadInput, match=r"06_classification.ipynb with arm = 'none' first"):
        runs.begin("explainability", VALUES["explainability"]).upstream("classification", "none")


@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        ("wgan", {"steps": 0}, "04_wgan: steps is 0"),
        ("wgan", {"steps": "many"}, "04_wgan: steps is 'many'"),
        ("classification", {"augment": "clasic"}, "06_classification: augment is 'clasic'"),
        ("data", {"precision": "half"}, "01_data: precision is 'half'"),
        ("data", {"replicate": -1}, "replicate is -1"),
        ("data", {"study": "../x"}, "study is '../x'"),
        ("results", {"confidence": 2.0}, "08_results: confidence is 2.0"),
    ],
)
def test_a_wrong_value_in_a_notebook_is_one_sentence(stage, change, said):
    with pytest.raises(BadInput) as error:
        runs.begin(stage, {**VALUES[stage], **change})
    assert said in str(error.value)


def test_a_parameter_that_the_cell_forgot():
    values = {k: v for k, v in VALUES["wgan"].items() if k != "steps"}
    with pytest.raises(BadInput, match="does not set steps"):
        runs.begin("wgan", values)


def test_seeds_differ_by_replicate_stage_and_name():
    a = runs.begin("wgan", VALUES["wgan"])
    b = runs.begin("wgan", {**VALUES["wgan"], "replicate": 1})
    c = runs.begin("dcgan", VALUES["dcgan"])
    assert len({a.seed("fit"), b.seed("fit"), c.seed("fit"), a.seed("generate")}) == 4
    assert a.seed("fit") == sub_seed(0, "r0", "wgan", "fit")


def test_replicates_of_one_split_share_the_seeds_of_the_data_stage_only():
    shared = {"options": {"replicates_per_split": 3}}
    data = [runs.begin("data", {**VALUES["data"], "replicate": r, **shared}).seed("split") for r in range(7)]
    assert [data.index(seed) for seed in data] == [0, 0, 0, 3, 3, 3, 6]
    assert data[0] == sub_seed(0, "r0", "data", "split")
    alone = [runs.begin("data", {**VALUES["data"], "replicate": r}).seed("split") for r in range(3)]
    assert len(set(alone)) == 3
    for stage in ("nst", "wgan", "classification", "explainability"):
        seeds = {runs.begin(stage, {**VALUES[stage], "replicate": r}).seed("fit") for r in range(3)}
        assert seeds == {sub_seed(0, f"r{r}", stage, "fit") for r in range(3)}


def spending():
    arms = [{"arm": "plain"}, {"arm": "longer", "spend": "wgan", "spend_on": "ensemble"}]
    return validate({"classification": {"arms": arms}}, where="x")


def test_an_arm_that_spends_a_generator_s_seconds_waits_for_it():
    study = spending()
    assert runs.needs(study, Job("classification", 1, "longer")) == [Job("data", 1), Job("wgan", 1)]
    assert runs.needs(study, Job("classification", 1, "plain")) == [Job("data", 1)]
    order = runs.jobs(study)
    assert order.index(Job("wgan", 1)) < order.index(Job("classification", 1, "longer"))


def test_settings_of_an_arm_are_its_knobs_given_or_default():
    run = runs.begin("classification", runs.parameters(spending(), Job("classification", 0, "longer")))
    assert run.values["options"] == {"spend": "wgan", "spend_on": "ensemble"}
    found = runs.arm_knobs(run.finish(headline="x"))
    assert (found["spend"], found["spend_on"], found["arm"], found["synthetic"]) == (
        "wgan",
        "ensemble",
        "longer",
        "none",
    )
    assert (found["real_share"], found["classes"], found["tries"]) == (1.0, [], 1)


def test_colliding_knobs_in_a_notebook_are_one_sentence():
    for options, said in (
        ({"count": 3, "balance": True}, "arm 'none' has count and balance"),
        ({"select": "diverse"}, "arm 'none' selects among a generator's images"),
        ({"selekt": "all"}, "06_classification: options is"),
    ):
        with pytest.raises(BadInput, match=said):
            runs.begin("classification", {**VALUES["classification"], "options": options})


def test_an_unwritable_place_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STDA_RUNS", str(tmp_path / "file"))
    with pytest.raises(BadInput, match="set STDA_RUNS"):
        runs.begin("data", VALUES["data"])
    with pytest.raises(BadInput, match="set STDA_RUNS"):
        runs.probe_writable(tmp_path / "file" / "x")


def test_a_full_disk_is_one_sentence_and_keeps_the_old_result(monkeypatch):
    runs.begin("data", VALUES["data"]).finish(headline="old")
    run = runs.begin("data", VALUES["data"])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "write_json", full)
    with pytest.raises(BadInput, match="disk is full"):
        run.finish(headline="new")
    assert runs.read_manifest(run.final)["headline"] == "old"


def test_moving_the_smallest_effect_leaves_a_trace():
    one = Study()
    other = one.model_copy(update={"results": one.results.model_copy(update={"smallest_effect": 0.1})})
    assert runs.register(one) == runs.register(one) != runs.register(other)
    lines = (runs.runs_root() / "quick/registered.csv").read_text().splitlines()
    assert [line.split(",")[3] for line in lines] == ["smallest_effect", "0.02", "0.1"]
    assert load(runs.runs_root() / "quick/study.json") == other


def test_json_has_no_nan(tmp_path):
    runs.write_json(tmp_path / "a.json", {"x": float("nan"), "y": (1, tmp_path)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [1, str(tmp_path)]}
