"""Publish a study: copy the numbers of the results notebook beside the reports and build ``index.html``."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from stda import batch, runs
from stda.runs import Job
from stda.sections import GENERATORS
from stda.study import Study

TITLES = {
    "data": "Data and split",
    "nst": "Style transfer",
    "dcgan": "DCGAN",
    "wgan": "Conditional Wasserstein GAN",
    "pggan": "Progressive GAN",
    "classification": "Classifier",
    "explainability": "Explainability",
    "results": "Results and verdict",
}
FILES = ("metrics.csv", "verdict.json", "arms.json")
LICENCES = {
    "phantom": "The phantom images are drawn by this project, show no patient, and prove the machinery, not medicine.",
    "ham10000": "HAM10000 (Tschandl, Rosendahl, Kittler 2018, doi:10.7910/DVN/DBW86T) is CC BY-NC 4.0: attribution, no "
    "commercial use. This report holds pictures of it.",
    "dermamnist": "DermaMNIST (MedMNIST) derives from HAM10000 and is CC BY-NC 4.0: attribution, no commercial use.",
    "folder": "The images come from a folder of yours; their licence is yours to know before you pass this report on.",
}


def publish(study: Study) -> Path:
    """Write ``reports/<study>/index.html`` for the state the study is in, whatever that is, and return its path.

    Numbers of an earlier run are taken away when the results have to be made anew, so that a verdict on the index
    always belongs to the runs it lists.
    """
    from stda.show.site import build_index

    reports, done = runs.reports_root() / study.name, runs.runs_root() / study.name
    runs.probe_writable(reports)
    for name in FILES:
        made = done / "results" / name
        if batch.read_status(study, Job("results")).status == "done" and made.is_file():
            shutil.copyfile(made, reports / f".{name}.partial")
            (reports / f".{name}.partial").replace(reports / name)
        else:
            (reports / name).unlink(missing_ok=True)
    return build_index(
        study.name,
        runs.reports_root(),
        runs.runs_root(),
        question=study.study.question,
        jobs=[_job(study, job) for job in runs.jobs(study)],
        not_run=not_run(study),
        facts=_facts(study),
    )


def not_run(study: Study) -> list[str]:
    """Say what this study leaves out."""
    missing = [f"{TITLES[name]}: no arm of this study uses it" for name in GENERATORS if name not in study.generators]
    if study.study.replicates < 5:
        n = study.study.replicates
        missing.append(
            f"More than {n} replicate{'s' if n > 1 else ''}: a verdict other than undecided is hard to reach"
        )
    arms = study.classification.arms
    unused = [name for name in ("mix", "pretrain", "synthetic-only") if name not in {arm.protocol for arm in arms}]
    if unused:
        missing.append(f"Protocol {' and '.join(unused)}: no arm of this study uses it")
    if "self-training" not in {arm.synthetic for arm in arms}:
        missing.append("Self-training, the pseudo-labels without the synthesis: no arm of this study uses it")
    missing.append(
        "Arms with focal or logit-adjusted loss, Mixup, CutMix and equal compute; placebos other than duplicates and "
        "self-training; tuning per arm"
    )
    return missing


def _job(study: Study, job: Job) -> dict[str, Any]:
    state = batch.read_status(study, job)
    folder = runs.runs_root() / study.name / job.key
    headline = runs.read_manifest(folder)["headline"] if (folder / "manifest.json").is_file() else ""
    page = state.html if (runs.reports_root() / study.name / (state.html or ".")).is_file() else ""
    return {
        "stage": job.stage,
        "title": TITLES[job.stage],
        "replicate": job.replicate,
        "arm": job.arm,
        "status": state.status,
        "seconds": state.seconds,
        "html": page,
        "headline": headline if state.status == "done" else "",
        "error": state.error,
    }


def _facts(study: Study) -> dict[str, Any]:
    d, folder = study.data, runs.runs_root() / study.name
    software = [runs.read_manifest(folder / job.key)["software"] for job in runs.finished(study.name)[0]]
    registered = folder / "registered.csv"
    lines = pd.read_csv(registered) if registered.is_file() else pd.DataFrame(columns=["time", "sha256"])
    machine = _machine(study)
    return {
        "data": f"{d.source}{f', classes {d.classes}' if d.classes else ''}, {d.image_size} px",
        "encoder": f"{d.encoder}{f' ({Path(d.encoder_weights).name})' if d.encoder_weights else ''}",
        "replicates": study.study.replicates,
        "smallest_effect": study.results.smallest_effect,
        "judged_by": f"{study.results.metric}, {study.results.confidence:.0%} confidence",
        "registered": f"{lines['time'].iloc[0]} ({lines['sha256'].iloc[-1][:12]})" if len(lines) else "not registered",
        "changes_after_registration": max(len(lines) - 1, 0),
        "git_commit": _distinct(s["commit"][:12] + ("+" if s["commit"].endswith("+") else "") for s in software),
        "versions": _distinct(f"{name} {s[name]}" for name in ("python", "torch", "torchvision") for s in software),
        "machine": machine,
        "built": time.strftime("%Y-%m-%d %H:%M %Z"),
        "data_licence": LICENCES[d.source],
    }


def _distinct(values: Iterable[str]) -> str:
    """Join the different values in order: more than one commit here means runs of different code."""
    return ", ".join(dict.fromkeys(values)) or "nothing has run yet"


def _machine(study: Study) -> str:
    """Describe where the first classifier ran: device, threads, precision."""
    for job in runs.jobs(study):
        path = runs.runs_root() / study.name / job.key
        if job.stage == "classification" and (path / "manifest.json").is_file():
            m = runs.read_manifest(path)["machine"]
            return f"{m['device']}, {m['threads']} thread{'s' if m['threads'] > 1 else ''} per job, {m['precision']}"
    return "nothing has run yet"
