import csv
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stda import BadInput, shards
from stda.generators.base import Generator, Unfinished
from stda.images import ImageSet
from stda.shards import Order, make_shard

CLASSES = ["a", "b", "c"]


class Noise(Generator):
    """Images of noise, one class brighter than the other; no network needed."""

    name = "noise"
    rows_at_once = 8

    def __init__(self, *, pause=0.0, bad=(), source=""):
        self.pause, self.bad, self.source, self.made = pause, bad, source, []

    def fit(self, train, *, steps=0, seed=0, callback=None):
        raise NotImplementedError

    def generate(self, labels, *, seed):
        raise NotImplementedError

    def plan(self, start, stop, *, shares, seed):
        return super().plan(start, stop, shares=shares, seed=seed).assign(source_ids=self.source)

    def make(self, rows):
        for place, name in enumerate(rows["image_id"]):
            if name in self.bad:
                raise Unfinished(f"{name} is bad.", self.make(rows.iloc[:place]))
        self.made += rows["image_id"].tolist()
        table = rows.assign(loss=[float("nan") if seed % 5 == 0 else seed / 7 for seed in rows["image_seed"]])
        return ImageSet(self.regenerate(rows), table)

    def regenerate(self, rows):
        time.sleep(self.pause * len(rows))
        noise = [np.random.default_rng(seed).integers(0, 99, (6, 6, 3)) for seed in rows["image_seed"]]
        level = [50 * CLASSES.index(label) for label in rows["label"]]
        images = [image + bright for image, bright in zip(noise, level, strict=True)]
        return np.array(images, np.uint8).reshape(-1, 6, 6, 3)

    def save(self, folder):
        (folder / "generator.json").write_text("noise")

    @classmethod
    def load(cls, folder, **parts):
        return cls()


def order(**change):
    values = {
        "study": "s",
        "replicate": 0,
        "generator": "noise",
        "digest": "",
        "seed": 1,
        "n": 50,
        "shards": 1,
        "shares": {"a": 0.5, "b": 0.25, "c": 0.25},
        "classes": CLASSES,
        "size": 0,
        "layout": "tar",
        "format": "png",
        "quality": 95,
        "precision": "float32",
        "threads": 1,
    }
    return Order(**(values | change))


def make(folder, wanted, shard=0, generator=None, **knobs):
    shards.begin(folder, wanted)
    return make_shard(wanted, folder, shard, generator or Noise(), **({"sources": set()} | knobs))


def content(folder):
    """Return the bytes of every file, without the order."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != shards.ORDER_FILE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------------- layouts


def test_a_tar_shard_holds_picture_class_and_row_of_every_image(tmp_path):
    done = make(tmp_path, order())
    assert (done.made, done.failed, done.was_there) == (50, 0, False)
    with tarfile.open(tmp_path / "shard-00000-of-00001.tar") as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
        assert {member.mtime for member in archive.getmembers()} == {0}
    table = rows_of(done.table)
    assert len(table) == 50
    assert list(members) == [f"{row['image_id']}.{end}" for row in table for end in ("png", "cls", "json")]
    plan = Noise().plan(0, 50, shares=order().shares, seed=order().own_seed)
    pixels = Noise().regenerate(plan)
    for k, row in enumerate(table):
        name = row["image_id"]
        (tmp_path / "x.png").write_bytes(members[f"{name}.png"])
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), pixels[k])
        assert CLASSES[int(members[f"{name}.cls"])] == row["label"] == plan["label"][k]
        told = json.loads(members[f"{name}.json"])
        assert told["image_seed"] == int(row["image_seed"]) == plan["image_seed"][k]
        # a number that is not finite is null there and nothing here; all others are exact
        assert (told["loss"] is None and row["loss"] == "") or told["loss"] == float(row["loss"])
        assert row["file"] == "shard-00000-of-00001.tar"


def test_folders_are_what_torchvision_reads(tmp_path):
    from torchvision.datasets import ImageFolder

    wanted = order(layout="folders", format="jpeg", quality=80)
    done = make(tmp_path, wanted)
    found = ImageFolder(tmp_path / "images")
    assert found.classes == CLASSES
    assert len(found) == 50
    assert {str(Path(path).relative_to(tmp_path)) for path, _ in found.samples} == {
        row["file"] for row in rows_of(done.table)
    }
    row = pd.DataFrame(rows_of(done.table)[:1]).astype({"image_seed": int})
    shards.write_picture(Noise().regenerate(row)[0], tmp_path / "again.jpg", quality=80)
    assert (tmp_path / "again.jpg").read_bytes() == (tmp_path / row["file"][0]).read_bytes()


def test_webdataset_reads_the_shards(tmp_path):
    import webdataset

    wanted = order(shards=3)
    for shard in range(3):
        make(tmp_path, wanted, shard)
    urls = str(tmp_path / "shard-{00000..00002}-of-00003.tar")
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [f"noise-{k:09d}" for k in range(50)]
    assert all(CLASSES[sample["cls"]] == sample["json"]["label"] for sample in samples)
    assert all(sample["png"].shape == (6, 6, 3) for sample in samples)


@pytest.mark.parametrize("layout", shards.WRITERS)
def test_shards_put_together_are_the_whole_whatever_their_order(tmp_path, layout):
    make(tmp_path / "one", order(layout=layout))
    parts = order(layout=layout, shards=3)
    for shard in (2, 0, 1):
        assert shards.join_tables(parts, tmp_path / "three") is None
        make(tmp_path / "three", parts, shard)
    assert [len(parts.places(shard)) for shard in range(3)] == [16, 17, 17]
    whole = rows_of(shards.join_tables(parts, tmp_path / "three"))
    for row in (expected := rows_of(tmp_path / "one" / "table-00000-of-00001.csv")) + whole:
        del row["file"]
    assert whole == expected
    if layout == "folders":
        assert content(tmp_path / "one" / "images") == content(tmp_path / "three" / "images")


# ------------------------------------------------------------------------------------------------------ kill and go on


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_shards import Noise, make, order
make(Path({folder!r}), order(layout={layout!r}), generator=Noise(pause=0.02))
"""


@pytest.mark.parametrize("layout", shards.WRITERS)
def test_a_killed_shard_goes_on_and_comes_out_the_same(tmp_path, layout):
    make(tmp_path / "whole", order(layout=layout))
    folder = tmp_path / "killed"
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder), layout=layout)
    process = subprocess.Popen([sys.executable, "-c", script])
    journal = folder / ".journal-00000-of-00001.jsonl"
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 11:
        assert process.poll() is None, "it ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    there = journal.read_bytes().count(b"\n")
    assert 11 <= there < 50
    files = {path: path.stat().st_mtime_ns for path in folder.glob("images/*/*.png")}

    generator, records = Noise(), []
    done = make(folder, order(layout=layout), generator=generator, callback=records.append)
    assert done.made == 50 - there == len(generator.made)  # nothing that the journal knew is made again
    assert records[0] == {"step": there + 1, "steps": 50, "resumed": there}
    assert content(folder) == content(tmp_path / "whole")
    known = {folder / row["file"] for row in rows_of(done.table)[:there]}
    assert all(path.stat().st_mtime_ns == when for path, when in files.items() if path in known)


@pytest.mark.parametrize("layout", shards.WRITERS)
@pytest.mark.parametrize("wound", ["journal torn", "image torn", "image lost", "before the table", "only the journal"])
def test_every_kind_of_interruption_heals(tmp_path, layout, wound, monkeypatch):
    make(tmp_path / "whole", order(layout=layout))
    folder = tmp_path / "hurt"
    journal, partial = folder / ".journal-00000-of-00001.jsonl", folder / ".shard-00000-of-00001.tar.partial"

    def stop(record):
        if record["step"] == 13:
            raise KeyboardInterrupt

    def no_table(*_):
        raise KeyboardInterrupt

    late = wound == "before the table"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_table", no_table)
        with pytest.raises(KeyboardInterrupt):
            make(folder, order(layout=layout), callback=None if late else stop)
    if wound == "journal torn":
        journal.write_bytes(journal.read_bytes()[:-5])
    if wound == "image torn" and layout == "tar":
        with open(partial, "ab") as file:
            file.write(b"noise-0000000")
    if wound == "image lost" and layout == "tar":  # a power failure: the journal reached the disk, the image did not
        os.truncate(partial, partial.stat().st_size - 700)
    if wound == "only the journal":
        journal.write_bytes(b"")
    generator = Noise()
    make(folder, order(layout=layout), generator=generator)
    left = {"journal torn": 38, "image lost": 38, "before the table": 0, "only the journal": 50}
    if layout == "tar" or wound != "image lost":
        assert len(generator.made) == left.get(wound, 37)
    assert content(folder) == content(tmp_path / "whole")


def test_a_finished_shard_is_left_alone(tmp_path):
    make(tmp_path, order())
    before = content(tmp_path)
    generator = Noise()
    done = make(tmp_path, order(), generator=generator)
    assert done.was_there
    assert (done.made, generator.made) == (0, [])
    assert content(tmp_path) == before


def test_groups_are_made_together_wherever_a_shard_was_cut(tmp_path):
    class Strict(Noise):
        def plan(self, start, stop, **options):
            assert start % 8 == 0 or start == 17  # 17: where the shard begins
            assert stop % 8 == 0 or stop == 34
            return super().plan(start, stop, **options)

    def stop(record):
        if record["step"] == 10:
            raise KeyboardInterrupt

    wanted = order(n=51, shards=3)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, wanted, 1, Strict(), callback=stop)
    assert make(tmp_path, wanted, 1, Strict()).made == 7


def test_two_processes_do_not_make_one_shard(tmp_path):
    def meanwhile(record):
        with pytest.raises(BadInput, match="Another process"):
            make(tmp_path, order())

    assert make(tmp_path, order(), callback=meanwhile).made == 50


# ----------------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_made_is_passed_over_and_listed(tmp_path):
    bad = ("noise-000000000", "noise-000000013", "noise-000000014", "noise-000000049")
    done = make(tmp_path, order(), generator=Noise(bad=bad))
    assert (done.made, done.failed) == (50, 4)
    listed = rows_of(tmp_path / "failed-00000-of-00001.csv")
    assert [row["image_id"] for row in listed] == list(bad)
    assert listed[1]["failed"] == "noise-000000013 is bad."
    table = rows_of(done.table)
    assert len(table) == 46
    assert not {row["image_id"] for row in table} & set(bad)
    assert make(tmp_path, order()).failed == 4


def test_a_folder_keeps_to_one_order(tmp_path):
    make(tmp_path, order())
    for change, said in (({"seed": 2}, r"seed 1 \(now 2\)"), ({"n": 60, "shards": 2}, r"n 50 \(now 60\) and shards 1")):
        with pytest.raises(BadInput, match=said):
            shards.begin(tmp_path, order(**change))
    (tmp_path / shards.ORDER_FILE).write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        shards.begin(tmp_path, order())


def test_only_the_train_fold_is_a_source(tmp_path):
    with pytest.raises(BadInput, match="'leak' is not of the train fold"):
        make(tmp_path, order(), generator=Noise(source="fine|leak"), sources={"fine"})
    make(tmp_path, order(), generator=Noise(source="fine"), sources={"fine"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layout": "zip"}, "layout is 'zip'; it must be one of tar, folders"),
        ({"format": "gif"}, "format is 'gif'; it must be one of png, jpeg"),
        ({"quality": 0}, "quality is 0"),
        ({"shards": 51}, "50 images cannot be made in 51 shards"),
    ],
)
def test_impossible_orders(change, said):
    with pytest.raises(BadInput, match=said):
        order(**change)


def test_there_is_no_such_shard():
    with pytest.raises(BadInput, match="There is no shard 3; with shards 3 they are 0 to 2"):
        order(shards=3).places(3)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        make(tmp_path / "file" / "base", order(shards=2))


def test_a_full_disk_is_one_sentence_and_keeps_what_is_there(tmp_path, monkeypatch):
    def full(self, row, picture, suffix):
        if row["image_id"].endswith("20"):
            raise OSError(28, "No space left on device")
        return plain(self, row, picture, suffix)

    plain = shards.TarWriter.add
    with monkeypatch.context() as patch:
        patch.setattr(shards.TarWriter, "add", full)
        with pytest.raises(BadInput, match="No space left on device"):
            make(tmp_path, order())
    assert make(tmp_path, order()).made == 30
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        shards.begin(file / "folder", order())


def test_rows_and_origins_that_are_none(tmp_path):
    done = make(tmp_path, order())
    assert shards.find_row(done.table, "noise-000000007")["image_id"][0] == "noise-000000007"
    assert shards.find_row(done.table, "7")["image_id"][0] == "noise-000000007"
    with pytest.raises(BadInput, match="a number from 0 to 49"):
        shards.find_row(done.table, "50")
    with pytest.raises(BadInput, match="There is no table"):
        shards.find_row(tmp_path / "none.csv", "0")
    with pytest.raises(BadInput, match=r"lies beside no generate\.json and no manifest\.json"):
        shards.origin_of(tmp_path / "elsewhere" / "table.csv")
    with pytest.raises(BadInput, match="ends in neither"):
        shards.write_picture(np.zeros((4, 4, 3), np.uint8), tmp_path / "a.gif", quality=90)
