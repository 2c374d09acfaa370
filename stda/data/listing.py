"""What every source of files shares: the listing of its pictures, checks of its root and of the classes asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from os import scandir
from pathlib import Path

import pandas as pd

from stda import BadInput

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Listing:
    """The pictures of a source of files: a table (image_id, label, group, more) and one path per row, in its order."""

    table: pd.DataFrame
    paths: list[Path] = field(default_factory=list)

    def keep(self, rows: Collection[bool]) -> Listing:
        """Return the rows whose mask is true."""
        paths = [path for path, kept in zip(self.paths, rows, strict=True) if kept]
        return Listing(self.table[list(rows)].reset_index(drop=True), paths)


def existing_root(source: str, root: str | Path, *, holds: str) -> Path:
    """Return ``root`` as a path that exists; ``holds`` says what the user should have put there."""
    if not str(root):
        raise BadInput(f"data.root is empty but source {source} needs it: give {holds}.")
    path = Path(root)
    if not path.exists():
        raise BadInput(f"data.root '{root}' does not exist; source {source} needs {holds}.")
    return path


def read_csv(path: Path, needed: Iterable[str]) -> pd.DataFrame:
    """Read a CSV as text ("NA" stays a name) and check that it has the needed columns."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror or error}); check the path and its rights.") from error
    except (ValueError, pd.errors.ParserError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{path} is not a readable CSV ({reason}): replace it with the original file.") from error
    missing = [column for column in needed if column not in table]
    if missing:
        raise BadInput(f"{path} has no column {missing}; it has {list(table.columns)}: use the original table.")
    return table


def picked_classes(classes: str, present: Iterable[str], *, tasks: Iterable[str] = ()) -> list[str]:
    """Return the class names of ``"a,b"`` after checking that each is among those present; ``""`` means all."""
    present = sorted(set(present))
    wanted = [name.strip() for name in classes.split(",") if name.strip()] or present
    unknown = [name for name in wanted if name not in present]
    if unknown:
        named = f"the tasks {', '.join(tasks)} or " if tasks else ""
        raise BadInput(f"data.classes asks for '{unknown[0]}', not in the data; choose {named}among {present}.")
    if len(set(wanted)) < 2:
        raise BadInput(f"Only class {wanted} is there; a classifier needs at least two classes.")
    return wanted


def scan(root: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (path below ``root``, size, modification time in ns) of every file that is not hidden, sorted."""
    with scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from ((f"{entry.name}/{name}", *rest) for name, *rest in scan(Path(entry.path)))
            else:
                facts = entry.stat()
                yield entry.name, facts.st_size, facts.st_mtime_ns


def digest_folder(root: Path) -> str:
    """Return a digest of file names, sizes and times below ``root``, and of the content of its own CSV files."""
    if root.is_file():
        facts = root.stat()
        files, tables = [(root.name, facts.st_size, facts.st_mtime_ns)], sorted(root.parent.glob("*.csv"))
    else:
        files, tables = scan(root), sorted(root.glob("*.csv"))
    digest = hashlib.sha256()
    for row in files:
        digest.update(repr(row).encode())
    for table in tables:
        digest.update(table.read_bytes())
    return digest.hexdigest()
