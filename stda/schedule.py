"""Run a whole study: hand its jobs to Snakemake, watch their status files, and build the index whatever happens."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from stda import BadInput, batch, runs
from stda.batch import Status
from stda.runs import Job
from stda.study import Study, project_root


@dataclass(frozen=True)
class Plan:
    """How a study is run: CPU cores, jobs side by side, seconds a cell may take, and words passed on to Snakemake."""

    cores: int
    jobs: int
    keep_going: bool = True
    timeout: int = 0
    extra: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        """Threads of one job: two jobs of two threads each on two cores would fight for them."""
        return max(1, self.cores // self.jobs)


def make_plan(study: Study, *, cores: int, jobs: int = 0, **options: object) -> Plan:
    """Fill a plan: as many jobs side by side as there are cores, never more than the widest stage has."""
    widest = study.study.replicates * max(len(study.classification.arms), len(study.generators), 1)
    return Plan(cores, max(1, min(jobs or cores, widest)), **options)


def snakemake_command(study: Study, plan: Plan, *more: str) -> list[str]:
    """Return the Snakemake call for a study whose resolved params lie in ``.plan.json``."""
    folder = runs.runs_root() / study.name
    stale = [f"{job.key}/manifest.json" for job in runs.overwritten(study)]
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(project_root() / "Snakefile")),
        *("--directory", str(folder), "--configfile", str(folder / ".plan.json")),
        *(["--forcerun", *stale] if stale else []),
        *("--config", f"batch={{'threads': {plan.threads}, 'timeout': {plan.timeout}}}"),
        # our own lock (released when the process dies) replaces Snakemake's, which outlives a kill
        *("--cores", str(plan.jobs), "--nolock", "--rerun-incomplete", "--quiet", "host"),
        *(["--keep-going"] if plan.keep_going else []),
        *plan.extra,
        *more,
    ]


def pending(study: Study, plan: Plan) -> list[Job]:
    """Return the jobs that Snakemake would run now, without running or registering anything."""
    runs.probe_writable(runs.runs_root() / study.name)
    runs.write_json(runs.runs_root() / study.name / ".plan.json", runs.resolved(study))
    call = subprocess.run(snakemake_command(study, plan, "--dry-run"), capture_output=True, text=True)
    if call.returncode:
        log = write_log(study, call.stdout + call.stderr)
        raise BadInput(f"Snakemake could not plan the study ({last_line(call.stderr)}); its words are in {log}.")
    keys = re.findall(r"^\s+output: (\S+)/manifest\.json", call.stdout + call.stderr, re.MULTILINE)
    return [Job.parse(key) for key in dict.fromkeys(keys)]


def run_study(study: Study, plan: Plan, console: Console) -> list[Status]:
    """Run what is missing or out of date and return the status of every job of the study."""
    with _locked(study) as lock:
        todo = pending(study, plan)
        runs.register(study)
        if todo:
            _forget(study, todo)
            _watch(study, plan, todo, console, lock)
    return [batch.read_status(study, job) for job in runs.jobs(study)]


def _watch(study: Study, plan: Plan, todo: list[Job], console: Console, lock: int) -> None:
    """Start Snakemake and show done / running / failed and the time left until it ends.

    Snakemake inherits the lock: should this process be killed, the lock holds until Snakemake has ended too.
    """
    log_path = runs.runs_root() / study.name / "snakemake.log"
    with open(log_path, "w") as log, _progress(console) as bar:
        own = {"stdout": log, "stderr": log, "start_new_session": True, "pass_fds": [lock]}
        process = subprocess.Popen(snakemake_command(study, plan), **own)
        task, told = bar.add_task(study.name, total=len(todo), note=""), set()
        try:
            while process.poll() is None:
                _update(study, plan, todo, bar, task, told)
                time.sleep(0.5)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)  # jobs and kernels with it; finished stages stay
            process.wait(timeout=60)
            _settle(study, todo)
            raise
        _settle(study, todo)
        _update(study, plan, todo, bar, task, told)
    failed = [s for s in (batch.read_status(study, job) for job in todo) if s.status == "failed"]
    if process.returncode and not failed:
        raise BadInput(f"Snakemake stopped ({last_line(log_path.read_text())}); its words are in {log_path}.")


def _update(study: Study, plan: Plan, todo: list[Job], bar: Progress, task: int, told: set[str]) -> None:
    states = [batch.read_status(study, job) for job in todo]
    count = {name: sum(s.status == name for s in states) for name in ("done", "running", "failed")}
    for state in states:
        if state.status in ("done", "failed") and state.job not in told:
            told.add(state.job)
            word = "[green]done[/]" if state.status == "done" else "[red]failed[/]"
            bar.console.print(f"{word} {state.job} in {state.seconds:.0f} s", highlight=False, soft_wrap=True)
            if state.error:
                bar.console.print(f"     {state.error}", markup=False, highlight=False, soft_wrap=True)
    left = time_left(states, plan.jobs)
    note = f"{count['done']} done, {count['running']} running, {count['failed']} failed" + (
        f", {left} left" if left else ""
    )
    bar.update(task, completed=count["done"] + count["failed"], note=note)


def time_left(states: list[Status], side_by_side: int) -> str:
    """Estimate the time left in words, from the seconds of finished jobs of the same stage (else of all)."""
    seconds: dict[str, list[float]] = {}
    for state in states:
        if state.status == "done":
            seconds.setdefault(Job.parse(state.job).stage, []).append(state.seconds)
    if not seconds:
        return ""
    everything = [s for each in seconds.values() for s in each]
    total = 0.0
    for state in states:
        if state.status in ("waiting", "running"):
            known = seconds.get(Job.parse(state.job).stage, everything)
            spent = time.time() - state.started if state.status == "running" else 0.0
            total += max(sum(known) / len(known) - spent, 1.0)
    minutes = total / side_by_side / 60
    return f"about {minutes:.0f} min" if minutes >= 1 else "less than a minute"


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _forget(study: Study, todo: list[Job]) -> None:
    """Remove the status of jobs that are about to run, so that an old outcome is not taken for the new one.

    Results that have to be made anew lose their manifest at once: should an upstream job fail, Snakemake never comes
    to them, and the old verdict must not stand beside the new runs.
    """
    for job in todo:
        batch.status_path(study, job).unlink(missing_ok=True)
        if job.stage == "results":
            (runs.runs_root() / study.name / job.key / "manifest.json").unlink(missing_ok=True)


def _settle(study: Study, todo: list[Job]) -> None:
    """Say of jobs that were cut off that they were: nobody is left to write their status."""
    for job in todo:
        state = batch.read_status(study, job)
        if state.status == "running":
            state.status, state.error = "failed", "interrupted before it ended; run the same command again"
            batch.write_status(study, state)


@contextmanager
def _locked(study: Study) -> Iterator[int]:
    """Hold the study's lock and give its file descriptor; the system releases it when its holders end, however."""
    folder = runs.runs_root() / study.name
    runs.probe_writable(folder)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"Study '{study.name}' is being run by another process; wait for it or stop it.") from None
        yield file.fileno()


def write_log(study: Study, text: str) -> Path:
    """Keep what Snakemake said and return where."""
    path = runs.runs_root() / study.name / "snakemake.log"
    path.write_text(text)
    return path


def last_line(text: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
