"""What the measures see: real against real at growing n, and faults that are planted, so that the truth is known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from stda import BadInput
from stda.images import ImageSet
from stda.measure.fidelity import COPIES_ROW, REAL_ROW, feature_scale, fid, halves, kid, prdc
from stda.measure.pyramids import pyramid_distance
from stda.measure.similarity import class_similarity

PLAIN = "as they are"
# measures of which less is worse
HIGHER_IS_BETTER = ("precision", "recall", "density", "coverage")


def spoil(images: np.ndarray, *, seed: int, blur: float = 1.0, noise: float = 16.0) -> dict[str, np.ndarray]:
    """Return uint8 images ``(N, H, W, 3)`` :data:`PLAIN`, blurred and noised, by name.

    ``blur`` is the standard deviation in pixels, ``noise`` the one in grey levels of 256.
    """
    blurred = gaussian_filter(images.astype(np.float32), (0, blur, blur, 0))
    noised = images + np.random.default_rng(seed).normal(0, noise, images.shape)
    changed = {"blurred": blurred, "noised": noised}
    return {PLAIN: images} | {name: x.round().clip(0, 255).astype(np.uint8) for name, x in changed.items()}


def growth_table(
    features: np.ndarray,
    *,
    groups: np.ndarray,
    seed: int,
    smallest: int = 20,  # images on each side at first (fewer where a half has fewer); then twice as many, and so on
    repeats: int = 10,  # random halves
) -> pd.DataFrame:
    """Return FID and KID of real images (N, D) against other real images, for growing numbers ``n`` on each side.

    One image of each group is taken, because both measures count images as independent, and several of one group would
    pull KID upwards.  They are cut into halves at random, again for every repeat.  Columns ``n, measure, mean`` over
    the repeats, ``low, high``: one standard deviation less and more.  BadInput where a half has one image.
    """
    cuts = []
    for r in range(repeats):
        rng = np.random.default_rng([seed, r])
        order = rng.permutation(len(features))
        single = order[np.unique(np.asarray(groups)[order], return_index=True)[1]]
        cuts.append(halves(features[single], None, rng))
    largest = min(len(half) for cut in cuts for half in cut)
    if largest < 2:
        raise BadInput(f"A half has {largest} images of different groups, and FID needs two: use more images.")
    smallest = min(smallest, largest)
    rows = []
    for n in [smallest * 2**i for i in range(int(np.log2(largest / smallest)) + 1)]:
        cases = []
        for r, (x, y) in enumerate(cuts):
            rng = np.random.default_rng([seed, r, n])
            a, b = x[rng.permutation(len(x))[:n]], y[rng.permutation(len(y))[:n]]
            cases.append({"FID": fid(a, b), "KID": kid(a, b, subsets=0)["kid"]})
        for measure, values in pd.DataFrame(cases).items():
            mean, spread = values.mean(), values.std()
            rows.append({"n": n, "measure": measure, "mean": mean, "low": mean - spread, "high": mean + spread})
    return pd.DataFrame(rows)


def ruler_table(
    images: ImageSet,
    pixels: Mapping[str, np.ndarray],
    features: Mapping[str, np.ndarray],
    *,
    seed: int,
    repeats: int = 5,  # random halves: what real images differ by among themselves
    k: int = 5,  # neighbours of precision, recall, density and coverage
    collapsed_to: int = 10,  # images that a collapsed generator has left
    swd_images: int = 100,  # images of each side whose patches are compared
) -> pd.DataFrame:
    """Return what every measure says about planted faults, beside what it says about real images.

    ``images`` are real; ``pixels`` and ``features`` hold what :func:`spoil` makes of them and the encoder of that, by
    the same names.  The images are cut into halves that share no group: one is the yardstick, faults are planted in
    the other; all sets have the same number of images.  Columns ``set, measure, n, value`` (mean over the repeats),
    ``real`` (that of the other half as it is), ``spread`` (its standard deviation over repeats), and ``worse``: the
    difference in spreads, positive where the measure calls the set worse than real images and negative where better.
    """
    scale = feature_scale(features[PLAIN])
    scaled = {name: values / scale for name, values in features.items()}
    cases = []
    for r in range(repeats):
        rng = np.random.default_rng([seed, r])
        yardstick, other = halves(np.arange(len(images)), images.table["group"].to_numpy(), rng)
        sets = _planted(images.labels, yardstick, other, collapsed_to, rng)
        n = min(len(yardstick), *(len(rows) for _, rows in sets.values()))
        if n <= k:
            raise BadInput(f"A planted set has {n} images, and k={k} neighbours need more: use more images.")
        yardstick = rng.permutation(yardstick)[:n]
        for name, (kind, rows) in sets.items():
            used = rng.permutation(rows)[:n]
            x, y = scaled[PLAIN][yardstick], scaled[kind][used]
            found = {"KID": kid(x, y, subsets=0)["kid"], "FID": fid(x, y), **prdc(x, y, k=k)}
            some = pixels[PLAIN][yardstick[:swd_images]], pixels[kind][used[:swd_images]]
            found |= _structure(*some, seed=r)
            found["MS-SSIM"] = _likeness(images, pixels[kind], used, generator="" if name == REAL_ROW else name, seed=r)
            cases += [{"set": name, "measure": key, "n": n, "value": value} for key, value in found.items()]
    return _against_real(pd.DataFrame(cases))


def _planted(
    labels: np.ndarray, yardstick: np.ndarray, other: np.ndarray, collapsed_to: int, rng: np.random.Generator
) -> dict[str, tuple[str, np.ndarray]]:
    """Return for every set which pixels it has and the rows it is drawn from."""
    sizes = pd.Series(labels).value_counts()
    sizes = sizes.sort_index().sort_values(ascending=False, kind="stable")
    if len(sizes) < 2:
        raise BadInput("Leaving a class out needs at least two classes; the images have one.")
    common, rare = sizes.index[1], sizes.index[-1]
    return {
        REAL_ROW: (PLAIN, other),
        COPIES_ROW: (PLAIN, rng.choice(yardstick, len(other))),
        "blurred": ("blurred", other),
        "noised": ("noised", other),
        f"without {common} (common)": (PLAIN, other[labels[other] != common]),
        f"without {rare} (rarest)": (PLAIN, other[labels[other] != rare]),
        "collapsed": (PLAIN, rng.choice(rng.permutation(other)[:collapsed_to], len(other))),
    }


def _structure(x: np.ndarray, y: np.ndarray, *, seed: int) -> dict[str, float]:
    levels = list(pyramid_distance(x, y, seed=seed, patches=32, directions=32).values())
    return {"SWD finest": levels[0], "SWD coarsest": levels[-1]}


def _likeness(images: ImageSet, pixels: np.ndarray, rows: np.ndarray, *, generator: str, seed: int) -> float:
    """Return the MS-SSIM of pairs within a class, averaged over the classes that have pairs."""
    chosen = ImageSet(pixels[rows], images.table.iloc[rows].assign(generator=generator))
    return float(class_similarity({"set": chosen}, reference="set", seed=seed, pairs=15)["ms_ssim"].mean())


def _against_real(cases: pd.DataFrame) -> pd.DataFrame:
    by = cases.groupby(["set", "measure"], sort=False)
    table = by.agg(n=("n", "min"), value=("value", "mean"), spread=("value", "std")).reset_index()
    real = table[table["set"] == REAL_ROW].set_index("measure")
    table["real"] = table["measure"].map(real["value"])
    table["spread"] = table["measure"].map(real["spread"])
    sign = np.where(table["measure"].isin(HIGHER_IS_BETTER), -1.0, 1.0)
    difference = table["value"] - table["real"]
    table["worse"] = np.where(difference == 0, 0, sign * difference / table["spread"].where(table["spread"] > 0))
    return table[["set", "measure", "n", "value", "real", "spread", "worse"]]
