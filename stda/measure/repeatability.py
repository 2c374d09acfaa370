"""Repeatability: does training with synthetic images end in the same place more often, as ST-DA claims?

Every arm is trained several times per replicate, with other classifier seeds on the same images.  The spread of its
scores *within* replicates is then the luck of training alone.  Where each arm was trained once per replicate, the
spread is that *over* replicates, which also holds the luck of the split; both arms share it, which pulls their ratio
towards one.

- The **variance ratio** is an arm's variance over the baseline's, each pooled over replicates.  Its interval is a
  percentile bootstrap of the residuals, at the level that makes up for few degrees of freedom (Hesterberg 2015) with
  those of both arms together.  Over replicates both arms are resampled with the same replicates.  Simulated under equal
  variances (1,000 studies each; one replicate of 5 or 10, three of 3, five of 2, 3 or 5 trainings; normal, t with 5
  degrees of freedom, skewed) a 95 % interval held the truth in 91 to 99 %, paired over 5 to 20 replicates in 92 to
  95 %: few trainings say little, and with heavy tails a little less than they seem to.
- The **test** is Brown and Forsythe's (1974): the analysis of variance of distances to the median of their replicate.
  Pooled over small replicates the plain test fails (two trainings have equal distances by construction: 21 % false
  alarms were simulated), so these structural zeros are taken out (Hines and O'Hara Hines 2000): 2 to 5 %.
- A claim is **supported** or **contradicted** only if the interval leaves out one *and* the test, Holm-adjusted over
  the arms with synthetic images, is significant; else it is **undecided**.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure.scores import class_codes, confusion, confusion_metric, positive_class, require_columns
from stda.measure.verdict import holm

MIN_FREEDOM = 4  # of each variance: with fewer, intervals of their ratio span many powers of ten
TOO_FEW = (
    f"There are too few trainings to compare spreads (fewer than {MIN_FREEDOM} degrees of freedom): set repeats to 5, "
    "or run five replicates."
)
WITHIN, OVER = "within replicates", "over replicates"
TRAINING = ["replicate", "arm", "repeat"]


def training_scores(
    repeats: pd.DataFrame, *, metric: str = "balanced_accuracy", positive: str | None = None
) -> pd.DataFrame:
    """Score every training of every arm: ``replicate, arm, repeat, value`` and ``deviation``.

    ``repeats`` has a row per training and test image: ``replicate, arm, repeat, image_id, label, predicted``.  The
    deviation is from the mean of the arm's trainings in that replicate, or from its mean over replicates where it was
    trained once in each.
    """
    require_columns(repeats, (*TRAINING, "image_id", "label", "predicted"))
    classes = _classes(repeats)
    if positive is None and len(classes) == 2:
        positive = positive_class(classes, [int((repeats["label"] == name).sum()) for name in classes])
    rows = []
    for key, part in repeats.groupby(TRAINING, sort=True):
        codes = [class_codes(part[column], classes) for column in ("label", "predicted")]
        value = confusion_metric(confusion(*codes, len(classes)), metric, classes, positive)
        rows.append((*key, float(value)))
    scored = pd.DataFrame(rows, columns=[*TRAINING, "value"])
    cell = ["arm"] if spread_over(scored) == OVER else ["replicate", "arm"]
    return scored.assign(deviation=scored["value"] - scored.groupby(cell)["value"].transform("mean"))


def spread_table(
    repeats: pd.DataFrame,
    *,
    baseline: str,  # the arm that the others are compared with
    synthetic: Sequence[str],  # the arms with synthetic images: the ones that the claim is about
    metric: str = "balanced_accuracy",
    positive: str | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the spread of every arm with the baseline's, by the rules of this module.

    Returns a row per arm, the baseline first: ``arm, kind ("synthetic" or "real"), spread (what it is taken over),
    replicates, trainings, mean, sd, variance_ratio, low, high, p_value, p_holm, verdict`` and the columns of
    :func:`prediction_agreement`.  What too few trainings cannot answer is nan; only arms with synthetic images are
    judged ("supported", "contradicted", "undecided").

    Raises:
        BadInput: a missing column, an unknown baseline, arms that were not trained in the same replicates.
    """
    scored = training_scores(repeats, metric=metric, positive=positive)
    names = list(dict.fromkeys(scored["arm"]))
    if baseline not in names:
        raise BadInput(f"The baseline '{baseline}' is not among the arms {names}: name one that was trained.")
    present = scored.groupby("arm")["replicate"].agg(lambda r: tuple(sorted(set(r))))
    if present.nunique() > 1:
        raise BadInput("The arms were not trained in the same replicates, so their spreads do not compare.")
    over, rng = spread_over(scored), np.random.default_rng(seed)
    cells = {arm: _cells(scored[scored["arm"] == arm], over) for arm in names}
    rows = []
    for arm in [baseline, *(name for name in names if name != baseline)]:
        own = scored[scored["arm"] == arm]
        row = {"arm": arm, "kind": "synthetic" if arm in set(synthetic) else "real", "spread": over}
        row |= {"replicates": len(present[arm]), "trainings": len(own), "mean": own["value"].mean()}
        row |= {"sd": float(np.sqrt(pooled_variance(cells[arm])[0])), "variance_ratio": np.nan}
        row |= dict.fromkeys(("low", "high", "p_value"), np.nan)
        if arm != baseline:
            pair = (cells[arm], cells[baseline])
            row |= _ratio(*pair, paired=over == OVER, confidence=confidence, resamples=resamples, rng=rng)
        rows.append(row)
    table = _judged(pd.DataFrame(rows), alpha=1 - confidence)
    return table.merge(prediction_agreement(repeats, confidence=confidence), on="arm", how="left")


def repeatability_sentence(table: pd.DataFrame, *, confidence: float = 0.95) -> str:
    """Judge the claim "training with synthetic images is more repeatable" in a few sentences from the table above."""
    baseline, judged = table["arm"].iloc[0], table[table["kind"].eq("synthetic") & table["variance_ratio"].notna()]
    within = table["spread"].iloc[0] == WITHIN
    words = ["Every arm was trained several times per replicate, so the spread is the luck of training alone."]
    if not within:
        words = [
            "Every arm was trained once per replicate, so the spread is that over replicates: it mixes the luck of the "
            "split with the luck of training, which hides differences between arms; set repeats to 5 to part them."
        ]
    if not table["kind"].eq("synthetic").any():
        return " ".join([*words, "No arm with synthetic images was run, so the claim was not tested."])
    if judged.empty:
        return " ".join([*words, TOO_FEW])
    for verdict, group in judged.groupby("verdict", sort=True):
        each = [
            f"{row.arm} (variance ratio {row.variance_ratio:.2f}, {confidence:.0%} interval {row.low:.2f} to "
            f"{row.high:.2f}, adjusted p = {row.p_holm:.2g})"
            for row in group.itertuples()
        ]
        words.append(f"That training with synthetic images is more repeatable is {verdict} for {', '.join(each)}.")
    words.append(f"A ratio below one means a smaller spread than that of arm {baseline}.")
    if (judged["verdict"] == "undecided").any():
        words.append("Undecided means that the spread of so few trainings is too rough, not that spreads are equal.")
    return " ".join(words)


def prediction_agreement(repeats: pd.DataFrame, *, confidence: float = 0.95) -> pd.DataFrame:
    """Say how often two trainings of one arm give an image the same class, and Cohen's kappa of that.

    Returns a row per arm: ``agreement, agreement_low, agreement_high, kappa`` over pairs of trainings of one replicate
    (the same test images), and ``between, between_low, between_high, between_kappa`` over pairs from two replicates, on
    the ``shared_images`` (mean per pair) that both tested.  Pairs count by the images they share; kappa leaves out
    pairs whose answers are all of one class.  Intervals are jackknives over replicates (Student), clipped to [0, 1],
    nan for too few.
    """
    require_columns(repeats, (*TRAINING, "image_id", "predicted"))
    rows = []
    for arm, part in repeats.groupby("arm", sort=False):
        trainings = pd.MultiIndex.from_frame(part[["replicate", "repeat"]])
        wide = part.assign(training=pd.factorize(trainings, sort=True)[0]).pivot(
            index="training", columns="image_id", values="predicted"
        )
        replicate = trainings.unique().sort_values().get_level_values("replicate").to_numpy()
        agree, expected, shared = pairwise_counts(wide.to_numpy(dtype=object))
        first, second = np.triu_indices(len(replicate), 1)
        pairs = pd.DataFrame({"a": replicate[first], "b": replicate[second], "shared": shared[first, second]})
        pairs["same"], pairs["chance"] = agree[first, second], expected[first, second]
        inside = pairs["a"] == pairs["b"]
        row = {"arm": arm, **_mean_agreement(pairs[inside], "agreement", confidence)}
        row |= _mean_agreement(pairs[~inside & (pairs["shared"] > 0)], "between", confidence)
        row["shared_images"] = pairs.loc[~inside, "shared"].mean()
        rows.append(row)
    return pd.DataFrame(rows).rename(columns={"agreement_kappa": "kappa"})


def pairwise_counts(answers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for all pairs of T trainings the agreements, those expected by chance, and the shared images: (T, T) each.

    ``answers`` ``(T, I)`` holds class names, missing where a training did not answer an image.
    """
    known = ~pd.isna(answers)
    classes = sorted(set(answers[known]))
    said = np.stack([answers == name for name in classes]).astype(float)
    shared = known.astype(float) @ known.T
    agree = np.einsum("csi,cti->st", said, said, optimize=True)
    margins = said @ known.T.astype(float)  # (K, T, T): how often s answers k on what t answered too
    chance = np.divide(
        (margins * margins.transpose(0, 2, 1)).sum(0), shared, out=np.zeros_like(shared), where=shared > 0
    )
    return agree, chance, shared


def brown_forsythe(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> float:
    """Return the p-value of "equal spread" for two lists of cells, each cell an array of scores with its own level.

    Distances to the cell's median without structural zeros: of an odd cell the median's own is dropped; of an even one
    the two smallest, which are equal, become one of sqrt(2) times their size.  nan where too few are left.
    """
    from scipy.stats import f_oneway

    distances = [np.concatenate([_distances(cell) for cell in cells]) for cells in (x, y)]
    if min(map(len, distances)) < 2 or not any(np.ptp(d) for d in distances):
        return np.nan
    return float(f_oneway(*distances).pvalue)


def pooled_variance(cells: Sequence[np.ndarray]) -> tuple[float, int]:
    """Return the variance within cells pooled over them, and its degrees of freedom; nan, 0 without any pair."""
    freedom = sum(len(cell) - 1 for cell in cells)
    if freedom < 1:
        return np.nan, 0
    return float(sum(((cell - cell.mean()) ** 2).sum() for cell in cells)) / freedom, freedom


def ratio_interval(
    x: Sequence[np.ndarray],
    y: Sequence[np.ndarray],
    *,
    paired: bool,  # one cell each, whose entries belong together: both are resampled with the same entries
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Return the bootstrap interval of the variance ratio of two lists of cells (see the module), in [0, inf]."""
    from scipy.stats import norm, t

    log_ratio, drawn = np.zeros(resamples), None
    for sign, cells in ((1, x), (-1, y)):
        # residuals of all cells are one sample of the noise, blown up to the unbiased variance
        noise = np.concatenate([(cell - cell.mean()) * np.sqrt(len(cell) / (len(cell) - 1)) for cell in cells])
        if drawn is None or not paired:
            drawn = rng.integers(0, len(noise), (resamples, len(noise)))
        ends = np.cumsum([len(cell) for cell in cells])[:-1]
        parts = np.split(noise[drawn], ends, axis=1)
        squares = sum(((part - part.mean(1, keepdims=True)) ** 2).sum(1) for part in parts)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_ratio += sign * np.log(squares / (len(noise) - len(cells)))
    freedom = sum(len(cell) - 1 for cell in [*x, *y])
    tail = norm.sf(t.isf((1 - confidence) / 2, freedom))
    known = np.sort(log_ratio[~np.isnan(log_ratio)])
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, tail, method="lower"), np.quantile(known, 1 - tail, method="higher")
    return float(np.exp(low)), float(np.exp(high))


def spread_over(scored: pd.DataFrame) -> str:
    """Say what the spread is taken over: within replicates where every arm has repeats, else over replicates."""
    most = scored.groupby(["arm", "replicate"]).size().groupby("arm").max()
    return WITHIN if (most > 1).all() else OVER


def _cells(own: pd.DataFrame, over: str) -> list[np.ndarray]:
    """Return the scores of one arm in cells of equal level: by replicate, or the first of every replicate in one."""
    own = own.sort_values(["replicate", "repeat"])
    if over == OVER:
        return [own.groupby("replicate")["value"].first().to_numpy()]
    cells = [part["value"].to_numpy() for _, part in own.groupby("replicate")]
    return [cell for cell in cells if len(cell) > 1]


def _ratio(
    x: list[np.ndarray],
    y: list[np.ndarray],
    *,
    paired: bool,
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    (own, own_freedom), (base, base_freedom) = pooled_variance(x), pooled_variance(y)
    if min(own_freedom, base_freedom) < MIN_FREEDOM or not base > 0:
        return {}
    low, high = ratio_interval(x, y, paired=paired, confidence=confidence, resamples=resamples, rng=rng)
    return {"variance_ratio": own / base, "low": low, "high": high, "p_value": brown_forsythe(x, y)}


def _judged(table: pd.DataFrame, *, alpha: float) -> pd.DataFrame:
    """Add ``p_holm`` over the arms with synthetic images, and their verdicts."""
    family = ((table["kind"] == "synthetic") & table["p_value"].notna()).to_numpy()
    table["p_holm"] = np.nan
    table.loc[family, "p_holm"] = holm(table.loc[family, "p_value"].to_numpy())
    shown = table["p_holm"] <= alpha
    synthetic = table["kind"] == "synthetic"
    table["verdict"] = np.where(synthetic, "undecided", "")
    table.loc[synthetic & shown & (table["high"] < 1), "verdict"] = "supported"
    table.loc[synthetic & shown & (table["low"] > 1), "verdict"] = "contradicted"
    return table


def _distances(cell: np.ndarray) -> np.ndarray:
    distances = np.sort(np.abs(cell - np.median(cell)))
    if len(cell) % 2 == 0:
        distances[1] *= np.sqrt(2)
    return distances[1:]


def _mean_agreement(pairs: pd.DataFrame, name: str, confidence: float) -> dict[str, float]:
    """Average agreement and kappa of pairs, with the jackknife interval of the agreement over replicates."""
    from scipy.special import stdtrit

    names = (name, f"{name}_low", f"{name}_high", f"{name}_kappa")
    if pairs.empty:
        return dict.fromkeys(names, np.nan)
    share = pairs["same"].sum() / pairs["shared"].sum()
    defined = pairs[pairs["chance"] < pairs["shared"]]
    each = (defined["same"] - defined["chance"]) / (defined["shared"] - defined["chance"])
    kappa = np.average(each, weights=defined["shared"]) if len(defined) else np.nan
    replicates = sorted({*pairs["a"], *pairs["b"]})
    left = [pairs[(pairs["a"] != r) & (pairs["b"] != r)] for r in replicates]
    if len(replicates) < 2 or any(part.empty for part in left):
        return dict(zip(names, (share, np.nan, np.nan, kappa), strict=True))
    without = np.array([part["same"].sum() / part["shared"].sum() for part in left])
    n = len(replicates)
    error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    half = stdtrit(n - 1, (1 + confidence) / 2) * error
    return dict(zip(names, (share, max(0.0, share - half), min(1.0, share + half), kappa), strict=True))


def _classes(repeats: pd.DataFrame) -> list[str]:
    return sorted(set(repeats["label"]) | set(repeats["predicted"]))
