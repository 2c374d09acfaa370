"""Any folder of pictures: one sub-folder per class, and optionally ``groups.csv`` that says what belongs together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from stda import BadInput
from stda.data.listing import SUFFIXES, Listing, existing_root, picked_classes, read_csv, scan

GROUPS = "groups.csv"


def listing(root: str | Path, classes: str = "") -> Listing:
    """List the pictures below ``root/<class>/``, sorted by path, which is also their image id ("MEL/a.jpg").

    ``classes`` keeps some of the sub-folders ("MEL,NV").  Files with other suffixes than common image formats and
    hidden ones are not looked at.  ``groups.csv`` has columns image_id and group (lesion or patient); image_id is the
    path below ``root``, or a file name with or without suffix where that is unique.  It must name every picture;
    without it every picture is a group of its own.
    """
    folder = existing_root("folder", root, holds="a folder with one sub-folder of pictures per class")
    if not folder.is_dir():
        raise BadInput(f"data.root '{root}' is a file; source folder needs a folder with one sub-folder per class.")
    present = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if len(present) < 2:
        raise BadInput(f"data.root '{root}' has {len(present)} class folders; give at least two, one per class.")
    rows = []
    for label in sorted(picked_classes(classes, present)):
        names = [name for name, _, _ in scan(folder / label) if name.lower().endswith(SUFFIXES)]
        if not names:
            raise BadInput(f"Class folder '{folder / label}' holds no picture ({' '.join(SUFFIXES)}): remove it.")
        rows += [(f"{label}/{name}", label) for name in names]
    table = pd.DataFrame(rows, columns=["image_id", "label"]).sort_values("image_id", ignore_index=True)
    table["group"] = _groups(folder / GROUPS, table["image_id"])
    if not (folder / GROUPS).is_file():
        table.attrs["warning"] = (
            f"There is no {GROUPS}: every image counts as a lesion of its own, and images of one lesion or patient may "
            "lie in training and test at once. Add it if your data has such images."
        )
    return Listing(table, [folder / name for name in table["image_id"]])


def _groups(path: Path, image_ids: pd.Series) -> list[str]:
    """Return the group of each picture."""
    if not path.is_file():
        return image_ids.tolist()
    given = read_csv(path, ("image_id", "group"))
    repeated = given["image_id"][given["image_id"].duplicated()]
    if len(repeated):
        raise BadInput(f"{path} names '{repeated.iloc[0]}' twice: keep one row.")
    group_of = dict(zip(given["image_id"], given["group"], strict=True))
    spellings = [[name, name.rsplit("/", 1)[-1], Path(name).stem] for name in image_ids]
    # a bare file name counts only where it means one picture
    uses = Counter(spelling for names in spellings for spelling in set(names))
    groups = [next((group_of[s] for s in names if uses[s] == 1 and s in group_of), None) for names in spellings]
    lost = [name for name, group in zip(image_ids, groups, strict=True) if not group]
    if lost:
        raise BadInput(f"{path} gives no group for {len(lost)} pictures, first '{lost[0]}': add them, by path.")
    return groups
