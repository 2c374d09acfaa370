"""The arms that were trained in a replicate, with the validation score by which the best is chosen."""

from __future__ import annotations

import pandas as pd

from stda import BadInput
from stda.runs import Stage, arm_knobs, finished
from stda.sections import arm_kind


def trained_arms(run: Stage) -> pd.DataFrame:
    """Return the arms that were trained in the replicate of ``run``: arm, synthetic, kind, val_balanced_accuracy."""
    jobs, _ = finished(run.values["study"])
    arms = [job.arm for job in jobs if job.stage == "classification" and job.replicate == run.job.replicate]
    if not arms:
        raise BadInput(
            f"Run notebooks/06_classification.ipynb first: replicate {run.job.replicate} of study "
            f"'{run.values['study']}' has no trained arm."
        )
    rows = []
    for arm in arms:
        folder = run.upstream("classification", arm)
        scores = pd.read_csv(folder / "metrics.csv", index_col="metric")
        knobs = arm_knobs(folder)
        kind = arm_kind(knobs["synthetic"], labels=knobs["labels"], real_share=knobs["real_share"])
        rows.append((arm, knobs["synthetic"], kind, scores.loc["balanced_accuracy", "val"]))
    return pd.DataFrame(rows, columns=["arm", "synthetic", "kind", "val_balanced_accuracy"])
