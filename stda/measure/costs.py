"""What the arms cost, and what a gain of one hundredth costs: seconds as measured, over gains with their intervals.

An arm's **extra seconds** are those of its own training and of its generator, less those of the baseline's training;
several arms that share one generator each bear all of it, as each would alone.  An **equal-compute** arm (its
manifest's options name a generator to ``spend``) bears only its own, longer training: it shows what the same seconds
buy otherwise.

The interval of seconds per gain comes from that of the gain: its ends are the extra seconds over the gain's ends.  A
gain whose interval reaches zero may be none at all, so its price has no upper end.  Seconds are taken as measured
(mean over replicates): next to a gain of a few hundredths their own spread is small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure.scores import require_columns

UNIT = 0.01  # a gain that one can picture: one point of balanced accuracy
BASELINE = "the baseline itself"
GAIN_COLUMNS = (
    "arm",
    "spends",
    "seconds",
    "extra_seconds",
    "gain",
    "gain_low",
    "gain_high",
    "seconds_per_gain",
    "low",
    "high",
    "peak_memory_mb",
    "images_per_second",
    "note",
)


def cost_table(manifests: Sequence[Mapping[str, Any]], *, arms: Mapping[str, str]) -> pd.DataFrame:
    """Return seconds, peak memory (MB) and images per second (training included) of every stage, mean over replicates.

    ``seconds`` are those of the work itself where the notebook noted them (fact ``work_seconds``: without what it shows
    and tries out), else those of the whole notebook.  For an arm, ``seconds with generator`` adds what its generator
    took, the price of the arm as a whole.
    """
    mean = _stage_means(manifests)
    seconds = mean.set_index("what")["seconds"]
    used = mean["arm"].map(dict(arms)).map(seconds).fillna(0.0)
    mean.insert(3, "seconds with generator", mean["seconds"] + used)
    return mean.drop(columns="arm")


def equal_compute(manifests: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the equal-compute arms: arm -> the generator whose measured seconds it spends on training."""
    options = ((m["arm"], m["parameters"].get("options", {})) for m in manifests if m["arm"])
    return {arm: given["spend"] for arm, given in options if given.get("spend")}


def gain_table(
    differences: pd.DataFrame,
    manifests: Sequence[Mapping[str, Any]],
    *,
    arms: Mapping[str, str],  # arm -> its generator, or an empty string
    unit: float = UNIT,  # the gain that the price is for, in units of the metric
) -> pd.DataFrame:
    """Return what a gain of ``unit`` over the baseline costs in seconds, by arm, with the interval of the gain's.

    ``differences`` has ``arm, baseline, difference, low, high`` (verdicts, and rows of
    :func:`stda.measure.differences` for equal-compute arms).  Returns a row per arm with :data:`GAIN_COLUMNS`:
    ``seconds`` the arm's own training and its generator, ``extra_seconds`` beyond the baseline's; ``seconds_per_gain``
    with ``low, high`` (``inf``: the gain may be zero; 0: not dearer than the baseline); ``spends`` the generator whose
    seconds an equal-compute arm spends; ``peak_memory_mb`` the larger of training and generator; ``images_per_second``
    of the generator, its training included (nan: none).  A baseline that is itself an equal-compute arm has a last row.

    Raises:
        BadInput: an arm, its generator or the baseline has no manifest, ``unit`` is not above 0.
    """
    if not unit > 0:
        raise BadInput(f"unit is {unit}; the price is that of a gain above 0, such as 0.01.")
    if not len(differences):
        return pd.DataFrame(columns=list(GAIN_COLUMNS))
    require_columns(differences, ("arm", "baseline", "difference", "low", "high"), what="differences")
    known, spends = _stage_means(manifests).set_index("what"), equal_compute(manifests)
    rows = [_gain(row._asdict(), known, arms.get(row.arm, ""), unit) for row in differences.itertuples()]
    baseline = differences["baseline"].iloc[0]
    if baseline in spends and baseline not in set(differences["arm"]):
        own = {"arm": baseline, "baseline": baseline, **dict.fromkeys(("difference", "low", "high"), 0.0)}
        rows.append(_gain(own, known, "", unit) | {"note": BASELINE})
    table = pd.DataFrame(rows)
    return table.assign(spends=[spends.get(arm, "") for arm in table["arm"]])[list(GAIN_COLUMNS)]


def gain_sentence(gains: pd.DataFrame, *, metric: str = "balanced_accuracy", unit: float = UNIT) -> str:
    """Say what the gains cost, and whether the same seconds buy more on training without synthetic images."""
    judged, spenders = gains[gains["spends"] == ""], gains[gains["spends"] != ""]
    if judged.empty:
        return "No arm with synthetic images was run, so there is no gain to put a price on."
    shown = judged[judged["gain_low"] > 0].sort_values("seconds_per_gain", kind="stable")
    name = metric.replace("_", " ")
    words = [f"No arm with synthetic images is shown to gain anything in {name}, so no price can be given."]
    if len(shown):
        best = shown.iloc[0]
        price = f"{best['seconds_per_gain']:.3g} seconds per +{unit:g} {name} ({best['low']:.3g} to {best['high']:.3g})"
        if best["extra_seconds"] <= 0:
            price = f"{best['gain']:+.3f} {name} for no more seconds than the baseline's"
        words = [f"The cheapest shown gain is that of arm {best['arm']}: {price}."]
    if spenders.empty:
        return " ".join([*words, "No equal-compute arm was run: what the same seconds buy otherwise is not known."])
    for row in spenders.itertuples():
        if row.note == BASELINE:
            words.append(f"The baseline {row.arm} spends the seconds of {row.spends} on training already.")
            continue
        price = f"{row.seconds_per_gain:.3g} seconds per +{unit:g}" if row.gain_low > 0 else "no gain shown"
        words.append(f"Arm {row.arm} spends the seconds of {row.spends} on training: {row.gain:+.3f}, {price}.")
    return " ".join(words)


def _stage_means(manifests: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    rows = []
    for m in manifests:
        made = m["facts"].get("images", 0)
        name = m["arm"] and f"arm {m['arm']}"
        seconds = m["facts"].get("work_seconds", m["seconds"])
        rate = made / seconds if made and seconds else float("nan")
        rows.append((name or m["stage"], m["arm"], seconds, m["peak_memory_mb"], rate))
    table = pd.DataFrame(rows, columns=["what", "arm", "seconds", "peak memory (MB)", "images per second of all work"])
    return table.groupby(["what", "arm"], sort=False).mean(numeric_only=True).reset_index()


def _stage(known: pd.DataFrame, name: str) -> pd.Series:
    if name not in known.index:
        raise BadInput(f"There is no manifest of '{name}', so its seconds are not known; run it, or leave the arm out.")
    return known.loc[name]


def _gain(row: Mapping[str, Any], known: pd.DataFrame, generator: str, unit: float) -> dict[str, Any]:
    """Return the costs of one arm beside its gain."""
    used = [_stage(known, f"arm {row['arm']}"), *([_stage(known, generator)] if generator else [])]
    seconds = sum(stage["seconds"] for stage in used)
    extra = seconds - _stage(known, f"arm {row['baseline']}")["seconds"]
    gain, low, high = (row[end] for end in ("difference", "low", "high"))
    cost = {"arm": row["arm"], "seconds": seconds, "extra_seconds": extra}
    cost |= {"gain": gain, "gain_low": low, "gain_high": high}
    # the price, its lower and its upper end: the larger the gain, the lower the price
    prices = [max(0.0, extra) / (end / unit) if end > 0 else np.inf for end in (gain, high, low)]
    cost |= dict(zip(("seconds_per_gain", "low", "high"), prices, strict=True))
    cost["peak_memory_mb"] = max(stage["peak memory (MB)"] for stage in used)
    cost["images_per_second"] = used[1]["images per second of all work"] if generator else np.nan
    note = "not dearer than the baseline" if extra <= 0 else ""
    return cost | {"note": "no gain shown" if low <= 0 else note}
