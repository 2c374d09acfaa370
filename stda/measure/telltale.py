"""Telltale signs: by what could a classifier tell synthetic from real images, in space and in spatial frequency?

:func:`stda.measure.real_or_synthetic` says whether it can.  The classifier there is linear in features that are
averages over the positions of a network's last layer.  So its score is the average of a score at every position, and
these scores are a map of what it looks at (class activation mapping, Zhou et al. 2016, exact for such networks).
Transposed convolutions leave periodic patterns that no eye sees; the power spectrum does (Durall et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure.fidelity import REAL_ROW, halves
from stda.measure.realism import LUMA, PENALTY, weighted_auroc

FEWEST_TOLD = 10  # images of each side that a classifier is fitted on, and that it is tried on, at least
FAINTEST = 1e-3  # power in levels^2: below it rounding to whole levels is all there is


@dataclass(frozen=True, eq=False)
class Telltale:
    """A linear classifier of real and synthetic features: the score of features ``(N, D)`` is ``f @ weights + bias``.

    A positive score says synthetic.  ``real`` and ``synthetic`` are rows that it was not fitted on, to try it on.
    """

    weights: np.ndarray
    bias: float
    real: np.ndarray
    synthetic: np.ndarray

    def maps(self, activations: np.ndarray) -> np.ndarray:
        """Return the score at every position, float64 ``(N, h, w)``; its mean over positions is the image's score.

        ``activations`` are ``(N, D, h, w)`` of the encoder whose averages the classifier was fitted on
        (:meth:`stda.encoders.Encoder.activations`).
        """
        if activations.ndim != 4 or activations.shape[1] != len(self.weights):
            wanted = f"(N, {len(self.weights)}, h, w)"
            raise BadInput(f"Activations must be {wanted}; got {activations.shape}: use the encoder of the features.")
        return np.einsum("ndhw,d->nhw", activations.astype(np.float64), self.weights) + self.bias


def find_telltale(
    real: np.ndarray,
    synthetic: np.ndarray,
    *,
    groups: Sequence[np.ndarray] | None = None,  # lesion of each real and of each synthetic row
    max_tried: int = 200,  # upper bound of the rows of each side that are left to try it on
    seed: int = 0,
) -> Telltale | None:
    """Fit the classifier of :func:`stda.measure.real_or_synthetic` on half of the lesions of both sides.

    ``real`` (N, D) and ``synthetic`` (M, D) are features.  Rows of one group, real or synthetic, stay together: what is
    looked at, on the other half, was not learned by heart.  None where a half holds fewer than
    :data:`FEWEST_TOLD` images of one side.  Raises BadInput for NaN or other widths.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    real, synthetic = np.asarray(real, dtype=np.float64), np.asarray(synthetic, dtype=np.float64)
    if real.ndim != 2 or synthetic.ndim != 2 or real.shape[1] != synthetic.shape[1]:
        raise BadInput(f"Features must be (N, D) with one D; got {real.shape} and {synthetic.shape}.")
    if not (np.isfinite(real).all() and np.isfinite(synthetic).all()):
        raise BadInput("The features hold NaN or infinity: check the images and the encoder's weights.")
    rng = np.random.default_rng(seed)
    fitted = _half_of_the_groups(len(real), len(synthetic), groups, rng)
    counts = [int(half[side].sum()) for half in (fitted, [~rows for rows in fitted]) for side in (0, 1)]
    if min(counts) < FEWEST_TOLD:
        return None
    x = np.concatenate([real[fitted[0]], synthetic[fitted[1]]])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=500, class_weight="balanced"))
    model.fit(x, np.arange(len(x)) >= fitted[0].sum())
    scaler, line = model[0], model[1]
    weights = line.coef_[0] / scaler.scale_
    bias = float(line.intercept_[0] - (scaler.mean_ * weights).sum())
    tried = [np.sort(rng.permutation(np.flatnonzero(~rows))[:max_tried]) for rows in fitted]
    return Telltale(weights, bias, *tried)


def position_auc(real: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """Return how well the score at each position alone tells the images apart: AUC ``(h, w)``.

    ``real`` (N, h, w) and ``synthetic`` (M, h, w) are maps of :meth:`Telltale.maps` of images it was not fitted on.
    0.5: nothing to be seen there; 1: always told apart by that place.
    """
    if real.ndim != 3 or real.shape[1:] != synthetic.shape[1:] or not len(real) or not len(synthetic):
        raise BadInput(f"Maps must be (N, h, w) of one size, N > 0; got {real.shape} and {synthetic.shape}.")
    both = np.concatenate([real, synthetic]).reshape(len(real) + len(synthetic), -1)
    kind, even = np.arange(len(both)) >= len(real), np.ones((1, len(both)))
    found = [weighted_auroc(kind, column, even)[0] for column in both.T]
    return np.array(found).reshape(real.shape[1:])


def power_spectrum(images: np.ndarray) -> np.ndarray:
    """Return the power of each image at every whole number of waves across it: ``(N, size // 2 + 1)``, in levels^2.

    ``images`` are uint8 ``(N, size, size, 3)``; the brightness (BT.601) is taken, its mean removed, and a Hann window
    applied, for the border is no wave.  The two-dimensional power is averaged over rings of one wave's width (Durall
    et al. 2020); entry 0, the mean, is 0.  White noise of variance v has v in every entry but the first.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or not len(images):
        raise BadInput(f"A spectrum needs square uint8 pictures (N, size, size, 3); got {images.dtype} {images.shape}.")
    size = images.shape[1]
    waves = np.fft.fftfreq(size, 1 / size)
    ring = np.rint(np.hypot(waves[:, None], waves[None, : size // 2 + 1])).astype(int)
    counted = np.where((np.arange(size // 2 + 1) == 0) | (2 * np.arange(size // 2 + 1) == size), 1.0, 2.0)
    weight = np.broadcast_to(counted, ring.shape)  # half of the plane stands for the other half
    inside = ring <= size // 2
    window = np.outer(*(np.hanning(size + 2)[1:-1],) * 2)
    window /= np.sqrt(np.square(window).mean())
    total = np.bincount(ring[inside], weight[inside], size // 2 + 1)
    found = np.empty((len(images), size // 2 + 1))
    for i, image in enumerate(images):
        grey = image @ LUMA
        power = np.square(np.abs(np.fft.rfft2((grey - grey.mean()) * window))) / size**2
        found[i] = np.bincount(ring[inside], (power * weight)[inside], size // 2 + 1) / total
    found[:, 0] = 0.0
    return found


def spectrum_table(
    images: Mapping[str, np.ndarray],
    *,
    reference: str,
    groups: np.ndarray | None = None,  # lesion of each reference image: both halves then share no lesion
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the power of each set at every spatial frequency with that of half of the real images.

    ``images`` maps a set's name to uint8 ``(N, size, size, 3)``; ``reference`` names the real ones, whose other half is
    the first set.  Columns ``set, waves`` (across the image, from 1), ``ratio`` of geometric means, and its interval
    ``low, high`` (Welch on logarithms; images count as independent).  1: as real images; below: blurred there; a peak:
    a pattern.
    """
    from scipy.stats import ttest_ind

    if reference not in images or len(images[reference]) < 4:
        raise BadInput(f"The sets {list(images)} must hold the reference '{reference}' with at least four images.")
    first, second = halves(np.arange(len(images[reference])), groups, np.random.default_rng(seed))
    if not len(first):
        raise BadInput("The real images cannot be halved without tearing a group apart: give more groups.")
    spectra = {name: power_spectrum(part) for name, part in images.items()}
    real = np.log(np.maximum(spectra[reference][first], FAINTEST))
    sets = {REAL_ROW: spectra[reference][second], **{k: v for k, v in spectra.items() if k != reference}}
    rows = []
    for name, power in sets.items():
        ours = np.log(np.maximum(power, FAINTEST))
        for waves in range(1, ours.shape[1]):
            difference = ours[:, waves].mean() - real[:, waves].mean()
            row = {"set": name, "waves": waves, "ratio": np.exp(difference), "low": np.nan, "high": np.nan}
            if len(ours) > 1 and np.ptp(ours[:, waves]) > 0 and np.ptp(real[:, waves]) > 0:
                test = ttest_ind(ours[:, waves], real[:, waves], equal_var=False)
                row["low"], row["high"] = np.exp(test.confidence_interval(confidence))
            rows.append(row)
    return pd.DataFrame(rows)


def _half_of_the_groups(
    n_real: int, n_synthetic: int, groups: Sequence[np.ndarray] | None, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return which rows of each side are fitted: those of half of the groups, one draw for both sides."""
    if groups is None:
        return [rng.permutation(n) < n // 2 for n in (n_real, n_synthetic)]
    if (len(groups[0]), len(groups[1])) != (n_real, n_synthetic):
        found = f"{len(groups[0])} and {len(groups[1])}"
        raise BadInput(f"{n_real} and {n_synthetic} rows came with {found} groups; they must agree.")
    names = np.concatenate([np.asarray(part).astype(str) for part in groups])
    _, code = np.unique(names, return_inverse=True)
    chosen = rng.permutation(code.max() + 1) < (code.max() + 1) // 2
    return [chosen[code[:n_real]], chosen[code[n_real:]]]
