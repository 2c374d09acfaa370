"""Simulated studies with a known truth, to check the verdict and its power: predictions per lesion and image.

One finite set of lesions is drawn per study.  Every replicate splits it anew by lesion, so that test folds of two
replicates overlap as real ones do.  The model of an answer is a probit model with random effects *(reading)*: arm a of
replicate r is right on an image of lesion l, of class k, when

    tau_a quantile(recall_k + effect_a)                      what the arm can do on average
    + split S_rk                                             a lucky split, for all arms
    + seed_a Z_ark                                           a lucky training, on validation and test alike
    + difficulty D_l + taste T_al                            a hard lesion for all, a hard lesion for this arm
    + alike L_arl + E                                        images of one lesion are answered alike; noise per image

is above zero, with all capital letters standard normal and tau_a^2 = 1 + split^2 + seed_a^2 + difficulty^2 + taste^2 +
alike^2.  The expected recall over lesions, splits and seeds is therefore exactly ``recall_k + effect_a``, and the true
difference in balanced accuracy of two arms is the difference of their effects.  Wrong answers go to the other classes
in proportion to their lesions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure.bootstrap import FoldCounts

# about a third of the lesions of HAM10000 (7,470), no class with fewer than 40
LESIONS = {"AKIEC": 75, "BCC": 110, "BKL": 240, "DF": 40, "MEL": 205, "NV": 1790, "VASC": 40}
RECALLS = {"AKIEC": 0.5, "BCC": 0.65, "BKL": 0.55, "DF": 0.45, "MEL": 0.5, "NV": 0.85, "VASC": 0.7}
IMAGES = (0.75, 0.18, 0.05, 0.02)  # shares of lesions with one, two, three and four images
SPLITS = ("val", "test")


@dataclass(frozen=True, kw_only=True)
class Design:
    """The truth of a simulated study; arms are named ``real0, real1, ...`` and ``synthetic0, ...``."""

    replicates: int = 5
    baselines: int = 2
    effects: tuple[float, ...] = (0.0,)  # added to the recall of every class, one per synthetic arm
    noisier: tuple[float, ...] = ()  # how many times wider than ``seed`` the first synthetic arms vary
    lesions: Mapping[str, int] = field(default_factory=lambda: LESIONS)  # of the whole finite set
    recalls: Mapping[str, float] = field(default_factory=lambda: RECALLS)  # of every baseline
    fold: float = 0.2  # share of the lesions of each class in the test fold, and as much in the validation fold
    split: float = 0.1  # the standard deviations of the model, in units of the noise per image
    seed: float = 0.15
    difficulty: float = 1.0
    taste: float = 0.3
    alike: float = 0.7

    def __post_init__(self) -> None:
        if self.replicates < 1 or self.baselines < 1 or not self.effects or len(self.noisier) > len(self.effects):
            raise BadInput(
                "A simulated study needs a replicate, a baseline and a synthetic arm or more, and no more 'noisier' "
                f"than synthetic arms; here: {self.replicates}, {self.baselines}, {self.effects}, {self.noisier}."
            )
        if set(self.lesions) != set(self.recalls):
            raise BadInput(f"lesions names the classes {list(self.lesions)}, recalls {list(self.recalls)}: give both.")
        levels = [recall + effect for recall in self.recalls.values() for effect in (0.0, *self.effects)]
        if not 0 < min(levels) <= max(levels) < 1:
            raise BadInput(
                f"Recalls with their effects run from {min(levels):g} to {max(levels):g}; keep within (0, 1)."
            )
        if not 0 < self.fold <= 0.5 or min(self.fold_lesions) < 1:
            raise BadInput(f"fold is {self.fold}; every class needs a lesion in both folds, and they fit up to 0.5.")

    @property
    def classes(self) -> list[str]:
        """The names of the classes, sorted."""
        return sorted(self.lesions)

    @property
    def synthetic(self) -> list[str]:
        """The names of the synthetic arms."""
        return [f"synthetic{i}" for i in range(len(self.effects))]

    @property
    def arms(self) -> list[str]:
        """The names of all arms, baselines first."""
        return [f"real{i}" for i in range(self.baselines)] + self.synthetic

    @property
    def fold_lesions(self) -> list[int]:
        """The lesions of a fold by class, in the order of ``classes``."""
        return [round(self.fold * self.lesions[name]) for name in self.classes]


@dataclass(frozen=True, eq=False)
class _Answers:
    """The answers of one replicate on one split: ``answers[a, i]`` of arm a on image ``images[i]``."""

    replicate: int
    split: str
    images: np.ndarray
    answers: np.ndarray


@dataclass(frozen=True, eq=False)
class _Lesions:
    """The finite set of lesions: class and difficulty by lesion, lesion by image."""

    true: np.ndarray
    images: np.ndarray
    by_arm: np.ndarray


def simulate_study(design: Design, *, seed: int) -> pd.DataFrame:
    """Simulate a study; returns predictions as notebook 06 collects them, without probabilities.

    A row per replicate, arm, split (val, test) and image with ``replicate, arm, split, image_id, group, label,
    predicted``.
    """
    lesions, parts = _draw_lesions(design, seed), []
    classes, arms = np.array(design.classes), np.array(design.arms)
    for found in _simulate(design, lesions, seed):
        n_arms, n = found.answers.shape
        lesion = lesions.images[found.images]
        columns = {
            "replicate": found.replicate,
            "arm": np.repeat(arms, n),
            "split": found.split,
            "image_id": np.tile([f"image{i:06d}" for i in found.images], n_arms),
            "group": np.tile([f"lesion{i:06d}" for i in lesion], n_arms),
            "label": np.tile(classes[lesions.true[lesion]], n_arms),
            "predicted": classes[found.answers.ravel()],
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def simulate_folds(design: Design, *, seed: int) -> tuple[FoldCounts, FoldCounts]:
    """Simulate the study of :func:`simulate_study`; returns its counts on validation and on test, without a table."""
    lesions = _draw_lesions(design, seed)
    folds = {split: [] for split in SPLITS}
    for found in _simulate(design, lesions, seed):
        folds[found.split].append(found)
    return tuple(_count(design, lesions, folds[split]) for split in SPLITS)


def _draw_lesions(design: Design, seed: int) -> _Lesions:
    rng = np.random.default_rng([seed, 0])
    true = np.repeat(np.arange(len(design.classes)), [design.lesions[name] for name in design.classes])
    images = np.repeat(np.arange(len(true)), 1 + rng.choice(len(IMAGES), len(true), p=IMAGES))
    taste = design.taste * rng.standard_normal((len(design.arms), len(true)))
    return _Lesions(true, images, design.difficulty * rng.standard_normal(len(true)) + taste)


def _simulate(design: Design, lesions: _Lesions, seed: int) -> Iterator[_Answers]:
    """Yield the answers of every replicate and split."""
    rng = np.random.default_rng([seed, 1])
    shape = len(design.arms), len(design.classes)
    ability, seeds = _ability(design)
    confused = _confusion(design)
    members = [np.flatnonzero(lesions.true == k) for k in range(shape[1])]
    for replicate in range(design.replicates):
        luck = ability + design.split * rng.standard_normal(shape[1]) + seeds[:, None] * rng.standard_normal(shape)
        drawn = [rng.permutation(own) for own in members]
        for i, split in enumerate(SPLITS):
            tested = np.zeros(len(lesions.true), dtype=bool)
            for own, n in zip(drawn, design.fold_lesions, strict=True):
                tested[own[i * n : (i + 1) * n]] = True
            images = np.flatnonzero(tested[lesions.images])
            lesion = lesions.images[images]
            true = lesions.true[lesion]
            alike = design.alike * rng.standard_normal((shape[0], int(tested.sum())))
            latent = luck[:, true] + lesions.by_arm[:, lesion] + alike[:, np.cumsum(tested)[lesion] - 1]
            arm, image = np.nonzero(latent + rng.standard_normal(latent.shape) <= 0)
            answers = np.tile(true, (shape[0], 1))
            answers[arm, image] = (rng.random(len(arm))[:, None] > confused[true[image]]).sum(-1)
            yield _Answers(replicate, split, images, answers)


def _ability(design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Return what each arm can do in each class on the latent scale, ``(A, K)``, and each arm's spread of seeds."""
    from scipy.special import ndtri

    effects = np.array([*[0.0] * design.baselines, *design.effects])
    wider = np.ones(len(effects))
    wider[design.baselines : design.baselines + len(design.noisier)] = design.noisier
    seeds = design.seed * wider
    rest = 1 + design.split**2 + design.difficulty**2 + design.taste**2 + design.alike**2
    recalls = np.array([design.recalls[name] for name in design.classes])
    return np.sqrt(rest + seeds**2)[:, None] * ndtri(recalls + effects[:, None]), seeds


def _confusion(design: Design) -> np.ndarray:
    """Return ``(K, K - 1)`` bounds: a uniform value's place among those of its true class is the wrong answer."""
    shares = np.array([design.lesions[name] for name in design.classes], dtype=float)
    others = np.tile(shares, (len(shares), 1))
    np.fill_diagonal(others, 0.0)
    return (others.cumsum(1) / others.sum(1, keepdims=True))[:, :-1]


def _count(design: Design, lesions: _Lesions, found: list[_Answers]) -> FoldCounts:
    """Count the answers by arm, lesion, true class and answer, as :func:`stda.measure.bootstrap.count_fold` does."""
    n_arms, k = len(design.arms), len(design.classes)
    known = np.unique(np.concatenate([lesions.images[part.images] for part in found]))
    counts, present = [], []
    for part in found:
        own, row = np.unique(lesions.images[part.images], return_inverse=True)
        shape = n_arms, len(own), k, k
        cells = np.ravel_multi_index((np.arange(n_arms)[:, None], row, lesions.true[own[row]], part.answers), shape)
        counts.append(np.bincount(cells.ravel(), minlength=int(np.prod(shape))).reshape(shape).astype(float))
        present.append(np.searchsorted(known, own))
    return FoldCounts(design.classes, design.arms, list(range(design.replicates)), counts, present, len(known))
