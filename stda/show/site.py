"""The index of a study: question, verdicts, effects, arms, what ran and what did not, as one HTML file."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from stda import BadInput
from stda.show.progress import duration
from stda.show.render import write_atomic
from stda.show.tables import DASH, cell_text

SYMBOLS = {"done": "✓", "failed": "✗", "running": "…", "waiting": "·"}
# headline first; accuracy only ever beside the accuracy of always naming the largest class (rule 5 of evidence)
MAIN_METRICS = (
    "balanced_accuracy", "macro_f1", "auroc", "auprc", "ece", "sensitivity", "specificity",
    "accuracy", "majority_accuracy",
)  # fmt: skip
HEADLINE = MAIN_METRICS[0]


def build_index(
    study_name: str,
    reports_dir: Path | str,
    runs_dir: Path | str,
    *,
    question: str,
    jobs: Sequence[Mapping[str, Any]],
    not_run: Sequence[str],
    facts: Mapping[str, Any],
) -> Path:
    """Write ``<reports_dir>/<study_name>/index.html`` whole or not at all, and return its path.

    Reads what lies beside it: ``verdict.json`` (list of arm, baseline, metric, difference, low, high, verdict, and
    where known p_holm, reason, replicates), ``metrics.csv`` (replicate, arm, split, metric, value) and ``arms.json``
    (list of arm, metric, mean, low, high); each may be missing.  A job has stage, title, replicate, arm, status (done,
    failed, running, waiting), seconds, html (relative address or ""), headline, error.  ``facts`` are shown in order;
    ``smallest_effect`` gives the figure's band, ``data_licence`` its own line.  BadInput when a file is broken.
    """
    import jinja2

    folder = Path(reports_dir) / study_name
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("study.html.j2").render(
        study=study_name,
        question=question,
        jobs=[_job_row(job) for job in jobs],
        progress=summary(jobs),
        not_run=list(not_run),
        runs=_relative(Path(runs_dir) / study_name, folder),
        **_results(folder, facts.get("smallest_effect")),
        facts=[_fact(k, v) for k, v in facts.items() if k != "data_licence"],
        licence=facts.get("data_licence", ""),
    )
    write_atomic(folder / "index.html", page)
    return folder / "index.html"


def _fact(name: str, value: Any) -> tuple[str, str]:
    return str(name).replace("_", " "), f"{value:g}" if isinstance(value, float) else cell_text(value)


def _results(folder: Path, smallest_effect: float | None) -> dict[str, Any]:
    """Gather what the results notebook wrote, as the template wants it."""
    verdicts = _read_json(folder / "verdict.json")
    metrics = _read_metrics(folder / "metrics.csv")
    baselines = {str(v["baseline"]) for v in verdicts}
    rows = [_verdict_row(v) for v in verdicts]
    measured = {row["metric"] for row in rows}
    return {
        "verdicts": rows,
        "one_metric": measured.pop() if len(measured) == 1 else "",
        "one_baseline": next(iter(baselines)) if len(baselines) == 1 else "",
        "effects": _effects_picture(verdicts, smallest_effect),
        "smallest_effect": smallest_effect,
        "arms": arms_table(metrics, _read_json(folder / "arms.json"), baselines),
        "arms_picture": _arms_picture(metrics),
        "files": [name for name in ("verdict.json", "metrics.csv", "arms.json") if (folder / name).exists()],
    }


def summary(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Say in words how far a study is: ``12 of 14 notebooks done, 1 failed, 1 waiting; 34 min 10 s of work``."""
    count = {status: sum(job["status"] == status for job in jobs) for status in SYMBOLS}
    words = [f"{count['done']} of {len(jobs)} notebooks done"]
    words += [f"{n} {status}" for status, n in count.items() if n and status != "done"]
    return ", ".join(words) + f"; {duration(sum(float(job.get('seconds') or 0) for job in jobs))} of work"


def arms_table(metrics: pd.DataFrame, intervals: Sequence[Mapping[str, Any]], baselines: set[str]) -> dict[str, Any]:
    """Put the test scores of every arm into rows: mean, interval where known, and the value of each replicate."""
    test = metrics[metrics["split"] == "test"]
    names = [m for m in MAIN_METRICS if m in set(test["metric"])]
    known = {(str(i["arm"]), str(i["metric"])): i for i in intervals}
    order = test[test["metric"] == HEADLINE].groupby("arm")["value"].mean().sort_values(ascending=False, kind="stable")
    rows = []
    for arm in order.index:
        cells = []
        for metric in names:
            values = test[(test["arm"] == arm) & (test["metric"] == metric)].sort_values("replicate")["value"]
            cells.append(_score_cell(values, known.get((str(arm), metric))))
        rows.append({"arm": arm, "cells": cells, "baseline": str(arm) in baselines})
    replicates = sorted({str(r) for r in test["replicate"]})
    return {
        "names": [n.replace("_", " ") for n in names],
        "rows": rows,
        "replicates": replicates,
        "has_low": bool(known),
    }


def _score_cell(values: pd.Series, interval: Mapping[str, Any] | None) -> dict[str, str]:
    if values.empty:
        return {"mean": DASH, "each": "", "interval": ""}
    each = " · ".join(cell_text(float(v), 2) for v in values) if len(values) > 1 else ""
    between = f"{cell_text(interval['low'], 3)} to {cell_text(interval['high'], 3)}" if interval else ""
    mean = interval.get("mean", values.mean()) if interval else values.mean()
    return {"mean": cell_text(float(mean), 3), "each": each, "interval": between}


def _verdict_row(verdict: Mapping[str, Any]) -> dict[str, Any]:
    from stda.show.charts import VERDICTS

    look = VERDICTS.get(verdict["verdict"], VERDICTS["undecided"])
    return {
        "arm": verdict["arm"],
        "baseline": verdict["baseline"],
        "metric": str(verdict["metric"]).replace("_", " "),
        "difference": _signed(verdict["difference"]),
        "interval": f"{_signed(verdict['low'])} to {_signed(verdict['high'])}",
        "verdict": verdict["verdict"],
        "symbol": look["symbol"],
        "colour": look["colour"],
        "p": cell_text(verdict.get("p_holm"), 3),
        "reason": verdict.get("reason") or "",
        "replicates": cell_text(verdict.get("replicates")),
    }


def _signed(value: float | None) -> str:
    text = cell_text(None if value is None else float(value), 3)
    return text if text == DASH or value <= 0 else f"+{text}"


def _job_row(job: Mapping[str, Any]) -> dict[str, Any]:
    if job["status"] not in SYMBOLS:
        raise BadInput(f"Unknown status {job['status']!r} of job {job['title']!r}; it is one of {list(SYMBOLS)}.")
    seconds = job.get("seconds")
    return {
        "title": job["title"],
        "stage": job["stage"],
        "replicate": cell_text(job.get("replicate")),
        "arm": job.get("arm") or "",
        "status": job["status"],
        "symbol": SYMBOLS[job["status"]],
        "minutes": cell_text(float(seconds) / 60, 1) if seconds else DASH,
        "address": quote(str(job.get("html") or "")),
        "headline": job.get("headline") or "",
        "error": job.get("error") or "",
    }


def _effects_picture(verdicts: Sequence[Mapping[str, Any]], smallest: float | None) -> dict[str, str] | None:
    """Draw the effects of the headline metric; the alt text says what the picture shows, number by number."""
    verdicts = [v for v in verdicts if None not in (v["difference"], v["low"], v["high"])]
    if not verdicts:
        return None
    from stda.show.charts import effects_figure

    metric = str(verdicts[0]["metric"])
    parts = [
        f"{v['arm']} {_signed(v['difference'])} ({_signed(v['low'])} to {_signed(v['high'])}), {v['verdict']}"
        for v in verdicts
        if str(v["metric"]) == metric
    ]
    alt = f"Difference in {metric.replace('_', ' ')} to the baseline, with intervals: {'; '.join(parts)}."
    return _embedded(effects_figure(list(verdicts), smallest_effect=float(smallest or 0)), alt)


def _arms_picture(metrics: pd.DataFrame) -> dict[str, str] | None:
    from stda.show.charts import arms_figure

    rows = metrics[(metrics["split"] == "test") & (metrics["metric"] == HEADLINE)]
    if rows.empty:
        return None
    means = rows.groupby("arm")["value"].mean().sort_values(ascending=False, kind="stable")
    words = "; ".join(f"{arm} {mean:.3f}" for arm, mean in means.items())
    return _embedded(arms_figure(metrics), f"Balanced accuracy on the test fold by arm, mean over replicates: {words}.")


def _embedded(fig: Any, alt: str) -> dict[str, str]:
    from stda.show.figures import png

    return {"src": "data:image/png;base64," + base64.b64encode(png(fig)).decode("ascii"), "alt": alt}


def _read_json(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}): delete it and run notebook 08 again.") from error
    if not isinstance(rows, list):
        raise BadInput(f"{path} holds a {type(rows).__name__}, a list was expected: run notebook 08 again.")
    return rows


def _read_metrics(path: Path) -> pd.DataFrame:
    columns = ["replicate", "arm", "split", "metric", "value"]
    if not path.exists():
        return pd.DataFrame(columns=columns)
    frame = pd.read_csv(
        path, dtype={"arm": str, "split": str, "metric": str}, keep_default_na=False, na_values={"value": [""]}
    )
    missing = [c for c in columns if c not in frame]
    if missing:
        raise BadInput(f"{path} has no column {missing}: delete it and run notebook 08 again.")
    return frame


def _relative(path: Path, start: Path) -> str:
    """Return a path as seen from a folder, so that the page names no place of this machine."""
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:  # another drive on Windows
        return path.name
