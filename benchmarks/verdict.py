"""Check the verdict on simulated studies whose truth is known: false calls, power and equivalence.

Run it alone, ``python benchmarks/verdict.py [--studies 2000]``.  A study is simulated lesion by lesion
(:mod:`stda.measure.simulation`: seven classes, 500 test lesions) and judged by the rules of the project:

- **null**: no arm has an effect.  In how many studies is any arm called helps or harms?  At most 5 %.
- **power**: one arm has twice the smallest effect.  How often is it called helps, and what does the power calculation
  say: from the mean spread of all studies ("calculated"), from each study's own spread (mean over studies), and from
  the spread of the same study with fewer replicates?
- **bound**: every arm has exactly the smallest effect.  In how many studies is any called equivalent?  At most 5 %.
- **same**: no arm has an effect.  How often is the first called equivalent, and what does the calculation say?

Settings with fewer replicates or arms are parts of the same simulated studies.  Intervals are Wilson's at 95 %.  Writes
``reports/reference/verdict/*.csv``; the last line is one JSON object of the numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from stda.measure.bootstrap import Estimate, FoldCounts
from stda.measure.power import Rule, chances
from stda.measure.scores import wilson
from stda.measure.simulation import Design, simulate_folds
from stda.measure.verdict import judge_folds

FOLDER = Path(__file__).resolve().parents[1] / "reports" / "reference" / "verdict"
STUDIES = 2000
RESAMPLES = 100  # of the lesions: the fewest that the verdict allows; more are a little more exact and much slower
ALPHA = 0.05
SMALL, LARGE = 0.02, 0.05  # smallest effects; the larger one is within reach of an equivalence test
ARMS = list(product((1, 4), (1, 4)))  # synthetic arms and baselines
NULL_REPLICATES, POWER_REPLICATES, BOUND_REPLICATES = (2, 3, 5, 10), (5, 10, 20), (5, 10)
Folds = tuple[FoldCounts, FoldCounts]


def judge_part(folds: Folds, design: Design, setting: tuple[int, tuple[int, int]], smallest: float) -> pd.DataFrame:
    """Judge the first replicates, the last baselines and the first synthetic arms of a study."""
    replicates, (synthetic, baselines) = setting
    arms = slice(design.baselines - baselines, design.baselines + synthetic)
    names = design.arms[arms]
    part = [
        replace(
            fold,
            arms=names,
            replicates=fold.replicates[:replicates],
            counts=[counts[arms] for counts in fold.counts[:replicates]],
            lesions=fold.lesions[:replicates],
        )
        for fold in folds
    ]
    rule = Rule("balanced_accuracy", smallest, ALPHA)
    return judge_folds(*part, names[baselines:], names[:baselines], rule, resamples=RESAMPLES, plan=False)


def run_studies(
    design: Design,
    settings: Sequence[tuple[int, tuple[int, int]]],
    studies: int,
    read: Callable[[pd.DataFrame], Sequence[float]],
    *,
    smallest: float,
    name: str,
) -> np.ndarray:
    """Simulate and judge; returns ``(studies, settings, values)`` of what ``read`` takes from the verdicts."""
    start, found = time.perf_counter(), []
    for study in range(studies):
        folds = simulate_folds(design, seed=study)
        found.append([read(judge_part(folds, design, setting, smallest)) for setting in settings])
        if (study + 1) % 250 == 0:
            sums = np.sum(found, axis=0)[:, 0].astype(int).tolist()
            seconds = time.perf_counter() - start
            print(f"{name}: {study + 1} studies in {seconds:.0f} s, called by setting {sums}", flush=True)
    return np.array(found, dtype=float)


def rate(called: np.ndarray) -> dict[str, float]:
    """Return the share of studies with Wilson's interval."""
    low, high = wilson(int(called.sum()), len(called))
    return {"studies": len(called), "rate": float(called.mean()), "low": low, "high": high}


def name_setting(setting: tuple[int, tuple[int, int]]) -> dict[str, int]:
    replicates, (synthetic, baselines) = setting
    return {"replicates": replicates, "synthetic": synthetic, "baselines": baselines}


def null(studies: int) -> pd.DataFrame:
    """Count studies without any effect in which an arm is called helps or harms."""
    settings, rows = list(product(NULL_REPLICATES, ARMS)), []
    even = Design(replicates=max(NULL_REPLICATES), baselines=4, effects=(0.0,) * 4)
    for spread, design in (("equal", even), ("one generator 3 x", replace(even, noisier=(3.0,)))):
        found = run_studies(
            design,
            settings,
            studies,
            lambda verdicts: [verdicts["verdict"].isin(["helps", "harms"]).any()],
            smallest=SMALL,
            name=f"null, {spread}",
        )
        rows += [{"spread": spread, **name_setting(s), **rate(found[:, i, 0])} for i, s in enumerate(settings)]
    return pd.DataFrame(rows)


def calls(settings: Sequence, studies: int, *, effect: float, smallest: float, call: str) -> pd.DataFrame:
    """Compare how often the first arm gets its ``call`` with what the power calculation says."""
    design = Design(replicates=max(r for r, _ in settings), baselines=4, effects=(effect, 0.0, 0.0, 0.0))
    counts = sorted({r for r, _ in settings})

    def read(verdicts: pd.DataFrame) -> list[float]:
        first = verdicts.iloc[0]
        e = Estimate(0.0, first["error"], first["freedom"], first["tied_baselines"])
        knobs = {"truth": effect, "counts": counts, "n_arms": len(verdicts), "rough": True}
        planned = chances(e, first["replicates"], Rule("balanced_accuracy", smallest, ALPHA), **knobs)
        return [first["verdict"] == call, e.error**2, e.freedom, e.tied, *getattr(planned, call)]

    found = run_studies(design, settings, studies, read, smallest=smallest, name=f"{call}, effect {effect}")
    rows = []
    for i, (replicates, arms) in enumerate(settings):
        row = {"effect": effect, "smallest_effect": smallest, "call": call, **name_setting((replicates, arms))}
        variance, freedom, tied, *own = found[:, i, 1:].mean(0)
        e = Estimate(0.0, np.sqrt(variance), freedom, round(tied))
        knobs = {"truth": effect, "counts": [replicates], "n_arms": arms[0]}
        planned = chances(e, replicates, Rule("balanced_accuracy", smallest, ALPHA), **knobs)
        pilot = found[:, settings.index((counts[0], arms)), 4 + counts.index(replicates)].mean()
        row |= {**rate(found[:, i, 0]), "calculated": float(getattr(planned, call)[0]), "error": e.error, "tied": tied}
        row |= {"calculated_by_study": own[counts.index(replicates)], f"calculated_from_{counts[0]}": pilot}
        rows.append(row)
    return pd.DataFrame(rows)


def bound(studies: int) -> pd.DataFrame:
    """Count studies in which an arm with exactly the smallest effect is called equivalent."""
    settings, rows = list(product(BOUND_REPLICATES, ARMS)), []
    for effect in (LARGE, -LARGE):
        design = Design(replicates=max(BOUND_REPLICATES), baselines=4, effects=(effect,) * 4)
        found = run_studies(
            design,
            settings,
            studies,
            lambda verdicts: [(verdicts["verdict"] == "equivalent").any()],
            smallest=LARGE,
            name=f"bound, effect {effect}",
        )
        rows += [{"effect": effect, **name_setting(s), **rate(found[:, i, 0])} for i, s in enumerate(settings)]
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=STUDIES, help="simulated studies per setting")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the tables go")
    parser.add_argument("--only", choices=("null", "power", "bound", "same"), help="one of the four checks")
    wanted = parser.parse_args()
    n = wanted.studies
    checks = {
        "null": lambda: null(n),
        "power": lambda: calls(
            list(product(POWER_REPLICATES, ARMS)), n, effect=2 * SMALL, smallest=SMALL, call="helps"
        ),
        "bound": lambda: bound(n),
        "same": lambda: calls(list(product(BOUND_REPLICATES, ARMS)), n, effect=0.0, smallest=LARGE, call="equivalent"),
    }
    wanted.folder.mkdir(parents=True, exist_ok=True)
    report = {}
    for name, check in checks.items():
        if wanted.only not in (None, name):
            continue
        table = check()
        table.to_csv(wanted.folder / f"{name}.csv", index=False, float_format="%.4f")
        print(f"\n{name}\n{table.round(4).to_string(index=False)}\n", flush=True)
        report |= {f"{name}_highest_rate": round(float(table["rate"].max()), 4), f"{name}_studies": n}
        if "calculated" in table:
            report[f"{name}_calculated_above_observed"] = round(float((table["calculated"] - table["rate"]).max()), 4)
            report[f"{name}_calculated_below_observed"] = round(float((table["rate"] - table["calculated"]).max()), 4)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
