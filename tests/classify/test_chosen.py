import pandas as pd
import pytest

from stda import BadInput, classify, runs
from stda.runs import Job
from stda.study import Study


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("STDA_RUNS", str(tmp_path))
    return runs.begin("explainability", runs.parameters(Study(), Job("explainability", 1)))


def train(arm, replicate, value):
    stage = runs.begin("classification", runs.parameters(Study(), Job("classification", replicate, arm)))
    scores = pd.DataFrame({"metric": ["balanced_accuracy"], "val": [value], "test": [0.99 - value]})
    scores.to_csv(stage.path("metrics.csv"), index=False)
    stage.finish(headline="x")


def test_arms_of_this_replicate_with_their_validation_score(run):
    for arm, value in (("none", 0.2), ("balanced", 0.4), ("wgan", 0.3), ("nst", 0.35)):
        train(arm, 1, value)
    train("pggan", 0, 0.9)  # another replicate
    trained = classify.trained_arms(run)
    assert dict(zip(trained["arm"], trained["val_balanced_accuracy"], strict=True)) == {
        "none": 0.2, "balanced": 0.4, "wgan": 0.3, "nst": 0.35,
    }  # fmt: skip
    assert classify.best_arms(trained)["arm"].tolist() == ["balanced", "nst"]
    assert "r1/classification/wgan" in run.inputs


def test_no_arm_tells_what_to_run(run):
    with pytest.raises(BadInput, match=r"Run notebooks/06_classification\.ipynb first"):
        classify.trained_arms(run)
