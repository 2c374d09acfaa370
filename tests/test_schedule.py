import json
import os
import re
import subprocess
import time

import pytest
from rich.console import Console

from stda import BadInput, batch, runs, schedule
from stda.batch import Status
from stda.runs import Job
from stda.sections import DEFAULT_ARMS, GENERATORS
from stda.study import Study, project_root

FAKE = """
import sys
from stda import runs, study
one, job = study.load(sys.argv[1]), runs.Job.parse(sys.argv[2])
outputs = {"made by": sys.argv[2]}
inputs = {need.key: {"made by": need.key} for need in runs.needs(one, job)}
manifest = {"parameters": runs.parameters(one, job), "inputs": inputs, "outputs": outputs}
runs.write_json(runs.runs_root() / one.name / job.key / "manifest.json", manifest)
open(sys.argv[3], "w").close()
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study whose jobs only write a manifest and an empty report: the real Snakefile, but for its command."""
    monkeypatch.setenv("STDA_RUNS", str(tmp_path / "all runs"))
    monkeypatch.setenv("STDA_REPORTS", str(tmp_path / "all reports"))
    (tmp_path / "fake.py").write_text(FAKE)
    text = (project_root() / "Snakefile").read_text()
    call = f"{{sys.executable:q}} '{tmp_path}/fake.py' {{RESOLVED:q}} {{params.key}} {{output[1]:q}}"
    fake, n = re.subn(
        r"COMMAND = \(?.*?\n\n", f"COMMAND = {call!r}\n\n".replace("\\", r"\\"), text, count=1, flags=re.DOTALL
    )
    assert n == 1
    (tmp_path / "Snakefile").write_text(fake)
    real = schedule.snakemake_command

    def command(*args):
        return [str(tmp_path / "Snakefile") if word.endswith("Snakefile") else word for word in real(*args)]

    monkeypatch.setattr(schedule, "snakemake_command", command)
    return Study()


def run(study, plan):
    schedule.pending(study, plan)  # writes the plan
    runs.register(study)
    subprocess.run(schedule.snakemake_command(study, plan), check=True, capture_output=True)


def changed(one, section, **values):
    return one.model_copy(update={section: getattr(one, section).model_copy(update=values)})


def test_only_what_a_change_affects_is_run_again(study):
    plan = schedule.make_plan(study, cores=2)
    assert {job.key for job in schedule.pending(study, plan)} == {job.key for job in runs.jobs(study)}
    assert not (runs.runs_root() / "quick" / "registered.csv").exists()  # planning is not running
    run(study, plan)
    assert schedule.pending(study, plan) == []

    other = changed(study, "wgan", steps=151)
    arms = [f"classification/{arm}" for arm in ("wgan", "wgan-wrong", "longer")]  # the last spends its seconds
    expected = {f"r{r}/{key}" for r in (0, 1) for key in ("wgan", *arms, "explainability")} | {"results"}
    assert {job.key for job in schedule.pending(other, plan)} == expected

    other = changed(study, "results", resamples=100)
    assert [job.key for job in schedule.pending(other, plan)] == ["results"]

    other = changed(study, "study", replicates=3)
    new = {job.key for job in schedule.pending(other, plan)}
    assert all(key.startswith("r2/") or key == "results" for key in new)
    assert len(new) == 1 + len(GENERATORS) + len(DEFAULT_ARMS) + 1 + 1  # data, ..., explainability, results


def test_what_was_overwritten_by_hand_is_made_again(study):
    plan = schedule.make_plan(study, cores=2)
    run(study, plan)
    path = runs.runs_root() / "quick" / "r0/wgan/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parameters"]["steps"] = 50  # papermill notebooks/04_wgan.ipynb out.ipynb -p steps 50
    path.write_text(json.dumps(manifest))
    keys = {job.key for job in schedule.pending(study, plan)}
    arms = {f"r0/classification/{arm}" for arm in ("wgan", "wgan-wrong", "longer")}
    assert keys == {"r0/wgan", *arms, "r0/explainability", "results"}

    manifest["parameters"]["steps"] = study.wgan.steps
    manifest["outputs"] = {"made by": "another seed of chance"}  # same parameters, other images
    path.write_text(json.dumps(manifest))
    assert "r0/classification/wgan" in {job.key for job in schedule.pending(study, plan)}


def test_jobs_that_were_cut_off_do_not_run_for_ever(study):
    job = Job("wgan", 0)
    batch.write_status(study, Status(job.key, "running", started=1.0))
    schedule._settle(study, [job])
    assert batch.read_status(study, job).status == "failed"
    assert "interrupted" in batch.read_status(study, job).error


def test_results_that_must_be_made_anew_lose_their_manifest(study):
    folder = runs.runs_root() / "quick" / "results"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    schedule._forget(study, [Job("wgan", 0)])
    assert (folder / "manifest.json").exists()
    schedule._forget(study, [Job("results")])
    assert not (folder / "manifest.json").exists()


def test_threads_are_cores_over_jobs():
    assert schedule.make_plan(Study(), cores=2).threads == 1
    plan = schedule.make_plan(Study(), cores=8, jobs=2)
    assert (plan.jobs, plan.threads) == (2, 4)
    assert schedule.make_plan(Study(), cores=64).jobs == 2 * len(DEFAULT_ARMS)  # never more than the widest stage has


def test_time_left_comes_from_finished_jobs_of_the_same_stage():
    done = Status("r0/wgan", "done", seconds=120)
    assert schedule.time_left([done, Status("r1/wgan", "waiting")], 1) == "about 2 min"
    assert (
        schedule.time_left([done, Status("r1/wgan", "running", started=time.time() - 115)], 1) == "less than a minute"
    )
    assert schedule.time_left([Status("r1/wgan", "waiting")], 1) == ""


def test_two_runs_of_one_study_at_a_time_are_refused(study):
    with schedule._locked(study), pytest.raises(BadInput, match="run by another process"), schedule._locked(study):
        pass


def test_snakemake_s_failure_is_one_sentence(study):
    plan = schedule.make_plan(study, cores=2)
    broken = schedule.Plan(2, 2, extra=("--no-such-option",))
    assert plan.keep_going
    with pytest.raises(BadInput, match="could not plan"):
        schedule.pending(study, broken)


def test_the_console_tells_of_failures(study, monkeypatch, tmp_path):
    job = Job("results")
    batch.write_status(study, Status(job.key, "failed", seconds=3.0, error="Run notebook [01] first.", started=1.0))
    with open(tmp_path / "said", "w") as file:
        console = Console(file=file, width=100)
        with schedule._progress(console) as bar:
            schedule._update(study, schedule.Plan(2, 2), [job], bar, bar.add_task("x", total=1, note=""), set())
    said = (tmp_path / "said").read_text()
    assert "failed results in 3 s" in said
    assert "Run notebook [01] first." in said
    assert os.path.exists(batch.status_path(study, job))


def test_the_lock_outlives_a_killed_run_as_long_as_snakemake_does(study):
    with schedule._locked(study) as lock:
        child = subprocess.Popen(["sleep", "30"], pass_fds=[lock])
    try:
        with pytest.raises(BadInput, match="run by another process"), schedule._locked(study):
            pass
    finally:
        child.kill()
        child.wait()
    with schedule._locked(study):
        pass
