"""Phantom: drawn lesions with a known density.  It proves the machinery, not medicine.

Eight classes carry the names and the proportions of ISIC 2019.  Each lesion draws a latent vector from its class's
diagonal Gaussian; a logistic squashes it into physical traits (size, border, pigment, network, ...), and
:mod:`stda.data.phantom_draw` turns traits and seeds into one to three views.  Camera, light, skin and artefacts (hair,
ruler, vignette) do not depend on the class.  The picture therefore tells of the class only through the latents, and
the Bayes rule on the latents bounds every classifier of the pictures: :func:`bayes_scores` is that ceiling.

The traits are caricatures of dermoscopic criteria.  A score reached here says that code works and how far it is from
the best possible; it says nothing about skin.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from stda import BadInput
from stda.data.phantom_draw import draw, draw_mask
from stda.images import ImageSet
from stda.study import sub_seed

VERSION = 1  # raise it whenever a seed would mean another picture: caches carry it
NATIVE = 128  # pixels at which a picture is drawn before it is resized as a photograph is
MIN_LESIONS = 8  # per class, so that every fold gets some
VIEWS = (0.62, 0.25, 0.13)  # shares of lesions with one, two, three pictures
ARTEFACTS = {"hair": 0.30, "ruler": 0.08, "vignette": 0.18}  # probability per picture, the same in every class

# images per class in ISIC 2019
LESIONS = {"MEL": 4522, "NV": 12875, "BCC": 3323, "AK": 867, "BKL": 2624, "DF": 239, "VASC": 253, "SCC": 628}
CLASSES = tuple(sorted(LESIONS))

# physical range of each trait: latent 0 is the middle
TRAITS = {
    "size": (0.22, 0.82),  # radius, half frames
    "elongation": (1.0, 1.7),  # axis ratio
    "asymmetry": (0.0, 1.0),
    "irregularity": (0.0, 1.0),
    "softness": (0.03, 0.22),  # width of the border, radii
    "melanin": (0.05, 1.15),  # brown, density
    "dark": (0.0, 1.0),  # blotches nearly black
    "red": (0.0, 0.8),  # flush
    "purple": (0.0, 1.0),  # blood lakes
    "veil": (0.0, 1.0),  # blue-white
    "network": (0.0, 1.0),
    "globules": (0.0, 1.0),
    "cysts": (0.0, 1.0),
    "scale": (0.0, 1.0),
    "vessels": (0.0, 1.0),
    "scar": (0.0, 1.0),
}
LATENTS = tuple(f"z_{name}" for name in TRAITS)

# mean of each latent per class; the spread is SPREAD for all
_MEANS = {
    #                AK    BCC   BKL   DF    MEL   NV    SCC   VASC
    "size":         (0.6, -0.4,  0.8, -0.3,  0.8, -0.2,  0.5, -0.7),
    "elongation":   (0.0,  0.0,  0.2, -0.4,  0.2, -0.1,  0.0, -0.2),
    "asymmetry":    (0.0,  0.2, -0.1, -1.0,  0.9, -0.7,  0.5, -0.6),
    "irregularity": (0.4,  0.0, -0.2, -0.9,  0.7, -0.5,  0.5, -0.5),
    "softness":     (0.6,  0.1, -0.4,  0.6, -0.3, -0.1,  0.3, -0.8),
    "melanin":     (-0.7, -1.8,  0.0, -0.4,  0.7,  0.5, -2.0, -2.4),
    "dark":        (-2.6, -1.6, -1.5, -2.6,  0.1, -1.6, -2.0, -2.4),
    "red":         (-0.1,  0.2, -1.0, -0.8, -0.5, -0.7,  1.6, -0.6),
    "purple":      (-3.0, -2.6, -3.0, -3.0, -2.8, -3.0, -2.6,  1.4),
    "veil":        (-2.8, -0.2, -2.4, -2.7, -0.4, -2.4, -2.6, -2.2),
    "network":     (-1.6, -1.8, -0.8,  0.0,  0.4,  0.6, -1.8, -2.2),
    "globules":    (-1.8, -0.8, -1.4, -1.8, -0.6, -0.6, -1.6, -2.0),
    "cysts":       (-1.8, -2.2,  0.9, -2.2, -2.2, -2.1, -1.8, -2.4),
    "scale":        (1.0, -1.7, -1.0, -2.2, -2.4, -2.6,  1.3, -2.6),
    "vessels":     (-0.9,  0.9, -1.6, -1.5, -1.2, -1.7,  0.6, -1.5),
    "scar":        (-2.0, -1.6, -2.2,  2.2, -2.0, -2.2, -1.4, -2.4),
}  # fmt: skip
MEANS = np.array([_MEANS[name] for name in TRAITS]).T  # (class, trait)
SPREAD = 1.0


def describe(n_images: int, seed: int) -> pd.DataFrame:
    """List the pictures of a phantom data set: one row per picture, with artefacts, latents and seeds.

    Every class has the ISIC-2019 share of ``n_images``, at least eight pictures and at least eight lesions.  Ids do not
    tell the class.  Columns beyond the usual: ``view``, ``lesion_seed``, ``hair``, ``ruler``, ``vignette`` (0 or 1)
    and one ``z_<trait>`` per latent.
    """
    lesions = []
    for name, count in _shares(n_images).items():
        views = _views(count, np.random.default_rng(sub_seed(seed, "phantom", "views", name)))
        lesions += [(name, k, n_views) for k, n_views in enumerate(views)]
    order = np.random.default_rng(sub_seed(seed, "phantom", "order")).permutation(len(lesions))
    rows = [row for number, at in enumerate(order) for row in _lesion_rows(number, *lesions[at], seed)]
    return pd.DataFrame(rows)


def _shares(n_images: int) -> dict[str, int]:
    """Images per class: ISIC-2019 proportions by largest remainder, never below MIN_LESIONS."""
    least = MIN_LESIONS * len(CLASSES)
    if n_images < least:
        raise BadInput(f"n_images is {n_images}; the phantom needs at least {least} for its {len(CLASSES)} classes.")
    share = np.array([LESIONS[name] for name in CLASSES]) / sum(LESIONS.values()) * n_images
    counts = np.maximum(np.floor(share).astype(int), MIN_LESIONS)
    missing = n_images - counts.sum()
    if missing > 0:
        counts[np.argsort(np.floor(share) - share, kind="stable")[:missing]] += 1
    for _ in range(-missing):  # the floor of the rare classes is paid by the largest one
        counts[counts.argmax()] -= 1
    return dict(zip(CLASSES, counts.tolist(), strict=True))


def _views(n_images: int, rng: np.random.Generator) -> list[int]:
    """Split a class's images into lesions of one to three views, at least MIN_LESIONS of them."""
    views: list[int] = []
    while (left := n_images - sum(views)) > 0:
        wanted = int(rng.choice(3, p=VIEWS)) + 1
        still_needed = max(MIN_LESIONS - len(views) - 1, 0)
        views.append(max(1, min(wanted, left - still_needed)))
    return views


def _lesion_rows(number: int, label: str, index: int, n_views: int, seed: int) -> list[dict]:
    """Draw one lesion's latents and the artefacts of each of its views."""
    lesion_seed = sub_seed(seed, "phantom", label, index) % 2**53  # exact as a float, which mixing tables may make it
    rng = np.random.default_rng([lesion_seed, 99])
    latents = MEANS[CLASSES.index(label)] + SPREAD * rng.standard_normal(len(LATENTS))
    group = f"phantom_{number:06d}"
    rows = []
    for view in range(n_views):
        artefacts = {name: int(rng.random() < chance) for name, chance in ARTEFACTS.items()}
        row = {"image_id": f"{group}_{view}", "label": label, "group": group, "view": view, "lesion_seed": lesion_seed}
        rows.append(row | artefacts | dict(zip(LATENTS, latents.tolist(), strict=True)))
    return rows


def traits(latents: np.ndarray) -> dict[str, float]:
    """Squash a latent vector ``(16,)`` into the physical :data:`TRAITS`."""
    unit = 1 / (1 + np.exp(-np.asarray(latents, float)))
    return {name: low + (high - low) * float(u) for (name, (low, high)), u in zip(TRAITS.items(), unit, strict=True)}


def render(table: pd.DataFrame, *, size: int) -> np.ndarray:
    """Draw the pictures of these rows of :func:`describe`, uint8 ``(n, size, size, 3)``, in parallel.

    A picture is drawn at ``max(NATIVE, size)`` pixels and then resized as a photograph is.
    """
    from stda.data.decode import resize_one, workers

    def one(row: dict) -> np.ndarray:
        flags = {name: bool(row[name]) for name in ARTEFACTS}
        return resize_one(draw(*_scene(row), size=max(NATIVE, size), **flags), size)

    pictures = np.empty((len(table), size, size, 3), np.uint8)
    with ThreadPoolExecutor(workers()) as pool:  # numpy lets go of the interpreter lock in its loops
        for k, picture in enumerate(pool.map(one, table.to_dict("records"))):
            pictures[k] = picture
    return pictures


def masks(table: pd.DataFrame, *, size: int) -> np.ndarray:
    """Return the masks of the lesions that :func:`render` draws, uint8 ``(n, size, size)``, 0 or 255."""
    from PIL import Image

    from stda.data.decode import resize_mask

    fine = max(NATIVE, size)
    drawn = (draw_mask(*_scene(row), size=fine) for row in table.to_dict("records"))
    found = [resize_mask(Image.fromarray(mask), size, "square", (fine, fine)) for mask in drawn]
    return np.stack(found) if found else np.empty((0, size, size), np.uint8)


def _scene(row: dict) -> tuple[dict[str, float], int, int]:
    """Return what fixes a lesion and its view: physical traits, seed of the lesion, number of the view."""
    return traits(np.array([row[name] for name in LATENTS])), int(row["lesion_seed"]), int(row["view"])


def posterior(latents: np.ndarray, classes: Iterable[str] = CLASSES) -> np.ndarray:
    """Return the probability of each class given the latents ``(n, 16)`` under equal priors, ``(n, K)``."""
    means = MEANS[[CLASSES.index(name) for name in classes]]
    log_density = -0.5 * np.square((latents[:, None] - means[None]) / SPREAD).sum(-1)
    log_density -= log_density.max(axis=1, keepdims=True)
    density = np.exp(log_density)
    return density / density.sum(axis=1, keepdims=True)


def bayes_scores(table: pd.DataFrame | None = None, *, draws: int = 5000, seed: int = 0) -> dict[str, float]:
    """Return the balanced accuracy of the Bayes rule on the latents: the ceiling for any classifier of the pictures.

    ``ceiling`` and ``ceiling_se`` (standard error) come from ``draws`` fresh lesions per class; ``recall_<class>`` are
    its parts.  With ``table`` (rows of a phantom set), the rule is restricted to the classes that occur in it, and
    ``on_rows`` and ``on_rows_se`` are its balanced accuracy on these very rows; a classifier may beat that by luck of
    few rows, the ceiling only by a bug.  The rule has equal priors, which is what maximises balanced accuracy.
    """
    classes = list(CLASSES) if table is None else sorted(table["label"].unique())
    missing = [] if table is None else [name for name in LATENTS if name not in table]
    if missing or not set(classes) <= set(CLASSES):
        raise BadInput(f"Only rows of the phantom have a known density; these lack {missing or 'its classes'}.")
    rng = np.random.default_rng(sub_seed(seed, "phantom", "bayes"))
    latents = np.concatenate(
        [MEANS[CLASSES.index(name)] + SPREAD * rng.standard_normal((draws, len(LATENTS))) for name in classes]
    )
    recalls, error = _recalls(latents, np.repeat(classes, draws), classes)
    scores = {"ceiling": float(recalls.mean()), "ceiling_se": error}
    scores |= {f"recall_{name}": float(value) for name, value in zip(classes, recalls, strict=True)}
    if table is not None:
        recalls, error = _recalls(table[list(LATENTS)].to_numpy(float), table["label"].to_numpy(), classes)
        scores |= {"on_rows": float(recalls.mean()), "on_rows_se": error}
    return scores


def _recalls(latents: np.ndarray, labels: np.ndarray, classes: list[str]) -> tuple[np.ndarray, float]:
    """Return the rule's recall per class and the standard error of their mean."""
    right = np.array(classes)[posterior(latents, classes).argmax(1)] == labels
    counts = np.array([(labels == name).sum() for name in classes])
    recalls = np.array([right[labels == name].mean() for name in classes])
    error = np.sqrt((recalls * (1 - recalls) / counts).sum()) / len(classes)
    return recalls, float(error)


def ceiling(images: ImageSet | pd.DataFrame, source: str = "phantom") -> pd.DataFrame:
    """Return the ceiling as a table for a report: what, balanced accuracy and its standard error.

    Rows: the Bayes rule on fresh lesions, the same rule on the lesions of these very images, and guessing.  The
    density of real images is unknown: for other sources there is one row that says so, without a number.
    """
    columns = ["what", "balanced accuracy", "standard error"]
    if source != "phantom":
        return pd.DataFrame([(f"not known: {source} images have no known density", np.nan, np.nan)], columns=columns)
    table = images.table if isinstance(images, ImageSet) else images
    scores = bayes_scores(table)
    rows = [
        ("Bayes rule on the latents, fresh lesions (the ceiling)", scores["ceiling"], scores["ceiling_se"]),
        (f"Bayes rule on the latents of these {len(table)} images", scores["on_rows"], scores["on_rows_se"]),
        ("guessing", 1 / table["label"].nunique(), 0.0),
    ]
    return pd.DataFrame(rows, columns=columns)
