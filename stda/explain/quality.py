"""Is a map to be trusted?  Conservation, stability under noise, and one table of methods by all tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stda import BadInput
from stda.compute import rng
from stda.explain.gradients import baseline_like
from stda.explain.methods import METHODS, Target, attribute, targets_of
from stda.explain.perturbation import FIXED, MAGNITUDE, RANDOM, Maps, mean_interval
from stda.explain.subject import DIFFERENCE, LOGIT, NOTHING, logits_of
from stda.study import sub_seed

TINY = 1e-3  # logits: what is smaller is not divided by, lest rounding look like a broken promise
VALUE_RANGE = 2.0  # of pixels in [-1, 1]
YES, NO, UNDECIDED = "yes", "no", "undecided"  # does a method read the weights?
REFERENCES = (RANDOM, MAGNITUDE, "input")  # ignore the network by construction: what methods are compared with


def conservation_table(
    model: nn.Module,
    images: Tensor,
    maps: Mapping[str, Maps],
    *,
    target: Target = None,  # what the maps explain, as in attribute
    baseline: float | Tensor = 0.0,  # that of the methods which promise a difference, as in attribute
    batch_size: int = 64,
) -> pd.DataFrame:
    """Compare the sum of each map with what its method promises.

    ``images`` is float32 ``(N, C, H, W)`` in [-1, 1]; ``maps`` name (of :data:`METHODS`, or any other, which promises
    nothing) to relevances ``(N, C, H, W)`` or ``(N, H, W)``.  A method that conserves the "logit" promises the target
    logit, and its positive part where relevance cannot be negative (deep Taylor); one that conserves the "difference"
    promises the logit minus that of the baseline.  A method without a promise is compared with the logit, to show how
    far its maps are from adding up.  ``error`` is ``|sum - promised| / max(|promised|, TINY)``.

    Returns columns ``method, promises`` ("logit", "difference" or ""), ``image, sum, promised, error``.  Raises
    BadInput for maps or a baseline that do not fit the images, and maps that are not finite.
    """
    targets = targets_of(model, images, target, batch_size=batch_size)
    logits = _logits(model, images, batch_size)[np.arange(len(images)), targets.numpy()]
    start = _logits(model, baseline_like(baseline, images[:1]), 1)[0, targets.numpy()]
    tables = []
    for name, values in maps.items():
        promises, signed = (METHODS[name].conserves, METHODS[name].signed) if name in METHODS else (NOTHING, True)
        promised = logits if signed or promises != LOGIT else logits.clip(min=0)
        if promises == DIFFERENCE:
            promised = logits - start
        sums = _summed(name, values, images).sum(axis=(1, 2))
        error = np.abs(sums - promised) / np.maximum(np.abs(promised), TINY)
        columns = {"method": name, "promises": promises, "image": np.arange(len(images))}
        tables.append(pd.DataFrame(columns | {"sum": sums, "promised": promised, "error": error}))
    if not tables:
        raise BadInput("Conservation is a property of maps: pass at least one.")
    return pd.concat(tables, ignore_index=True)


def stability_table(
    model: nn.Module,
    images: Tensor,
    methods: Sequence[str],
    *,
    noise: Sequence[float] = (0.05,),  # standard deviations of the noise, shares of the value range
    repeats: int = 3,  # noisy pictures of each image, over which is averaged
    target: Target = None,  # as in attribute; None: the class with the largest logit of the clean image
    seed: int,
    knobs: Mapping[str, Mapping[str, Any]] | None = None,  # of attribute, by method
    batch_size: int = 64,
) -> pd.DataFrame:
    """Compare the maps of images with those of the same images under Gaussian noise, the target being the same.

    ``images`` is float32 ``(N, C, H, W)`` in [-1, 1], where noisy ones are clipped to.  ``similarity`` is the Spearman
    rank correlation over the pixels of both maps, channels summed *(reading)*: like region perturbation and the
    randomisation check it asks for the order of the pixels only.  A map with all values equal has no order: its
    similarity is 1 with another such map and 0 with any other.  All methods and levels see the same draws, and
    methods that draw numbers themselves draw the same for both maps, so that only the image differs.

    Two columns tell an unstable map from an unstable network: ``moved`` is the Euclidean distance between clean and
    noisy logits over the length of the clean ones (each minus its mean over classes, which softmax does not see),
    ``flipped`` the share of noisy pictures with another largest logit.  A map that ignores the image is perfectly
    stable: stability is worth something only beside the other tests.

    Returns columns ``method, noise, image, similarity, moved, flipped``, means over the repeats.
    """
    if not len(methods) or not len(images) or repeats < 1 or not len(noise) or not min(noise) >= 0:
        raise BadInput("Stability needs images, methods, noise levels of at least 0 and at least 1 repeat.")
    targets = targets_of(model, images, target, batch_size=batch_size)

    def explained(x: Tensor, method: str) -> np.ndarray:
        settings = {"batch_size": batch_size, "seed": seed, **(knobs or {}).get(method, {})}
        return _summed(method, attribute(model, x, method, targets, **settings), images).reshape(len(images), -1)

    logits = _logits(model, images, batch_size)
    changes = [_change(logits, _logits(model, x, batch_size)) for _, x in _noisy(images, noise, repeats, seed)]
    rows = []
    for name in methods:
        clean = explained(images, name)
        for (level, x), (moved, flipped) in zip(_noisy(images, noise, repeats, seed), changes, strict=True):
            row = {"method": name, "noise": level, "image": np.arange(len(images))}
            row |= {"similarity": rank_correlation(clean, explained(x, name)), "moved": moved, "flipped": flipped}
            rows.append(pd.DataFrame(row))
    return pd.concat(rows).groupby(["method", "noise", "image"], sort=False).mean().reset_index()


def _noisy(images: Tensor, noise: Sequence[float], repeats: int, seed: int) -> Iterator[tuple[float, Tensor]]:
    """Yield each level and a noisy copy of the images; every level has the same draws."""
    for level in noise:
        draws = rng(sub_seed(seed, "stability"))
        for _ in range(repeats):
            drawn = torch.randn(images.shape, generator=draws).to(images)
            yield level, (images + level * VALUE_RANGE * drawn).clamp(-1, 1)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each row, ``(N, P)`` twice to ``(N,)``; equal values share their mean rank.

    Rows of equal values have no order: 1 where both are such, 0 where one is.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(values.reshape(len(values), -1), axis=1) for values in (first, second)]
    a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    flat = (lengths[0] == 0) | (lengths[1] == 0)
    correlation = (a * b).sum(axis=1) / np.where(flat, 1.0, lengths[0] * lengths[1])
    return np.where(flat, (lengths[0] == lengths[1]).astype(float), correlation.clip(-1, 1))


def _change(clean: np.ndarray, noisy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far the logits moved, relative to their length, and whether another class is first now."""
    centred = clean - clean.mean(axis=1, keepdims=True)
    step = noisy - noisy.mean(axis=1, keepdims=True) - centred
    moved = np.linalg.norm(step, axis=1) / np.maximum(np.linalg.norm(centred, axis=1), TINY)
    return moved, (clean.argmax(axis=1) != noisy.argmax(axis=1)).astype(float)


def _logits(model: nn.Module, images: Tensor, batch_size: int) -> np.ndarray:
    """Return the logits, float64 ``(N, classes)``."""
    return logits_of(model, images, batch_size=batch_size).double().numpy()


def _summed(name: str, maps: Maps, images: Tensor) -> np.ndarray:
    """Return the maps with channels summed, float64 ``(N, H, W)``; raise where they do not fit or are not finite."""
    if tuple(maps.shape) not in (tuple(images.shape), (len(images), *images.shape[2:])):
        raise BadInput(f"The maps of '{name}' have shape {tuple(maps.shape)}, the images {tuple(images.shape)}.")
    values = torch.as_tensor(maps).detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        raise BadInput(f"The maps of '{name}' are not finite: the network that they explain is broken; train it again.")
    return values if values.ndim == 3 else values.sum(axis=1)


# ------------------------------------------------------------------------------------------------- all tests together


def method_table(
    *,
    aopc: pd.DataFrame | None = None,  # aopc_table
    conservation: pd.DataFrame | None = None,  # conservation_table
    sanity: pd.DataFrame | None = None,  # sanity_summary
    focus: pd.DataFrame | None = None,  # focus_table
    stability: pd.DataFrame | None = None,  # stability_table
    replace: str = "",  # which replacement of the AOPC table; "": its first
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return one row per method (and arm, where the tables have that column) with its result in every test.

    ``over_random`` and ``over_input`` are AOPC gains of the fixed ranking with their intervals; ``promises`` and
    ``conservation_error`` (median over images, nan without a promise) say whether the maps add up; ``randomised`` is
    the rank correlation of the maps with those of the fully randomised network, where a map that reads the network has
    about 0, ``cascade`` its mean over all steps on the way, and ``reads_weights`` the answer of :func:`sanity_summary`:
    "yes", "no", "undecided", or "" where the test was not run; ``lesion_gain`` is the mean share of positive relevance
    in the lesion minus the lesion's share of the area; ``stability`` the mean similarity under noise, over all its
    levels, and ``flipped`` the share of noisy pictures that the network itself gave another class.  ``_low`` and
    ``_high`` are Student's intervals over lesions where the table names them in a column ``group``, else over images;
    nan with only one of them, and not corrected for the number of methods.  A test that was not run, as a table or for
    a method, leaves nan.  Rows are sorted by ``over_random`` within the arm.

    Raises BadInput when there is no table, when only some have a column ``arm``, and for a ``sanity`` that is no
    summary.
    """
    given = [table for table in (aopc, conservation, sanity, focus, stability) if table is not None and len(table)]
    by = ["arm", "method"] if any("arm" in table for table in given) else ["method"]
    if not given or not all(set(by) <= set(table) for table in given):
        raise BadInput("A table of methods needs at least one table, and a column 'arm' in all of them or in none.")
    how = {"by": by, "confidence": confidence}
    columns = [
        _perturbed(aopc, by, replace),
        _promised(conservation, by),
        _randomised(sanity, by),
        _means(focus, "gain", "lesion_gain", **how),
        _means(stability, "similarity", "stability", **how),
        _means(stability, "flipped", "flipped", **how)[[*by, "flipped"]],
    ]
    index = pd.concat([table[by] for table in given]).drop_duplicates()
    table = index
    for part in columns:
        table = table.merge(part, on=by, how="left")
    words = ["promises", "reads_weights"]
    table[words] = table[words].fillna("")
    arms = {arm: i for i, arm in enumerate(dict.fromkeys(index["arm"]))} if "arm" in by else {}
    place = table["arm"].map(arms) if arms else pd.Series(0, index=table.index)
    order = pd.DataFrame({"arm": place, "gain": -table["over_random"]}).sort_values(["arm", "gain"], kind="stable")
    return table.loc[order.index].reset_index(drop=True)


def _perturbed(aopc: pd.DataFrame | None, by: list[str], replace: str) -> pd.DataFrame:
    """Return the AOPC columns of the fixed ranking for one replacement."""
    names = [f"{column}{end}" for column in ("over_random", "over_input") for end in ("", "_low", "_high")]
    if aopc is None or not len(aopc):
        return _empty(by, ["aopc", *names])
    replace = replace or aopc["replace"].iloc[0]
    chosen = aopc[(aopc["replace"] == replace) & (aopc["ranking"] == FIXED)]
    if not len(chosen):
        raise BadInput(f"The AOPC table has no replacement '{replace}', only {sorted(set(aopc['replace']))}.")
    return chosen[[*by, "aopc", *names]]


def _promised(conservation: pd.DataFrame | None, by: list[str]) -> pd.DataFrame:
    """Return promise and median error by method, the error only where there is a promise."""
    if conservation is None or not len(conservation):
        return _empty(by, ["promises", "conservation_error"])
    grouped = conservation.groupby(by, sort=False)
    found = grouped.agg(promises=("promises", "first"), conservation_error=("error", "median")).reset_index()
    kept = found["conservation_error"].where(found["promises"].isin([LOGIT, DIFFERENCE]))  # from a file "" is nan
    return found.assign(conservation_error=kept)


def _randomised(sanity: pd.DataFrame | None, by: list[str]) -> pd.DataFrame:
    """Return the result of the randomisation check by method."""
    names = {"spearman_after": "randomised", "spearman_mean": "cascade", "answer": "reads_weights"}
    if sanity is None or not len(sanity):
        return _empty(by, list(names.values()))
    if not set(names) <= set(sanity):
        raise BadInput("sanity is not a table of explain.sanity_summary: give it that of randomisation_table first.")
    return sanity[[*by, *names]].rename(columns=names)


def _means(table: pd.DataFrame | None, column: str, name: str, *, by: list[str], confidence: float) -> pd.DataFrame:
    """Return the mean of a column with its interval by method, under a new name; images without a value left out."""
    names = [name, f"{name}_low", f"{name}_high"]
    if table is None or not len(table):
        return _empty(by, names)
    rows = []
    for key, part in table.groupby(by, sort=False):
        groups = next(part[unit] for unit in ("group", "image", "image_id") if unit in part)
        low, high = mean_interval(part[column].to_numpy(), groups.to_numpy(), confidence=confidence)
        rows.append([*key, part[column].mean(), float(low), float(high)])
    return pd.DataFrame(rows, columns=[*by, *names])


def _empty(by: list[str], columns: list[str]) -> pd.DataFrame:
    """Return a table without rows, which leaves nan when it is merged."""
    words = (*by, "promises", "reads_weights")
    return pd.DataFrame({c: pd.Series(dtype=object if c in words else float) for c in [*by, *columns]})


def method_sentence(
    table: pd.DataFrame,
    *,
    conservation_tolerance: float = 0.01,  # median relative error above which a promise is broken
) -> str:
    """Say in plain sentences what :func:`method_table` shows, a paragraph per arm.

    First the methods that pass every trial that was run in the arm: the intervals of both AOPC gains lie above zero,
    the sanity check answers "yes", and the promise of what relevances sum to is kept (a method without one has none to
    break).  Then how many pass each trial, of those that took it; "worse" are those whose interval lies below zero.
    Without an interval (one lesion, one image) nothing is shown.  Every interval stands for itself: none is corrected
    for the number of methods, so of many useless methods a few pass a trial by luck.  Maps of the input and of random
    numbers and the order of input magnitude are not counted.  A trial that nobody took is said to be missing.
    """
    parts = table.groupby("arm", sort=False) if "arm" in table else [("", table)]
    paragraphs = []
    for arm, part in parts:
        counted = part[~part["method"].isin(REFERENCES)]
        trials = _trials(counted, conservation_tolerance)
        run = [trial for trial in trials if trial.taken.any()]
        sentences = [trial.missing for trial in trials if trial not in run]
        if run:
            passed = np.logical_and.reduce([trial.passed for trial in run])
            taken = np.logical_or.reduce([trial.taken for trial in run])
            clauses = ", ".join(trial.clause() for trial in run)
            methods = f"{len(counted)} methods" if len(counted) > 1 else "1 method"
            counts = f"Of {methods} {clauses}; the intervals are not corrected for the number of methods."
            sentences = [_passing(counted["method"][passed & taken]), counts, *sentences]
        sentences.append(_noise_words(part["flipped"]))
        paragraphs.append((f"Arm {arm}: " if "arm" in table else "") + " ".join(sentences))
    return "\n\n".join(paragraphs)


@dataclass(frozen=True, eq=False)
class _Trial:
    """One trial: which methods took it, which did not fail, and the words for how many passed."""

    taken: pd.Series
    passed: pd.Series  # also where it was not taken, if it need not be
    one: str  # after a count of one
    many: str
    beside: pd.Series  # who is counted in brackets
    called: str
    missing: str  # the sentence if nobody took it

    def clause(self) -> str:
        """Return such as "7 of the 9 tried are shown to read the weights (1 undecided)"."""
        count, tried, beside = (int(s.sum()) for s in (self.passed & self.taken, self.taken, self.beside))
        who = f"{count or 'none'}" + ("" if tried == len(self.taken) else f" of the {tried} tried")
        return f"{who} {self.one if count == 1 else self.many}" + (f" ({beside} {self.called})" if beside else "")


def _trials(part: pd.DataFrame, tolerance: float) -> list[_Trial]:
    """Return the trials of the methods of one arm."""
    reads, error = part["reads_weights"], part["conservation_error"]
    trials = []
    for column, verbs, better, missing in (
        ("over_random", ("finds ", "find "), "decisive regions better than random orders", "random orders"),
        ("over_input", ("", ""), "better than the input's own magnitude", "the order of input magnitude"),
    ):
        words = [f"{verb}{better}" for verb in verbs]
        passed, worse = part[f"{column}_low"] > 0, part[f"{column}_high"] < 0
        trials.append(
            _Trial(part[column].notna(), passed, *words, worse, "worse", f"No map was compared with {missing}.")
        )
    words = ["is shown to read the weights", "are shown to read the weights"]
    known, open_ = reads.isin([YES, NO, UNDECIDED]), reads == UNDECIDED
    trials.append(_Trial(known, reads == YES, *words, open_, UNDECIDED, "The sanity check was not run."))
    words = ["keeps its promise of what relevances sum to", "keep their promise of what relevances sum to"]
    missing, broken = "No promise of what relevances sum to was checked.", error > tolerance
    return [*trials, _Trial(error.notna(), ~broken, *words, broken, "broken", missing)]


def _passing(methods: pd.Series) -> str:
    """Return the sentence that names the methods that pass everything."""
    if not len(methods):
        return "No method passes every trial."
    *first, last = [METHODS[name].title if name in METHODS else str(name) for name in methods]
    names = f"{', '.join(first)} and {last}" if first else last
    return f"{names[0].upper()}{names[1:]} {'pass' if first else 'passes'} every trial that was run."


def _noise_words(flipped: pd.Series) -> str:
    """Return the sentence that puts the stability of maps beside that of the network."""
    if not flipped.notna().any():
        return "Stability under noise was not measured."
    return f"Under the noise of the stability test the network itself changes {flipped.mean():.0%} of its answers."
