import json

import pytest

from stda import batch, publish, runs
from stda.batch import Status
from stda.runs import Job
from stda.study import Study, validate


@pytest.fixture(autouse=True)
def roots(tmp_path, monkeypatch):
    monkeypatch.setenv("STDA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("STDA_REPORTS", str(tmp_path / "reports"))


def finish_results():
    run = runs.begin("results", runs.parameters(Study(), Job("results")))
    row = {"arm": "wgan", "baseline": "balanced", "metric": "balanced_accuracy", "difference": 0.1, "low": 0.05}
    runs.write_json(run.path("verdict.json"), [{**row, "high": 0.15, "verdict": "helps", "p_holm": 0.01}])
    run.path("metrics.csv").write_text("replicate,arm,split,metric,value\n0,wgan,test,balanced_accuracy,0.6\n")
    run.finish(headline="wgan helps")


def test_the_index_tells_the_verdict_and_how_every_job_stands(tmp_path):
    study = Study()
    runs.register(study)
    finish_results()
    batch.write_status(study, Status("results", "done", seconds=60.0))
    batch.write_status(study, Status("r0/wgan", "failed", seconds=9.0, error="the kernel died <here>"))
    page = publish.publish(study).read_text()
    assert "helps" in page
    assert "the kernel died &lt;here&gt;" in page
    assert study.study.question in page
    assert "prove the machinery" in page
    folder = tmp_path / "reports" / "quick"
    assert json.loads((folder / "verdict.json").read_text())[0]["verdict"] == "helps"
    assert (folder / "metrics.csv").is_file()


def test_an_old_verdict_is_taken_away_when_the_results_have_to_be_made_anew(tmp_path):
    study = Study()
    runs.register(study)
    finish_results()
    batch.write_status(study, Status("results", "done", seconds=60.0))
    publish.publish(study)
    assert (tmp_path / "reports" / "quick" / "verdict.json").exists()
    batch.status_path(study, Job("results")).unlink(missing_ok=True)  # what a new run does before it starts
    page = publish.publish(study).read_text()
    assert not (tmp_path / "reports" / "quick" / "verdict.json").exists()
    assert "wgan helps" not in page


def test_what_was_not_run_is_said():
    study = validate({"classification": {"arms": [{"arm": "a"}]}, "study": {"replicates": 1}}, where="x")
    said = " ".join(publish.not_run(study))
    assert "Progressive GAN" in said
    assert "1 replicate:" in said
