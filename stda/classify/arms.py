"""Arms: which images a classifier is trained with, and in what order they are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stda import BadInput
from stda.classify.controls import (
    OVERSAMPLE,
    SELF_TRAINING,
    TRANSFORMS,
    duplicates,
    held_back,
    self_training,
    subset,
    transformed,
)
from stda.classify.labels import LABELS, asked, one_hot, relabel
from stda.classify.selection import SELECTS, choose_rows, placebo_labels
from stda.encoders import encode
from stda.images import ImageSet, added_counts, require_train
from stda.sections import ORACLE, PLACEBO_LABELS
from stda.study import sub_seed

if TYPE_CHECKING:
    from stda.compute import Compute
    from stda.encoders import InDomain

SAMPLERS = ("shuffle", "balanced")
PROTOCOLS = ("mix", "pretrain", "synthetic-only")
SPARE = 3  # pictures that self-training makes per one it needs, when unsure ones are left out


@dataclass(frozen=True)
class Arm:
    """One way to train the classifier, as plain values.

    ``synthetic`` is "none", a control (:mod:`stda.classify.controls`: real images once more, or held-back ones for
    "oracle"), or the name of a generator; ``ratio``, ``count``, ``balance`` and ``classes`` say how many images of
    which class are added (:func:`stda.images.added_counts`), ``select`` which of a larger pool
    (:func:`stda.classify.selection.choose_rows`).  ``protocol`` puts the added images beside the real ones (mix),
    before them (pretrain, for ``pretrain_share`` of the updates), or in their place (synthetic-only).  ``labels`` says
    which label they carry (:func:`stda.classify.labels.relabel`, or a placebo's), and those with a
    ``label_confidence`` below ``min_confidence`` are left out.  ``real_share`` of the train fold's lesions are used.
    ``augment`` and ``sampler`` are names of :data:`stda.classify.augment.AUGMENTS` and :data:`SAMPLERS`.
    """

    name: str
    synthetic: str = "none"
    ratio: float = 0.5
    augment: str = "classic"
    sampler: str = "balanced"
    protocol: str = "mix"
    pretrain_share: float = 0.5
    labels: str = "given"
    min_confidence: float = 0.0
    count: int = 0
    balance: bool = False
    classes: Sequence[str] = ()
    select: str = "all"
    real_share: float = 1.0

    def __post_init__(self) -> None:
        allowed_labels = (*LABELS, *PLACEBO_LABELS)
        for knob, allowed in (
            ("sampler", SAMPLERS),
            ("protocol", PROTOCOLS),
            ("labels", allowed_labels),
            ("select", SELECTS),
        ):
            if getattr(self, knob) not in allowed:
                found = getattr(self, knob)
                raise BadInput(f"Unknown {knob} '{found}' of arm '{self.name}'; use {', '.join(allowed)}.")
        if not self.ratio > 0:
            raise BadInput(f"ratio of arm '{self.name}' is {self.ratio}; it must be positive.")
        if not (0 < self.pretrain_share < 1 and 0 <= self.min_confidence < 1):
            raise BadInput(
                f"pretrain_share and min_confidence of arm '{self.name}' are {self.pretrain_share} and "
                f"{self.min_confidence}; they are shares below 1, the first above 0."
            )
        if not 0 < self.real_share <= 1 or (self.real_share < 1 and self.synthetic != "none"):
            raise BadInput(
                f"real_share of arm '{self.name}' is {self.real_share}; it is a share up to 1, and below 1 only in an "
                "arm that adds nothing."
            )
        if self.synthetic == "none" and self.protocol != "mix":
            raise BadInput(f"Protocol {self.protocol} of arm '{self.name}' needs added images: set synthetic.")
        own_labels = ("none", OVERSAMPLE, ORACLE, *TRANSFORMS)
        if self.synthetic in own_labels and (self.labels != "given" or self.min_confidence):
            raise BadInput(f"Arm '{self.name}' makes no new images: leave labels 'given' and min_confidence 0.")

    def pretrain_steps(self, steps: int) -> int:
        """Return how many of ``steps`` updates are made with the added images before the real ones are seen."""
        return round(self.pretrain_share * steps) if self.protocol == "pretrain" else 0


@dataclass(frozen=True, eq=False)
class Training:
    """What an arm trains on.

    ``images`` are those of the last, mostly the only phase; ``pretrain`` those of a phase before it, or None.
    ``composition`` has a row per class: ``class``, ``real`` and ``lesions`` (different real images that are used, and
    their groups; held-back ones of the oracle count), ``wanted`` (added images that the arm asks of this class),
    ``added`` (those it got: fewer where unsure labels were left out, or held-back images ran out), and ``labelled``
    (added images that carry this label, whatever class they were asked for).
    """

    images: ImageSet
    pretrain: ImageSet | None
    composition: pd.DataFrame


def assemble(
    arm: Arm,
    train: ImageSet,
    pool: ImageSet | None = None,  # the generator's images, or the held-back ones for the oracle
    *,
    seed: int = 0,  # which real images a control draws, and how placebo labels are dealt out
    labeller: InDomain | None = None,  # for self-training, select, and opinions that the pool does not hold
    compute: Compute | None = None,  # of the labeller
) -> Training:
    """Return what an arm trains on: the train fold and what the arm adds, put together as its protocol says.

    A generator's images are taken from the pool, as many per *asked* class as :func:`stda.images.added_counts` says
    (column ``asked_label`` where the set has it, else ``label``).  The label they carry is another matter: style
    transfer asks for one class and may be given another by its pseudo-labeller.  Where unsure images are left out, the
    next of their class take their places; when there are no more, the arm is smaller and the composition says so.
    Images that train alone, for a while or to the end, are of every class, the largest too where the pool has it.

    Raises BadInput for rows outside the train fold, a set that is not of this arm's generator or of another size,
    labels that the train fold lacks, a set with too few images of a class, and added images that must train alone but
    lack a class (synthetic-only) or know one only (pretrain).
    """
    require_train(train, f"Arm '{arm.name}'")
    if arm.real_share < 1:
        train = subset(train, arm.real_share, seed=sub_seed(seed, "subset"))
    if arm.synthetic == "none":
        return Training(train, None, _composition(arm, train, None, {}))
    wanted = _wanted(arm, train, pool)
    added = _added(arm, train, pool, wanted, seed=seed, labeller=labeller, compute=compute)
    composition = _composition(arm, train, added, wanted)
    if arm.labels == "soft":
        train = one_hot(train, train.classes)
    if arm.protocol == "mix":
        return Training(ImageSet.concat(train, added), None, composition)
    _check_alone(arm, train, added)
    if arm.protocol == "synthetic-only":
        return Training(added, None, composition)
    return Training(train, added, composition)


def _wanted(arm: Arm, train: ImageSet, pool: ImageSet | None) -> dict[str, int]:
    """Return how many images of each class the arm asks for."""
    if pool is None and arm.synthetic not in (OVERSAMPLE, SELF_TRAINING, *TRANSFORMS):
        remedy = "pass those of split held-back" if arm.synthetic == ORACLE else "run that stage first"
        raise BadInput(f"Arm '{arm.name}' needs images of '{arm.synthetic}', got none: {remedy}.")
    has_largest = pool is None or train.counts().index[0] in asked(pool)
    return added_counts(
        train.counts(),
        ratio=arm.ratio,
        count=arm.count,
        balance=arm.balance,
        classes=arm.classes,
        largest=arm.protocol != "mix" and has_largest,
    )


def _added(
    arm: Arm,
    train: ImageSet,
    pool: ImageSet | None,
    wanted: dict[str, int],
    *,
    seed: int,
    labeller: InDomain | None,
    compute: Compute | None,
) -> ImageSet:
    """Return the images that the arm adds, with the labels it wants."""
    if arm.synthetic == OVERSAMPLE:
        return duplicates(train, wanted, seed=seed)
    if arm.synthetic in TRANSFORMS:
        return transformed(train, wanted, arm.synthetic, seed=seed)
    if arm.synthetic == ORACLE:
        return held_back(pool, wanted, seed=sub_seed(seed, ORACLE))
    opinion = {"labeller": labeller, "compute": compute}
    if arm.synthetic == SELF_TRAINING:
        spare = SPARE if arm.min_confidence else 1
        pool = self_training(train, {label: spare * n for label, n in wanted.items()}, seed=seed, **opinion)
    _check_pool(arm, train, pool)
    sure = arm.min_confidence > 0 or arm.select == "confident"
    labels = "given" if arm.labels in PLACEBO_LABELS else arm.labels
    pool = relabel(pool, labels, classes=train.classes, sure=sure, **opinion)
    if arm.select == "diverse" and (labeller is None or compute is None):
        raise BadInput(f"Arm '{arm.name}' selects by features, but nothing gives them: pass a labeller and compute.")
    features = encode(labeller, pool.images, compute=compute) if arm.select == "diverse" else None
    added = pool.select(
        choose_rows(
            _candidates(arm, pool, wanted),
            wanted,
            select=arm.select,
            confidence=pool.table["label_confidence"].to_numpy(),
            features=features,
        )
    )
    if arm.labels in PLACEBO_LABELS:
        return placebo_labels(added, arm.labels, classes=train.classes, seed=sub_seed(seed, arm.labels))
    return added


def _check_pool(arm: Arm, train: ImageSet, pool: ImageSet) -> None:
    """Raise unless the pool holds synthetic images of the arm's generator with labels of the train fold."""
    splits = sorted(set(pool.table["split"]) - {"synthetic"})
    if splits:
        raise BadInput(f"Arm '{arm.name}' adds synthetic images only, but was given rows of split {splits}.")
    makers = sorted(set(pool.table["generator"]) - {arm.synthetic})
    if makers:
        raise BadInput(f"Arm '{arm.name}' uses '{arm.synthetic}', but was given images of {makers}.")
    strangers = sorted({*"|".join(pool.table["source_ids"]).split("|"), ""} - {"", *train.table["image_id"]})
    if strangers:
        raise BadInput(
            f"Images of '{arm.synthetic}' were made from {strangers[0]}, which is not in this train fold: run "
            f"{arm.synthetic} again on this split."
        )
    unknown = sorted({*pool.labels, *asked(pool)} - set(train.labels))
    if unknown:
        raise BadInput(f"Synthetic images have labels {unknown} that the train fold lacks: make them from this fold.")


def _candidates(arm: Arm, pool: ImageSet, wanted: dict[str, int]) -> dict[str, np.ndarray]:
    """Return the rows of the pool that may be taken, by asked class: those that are sure enough."""
    classes, sure = asked(pool), pool.table["label_confidence"].to_numpy() >= arm.min_confidence
    rows = {}
    for label, n in wanted.items():
        found = np.flatnonzero(classes == label)
        if len(found) < n:
            raise BadInput(
                f"Arm '{arm.name}' needs {n} images of class {label}, but '{arm.synthetic}' made {len(found)}: ask for "
                f"fewer in the arm, or for more in the section of {arm.synthetic}."
            )
        rows[label] = found[sure[found]]
    return rows


def _check_alone(arm: Arm, train: ImageSet, added: ImageSet) -> None:
    """Raise unless a classifier can be trained on the added images alone."""
    missing = sorted(set(train.classes) - set(added.classes))
    remedy = "make images of every class (all_classes), choose other labels, or take protocol mix"
    if arm.protocol == "synthetic-only" and missing:
        raise BadInput(
            f"Arm '{arm.name}' trains on added images only, and none is labelled {', '.join(missing)}: {remedy}."
        )
    if len(added.classes) < 2:
        found = ", ".join(added.classes) or "nothing"
        raise BadInput(f"Arm '{arm.name}' pre-trains on images labelled {found} only: {remedy}.")


def _composition(arm: Arm, train: ImageSet, added: ImageSet | None, wanted: dict[str, int]) -> pd.DataFrame:
    """Return the table of :class:`Training`."""
    real = [train] if arm.protocol != "synthetic-only" else []
    real += [added] if arm.synthetic == ORACLE else []
    rows = pd.concat([part.table[["label", "group"]] for part in real] or [train.table.iloc[:0]])
    columns = {
        "real": rows["label"].value_counts(),
        "lesions": rows.groupby("label")["group"].nunique(),
        "wanted": pd.Series(wanted, dtype=int),
        "added": pd.Series(asked(added) if added else [], dtype=object).value_counts(),
        "labelled": added.counts() if added else pd.Series(dtype=int),
    }
    table = pd.DataFrame(columns, index=pd.Index(train.classes, name="class"))
    return table.fillna(0).astype(int).reset_index()


def batches(labels: np.ndarray, *, sampler: str, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield row numbers ``(batch_size,)`` without end; ``labels`` are class indices ``(N,)``.

    "shuffle" goes through all rows in a new random order each time round.  "balanced" goes through the classes that
    way, and through the rows of each class: every class is drawn equally often, and within a class every row, real or
    synthetic.  Dealing from shuffled decks instead of tossing dice keeps rare classes from being missed by chance.
    """
    if sampler not in SAMPLERS:
        raise BadInput(f"Unknown sampler '{sampler}'; it must be one of {', '.join(SAMPLERS)}.")
    random = np.random.default_rng(seed)
    if sampler == "shuffle":
        rows = _deck(np.arange(len(labels)), random)
        while True:
            yield np.fromiter((next(rows) for _ in range(batch_size)), int, batch_size)
    present = np.unique(labels)
    classes, members = _deck(present, random), {c: _deck(np.flatnonzero(labels == c), random) for c in present}
    while True:
        yield np.fromiter((next(members[next(classes)]) for _ in range(batch_size)), int, batch_size)


def _deck(items: np.ndarray, random: np.random.Generator) -> Iterator[int]:
    """Deal the items without end, all of them in random order before any comes again."""
    while True:
        yield from random.permutation(items)
