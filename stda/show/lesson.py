"""The chart of one neuron: what its inputs contribute, and what rules of relevance give back to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stda import BadInput
from stda.show.charts import arm_axis
from stda.show.figures import DPI, INK, WIDTH, figure, show, wrapped
from stda.show.tables import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOR, AGAINST = "#b2182b", "#2166ac"  # the red and blue of the maps
INPUTS = "input × weight"
SMALL = 1 / 10  # of the longest bar: panels whose bars are all shorter have their own scale


def neuron(
    contributions: np.ndarray,
    relevances: Mapping[str, np.ndarray],
    *,
    alt: str,
    labels: Sequence[str] | None = None,  # of the k inputs; by default "input 1" to "input k"
    top: int = 8,  # rows at most: up to five in eight speak for the class, the rest against it
    caption: str = "",
) -> None:
    """Show one neuron: what each input contributes to its sum, and the relevance that each rule gives back to it.

    ``contributions`` ``(k,)`` are x_i w_i; ``relevances`` title of a rule to ``(k,)``.  The rows are the largest
    positive contributions and the most negative ones, fewer where there are none; each title states the sum of all
    inputs and that of the others.  Panels share one scale, but one whose bars are all shorter than a tenth of the
    longest has its own and says so.  Red is positive, blue negative, as in the maps.  Where no input contributes a
    sentence says so.  Raises BadInput for values that do not fit or are not finite.
    """
    if np.size(contributions) and not np.any(contributions):
        text("No input of this neuron contributes to its sum, so there are no strongest ones to draw.")
        return
    show(neuron_figure(contributions, relevances, labels=labels, top=top), alt=alt, caption=caption)


def neuron_figure(
    contributions: np.ndarray,
    relevances: Mapping[str, np.ndarray],
    *,
    labels: Sequence[str] | None = None,
    top: int = 8,
) -> Figure:
    """Draw what :func:`neuron` shows; raise BadInput also where no input contributes."""
    panels = {INPUTS: contributions, **relevances}
    panels = {name: np.asarray(values, dtype=float) for name, values in panels.items()}
    k = panels[INPUTS].size
    wrong = [n for n, values in panels.items() if values.shape != (k,) or not np.isfinite(values).all()]
    if wrong or not k or not relevances or top < 1 or (labels is not None and len(labels) != k):
        raise BadInput(f"A neuron of {k} inputs needs finite values (k,), k labels and top >= 1; wrong: {wrong}.")
    drawn = _strongest(panels[INPUTS], top)
    if not len(drawn):
        raise BadInput("No input of this neuron contributes to its sum: take another neuron or image.")
    names = [str(labels[i]) if labels is not None else f"input {i + 1}" for i in drawn]
    rows = -(-len(panels) // 4)
    columns = -(-len(panels) // rows)
    fig, axes = figure(rows, columns, height=rows * (1.1 + 0.27 * len(names)))
    bars = {name: values[drawn] for name, values in panels.items()}
    longest = max(np.abs(values).max() for values in bars.values())
    own = {name for name, values in bars.items() if np.abs(values).max() < SMALL * longest}
    common = np.concatenate([values for name, values in bars.items() if name not in own])
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, (name, values) in zip(axes.flat, panels.items(), strict=False):
        _bars(ax, bars[name], bars[name] if name in own else common)
        ax.set_xlabel("own scale" if name in own else "", fontsize=9.5)
        arm_axis(ax, names if ax in axes[:, 0] else [""] * len(names))
        words = f"{name}\nsum {_number(values.sum(), 3)}"
        if rest := k - len(drawn):
            words += f"\n{rest} other{'s' * (rest > 1)}: {_number(np.delete(values, drawn).sum(), 3)}"
        ax.set_title(wrapped(words, WIDTH * DPI / columns - 50, 10), fontsize=10, loc="left")
    return fig


def _strongest(contributions: np.ndarray, top: int) -> np.ndarray:
    """Return the indices of at most ``top`` contributions, the largest first: five in eight positive, if there are."""
    order = np.argsort(-contributions, kind="stable")
    positive, negative = order[contributions[order] > 0], order[contributions[order] < 0]
    positive = positive[: max(1, 5 * top // 8)]
    return np.concatenate([positive, negative[max(0, len(negative) - (top - len(positive))) :]])


def _bars(ax: Axes, values: np.ndarray, scale: np.ndarray) -> None:
    """Draw values as bars from zero with their numbers at the ends, on an axis that has room for those of ``scale``."""
    bars = ax.barh(range(len(values)), values, 0.7, color=[AGAINST if v < 0 else FOR for v in values])
    ax.bar_label(bars, labels=[_number(v, 2) for v in values], padding=2, fontsize=9)
    ax.axvline(0, color=INK, linewidth=1)
    low, high = min(scale.min(), 0.0), max(scale.max(), 0.0)
    room = 0.5 * ((high - low) or 1.0)
    ax.set_xlim(low - (room if low < 0 else 0.1 * room), high + (room if scale.max() >= 0 else 0.1 * room))
    ax.locator_params(axis="x", nbins=3)


def _number(value: float, digits: int) -> str:
    return f"{value + 0.0:.{digits}g}".replace("-", "\N{MINUS SIGN}")  # a negative zero is a zero
