"""Which pictures meet, how strongly, and with which seed: the rows of style transfer before anything is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stda.generator_sections import NstSection
from stda.generators.base import image_seeds, synthetic_table
from stda.generators.pairs import PairSampler


@dataclass(frozen=True, eq=False)
class Plan:
    """Makes tables of images to be made, still labelled as asked, from the pictures of the train fold.

    A row names its content and styles (``source_ids``, ``content|style``, with ``|style`` once more per further style),
    their classes (``content_label``, ``asked_label``), the strength (``iteration``) and the ``weights`` of the losses
    (several styles: their shares), and holds the seed of a random start.
    """

    name: str  # of the generator
    knobs: NstSection
    sources: pd.DataFrame  # image_id and label
    content_class: str
    features: np.ndarray | None  # (len(sources), D), for pairs by distance

    @property
    def strengths(self) -> list[int]:
        """The iterations that are kept of a pair; 0 stands for the feed-forward network."""
        if self.knobs.engine == "feedforward":
            return [0]
        return sorted(set(self.knobs.save_at)) or [self.knobs.iterations]

    @property
    def rows_at_once(self) -> int:
        """Rows that share a pair or a batch."""
        return len(self.strengths) * self.knobs.batch_size

    def asked(self, labels: Sequence[str], *, seed: int) -> pd.DataFrame:
        """Return a row per asked label; images of one class share a pair as long as it has strengths left."""
        sampler, n_seen, pairs, rows, seeds = self._sampler(seed), {}, {}, [], []
        for label, own_seed in zip(labels, image_seeds(seed, len(labels)), strict=True):
            number, strength = divmod(n_seen.get(label, 0), len(self.strengths))
            n_seen[label] = n_seen.get(label, 0) + 1
            index, pair_seed = pairs.setdefault((label, number), (len(pairs), own_seed))
            rows.append(self._row(sampler, label, number, index, strength))
            seeds.append(pair_seed)
        return self._table(rows, seeds)

    def stretch(self, start: int, stop: int, *, shares: Mapping[str, float], seed: int) -> pd.DataFrame:
        """Return the rows ``start`` to ``stop`` of an endless table.

        Image ``i`` is strength ``i % s`` of pair ``i // s`` (``s`` kept iterations); pairs ask for classes by shares.
        """
        sampler, rows, seeds = self._sampler(seed), [], []
        first, last = start - start % self.rows_at_once, stop + -stop % self.rows_at_once  # whole batches
        for i in range(first, last):
            index, strength = divmod(i, len(self.strengths))
            rows.append(self._row(sampler, *sampler.label_at(index, shares), index, strength))
            seeds.append(sampler.image_seed(index))
        ids = [f"{self.name}-{i:09d}" for i in range(first, last)]
        table = self._table(rows, seeds).assign(image_id=ids, group=ids)
        return table.iloc[start - first : stop - first].reset_index(drop=True)

    def _sampler(self, seed: int) -> PairSampler:
        return PairSampler(
            self.sources,
            mode=self.knobs.pairs,
            content_class=self.content_class,
            seed=seed,
            features=self.features,
            n_styles=len(self.knobs.style_weights),
        )

    def _row(self, sampler: PairSampler, label: str, number: int, index: int, strength: int) -> dict[str, Any]:
        content, styles = sampler.pair(label, number, index)
        return {
            "source_ids": "|".join([content, *styles]),
            "content_label": sampler.label_of(content),
            "asked_label": label,
            "iteration": self.strengths[strength],
        }

    def _table(self, rows: list[dict[str, Any]], seeds: Sequence[int]) -> pd.DataFrame:
        columns = ("source_ids", "content_label", "asked_label", "iteration")
        more = {name: [row[name] for row in rows] for name in columns}
        k = self.knobs
        shares = "+".join(f"{weight * k.style_scale * k.style_weight:g}" for weight in k.style_weights)
        more["weights"] = [f"content {k.content_weight:g}, style {shares}, tv {k.tv_weight:g}"] * len(rows)
        return self._with_batches(synthetic_table(self.name, more["asked_label"], seeds, **more))

    def _with_batches(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add the column ``batch``, the pairs that are optimised side by side, where there is more than one.

        A row then carries all that its picture depends on: in another company the last bits could differ.
        """
        if self.knobs.batch_size == 1 or not len(table):
            return table
        pairs = pair_keys(table)
        unique, size = list(dict.fromkeys(pairs)), self.knobs.batch_size
        companies = {pair: ";".join(unique[i - i % size : i - i % size + size]) for i, pair in enumerate(unique)}
        return table.assign(batch=pairs.map(companies))


def pair_keys(rows: pd.DataFrame) -> pd.Series:
    """Return ``content|style|...@seed`` of each row, what :meth:`stda.generators.style.studio.Pair.read` reads."""
    return rows["source_ids"].astype(str) + "@" + rows["image_seed"].astype(str)
