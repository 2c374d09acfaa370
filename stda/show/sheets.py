"""What the notebooks show again and again: sheets per class, training seen through samples, counts, a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from stda import BadInput
from stda.images import ImageSet
from stda.show.charts import recall_heatmap
from stda.show.figures import grid


def class_sheet(
    images: ImageSet,
    *,
    alt: str,
    per_class: int = 10,
    column: str = "label",
    caption: str = "",
    zoom: int | None = None,
) -> None:
    """Display the first ``per_class`` images of each class, a row per class, the largest class first.

    ``column`` is the column of the table that names the class; a class with fewer images ends in white cells.
    """
    counts = images.table[column].value_counts()
    order = list(counts.sort_index().sort_values(ascending=False, kind="stable").index)
    cells = np.full((len(order), per_class, *images.images.shape[1:]), 255, np.uint8)
    for row, name in enumerate(order):
        rows = np.flatnonzero(images.table[column].to_numpy() == name)[:per_class]
        cells[row, : len(rows)] = images.images[rows]
    labels = [f"{name} ({counts[name]})" for name in order]
    grid(
        cells.reshape(-1, *images.images.shape[1:]),
        row_labels=labels,
        columns=per_class,
        alt=alt,
        caption=caption,
        zoom=zoom,
    )


def ladder(
    images: ImageSet,
    sources: ImageSet,
    *,
    alt: str,
    n: int = 4,
    by: str = "iteration",
    caption: str = "",
    zoom: int | None = None,
) -> None:
    """Display the strength ladder of style transfer: a row per pair with content, every strength in order, and style.

    ``images`` hold the same pairs (``source_ids``) at several values of the column ``by``; the first ``n`` pairs are
    shown.  ``sources`` hold the pictures themselves, of the same size.  Above each picture stands its class: the true
    one of a source, the pseudo-label of a stylised one.  Several styles of one picture stand side by side.
    """
    missing = [c for c in (by, "source_ids", "pseudo_label") if c not in images.table]
    if missing or not len(images):
        raise BadInput(f"A ladder of {len(images)} images without the columns {missing} cannot be drawn.")
    strengths = sorted(images.table[by].unique())
    found = images.table.assign(row=range(len(images))).drop_duplicates(["source_ids", by])
    rows = found.pivot(index="source_ids", columns=by, values="row")
    rows = rows.loc[[pair for pair in found["source_ids"].unique() if rows.loc[pair].notna().all()]][:n]
    if rows.empty:
        raise BadInput(f"No pair was kept at all of the strengths {strengths}, so there is no ladder to show.")
    if images.images.shape[1:] != sources.images.shape[1:]:
        raise BadInput(f"The pictures have {sources.size} px, the stylised ones {images.size} px: resize one of them.")
    known = pd.Series(np.arange(len(sources)), index=sources.table["image_id"])
    cells, titles = [], []
    for pair, steps in rows.iterrows():
        content, *styles = (int(known[name]) for name in pair.split("|"))
        cells += [sources.images[content], *images.images[steps.astype(int)], *sources.images[styles]]
        titles.append(f"content\n{sources.labels[content]}")
        seen = images.table["pseudo_label"].to_numpy()[steps.astype(int)]
        titles += [f"{by} {s:g}\nseen as {label}" for s, label in zip(strengths, seen, strict=True)]
        titles += [f"style\n{sources.labels[i]}" for i in styles]
    grid(np.stack(cells), titles=titles, columns=len(cells) // len(rows), alt=alt, caption=caption, zoom=zoom)


def wanted_counts(train: ImageSet, wanted: Sequence[str]) -> pd.DataFrame:
    """Return, per class, the real training images and the synthetic images that are to be made."""
    made = pd.Series(list(wanted), dtype=str).value_counts()
    real = train.counts()
    return pd.DataFrame(
        {"class": real.index, "real": real.to_numpy(), "synthetic": made.reindex(real.index, fill_value=0)}
    )


class Watch:
    """A training callback that passes every record on and keeps the sample grids that come along."""

    def __init__(self, onward: Callable[[dict], None]) -> None:
        self.onward = onward
        self.grids: list[tuple[str, int, np.ndarray]] = []  # model, step, picture

    def __call__(self, record: dict) -> None:
        """Take one record of the training."""
        if "grid" in record:
            self.grids.append((str(record.get("model", "")), int(record["step"]), np.asarray(record["grid"])))
        self.onward(record)


def training_grids(watch: Watch, *, alt: str, caption: str = "", n: int = 6) -> None:
    """Display what a generator drew while it was trained: ``n`` moments of one model, or the end of each of several."""
    models = list(dict.fromkeys(model for model, _, _ in watch.grids))
    if len(models) > 1:
        last = {model: picture for model, _, picture in watch.grids}
        grid(np.stack(list(last.values())), row_labels=models, columns=1, alt=alt, caption=caption)
        return
    chosen = np.unique(np.linspace(0, len(watch.grids) - 1, n).round().astype(int))
    moments = [watch.grids[i] for i in chosen]
    titles = [f"step {step}" for _, step, _ in moments]
    grid(np.stack([picture for _, _, picture in moments]), columns=3, titles=titles, alt=alt, caption=caption, zoom=1)


def confusion(predictions: pd.DataFrame, classes: Sequence[str], *, alt: str, caption: str = "") -> None:
    """Display where the images of each true class went, as shares of the class (rows sum to 1)."""
    counts = pd.crosstab(predictions["label"], predictions["predicted"])
    counts = counts.reindex(index=list(classes), columns=list(classes), fill_value=0)
    shares = counts.div(counts.sum(axis=1).where(lambda n: n > 0), axis=0)
    shares.index.name, shares.columns.name = "true class", "predicted class"
    recall_heatmap(shares, alt=alt, label="share of the true class", caption=caption)
