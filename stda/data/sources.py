"""One door to every source: list it, load it, fetch originals at another size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stda import BadInput
from stda.data import dermamnist, folder, ham10000, phantom
from stda.data.decode import (
    cached,
    check_aspect,
    check_size,
    decode,
    decode_each,
    load_entry,
    resize,
    resize_mask,
    store,
)
from stda.data.listing import Listing, digest_folder, picked_classes
from stda.images import ImageSet, complete_table

SOURCES = ("phantom", "ham10000", "dermamnist", "folder")


def describe(source: str, root: str | Path = "", *, classes: str = "", n_images: int = 2000, seed: int = 0,
             skip_unreadable: bool = False) -> pd.DataFrame:  # fmt: skip
    """Return the table that :func:`load` would give, without decoding a picture: root, columns and classes are checked.

    Missing files raise unless ``skip_unreadable``.  ``table.attrs["warning"]`` holds a sentence where the source cannot
    say which images belong together.
    """
    listing = _listing(source, root, classes=classes, n_images=n_images, seed=seed)
    missing = {k: "not there" for k, path in enumerate(listing.paths) if not path.is_file()}
    if missing:
        listing = _without(listing, missing, root, skip_unreadable)
    return _finished(listing.table)


def load(source: str, root: str | Path = "", *, size: int, classes: str = "", n_images: int = 2000, seed: int = 0,
         skip_unreadable: bool = False, cache_dir: str | Path | None = None) -> ImageSet:  # fmt: skip
    """Return all pictures of a source at ``size`` pixels, not split yet (split ""), rows in a fixed order.

    Args:
        source: one of :data:`SOURCES`.
        root: folder or file of the source; the phantom needs none.
        size: height = width of the result; centre square, one antialiased resize (:func:`resize`).
        classes: task of the source or names of classes, comma-separated; "" means all.
        n_images: pictures that the phantom draws.
        seed: of the phantom.
        skip_unreadable: leave out pictures that cannot be decoded; :func:`skipped` of the result lists them.
        cache_dir: folder that keeps the pixels under a key of the content; None keeps nothing.

    Raises:
        BadInput: unknown source, missing root, column, class or file, an unreadable picture, a size below 1.
    """
    check_size(size)
    listing = _listing(source, root, classes=classes, n_images=n_images, seed=seed)
    if not listing.paths:
        pixels = _computed_pixels(source, root, listing.table, size=size, cache_dir=cache_dir)
        return ImageSet(pixels, _finished(listing.table))
    read = decode(listing.paths, size=size) if not cache_dir else cached(listing.paths, size=size, cache_dir=cache_dir)
    pixels, failed = read
    if failed:
        listing = _without(listing, failed, root, skip_unreadable)
    return ImageSet(pixels, _finished(listing.table))


def skipped(images: ImageSet | pd.DataFrame) -> list[str]:
    """Return "image_id: reason" of the pictures that ``skip_unreadable`` left out of a loaded set or its table."""
    table = images.table if isinstance(images, ImageSet) else images
    return list(table.attrs.get("skipped", []))


def pictures(source: str, root: str | Path, image_ids: Sequence[str], *, size: int, n_images: int = 2000, seed: int = 0,
             classes: str = "") -> np.ndarray:  # fmt: skip
    """Return the originals of these ids at another size, uint8 ``(n, size, size, 3)``, in the order asked.

    They are cut and resized exactly as :func:`load` does; the phantom is drawn anew at that size.
    """
    settings = {"source": source, "root": root, "classes": classes, "n_images": n_images, "seed": seed}
    return picture_reader(settings, size=size)(image_ids)


def fingerprint(source: str, root: str | Path = "") -> str:
    """Return a cheap digest of a source's files (names, sizes, times) and tables (content); "" for the phantom."""
    if source == "phantom":
        return ""
    _check_source(source)
    if source == "dermamnist":
        return digest_folder(dermamnist.find(root))
    path = Path(root)
    if not str(root) or not path.exists():
        raise BadInput(f"data.root '{root}' does not exist; give the folder of source {source}.")
    return digest_folder(path)


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text, "" when there is none."""
    if not str(path) or not Path(path).is_file():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(source: str, root: str | Path = "") -> str:
    """Return the SHA-256 over names and bytes of all files of a source, for manifests; "" for the phantom."""
    if source == "phantom":
        return ""
    base = Path(root)
    files = [base] if base.is_file() else sorted(path for path in base.rglob("*") if path.is_file())
    lines = (f"{path.relative_to(base.parent)} {file_digest(path)}" for path in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _check_source(source: str) -> None:
    if source not in SOURCES:
        raise BadInput(f"data.source is '{source}'; it must be one of {', '.join(SOURCES)}.")


def _listing(source: str, root: str | Path, *, classes: str, n_images: int, seed: int) -> Listing:
    """List a source; those whose pixels are computed or lie in one array have no paths."""
    _check_source(source)
    if source == "phantom":
        table = phantom.describe(n_images, seed)
        kept = table["label"].isin(picked_classes(classes, phantom.CLASSES))
        return Listing(table[kept].reset_index(drop=True))
    if source == "dermamnist":
        return Listing(dermamnist.describe(root, classes))
    return {"ham10000": ham10000, "folder": folder}[source].listing(root, classes)


def _finished(table: pd.DataFrame) -> pd.DataFrame:
    """Bring the table into the form of an image set's, keeping what ``attrs`` tells."""
    finished = complete_table(table)
    finished.attrs |= table.attrs
    return finished


def _without(listing: Listing, failed: dict[int, str], root: str | Path, skip_unreadable: bool) -> Listing:
    """Drop the pictures that failed and note them, or raise."""
    ids = listing.table["image_id"].tolist()
    if not skip_unreadable:
        raise BadInput(_unreadable_sentence([ids[k] for k in failed], list(failed.values()), root))
    left = listing.keep([k not in failed for k in range(len(ids))])
    if left.table["label"].nunique() < listing.table["label"].nunique():
        lost = sorted(set(listing.table["label"]) - set(left.table["label"]))
        raise BadInput(f"No picture of class {lost} in '{root}' can be read: repair the files or leave the class out.")
    left.table.attrs["skipped"] = [f"{ids[k]}: {why}" for k, why in sorted(failed.items())]
    return left


def _unreadable_sentence(ids: list[str], reasons: list[str], root: str | Path) -> str:
    shown = "; ".join(f"{name} ({why})" for name, why in list(zip(ids, reasons, strict=True))[:3])
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    count = "1 picture" if len(ids) == 1 else f"{len(ids)} pictures"
    return f"{count} of '{root}' cannot be read: {shown}{more}. Replace them, or set skip_unreadable: true."


def _computed_pixels(source: str, root: str | Path, table: pd.DataFrame, *, size: int,
                     cache_dir: str | Path | None) -> np.ndarray:  # fmt: skip
    """Draw the phantom's pictures (through the cache if there is one) or take DermaMNIST's out of its array."""
    if source == "dermamnist":
        return resize(dermamnist.images(root, table["image_id"].tolist()), size)
    if cache_dir is None:
        return phantom.render(table, size=size)
    key = hashlib.sha256(f"phantom {phantom.VERSION} {size} {table.to_csv(index=False)}".encode()).hexdigest()[:24]
    entry = Path(cache_dir) / f"phantom-{size}-{key}"
    if not entry.is_dir():
        store(entry, phantom.render(table, size=size), {})
    return load_entry(entry)[0]


def picture_reader(
    settings: Mapping[str, object], *, size: int, aspect: str = "square"
) -> Callable[[Sequence[str]], np.ndarray | list[np.ndarray]]:
    """Return ``image_ids -> originals`` of ``size`` pixels of height for the source of these parameters of notebook 01.

    ``settings`` holds source, root, classes, n_images and seed (a manifest's parameters).  ``aspect`` "square" gives
    uint8 ``(n, size, size, 3)``; "keep" gives a list of uint8 ``(size, W, 3)``, each W by its own picture.  The source
    is listed once.  Style transfer is handed this reader, so that it need not know where images come from.
    """
    rows_of, listing = _opened(settings, size, aspect)

    def read(image_ids: Sequence[str]) -> np.ndarray | list[np.ndarray]:
        rows = rows_of(image_ids)
        if not rows:
            return np.empty((0, size, size, 3), np.uint8) if aspect == "square" else []
        if not listing.paths:  # the phantom and DermaMNIST have square pictures only
            source, root, table = settings["source"], settings["root"], listing.table.iloc[rows]
            pixels = _computed_pixels(source, root, table, size=size, cache_dir=None)
            return pixels if aspect == "square" else list(pixels)
        found = list(decode_each([listing.paths[k] for k in rows], size=size, aspect=aspect))
        failed = {k: reason for k, reason in enumerate(found) if isinstance(reason, str)}
        if failed:
            ids = [image_ids[k] for k in failed]
            raise BadInput(_unreadable_sentence(ids, list(failed.values()), settings["root"]))
        return np.stack(found) if aspect == "square" else found

    return read


def has_masks(settings: Mapping[str, object]) -> bool:
    """Say whether the source of these parameters of the data stage has lesion masks."""
    if settings["source"] != "ham10000":
        return settings["source"] == "phantom"
    try:
        return bool(ham10000.mask_paths(settings["root"]))
    except BadInput:
        return False


def mask_reader(
    settings: Mapping[str, object], *, size: int, aspect: str = "square"
) -> Callable[[Sequence[str]], np.ndarray | list[np.ndarray]]:
    """Return ``image_ids -> lesion masks``, 255 in the lesion and 0 around it, cut and sized as :func:`picture_reader`.

    Gives uint8 ``(n, size, size)``, or with ``aspect`` "keep" a list of uint8 ``(size, W)``.  HAM10000 has masks where
    they lie beside its pictures, the phantom knows where it drew the lesion; a source without masks raises at once, a
    picture without one when it is asked for.
    """
    rows_of, listing = _opened(settings, size, aspect)
    source, root = settings["source"], settings["root"]
    if source not in ("phantom", "ham10000"):
        raise BadInput(f"Source {source} has no lesion masks: leave masks out, or use ham10000 or the phantom.")
    files = ham10000.mask_paths(root) if source == "ham10000" else {}

    def read(image_ids: Sequence[str]) -> np.ndarray | list[np.ndarray]:
        rows = rows_of(image_ids)
        if source == "phantom":
            found = phantom.masks(listing.table.iloc[rows], size=size)
            return found if aspect == "square" else list(found)
        lacking = [name for name in image_ids if name not in files]
        if lacking:
            raise BadInput(f"Image '{lacking[0]}' has no lesion mask in '{root}': add it, or leave masks out.")
        found = [_mask(files[image_ids[k]], listing.paths[row], size, aspect) for k, row in enumerate(rows)]
        if aspect == "keep":
            return found
        return np.stack(found) if found else np.empty((0, size, size), np.uint8)

    return read


def _opened(
    settings: Mapping[str, object], size: int, aspect: str
) -> tuple[Callable[[Sequence[str]], list[int]], Listing]:
    """List a source once; return a function from image ids to their rows, and the listing."""
    check_size(size)
    check_aspect(aspect)
    options = {name: settings[name] for name in ("classes", "n_images", "seed")}
    listing = _listing(settings["source"], settings["root"], **options)
    place = {name: k for k, name in enumerate(listing.table["image_id"])}

    def rows_of(image_ids: Sequence[str]) -> list[int]:
        unknown = [name for name in image_ids if name not in place]
        if unknown:
            raise BadInput(
                f"Source {settings['source']} has no image '{unknown[0]}': ask with the parameters it was loaded with."
            )
        return [place[name] for name in image_ids]

    return rows_of, listing


def _mask(path: Path, picture: Path, size: int, aspect: str) -> np.ndarray:
    """Read one mask for the picture in that file."""
    from PIL import Image

    try:
        with Image.open(picture) as file:
            shape = file.size
        with Image.open(path) as file:
            return resize_mask(file, size, aspect, shape)
    except (OSError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"The mask {path} cannot be used ({reason}): replace it, or leave masks out.") from None
