import numpy as np
import pandas as pd
import pytest

from stda import BadInput, measure, runs
from stda.runs import Job
from stda.study import Study

CLASSES = ["a", "b"]
STUDY = Study()


@pytest.fixture(autouse=True)
def roots(tmp_path, monkeypatch):
    monkeypatch.setenv("STDA_RUNS", str(tmp_path))


COMPOSITION = [
    {"class": name, "real": 9, "lesions": 7, "wanted": 4, "added": n, "labelled": n} for name, n in [("a", 0), ("b", 3)]
]


def finish(job, headline="x", *, repeats=0, study=STUDY, **facts):
    """Finish a stage folder of the quick study by hand."""
    known = {arm.arm for arm in study.classification.arms}
    values = runs.parameters(
        study, job if job.arm in known or not job.arm else Job(job.stage, job.replicate, "balanced")
    )
    run = runs.begin(job.stage, {**values, **({"arm": job.arm} if job.arm else {})})
    if job.stage == "classification":
        facts = {"updates": 300, "composition": COMPOSITION, **facts}
        rng = np.random.default_rng(len(job.key))
        n = 40
        split = np.where(np.arange(n) < 20, "val", "test")
        table = pd.DataFrame({"image_id": [f"{i:02d}" for i in range(n)], "group": [f"g{i}" for i in range(n)]})
        table = table.assign(
            split=split, label=np.resize(CLASSES, n), predicted=rng.choice(CLASSES, n), p_a=0.5, p_b=0.5
        )
        table.to_csv(run.path("predictions.csv"), index=False)
        rates = pd.DataFrame({"learning_rate": [0.002, 0.001], "val_balanced_accuracy": 0.5, "chosen": [False, True]})
        rates.to_csv(run.path("tuning.csv"), index=False)
        test = table[table["split"] == "test"]
        measure.switches(test, {"hair": test.assign(predicted="a")}).to_csv(run.path("switches.csv"), index=False)
        if repeats:
            test = test.drop(columns=["group", "split"])
            pd.concat([test.assign(repeat=k) for k in range(repeats)]).to_csv(run.path("repeats.csv"), index=False)
    if job.stage == "wgan":
        pd.DataFrame({"set": ["wgan"], "kid": [0.1 + job.replicate]}).to_csv(run.path("fidelity.csv"), index=False)
        rates = pd.DataFrame({"set": "wgan", "space": ["pixels", "features"], "rate": [0.1 * job.replicate, 0.4]})
        rates.assign(copying=[job.replicate == 1, False]).to_csv(run.path("copying.csv"), index=False)
    run.finish(headline=headline, **facts)


SHARE = {"arm": "wgan", "method": "deep_taylor", "image_id": "01", "group": "007", "label": "NA"}


def explain(replicate, *, masks=True, study=STUDY):
    """Finish notebook 07 by hand: one image with a share, one without positive relevance."""
    run = runs.begin("explainability", runs.parameters(study, Job("explainability", replicate)))
    row = {**SHARE, "kind": "synthetic", "inside": 0.5, "area": 0.2, "gain": 0.3, "more": 1}
    table = pd.DataFrame([row, {**row, "image_id": "02", "inside": np.nan, "gain": np.nan}])
    if masks:
        table.to_csv(run.path("focus.csv"), index=False)
    drawn = table.drop(columns="kind").assign(artefact="hair", before=0.1, drawn_in=table["inside"] - 0.1)
    drawn.to_csv(run.path("artefacts.csv"), index=False)
    run.finish(headline="x")


def collect():
    return measure.collect(runs.begin("results", runs.parameters(Study(), Job("results"))))


def test_nothing_trained_tells_what_to_run():
    with pytest.raises(BadInput, match=r"Run notebooks/06_classification\.ipynb first"):
        collect()


def test_predictions_arms_and_what_is_missing():
    for r in (0, 1):
        finish(Job("wgan", r), images=10)
        for arm in ("balanced", "wgan"):
            finish(Job("classification", r, arm), updates=300)
    finish(Job("classification", 2, "balanced"), updates=300)  # a replicate that lacks an arm cannot be paired
    found = collect()
    assert found.synthetic == ["wgan"]
    assert found.predictions.groupby(["replicate", "arm"]).size().to_dict() == {
        (r, arm): 40 for r in (0, 1) for arm in ("balanced", "wgan")
    }
    assert found.fidelity["kid"].tolist() == [pytest.approx(0.6)]
    rates = found.copying.set_index(["generator", "set", "space"])
    assert rates.loc[("wgan", "wgan", "pixels"), ["rate", "copying"]].tolist() == pytest.approx([0.05, 0.5])
    assert rates.loc[("wgan", "wgan", "features"), ["rate", "copying"]].tolist() == pytest.approx([0.4, 0.0])
    assert found.realism["generator"].tolist() == ["no generator was run"]
    assert "replicate 2" in found.not_run["what"].tolist()
    assert {"nst", "dcgan", "pggan"} <= set(found.not_run["what"])
    assert found.updates["updates"].eq(300).all()
    costs = measure.cost_table(found.manifests, arms=found.arms).set_index("what")
    generator = costs.loc["wgan", "seconds"]
    arm = costs.loc["arm wgan"]
    assert arm["seconds with generator"] == pytest.approx(arm["seconds"] + generator)
    assert costs.loc["arm balanced", "seconds with generator"] == costs.loc["arm balanced", "seconds"]


def test_every_training_is_collected_and_a_single_one_is_the_first():
    finish(Job("classification", 0, "balanced"), repeats=3, updates=300)
    finish(Job("classification", 0, "classic"), updates=300)
    found = collect().repeats
    assert found.groupby(["arm", "repeat"]).size().to_dict() == {
        ("balanced", 0): 20, ("balanced", 1): 20, ("balanced", 2): 20, ("classic", 0): 20
    }  # fmt: skip
    assert set(found.columns) == {"replicate", "arm", "repeat", "image_id", "label", "predicted", "p_a", "p_b"}
    assert found["image_id"].str.len().eq(2).all()  # ids stay text
    spreads = measure.spread_table(found, baseline="balanced", synthetic=[])
    assert spreads["spread"].eq("over replicates").all()  # not every arm has repeats


def test_answers_to_altered_images_are_collected():
    for arm in ("balanced", "classic"):
        finish(Job("classification", 0, arm), updates=300)
    found = collect().switches
    columns = ["replicate", "arm", "altered", "image_id", "group", "label", "before", "after"]
    assert found.columns.tolist() == columns
    assert found["image_id"].str.len().eq(2).all()  # ids stay text
    assert found.groupby("arm").size().to_dict() == {"balanced": 20, "classic": 20}
    rates = measure.switch_rates(found, baseline="balanced").set_index("arm")
    assert rates.loc["classic", "switched"] == (found["before"] != "a")[found["arm"] == "classic"].mean()


def test_an_arm_without_altered_images_is_run_again():
    finish(Job("classification", 0, "balanced"), updates=300)
    (runs.runs_root() / "quick/r0/classification/balanced/switches.csv").unlink()
    with pytest.raises(BadInput, match="run it again"):
        collect()


def test_where_classifiers_look_is_collected_and_who_was_not_asked_is_said():
    for r in (0, 1):
        finish(Job("classification", r, "balanced"))
    explain(1)
    run = runs.begin("results", runs.parameters(Study(), Job("results")))
    found = measure.collect(run)
    focus = "replicate arm kind method image_id group label inside area gain"
    assert found.focus.columns.tolist() == focus.split()
    artefacts = "replicate arm method artefact image_id group label inside before area gain drawn_in"
    assert found.artefacts.columns.tolist() == artefacts.split()
    row = found.focus.iloc[0]
    assert (row["replicate"], row["image_id"], row["group"], row["label"], row["gain"]) == (1, "01", "007", "NA", 0.3)
    assert found.focus["inside"].isna().tolist() == [False, True]
    assert found.artefacts["drawn_in"].iloc[0] == pytest.approx(0.4)
    assert "r1/explainability" in run.inputs
    missing = found.not_run[found.not_run["what"].str.endswith("explainability")]
    assert missing["what"].tolist() == ["r0/explainability"]
    runs.register(Study())
    missing = collect().not_run
    assert missing.loc[missing["what"].str.endswith("explainability"), "why"].tolist() == ["planned, not finished"]


def test_a_source_without_masks_and_no_maps_at_all_give_empty_tables():
    finish(Job("classification", 0, "balanced"))
    found = collect()
    assert (len(found.focus), len(found.artefacts)) == (0, 0)
    assert found.focus.columns[0] == found.artefacts.columns[0] == "replicate"
    for table in (found.focus, found.artefacts):
        assert measure.attention_table(table, baseline="balanced", synthetic=["wgan"]).empty
    runs.begin("results", runs.parameters(Study(), Job("results"))).finish(headline="an earlier verdict")
    assert "results" not in collect().not_run["what"].tolist()
    explain(0, masks=False)
    found = collect()
    assert (len(found.focus), len(found.artefacts)) == (0, 2)
    assert found.focus["gain"].dtype == found.artefacts["gain"].dtype == float


def test_left_overs_that_the_registered_params_do_not_plan_stay_out():
    runs.register(Study())
    finish(Job("classification", 0, "balanced"), updates=1)
    finish(Job("classification", 0, "classic2"), updates=1)
    found = collect()
    assert found.predictions["arm"].unique().tolist() == ["balanced"]
    left_out = found.not_run[found.not_run["why"].str.startswith("left out")]
    assert left_out["what"].tolist() == ["r0/classification/classic2"]
    assert "r1/data" in found.not_run["what"].tolist()


def test_what_each_arm_is_in_the_comparison():
    arms = ("balanced", "oversample", "longer", "nst", "wgan", "wgan-wrong", "oracle", "half")
    for arm in arms:
        finish(Job("classification", 0, arm))
    found = collect()
    kinds = ("real", "placebo", "real", "synthetic", "synthetic", "placebo", "oracle", "subset")
    assert found.kinds == dict(zip(arms, kinds, strict=True))
    assert found.synthetic == ["nst", "wgan"]
    assert sorted(found.baselines) == ["balanced", "longer", "oversample"]  # no oracle, no subset, no synthetic placebo
    assert found.placebos == {"nst": ["oversample"], "wgan": ["oversample", "wgan-wrong"]}
    assert found.oracles == ["oracle"]
    assert found.settings.set_index("arm").loc["wgan", "amount"] == 3
    half = found.composition.query("arm == 'half'")
    assert half[["class", "real", "lesions"]].to_numpy().tolist() == [["a", 9, 7], ["b", 9, 7]]
    assert not found.leaky


def test_replicates_that_share_a_split_are_one_piece_of_evidence():
    shared = Study(data={"replicates_per_split": 2})
    for r in range(4):
        finish(Job("data", r), study=shared)
        finish(Job("classification", r, "balanced"))
        explain(r)
    found = collect()
    assert found.splits == {0: 0, 1: 0, 2: 1, 3: 1}
    assert found.focus["replicate"].unique().tolist() == [0, 2]
    assert found.predictions["replicate"].unique().tolist() == [0, 2]
    assert found.repeats["replicate"].unique().tolist() == [0, 2]
    assert found.switches["replicate"].unique().tolist() == [0, 2]
    assert found.trainings["replicate"].unique().tolist() == [0, 1, 2, 3]


def test_a_leaky_twin_is_collected_and_says_that_it_is_one():
    leaky = Study(name="twin", data={"split_by": "image"})
    finish(Job("data", 0), study=leaky)
    finish(Job("classification", 0, "balanced"), study=leaky)
    run = runs.begin("results", runs.parameters(STUDY, Job("results")))
    found = measure.collect(run, "twin")
    assert found.leaky
    assert list(run.inputs) == ["twin/r0/classification/balanced"]
    with pytest.raises(BadInput, match="first"):
        measure.collect(run, "triplet")


def test_the_search_of_every_arm_is_on_record():
    for r in (0, 1):
        finish(Job("classification", r, "balanced"))
    assert measure.tuning_table(collect().tuning).to_numpy().tolist() == [["balanced", 2, 0.001, 0.002, "0.001 (2x)"]]
    (runs.runs_root() / "quick/r0/classification/balanced/tuning.csv").unlink()
    with pytest.raises(BadInput, match=r"no tuning\.csv: .* run it again"):
        collect()


def test_an_arm_of_an_older_notebook_is_run_again():
    finish(Job("classification", 0, "balanced"), composition=[])
    with pytest.raises(BadInput, match=r"how many lesions .* run it again"):
        collect()


def test_no_complete_replicate_is_one_sentence():
    finish(Job("classification", 0, "balanced"), updates=1)
    finish(Job("classification", 1, "wgan"), updates=1)
    with pytest.raises(BadInput, match="No replicate has all of the arms"):
        collect()


def test_registration_is_shown():
    finish(Job("classification", 0, "balanced"), updates=1)
    assert "never" in collect().registered["time"].iloc[0]
    runs.register(Study())
    assert collect().registered["smallest_effect"].tolist() == [0.02]


def test_intervals_for_scripts_and_for_readers():
    arms = pd.DataFrame({"arm": ["x"], "kind": ["real"], "replicates": [2], "macro_f1": [0.5]})
    arms = arms.assign(macro_f1_low=0.4, macro_f1_high=0.6)
    assert measure.interval_rows(arms).to_dict("records") == [
        {"arm": "x", "metric": "macro_f1", "mean": 0.5, "low": 0.4, "high": 0.6}
    ]
    assert measure.interval_texts(arms)["macro f1"].tolist() == ["0.500 [0.400, 0.600]"]


def test_conclusion_names_every_arm_with_its_numbers():
    row = {
        "arm": "wgan",
        "baseline": "balanced",
        "metric": "macro_f1",
        "difference": 0.031,
        "level": 0.95,
        "evidence": "x",
    }
    verdicts = pd.DataFrame([{**row, "low": -0.01, "high": 0.07, "verdict": "undecided"}])
    text = measure.conclusion(verdicts, smallest_effect=0.02)
    assert "arm balanced" in text
    assert "+0.031 (95.0% interval -0.010 to +0.070, x): undecided" in text
    assert measure.verdict_sentence(verdicts) == "wgan undecided"
    empty = verdicts.iloc[:0]
    assert "nothing to judge" in measure.conclusion(empty, smallest_effect=0.02)
    assert "no verdict" in measure.verdict_sentence(empty)
