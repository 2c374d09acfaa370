"""From files to one uint8 array: parallel decoding, centre square, one antialiased resize, and a cache by content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stda import BadInput

if TYPE_CHECKING:
    from PIL import Image

ASPECTS = ("square", "keep")
RECIPE = 1  # raise it whenever the same file would decode to other pixels: cache keys carry it


def workers() -> int:
    """Return the number of threads to use: ``STDA_THREADS`` where the batch set it, else the cores we may run on."""
    given = int(os.environ.get("STDA_THREADS", 0) or 0)
    if given:
        return given
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------------------------------------------------- one image


def resize_one(image: np.ndarray | Image.Image, size: int, aspect: str = "square") -> np.ndarray:
    """Bring a picture to ``size`` pixels of height, uint8 ``(size, W, 3)``, with Pillow's antialiased Lanczos filter.

    ``aspect`` "square" cuts the centre square out first; "keep" keeps the frame, W follows from it.
    """
    from PIL import Image

    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image))
    if aspect == "square":  # cut first: the filter must not see what lies outside the square
        image = centre_square(image)
    target = frame(image.size, size)
    return np.asarray(image if image.size == target else image.resize(target, Image.Resampling.LANCZOS))


def resize_mask(mask: Image.Image, size: int, aspect: str, picture: tuple[int, int]) -> np.ndarray:
    """Bring a mask to where :func:`resize_one` brings its picture of (width, height): uint8 ``(size, W)``, 0 or 255.

    The nearest pixel is taken, no grey is made; what is brighter than half counts as set.  A square picture is taken
    for the centre square of the frame that the mask shows; any other must have the mask's proportions (ValueError).
    """
    from PIL import Image

    square = picture[0] == picture[1]
    if not square and abs(mask.width * picture[1] - mask.height * picture[0]) > max(picture):
        raise ValueError(f"has {mask.width} x {mask.height} px, its picture {picture[0]} x {picture[1]}")
    if square or aspect == "square":
        mask, picture = centre_square(mask), (1, 1)
    bright = mask.convert("L").resize(frame(picture, size), Image.Resampling.NEAREST)
    return np.where(np.asarray(bright) > 127, 255, 0).astype(np.uint8)


def centre_square(image: Image.Image) -> Image.Image:
    """Cut the largest square around the centre out of a picture."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image if width == height else image.crop((left, top, left + side, top + side))


def frame(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """Return (width, height) at ``size`` pixels of height: 600 x 450 gives 298 x 224, as in ST-DA."""
    width, height = shape
    return max(size * width // height, 1), size


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 ``(N, H, W, 3)`` to ``(N, size, size, 3)`` exactly as decoded pictures are resized.

    Centre square, then Pillow's Lanczos filter, antialiased when it shrinks, once.  Real and synthetic images pass
    through this one function, so that no difference of filtering tells them apart.
    """
    check_size(size)
    resized = np.empty((len(images), size, size, 3), np.uint8)
    with ThreadPoolExecutor(workers()) as pool:
        for k, picture in enumerate(pool.map(partial(resize_one, size=size), images)):
            resized[k] = picture
    return resized


def check_size(size: int) -> None:
    """Raise unless ``size`` is a usable image size."""
    if int(size) != size or size < 1:
        raise BadInput(f"image_size is {size}; give a positive whole number of pixels, for example 32.")


def check_aspect(aspect: str) -> None:
    """Raise unless ``aspect`` is one of :data:`ASPECTS`."""
    if aspect not in ASPECTS:
        raise BadInput(f"aspect is '{aspect}'; it must be one of {', '.join(ASPECTS)}.")


def decode_one(path: Path, size: int, aspect: str = "square") -> np.ndarray | str:
    """Return the picture of a file as :func:`resize_one` gives it, or one phrase that says why it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            file.load()
            if file.mode == "F" or file.mode.startswith("I"):
                return f"pixel format {file.mode} (convert it to 8 bits per channel)"
            return resize_one(ImageOps.exif_transpose(file).convert("RGB"), size, aspect)
    except FileNotFoundError:
        return "not there"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return " ".join(str(error).split()).replace(str(path), path.name) or type(error).__name__


# --------------------------------------------------------------------------------------------------------- many files


def decode_each(paths: list[Path], *, size: int, aspect: str = "square") -> Iterator[np.ndarray | str]:
    """Yield what :func:`decode_one` makes of each file, in order, decoded in parallel."""
    with ThreadPoolExecutor(workers()) as pool:  # Pillow lets go of the interpreter lock while it decodes and resizes
        yield from pool.map(partial(decode_one, size=size, aspect=aspect), paths, chunksize=1)


def decode(paths: list[Path], *, size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Decode files in parallel.

    Returns uint8 ``(n, size, size, 3)`` of the readable ones in order, and why each of the others (by its place in
    ``paths``) could not be read.
    """
    check_size(size)
    pictures, failed = np.empty((len(paths), size, size, 3), np.uint8), {}
    for k, result in enumerate(decode_each(paths, size=size)):
        if isinstance(result, str):
            failed[k] = result
        else:
            pictures[k] = result
    if failed:
        pictures = np.delete(pictures, list(failed), axis=0)
    return pictures, failed


def cached(paths: list[Path], *, size: int, cache_dir: str | Path) -> tuple[np.ndarray, dict[int, str]]:
    """Do as :func:`decode`, but keep the array in ``cache_dir`` under a key of the files' bytes, order and ``size``.

    A hit is a read-only memory map and costs reading the files once (their digest), not decoding them: a changed,
    added or reordered file is another key.  The folder of an entry is written under another name and then renamed.
    """
    check_size(size)
    entry = Path(cache_dir) / f"pixels-{size}-{content_key(paths, size)}"
    if not entry.is_dir():
        pictures, failed = decode(paths, size=size)
        store(entry, pictures, failed)
    return load_entry(entry)


def load_entry(entry: Path) -> tuple[np.ndarray, dict[int, str]]:
    """Open what :func:`store` wrote: the pixels as a read-only memory map, and what failed."""
    try:
        failed = {int(k): why for k, why in json.loads((entry / "failed.json").read_text()).items()}
        return np.load(entry / "images.npy", mmap_mode="r", allow_pickle=False), failed
    except (OSError, ValueError) as error:
        raise BadInput(f"The cache entry {entry} is damaged ({error}): delete this folder and run again.") from error


def content_key(paths: list[Path], size: int) -> str:
    """Return a digest of the bytes of the files in this order, of ``size`` and of the decoding recipe."""
    key = hashlib.sha256(f"stda decode {RECIPE} lanczos {size}\n".encode())
    with ThreadPoolExecutor(workers()) as pool:
        for digest in pool.map(_digest, paths, chunksize=1):
            key.update(digest)
    return key.hexdigest()[:24]


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:  # a missing file is a fact about the content, too; decode says what is wrong with it
        return b"unreadable".ljust(32)


def store(entry: Path, pictures: np.ndarray, failed: dict[int, str]) -> None:
    """Write one cache entry whole or not at all."""
    partial_dir = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        partial_dir = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
        np.save(partial_dir / "images.npy", pictures)
        (partial_dir / "failed.json").write_text(json.dumps(failed, indent=1))
        partial_dir.chmod(0o755)  # mkdtemp's folder is closed to others, a cache need not be
        partial_dir.rename(entry)
    except OSError as error:
        if partial_dir is not None:
            shutil.rmtree(partial_dir, ignore_errors=True)
        if not entry.is_dir():  # another process finished the same entry first: nothing is lost
            reason = error.strerror or str(error)
            raise BadInput(
                f"The image cache {entry.parent} cannot be written ({reason}): free space, or choose another folder."
            ) from error
