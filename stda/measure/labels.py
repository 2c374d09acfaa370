"""Label fidelity of style transfer: what is a stylised image, by the labeller, its two sources and other classifiers?

A share over the images of a pool is not a share of independent trials: one content picture meets many styles and one
style many contents.  Every interval here is Wilson's for an *effective* number of images (Korn and Graubard 1998), with
the two-way clustered variance V(content) + V(style) - V(pair) (Cameron, Gelbach and Miller 2011).  Where every picture
is used once that is Wilson's interval itself.  It speaks of further pictures like these; a share of one content or
one style picture has none (nan).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure.scores import require_columns, wilson

STRENGTH = ("iteration", "weight", "alpha")  # columns that say how strongly the style was painted, where they occur
PSEUDO = "pseudo-label"
STYLE, CONTENT = "style class", "content class"
THRESHOLDS = tuple(np.linspace(0, 0.95, 20).round(2).tolist())
SHARE_COLUMNS = ("share", "low", "high", "n", "n_effective")


def label_fidelity(
    table: pd.DataFrame,
    *,
    opinions: Mapping[str, np.ndarray] | None = None,  # independent classifiers: labels (N,) or probabilities (N, K)
    by: Sequence[str] | None = None,  # columns that part the rows; by default those of STRENGTH that occur
    lesions: Mapping[str, str] | None = None,  # source image -> its lesion: pictures of one lesion count as one
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Say how often each labeller agrees with the style class, the content class and the other labellers.

    ``table`` is a pool's, with ``pseudo_label, asked_label, content_label, source_ids``; probabilities are in the order
    of its columns ``p_<class>``.  Returns a row per strength, ``labeller`` (the pseudo-label and every opinion) and
    ``agrees_with``, with ``share, low, high, n, n_effective`` and ``probability``: the mean probability that the
    labeller gives to that class (soft agreement; nan where it gave labels only).

    Raises:
        BadInput: a missing column, no rows, an opinion of another length or number of classes.
    """
    labels, soft = _labellers(table, opinions or {})
    references = {STYLE: table["asked_label"], CONTENT: table["content_label"], **labels}
    references = {name: np.asarray(values, dtype=str) for name, values in references.items()}
    clusters = _clusters(table, lesions)
    rows = []
    for where, chosen in _parts(table, by):
        for labeller, said in labels.items():
            others = [STYLE, CONTENT, *(name for name in labels if labeller == PSEUDO and name != PSEUDO)]
            for other in others:
                hits = (said == references[other])[chosen]
                row = {"labeller": labeller, "agrees_with": other}
                row |= clustered_share(hits, *(c[chosen] for c in clusters), confidence=confidence)
                row["probability"] = _mean_probability(soft.get(labeller), references[other], chosen)
                rows.append({**where, **row})
    return pd.DataFrame(rows)


def flip_rate(
    table: pd.DataFrame,
    *,
    own_opinion: Mapping[str, str],  # content image -> what the labeller says of it as it is, before any style
    by: Sequence[str] | None = None,  # as for label_fidelity
    lesions: Mapping[str, str] | None = None,  # as for label_fidelity
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Say how often the style changed the label, at each strength.

    A row per strength and ``against``: *the content's pseudo-label* (the labeller changed its mind) or *the content's
    class* (the truth, so that the labeller's own mistakes count as flips too).  ``share, low, high, n, n_effective``
    are of the flips; ``to_style`` is the share of all images that flipped to the class of their style.

    Raises:
        BadInput: a missing column, or a content image without an opinion.
    """
    require_columns(table, ("pseudo_label", "asked_label", "content_label", "source_ids"), what="the pool")
    contents = _contents_and_styles(table)[0]
    unknown = sorted(set(contents) - set(own_opinion))
    if unknown:
        raise BadInput(f"The labeller said nothing of content image '{unknown[0]}': label every content picture first.")
    befores = {"the content's pseudo-label": np.array([own_opinion[c] for c in contents], dtype=str)}
    befores["the content's class"] = table["content_label"].to_numpy(dtype=str)
    said, style = table["pseudo_label"].to_numpy(dtype=str), table["asked_label"].to_numpy(dtype=str)
    clusters = _clusters(table, lesions)
    rows = []
    for where, chosen in _parts(table, by):
        for name, before in befores.items():
            flipped = said != before
            share = clustered_share(flipped[chosen], *(c[chosen] for c in clusters), confidence=confidence)
            rows.append(
                {**where, "against": name, **share, "to_style": float((flipped & (said == style))[chosen].mean())}
            )
    return pd.DataFrame(rows)


def confidence_curve(
    table: pd.DataFrame,
    *,
    opinions: Mapping[str, np.ndarray] | None = None,  # as for label_fidelity
    thresholds: Sequence[float] = THRESHOLDS,
    lesions: Mapping[str, str] | None = None,  # as for label_fidelity
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Say what a confidence filter buys and costs: agreement of the pseudo-label in what it keeps, and its share.

    An image is kept whose ``label_confidence`` is at least the threshold.  A row per threshold and ``agrees_with``
    (style class, content class, each opinion) with ``kept`` (share of all images) and ``share, low, high, n,
    n_effective`` of the kept ones (nan where none is left).
    """
    labels, _ = _labellers(table, opinions or {})
    require_columns(table, ("label_confidence",), what="the pool")
    sure = table["label_confidence"].to_numpy(dtype=float)
    if not np.isfinite(sure).all():
        raise BadInput("Some images have no label_confidence: make the pool with pseudo-labels first.")
    references = {STYLE: table["asked_label"], CONTENT: table["content_label"]}
    references |= {name: said for name, said in labels.items() if name != PSEUDO}
    clusters = _clusters(table, lesions)
    rows = []
    for threshold in thresholds:
        kept = sure >= threshold
        for name, reference in references.items():
            hits = (labels[PSEUDO] == np.asarray(reference, dtype=str))[kept]
            row = {"threshold": float(threshold), "agrees_with": name, "kept": float(kept.mean())}
            rows.append(row | clustered_share(hits, *(c[kept] for c in clusters), confidence=confidence))
    return pd.DataFrame(rows)


def clustered_share(
    hits: np.ndarray, contents: np.ndarray, styles: np.ndarray, *, confidence: float = 0.95
) -> dict[str, float | int]:
    """Return ``share, low, high, n, n_effective`` of bool ``(N,)`` whose rows share contents and styles, both ``(N,)``.

    The effective number is N over the design effect: the variance with two-way clusters over that of independent rows,
    at least 1, times (t(clusters - 1) / t(N - 1))^2 for the fewer clusters of the two.  Where all rows agree no
    variance can be seen, and each cluster counts as one trial.
    """
    from scipy.special import stdtrit

    n = len(hits)
    nothing = dict(zip(SHARE_COLUMNS, (np.nan, np.nan, np.nan, n, 0.0), strict=True))
    if not n:
        return nothing
    share = float(np.mean(hits))
    factors = [pd.factorize(f)[0] for f in (contents, styles)]
    n_clusters = min(int(f.max()) + 1 for f in factors)
    if n_clusters < 2:
        return nothing | {"share": share}
    alone = share * (1 - share) / n
    if alone == 0:
        effective = float(n_clusters)
    else:
        pair = pd.factorize(factors[0] * (int(factors[1].max()) + 1) + factors[1])[0]
        content, style, both = (_cluster_variance(hits - share, f) for f in (*factors, pair))
        tail = (1 + confidence) / 2
        fewer = (stdtrit(n_clusters - 1, tail) / stdtrit(n - 1, tail)) ** 2
        effective = float(n / max(1.0, (content + style - both) / alone) / fewer)
    low, high = wilson(share * effective, effective, confidence=confidence)
    return {"share": share, "low": low, "high": high, "n": n, "n_effective": effective}


def _cluster_variance(residuals: np.ndarray, cluster: np.ndarray) -> float:
    """Return the variance of a mean of ``residuals`` (N,) whose rows of one cluster may go together in any way."""
    sums = np.bincount(cluster, residuals)
    return float((sums**2).sum()) / len(residuals) ** 2


def _labellers(
    table: pd.DataFrame, opinions: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, pd.DataFrame]]:
    """Return what every labeller says ``(N,)``, and the probabilities of those that gave them."""
    require_columns(table, ("pseudo_label", "asked_label", "content_label", "source_ids"), what="the pool")
    columns = [c for c in table.columns if str(c).startswith("p_")]
    classes = [c[2:] for c in columns]
    labels = {PSEUDO: table["pseudo_label"].to_numpy(dtype=str)}
    soft = {PSEUDO: table[columns].set_axis(classes, axis=1)} if columns else {}
    for name, said in opinions.items():
        said = np.asarray(said)
        if len(said) != len(table):
            raise BadInput(f"Opinion '{name}' speaks of {len(said)} images, the pool has {len(table)}.")
        if said.ndim == 1:
            labels[name] = said.astype(str)
            continue
        if said.ndim != 2 or said.shape[1] != len(classes):
            raise BadInput(f"Opinion '{name}' has shape {said.shape}; the pool's columns p_<class> are {classes}.")
        labels[name] = np.array(classes)[said.argmax(1)]
        soft[name] = pd.DataFrame(said, columns=classes)
    return labels, soft


def _mean_probability(probabilities: pd.DataFrame | None, classes: np.ndarray, chosen: np.ndarray) -> float:
    if probabilities is None:
        return np.nan
    column = probabilities.columns.get_indexer(classes[chosen])
    values = probabilities.to_numpy(dtype=float)[chosen, column]
    return float(np.where(column < 0, 0.0, values).mean())  # a class that the labeller does not know has none


def _parts(table: pd.DataFrame, by: Sequence[str] | None) -> Iterator[tuple[dict, np.ndarray]]:
    """Yield the values of the ``by`` columns and the row numbers of every part of the table."""
    by = [c for c in STRENGTH if c in table] if by is None else list(by)
    require_columns(table, by, what="the pool")
    if not by:
        yield {}, np.arange(len(table))
        return
    for values, rows in table.groupby(by, sort=True, dropna=False).indices.items():
        yield dict(zip(by, values if isinstance(values, tuple) else (values,), strict=True)), np.asarray(rows)


def _contents_and_styles(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    parts = [str(ids).partition("|") for ids in table["source_ids"]]
    if not all(bar for _, bar, _ in parts):
        raise BadInput("The column source_ids must read 'content|style' in every row: pass a pool of style transfer.")
    return [content for content, _, _ in parts], [style for _, _, style in parts]


def _clusters(table: pd.DataFrame, lesions: Mapping[str, str] | None) -> list[np.ndarray]:
    """Return the cluster ``(N,)`` of each row by content and by style; several styles together are one."""
    contents, styles = _contents_and_styles(table)
    lesion = dict(lesions or {})
    contents = [lesion.get(c, c) for c in contents]
    styles = ["|".join(lesion.get(s, s) for s in ids.split("|")) for ids in styles]
    return [np.array(contents, dtype=str), np.array(styles, dtype=str)]
