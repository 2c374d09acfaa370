"""An image data base of any size, made in shards by any generator: which images, where they lie, what is done already.

A shard is a range of rows of the generator's endless table.  Its images go into a tar file that WebDataset reads
(``<image_id>.png``, ``.cls``, ``.json``), or into one folder per class that torchvision's ImageFolder reads; its rows
into ``table-00003-of-00010.csv``.  A hidden journal notes every image as soon as it is written, so that a killed shard
goes on where it stopped and comes out byte for byte as if it had not been killed.  Memory does not grow with the
number of images.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from stda import BadInput
from stda.data.decode import workers
from stda.generators.base import Generator, Unfinished
from stda.images import read_table
from stda.runs import read_manifest, runs_root, sha256, write_json
from stda.study import sub_seed
from stda.writers import FolderWriter, TarWriter

ORDER_FILE, TABLE_FILE = "generate.json", "table.csv"
WRITERS = {"tar": TarWriter, "folders": FolderWriter}
SUFFIXES = {"png": "png", "jpeg": "jpg"}
Row = dict[str, Any]


# ------------------------------------------------------------------------------------------------------- the order


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a data base is: all that its images follow from, and how they are written."""

    study: str
    replicate: int
    generator: str
    digest: str  # of the fitted generator: generator_digest
    seed: int
    n: int
    shards: int
    shares: dict[str, float]  # of the classes that are asked for
    classes: list[str]  # of the train fold, sorted: the numbers in .cls
    size: int  # pixels of a side; 0: the generator's own
    layout: str  # tar or folders
    format: str  # png or jpeg
    quality: int  # of JPEG, 1 to 95
    precision: str
    threads: int

    def __post_init__(self) -> None:
        for what, value, allowed in (("layout", self.layout, WRITERS), ("format", self.format, SUFFIXES)):
            if value not in allowed:
                raise BadInput(f"{what} is '{value}'; it must be one of {', '.join(allowed)}.")
        if not 1 <= self.shards <= self.n:
            raise BadInput(f"{self.n} images cannot be made in {self.shards} shards; give 1 shard or more, up to n.")
        if not 1 <= self.quality <= 95:
            raise BadInput(f"quality is {self.quality}; JPEG takes 1 to 95.")

    @property
    def own_seed(self) -> int:
        """The seed of this replicate's and generator's images."""
        return sub_seed(self.seed, f"r{self.replicate}", self.generator, "database")

    def places(self, shard: int) -> range:
        """Return the places of a shard's images in the generator's endless table."""
        if not 0 <= shard < self.shards:
            raise BadInput(f"There is no shard {shard}; with shards {self.shards} they are 0 to {self.shards - 1}.")
        return range(self.n * shard // self.shards, self.n * (shard + 1) // self.shards)

    def name(self, shard: int) -> str:
        """Return the part of the file names that tells the shard."""
        return f"{shard:05d}-of-{self.shards:05d}"


def generator_digest(generator: Generator) -> str:
    """Return the SHA-256 over all that a fitted generator saves."""
    with tempfile.TemporaryDirectory() as folder:
        generator.save(Path(folder))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        lines = [f"{path.relative_to(folder)} {sha256(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_order(folder: Path) -> Order | None:
    """Return the order of a data base, None where none was begun."""
    try:
        return Order(**json.loads((folder / ORDER_FILE).read_text())["order"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / ORDER_FILE} is damaged ({error}): give another folder.") from None


def begin(folder: Path, order: Order, **facts: Any) -> None:
    """Make the folder and note the order in it; ``facts`` (machine, software) are noted too and not compared.

    Raises BadInput where the folder holds images of another order, or cannot be written.  Shards may begin at the same
    time: one of them writes the order, the others find it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if read_order(folder) is None:
            with tempfile.TemporaryDirectory(prefix=".order-", dir=folder) as place:
                write_json(Path(place) / ORDER_FILE, {"order": asdict(order), **facts})
                with suppress(FileExistsError):  # a link, unlike a rename, never replaces what another shard wrote
                    os.link(Path(place) / ORDER_FILE, folder / ORDER_FILE)
    except OSError as error:
        raise _unwritable(folder, error) from None
    before, now = asdict(read_order(folder)), asdict(order)
    other = [f"{key} {before[key]} (now {now[key]})" for key in now if before[key] != now[key]]
    if other:
        raise BadInput(
            f"{folder} holds images made with {' and '.join(other[:2])}: give another --out, or the same settings."
        )


# --------------------------------------------------------------------------------------------------------- a shard


@dataclass(frozen=True)
class Shard:
    """How a shard stands after :func:`make_shard`."""

    table: Path
    made: int  # rows that this call worked off
    failed: int  # rows that could not be made, listed in failed-*.csv with the reason
    was_there: bool = False  # finished before this call


def make_shard(
    order: Order,
    folder: Path,
    shard: int,
    generator: Generator,
    *,
    sources: set[str],  # ids of the train fold: an image may come from these alone
    callback: Callable[[Row], None] | None = None,  # gets step, steps and resumed (rows found there) after each row
) -> Shard:
    """Make what is missing of a shard; a finished one is left as it is.

    Raises BadInput when another process makes the same shard, a source is not of the train fold, or the disk is full;
    what was made before stays.  A row that the generator cannot make is passed over and listed.
    """
    places, name = order.places(shard), order.name(shard)
    table, failed = folder / f"table-{name}.csv", folder / f"failed-{name}.csv"
    try:
        with _locked(folder / f".journal-{name}.jsonl") as journal:
            if table.is_file():
                Path(journal.name).unlink(missing_ok=True)
                return Shard(table, 0, _count_rows(failed), was_there=True)
            with closing(WRITERS[order.layout](folder, name, order.classes)) as writer:
                resumed = step = _resume(journal, writer)
                for row in _write_images(order, places, resumed, generator, sources, writer):
                    journal.write(json.dumps(row, allow_nan=False).encode() + b"\n")
                    journal.flush()
                    step += 1
                    if callback:
                        callback({"step": step, "steps": len(places), "resumed": resumed})
                writer.finish()
            if any("failed" in row for row in _read(journal)):
                _write_table(failed, (row for row in _read(journal) if "failed" in row))
            _write_table(table, (row for row in _read(journal) if "failed" not in row))
            Path(journal.name).unlink()
    except OSError as error:
        raise _unwritable(folder, error) from None
    return Shard(table, len(places) - resumed, _count_rows(failed))


def _write_images(
    order: Order, places: range, there: int, generator: Generator, sources: set[str], writer: TarWriter | FolderWriter
) -> Iterator[Row]:
    """Make and write the images behind the first ``there``; yield of each what the journal is to note."""
    first = places.start
    with ThreadPoolExecutor(workers()) as pool:  # Pillow lets go of the interpreter lock while it encodes
        while first < places.stop:
            # groups begin at multiples: which images are made together does not depend on where a kill happened
            last = min(first - first % generator.rows_at_once + generator.rows_at_once, places.stop)
            skip = max(places.start + there - first, 0)
            if first + skip < last:
                rows = generator.plan(first, last, shares=order.shares, seed=order.own_seed)
                _check_sources(rows, sources)
                made = list(_make(generator, rows.iloc[skip:].reset_index(drop=True)))
                contents = pool.map(lambda item: b"" if item[2] else encode(item[1], order.format, order.quality), made)
                for (row, _, reason), content in zip(made, contents, strict=True):
                    if reason:
                        yield {"end": writer.end, "failed": reason, **row}
                        continue
                    file = writer.add(row, content, SUFFIXES[order.format])
                    yield {"end": writer.end, **row, "file": file}
            first = last


def _make(generator: Generator, rows: pd.DataFrame) -> Iterator[tuple[Row, np.ndarray | None, str]]:
    """Yield each row with its image, or with None and the reason why there is none."""
    while len(rows):
        try:
            made, reason = generator.make(rows), ""
        except Unfinished as error:
            made, reason = error.finished, str(error)
        yield from ((row, image, "") for row, image in zip(_records(made.table), made.images, strict=True))
        rows = rows.iloc[len(made) :].reset_index(drop=True)
        if reason:
            yield _records(rows.iloc[:1])[0], None, reason
            rows = rows.iloc[1:].reset_index(drop=True)


def _records(table: pd.DataFrame) -> list[Row]:
    """Return rows as plain values; a number that is not finite becomes None."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{name: plain(value) for name, value in row.items()} for row in table.to_dict("records")]


def _check_sources(rows: pd.DataFrame, sources: set[str]) -> None:
    strangers = set("|".join(rows["source_ids"]).split("|")) - sources - {""}
    if strangers:
        raise BadInput(f"'{min(strangers)}' is not of the train fold, where alone images may come from: fit again.")


def encode(image: np.ndarray, format: str, quality: int) -> bytes:
    """Return an image as the bytes of a file; ``format`` png or jpeg, ``quality`` of JPEG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format, **({"quality": quality} if format == "jpeg" else {}))
    return file.getvalue()


def join_tables(order: Order, folder: Path) -> Path | None:
    """Write the tables of all shards as one, ``table.csv``; None while a shard is missing."""
    tables = [folder / f"table-{order.name(shard)}.csv" for shard in range(order.shards)]
    if not all(path.is_file() for path in tables):
        return None
    partial = folder / f".{TABLE_FILE}.{os.getpid()}.partial"
    try:
        with open(partial, "wb") as whole:
            for path in tables:
                with open(path, "rb") as part:
                    header = part.readline()
                    if not whole.tell():
                        whole.write(header)
                    shutil.copyfileobj(part, whole)
        return partial.replace(folder / TABLE_FILE)
    except OSError as error:
        raise _unwritable(folder, error) from None


# ------------------------------------------------------------------------------------------------------ the journal


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open the journal of a shard for this process alone; the lock goes with the process, however that ends."""
    with open(path, "a+b") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"Another process is making this shard (it holds {path}): let it finish.") from None
        yield journal


def _read(journal: BinaryIO) -> Iterator[Row]:
    """Yield the rows of a journal from its beginning."""
    journal.seek(0)
    yield from map(json.loads, journal)


def _resume(journal: BinaryIO, writer: TarWriter | FolderWriter) -> int:
    """Cut journal and writer back to the last row that both have, and return the number of such rows."""
    there, end, length = 0, 0, 0
    journal.seek(0)
    for line in journal:
        if not line.endswith(b"\n") or json.loads(line)["end"] > writer.end:
            break  # torn by the kill, or the image did not reach the disk
        there, end, length = there + 1, json.loads(line)["end"], length + len(line)
    journal.truncate(length)
    writer.cut(end)
    return there


def _write_table(path: Path, rows: Iterator[Row]) -> None:
    """Write rows as CSV under another name, then rename it."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        table = None
        for row in rows:
            del row["end"]
            if table is None:
                table = csv.DictWriter(file, list(row), lineterminator="\n")
                table.writeheader()
            table.writerow(row)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _count_rows(path: Path) -> int:
    """Return the number of rows of a table, 0 where there is none."""
    if not path.is_file():
        return 0
    with open(path, newline="", encoding="utf-8") as file:
        return max(sum(1 for _ in csv.reader(file)) - 1, 0)


def _unwritable(folder: Path, error: OSError) -> BadInput:
    return BadInput(
        f"{folder} cannot be written ({error.strerror or error}): free some space or repair its rights, then give the "
        "same command again; what was made is kept."
    )


# ------------------------------------------------------------------------------------------------------- one image


@dataclass(frozen=True)
class Origin:
    """What made the images of a table."""

    replicate_dir: Path  # folder of the replicate's stages
    generator: str
    precision: str
    threads: int
    size: int = 0
    digest: str = ""  # empty: not noted
    quality: int = 95

    def check(self, generator: Generator) -> None:
        """Raise unless this is the generator that made the images, bit for bit."""
        if self.digest and self.digest != generator_digest(generator):
            raise BadInput(f"{self.replicate_dir / self.generator} was fitted anew since: its images would be others.")


def origin_of(table: Path) -> Origin:
    """Say what made the images of a table that ``stda generate`` or a notebook wrote."""
    order = read_order(table.parent)
    if order is not None:
        replicate_dir = runs_root() / order.study / f"r{order.replicate}"
        how = (order.precision, order.threads, order.size, order.digest, order.quality)
        return Origin(replicate_dir, order.generator, *how)
    if not (table.parent / "manifest.json").is_file():
        raise BadInput(f"{table} lies beside no {ORDER_FILE} and no manifest.json: give a table that stda wrote.")
    manifest = read_manifest(table.parent)
    machine = manifest["machine"]
    return Origin(table.parent.parent, manifest["stage"], machine["precision"], machine["threads"])


def find_row(table: Path, row: str) -> pd.DataFrame:
    """Return one row of a table, given by its image_id or its number (0 for the first)."""
    if not table.is_file():
        raise BadInput(f"There is no table {table}.")
    rows = read_table(table)
    found = rows[rows["image_id"] == row]
    if not len(found) and row.isdigit():
        found = rows.iloc[int(row) : int(row) + 1]
    if not len(found):
        raise BadInput(f"{table} has no row '{row}'; give an image_id, or a number from 0 to {len(rows) - 1}.")
    return found.iloc[:1].reset_index(drop=True)


def write_picture(image: np.ndarray, path: Path, *, quality: int) -> None:
    """Write an image as PNG or JPEG, as the suffix of the path says."""
    format = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}.get(path.suffix.lower())
    if format is None:
        raise BadInput(f"'{path}' ends in neither .png nor .jpg: give such a name.")
    try:
        path.write_bytes(encode(image, format, quality))
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror or error}): give another file.") from None
