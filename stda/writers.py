"""Where the images of a shard lie: a tar file for WebDataset, or a folder per class for torchvision's ImageFolder.

Both writers can be cut back to any image that was written whole, which is what a resumed shard does.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

TAR_END = bytes(1024)  # two empty blocks close an archive


class TarWriter:
    """Appends images to ``.shard-<name>.tar.partial``, which becomes ``shard-<name>.tar`` when it is finished.

    An image is three members: the picture, ``.cls`` (the number of its label among ``classes``) and ``.json`` (its
    row).  Members carry no time and no owner: the same images make the same bytes.
    """

    def __init__(self, folder: Path, name: str, classes: list[str]) -> None:
        self.classes, self.final = classes, folder / f"shard-{name}.tar"
        self.partial = folder / f".{self.final.name}.partial"
        if self.final.is_file():  # a kill came between this file and its table
            self.final.replace(self.partial)
        self.file = open(self.partial, "ab")  # noqa: SIM115  (close() closes it)

    @property
    def end(self) -> int:
        """Bytes that hold whole images."""
        return self.file.tell()

    def cut(self, end: int) -> None:
        """Forget what lies behind ``end`` bytes."""
        self.file.truncate(end)
        self.file.seek(end)

    def add(self, row: dict[str, Any], content: bytes, suffix: str) -> str:
        """Append an image, given as the bytes of a picture file; return the name of the archive."""
        number = self.classes.index(row["label"])
        parts = {suffix: content, "cls": str(number).encode(), "json": json.dumps(row).encode()}
        for ending, part in parts.items():
            member = tarfile.TarInfo(f"{row['image_id']}.{ending}")
            member.size = len(part)
            self.file.write(member.tobuf(tarfile.USTAR_FORMAT) + part + bytes(-len(part) % tarfile.BLOCKSIZE))
        self.file.flush()
        return self.final.name

    def finish(self) -> None:
        """Close the archive and give it its name."""
        self.file.write(TAR_END)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.partial.replace(self.final)

    def close(self) -> None:
        """Close the file, finished or not."""
        self.file.close()


class FolderWriter:
    """Writes images to ``images/<label>/<image_id>.<suffix>``, each under another name first."""

    end = 0  # nothing to cut: an image that the journal does not know is written again, with the same bytes

    def __init__(self, folder: Path, name: str, classes: list[str]) -> None:
        self.folder = folder

    def cut(self, end: int) -> None:
        """Do nothing."""

    def add(self, row: dict[str, Any], content: bytes, suffix: str) -> str:
        """Write an image, given as the bytes of a picture file; return its path below the folder."""
        path = Path("images", row["label"], f"{row['image_id']}.{suffix}")
        final = self.folder / path
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f".{final.name}.partial")
        partial.write_bytes(content)
        partial.replace(final)
        return path.as_posix()

    def finish(self) -> None:
        """Do nothing: every image has its name already."""

    def close(self) -> None:
        """Do nothing: no file is open."""
