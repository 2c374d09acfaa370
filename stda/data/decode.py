"""From files to one uint8 array: parallel decoding, centre square, one antialiased resize, and a cache by content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stda import BadInput

if TYPE_CHECKING:
    from PIL import Image

RECIPE = 1  # raise it whenever the same file would decode to other pixels: cache keys carry it


def workers() -> int:
    """Return the number of threads to use: ``STDA_THREADS`` where the batch set it, else the cores we may run on."""
    given = int(os.environ.get("STDA_THREADS", 0) or 0)
    if given:
        return given
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------------------------------------------------- one image


def resize_one(image: np.ndarray | Image.Image, size: int) -> np.ndarray:
    """Cut the centre square and resize it to ``(size, size, 3)`` uint8 with Pillow's antialiased Lanczos filter."""
    from PIL import Image

    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image))
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if (width, height) != (side, side):  # cut first: the filter must not see what lies outside the square
        image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)


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


def decode_one(path: Path, size: int) -> np.ndarray | str:
    """Return the picture of a file as ``(size, size, 3)`` uint8 RGB, or one phrase that says why it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            file.load()
            if file.mode == "F" or file.mode.startswith("I"):
                return f"pixel format {file.mode} (convert it to 8 bits per channel)"
            return resize_one(ImageOps.exif_transpose(file).convert("RGB"), size)
    except FileNotFoundError:
        return "not there"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return " ".join(str(error).split()).replace(str(path), path.name) or type(error).__name__


# --------------------------------------------------------------------------------------------------------- many files


def decode(paths: list[Path], *, size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Decode files in parallel.

    Returns uint8 ``(n, size, size, 3)`` of the readable ones in order, and why each of the others (by its place in
    ``paths``) could not be read.
    """
    check_size(size)
    pictures, failed = np.empty((len(paths), size, size, 3), np.uint8), {}
    with ThreadPoolExecutor(workers()) as pool:  # Pillow lets go of the interpreter lock while it decodes and resizes
        for k, result in enumerate(pool.map(partial(decode_one, size=size), paths, chunksize=1)):
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
