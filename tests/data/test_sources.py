from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stda import BadInput, data
from stda.images import COLUMNS

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
HAM = SHARED / "ham10000"
needs_ham = pytest.mark.skipif(not HAM.is_dir(), reason="HAM10000 is not in ../shared/data/ham10000")
SEVEN = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]


def picture(path, seed, shape=(30, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def ham(tmp_path):
    """A HAM10000 of 14 pictures, three of which share a lesion, and an ISIC-2019 table."""
    root = tmp_path / "ham"
    rows = []
    for k, dx in enumerate(SEVEN * 2):
        name = f"ISIC_{k:07d}"
        picture(root / "images" / f"{name}.jpg", k)
        rows.append((f"HAM_{k if k not in (7, 8) else 0}", name, dx, "histo"))
    pd.DataFrame(rows[::-1], columns=["lesion_id", "image_id", "dx", "dx_type"]).to_csv(
        root / "HAM10000_metadata.csv", index=False
    )
    return root


def truth_table(folder, names):
    columns = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    picks = {"akiec": "AK", "bcc": "BCC", "bkl": "BKL", "df": "DF", "mel": "MEL", "nv": "NV", "vasc": "VASC"}
    table = pd.DataFrame(0.0, index=names, columns=columns)
    for k, name in enumerate(names):
        table.loc[name, "SCC" if k == 7 else picks[SEVEN[k % 7]]] = 1.0
    folder.mkdir(exist_ok=True)
    table.rename_axis("image").to_csv(folder / "ISIC_2019_Training_GroundTruth.csv")


@pytest.fixture
def classes_folder(tmp_path):
    root = tmp_path / "folder with a space"
    for label, n in (("NV", 4), ("MEL", 3), ("001", 2)):
        for k in range(n):
            picture(root / label / f"{label}_{k}.{'png' if k else 'JPG'}", k)
    return root


@pytest.fixture
def npz(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for fold, n in (("train", 21), ("val", 7), ("test", 14)):
        arrays[f"{fold}_images"] = rng.integers(0, 256, (n, 28, 28, 3), dtype=np.uint8)
        arrays[f"{fold}_labels"] = (np.arange(n) % 7).reshape(-1, 1).astype(np.uint8)
    np.savez(tmp_path / "dermamnist.npz", **arrays)
    return tmp_path / "dermamnist.npz", arrays


# ------------------------------------------------------------------------------------------------------------ HAM10000


def test_ham10000_seven_classes(ham):
    images = data.load("ham10000", ham, size=16)
    assert tuple(images.table.columns[:7]) == COLUMNS
    assert images.classes == SEVEN
    assert images.table["image_id"].is_monotonic_increasing  # whatever the order of the CSV
    assert images.table["group"].tolist()[:9] == [f"HAM_{k}" for k in (0, 1, 2, 3, 4, 5, 6, 0, 0)]
    assert (images.table["split"] == "").all()
    pd.testing.assert_frame_equal(images.table, data.describe("ham10000", ham))


def test_ham10000_two_classes(ham):
    table = data.describe("ham10000", ham, classes="two")
    expected = ["malignant" if dx in ("mel", "bcc", "akiec") else "benign" for dx in table["dx"]]
    assert table["label"].tolist() == expected


def test_ham10000_eight_classes_by_the_isic_table(ham, tmp_path):
    with pytest.raises(BadInput, match="needs ISIC_2019_Training_GroundTruth"):
        data.describe("ham10000", ham, classes="eight")
    names = [f"ISIC_{k:07d}" for k in range(14)]
    for place in (tmp_path / "isic_tables", ham):  # beside the root, then in it
        truth_table(place, names)
        labels = data.describe("ham10000", ham, classes="eight")["label"]
        assert labels[0] == "AK"
        assert labels[7] == "SCC"
    truth_table(ham, names[:-1])
    with pytest.raises(BadInput, match="no row for image 'ISIC_0000013'"):
        data.describe("ham10000", ham, classes="eight")


def test_ham10000_some_classes_and_a_wrong_one(ham):
    assert set(data.describe("ham10000", ham, classes="mel, nv")["label"]) == {"mel", "nv"}
    with pytest.raises(BadInput, match="'nine'"):
        data.describe("ham10000", ham, classes="nine")
    with pytest.raises(BadInput, match="at least two"):
        data.describe("ham10000", ham, classes="mel")


@pytest.mark.parametrize("place", [".", "HAM10000_images_part_1", "HAM10000_images_part_2"])
def test_ham10000_as_downloaded(ham, place):
    before = data.load("ham10000", ham, size=8).images
    (ham / place).mkdir(exist_ok=True)
    for path in (ham / "images").iterdir():
        path.rename(ham / place / path.name)
    np.testing.assert_array_equal(data.load("ham10000", ham, size=8).images, before)


@pytest.mark.parametrize("column", ["image_id", "lesion_id", "dx"])
def test_ham10000_needs_its_columns(ham, column):
    path = ham / "HAM10000_metadata.csv"
    pd.read_csv(path).drop(columns=column).to_csv(path, index=False)
    with pytest.raises(BadInput, match=f"no column \\['{column}'\\]"):
        data.describe("ham10000", ham)


def test_ham10000_tables_that_are_not_its_own(ham):
    path = ham / "HAM10000_metadata.csv"
    table = pd.read_csv(path)
    table.assign(dx="wart").to_csv(path, index=False)
    with pytest.raises(BadInput, match="unknown diagnosis 'wart'"):
        data.describe("ham10000", ham)
    pd.concat([table, table[:1]]).to_csv(path, index=False)
    with pytest.raises(BadInput, match="twice"):
        data.describe("ham10000", ham)
    path.write_bytes(b"")
    with pytest.raises(BadInput, match="not a readable CSV"):
        data.describe("ham10000", ham)
    path.unlink()
    with pytest.raises(BadInput, match=r"holds no HAM10000_metadata\.csv"):
        data.describe("ham10000", ham)


def test_unreadable_pictures_are_named_or_skipped(ham):
    (ham / "images" / "ISIC_0000003.jpg").write_text("not a picture")
    cut = ham / "images" / "ISIC_0000005.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    with pytest.raises(BadInput, match=r"2 pictures .*ISIC_0000003.*ISIC_0000005.*skip_unreadable"):
        data.load("ham10000", ham, size=8)
    images = data.load("ham10000", ham, size=8, skip_unreadable=True)
    assert len(images) == 12
    assert [line.split(":")[0] for line in data.skipped(images)] == ["ISIC_0000003", "ISIC_0000005"]
    names = images.table["image_id"].tolist()
    np.testing.assert_array_equal(images.images, data.pictures("ham10000", ham, names, size=8))
    with pytest.raises(BadInput, match="1 picture of"):
        data.pictures("ham10000", ham, ["ISIC_0000003"], size=8)
    (ham / "images" / "ISIC_0000010.jpg").unlink()
    with pytest.raises(BadInput, match=r"1 picture .*ISIC_0000010 \(not there\)"):
        data.describe("ham10000", ham)
    (ham / "images" / "ISIC_0000012.jpg").write_text("no")  # the other picture of class nv
    with pytest.raises(BadInput, match="No picture of class"):
        data.load("ham10000", ham, size=8, skip_unreadable=True)


def test_the_cache_changes_nothing(ham, tmp_path):
    plain = data.load("ham10000", ham, size=16)
    for _ in range(2):
        kept = data.load("ham10000", ham, size=16, cache_dir=tmp_path / "cache")
        np.testing.assert_array_equal(kept.images, plain.images)
        pd.testing.assert_frame_equal(kept.table, plain.table)
    drawn = data.load("phantom", size=8, n_images=100)
    for _ in range(2):
        kept = data.load("phantom", size=8, n_images=100, cache_dir=tmp_path / "cache")
        np.testing.assert_array_equal(kept.images, drawn.images)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_originals_at_another_size_in_the_order_asked(ham):
    names = ["ISIC_0000009", "ISIC_0000002"]
    settings = {"source": "ham10000", "root": str(ham), "classes": "", "n_images": 1500, "seed": 0, "image_size": 16}
    read = data.picture_reader(settings, size=16)
    images = data.load("ham10000", ham, size=16)
    np.testing.assert_array_equal(read(names), images.images[[9, 2]])
    assert data.pictures("ham10000", ham, names, size=24).shape == (2, 24, 24, 3)
    assert data.pictures("ham10000", ham, [], size=24).shape == (0, 24, 24, 3)
    with pytest.raises(BadInput, match="no image 'nobody'"):
        read(["nobody"])


def test_the_fingerprint_follows_the_files(ham):
    first = data.fingerprint("ham10000", ham)
    assert first == data.fingerprint("ham10000", ham)
    picture(ham / "images" / "ISIC_0000003.jpg", 99, shape=(20, 20))
    assert data.fingerprint("ham10000", ham) != first
    assert data.fingerprint("phantom") == ""
    with pytest.raises(BadInput, match="does not exist"):
        data.fingerprint("ham10000", ham / "nowhere")


@needs_ham
def test_real_ham10000_has_the_published_counts():
    table = data.describe("ham10000", HAM)
    assert len(table) == 10015
    assert table["group"].nunique() == 7470
    counts = table["label"].value_counts().to_dict()
    assert counts == {"nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115}
    assert data.describe("ham10000", HAM, classes="two")["label"].eq("malignant").sum() == 1954
    eight = data.describe("ham10000", HAM, classes="eight")["label"].value_counts()
    assert eight[["SCC", "AK", "MEL"]].tolist() == [197, 130, 1113]


@needs_ham
def test_real_pictures_are_cut_as_the_readme_says():
    (pixels,) = data.pictures("ham10000", HAM, ["ISIC_0024306"], size=150)
    whole = np.asarray(Image.open(HAM / "images" / "ISIC_0024306.jpg").convert("RGB"))
    np.testing.assert_array_equal(pixels, whole[:, 25:175])


# -------------------------------------------------------------------------------------------------------------- folder


def test_a_folder_per_class(classes_folder):
    images = data.load("folder", classes_folder, size=8)
    assert images.classes == ["001", "MEL", "NV"]
    assert images.table["image_id"][0] == "001/001_0.JPG"
    assert (images.table["group"] == images.table["image_id"]).all()
    assert set(data.describe("folder", classes_folder, classes="MEL,NV")["label"]) == {"MEL", "NV"}
    with pytest.raises(BadInput, match="'BCC'"):
        data.describe("folder", classes_folder, classes="MEL,BCC")


def test_groups_by_path_or_file_name(classes_folder):
    names = data.describe("folder", classes_folder)["image_id"].tolist()
    spelt = [names[0], names[1].split("/")[1], names[2].split("/")[1].split(".")[0], *names[3:]]
    groups = pd.DataFrame({"image_id": spelt, "group": ["p1", "p1", *(f"p{k}" for k in range(2, len(names)))]})
    groups.to_csv(classes_folder / "groups.csv", index=False)
    assert data.describe("folder", classes_folder)["group"].tolist() == groups["group"].tolist()
    groups[1:].to_csv(classes_folder / "groups.csv", index=False)
    with pytest.raises(BadInput, match=r"no group for 1 pictures, first '001/001_0\.JPG'"):
        data.describe("folder", classes_folder)
    groups.rename(columns={"group": "patient"}).to_csv(classes_folder / "groups.csv", index=False)
    with pytest.raises(BadInput, match=r"no column \['group'\]"):
        data.describe("folder", classes_folder)


def test_folders_that_are_none(classes_folder, tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        data.load("folder", tmp_path / "nowhere", size=8)
    with pytest.raises(BadInput, match="root is empty"):
        data.load("folder", "", size=8)
    picture(tmp_path / "one" / "NV" / "a.png", 0)
    with pytest.raises(BadInput, match="1 class folders"):
        data.load("folder", tmp_path / "one", size=8)
    with pytest.raises(BadInput, match="is a file"):
        data.load("folder", classes_folder / "NV" / "NV_1.png", size=8)
    (classes_folder / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no picture"):
        data.load("folder", classes_folder, size=8)


@pytest.mark.skipif(not (SHARED / "isic2019_extra").is_dir(), reason="isic2019_extra is not in ../shared/data")
def test_a_real_folder():
    table = data.describe("folder", SHARED / "isic2019_extra")
    assert table["label"].value_counts().to_dict() == {"NV": 170, "MEL": 154}


# ---------------------------------------------------------------------------------------------------------- DermaMNIST


def test_dermamnist_from_the_file_or_its_folder(npz):
    path, arrays = npz
    for root in (path, path.parent):
        images = data.load("dermamnist", root, size=28)
        assert images.classes == SEVEN
        assert images.table["image_id"].iloc[[0, 21, 28]].tolist() == ["train_00000", "val_00000", "test_00000"]
        np.testing.assert_array_equal(images.images[21:28], arrays["val_images"])
    assert "one lesion" in data.describe("dermamnist", path).attrs["warning"]
    two = data.describe("dermamnist", path, classes="two")
    assert two["label"].iloc[:7].tolist() == [
        "malignant",
        "malignant",
        "benign",
        "benign",
        "malignant",
        "benign",
        "benign",
    ]
    read = data.pictures("dermamnist", path, ["test_00003", "train_00002"], size=28)
    np.testing.assert_array_equal(read, np.stack([arrays["test_images"][3], arrays["train_images"][2]]))
    assert data.fingerprint("dermamnist", path.parent)


def test_dermamnist_with_the_mapping_knows_the_lesions(npz):
    path, _ = npz
    names = data.describe("dermamnist", path)["image_id"]
    rows = [(name.split("_")[0], int(name.split("_")[1]), f"HAM_{k // 2}") for k, name in enumerate(names)]
    mapping = pd.DataFrame(rows, columns=["split", "index", "lesion_id"])
    mapping.to_csv(path.parent / "dermamnist_split_to_ham.csv", index=False)
    table = data.describe("dermamnist", path)
    assert table["group"].tolist() == mapping["lesion_id"].tolist()
    assert "warning" not in table.attrs
    mapping[:-1].to_csv(path.parent / "dermamnist_split_to_ham.csv", index=False)
    with pytest.raises(BadInput, match="no lesion for 'test_00013'"):
        data.describe("dermamnist", path)


def test_dermamnist_files_that_are_none(npz, tmp_path):
    path, arrays = npz
    with pytest.raises(BadInput, match="does not exist"):
        data.load("dermamnist", tmp_path / "no.npz", size=28)
    np.savez(tmp_path / "dermamnist_64.npz", **arrays)
    with pytest.raises(BadInput, match="must hold one"):
        data.load("dermamnist", tmp_path, size=28)
    np.savez(path, train_images=arrays["train_images"])
    with pytest.raises(BadInput, match="no array"):
        data.load("dermamnist", path, size=28)
    np.savez(path, **{**arrays, "val_labels": np.full((7, 1), 12)})
    with pytest.raises(BadInput, match="not DermaMNIST"):
        data.load("dermamnist", path, size=28)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadInput, match="cannot be read as"):
        data.load("dermamnist", path, size=28)


@pytest.mark.parametrize("source", ["ham10000", "folder", "dermamnist"])
def test_unknown_sources_missing_roots_and_impossible_sizes(source, tmp_path):
    with pytest.raises(BadInput, match=r"data\.root"):
        data.describe(source, tmp_path / "gone")
    with pytest.raises(BadInput, match="image_size is 0"):
        data.load(source, tmp_path, size=0)
    with pytest.raises(BadInput, match=r"data\.source is 'isic'"):
        data.load("isic", tmp_path, size=8)


# ------------------------------------------------------------------------------------------------------ aspect, masks


def settings(source, root, **change):
    return {"source": source, "root": str(root), "classes": "", "n_images": 100, "seed": 0, **change}


def test_pictures_of_their_own_aspect(ham):
    picture(ham / "images" / "ISIC_0000001.jpg", 1, shape=(30, 30))
    names = ["ISIC_0000001", "ISIC_0000000"]
    found = data.picture_reader(settings("ham10000", ham), size=15, aspect="keep")(names)
    assert [image.shape for image in found] == [(15, 15, 3), (15, 20, 3)]
    drawn = data.picture_reader(settings("phantom", ""), size=16, aspect="keep")
    ids = data.describe("phantom", n_images=100)["image_id"][:2].tolist()
    np.testing.assert_array_equal(np.stack(drawn(ids)), data.pictures("phantom", "", ids, size=16, n_images=100))
    assert data.picture_reader(settings("ham10000", ham), size=15, aspect="keep")([]) == []
    with pytest.raises(BadInput, match="aspect is 'wide'"):
        data.picture_reader(settings("ham10000", ham), size=15, aspect="wide")


def add_masks(root, place, names, *, suffix="", shape=(30, 40)):
    masks = {}
    for k, name in enumerate(names):
        masks[name] = np.zeros(shape, np.uint8)
        masks[name][k : k + 12, 4 : 20 + k] = 255
        (root / place).mkdir(exist_ok=True, parents=True)
        Image.fromarray(masks[name]).convert("1").save(root / place / f"{name}{suffix}.png")
    return masks


@pytest.mark.parametrize(
    ("place", "suffix"),
    [
        ("masks", ""),
        ("expert_masks", ""),
        ("HAM10000_segmentations_lesion_tschandl", "_segmentation"),
        ("../ham10000/masks", ""),  # a selection of the pictures beside the whole data set
    ],
)
def test_masks_wherever_they_lie(ham, place, suffix):
    names = [f"ISIC_{k:07d}" for k in range(14)]
    drawn = add_masks(ham, place, names, suffix=suffix)
    read = data.mask_reader(settings("ham10000", ham), size=30)
    asked = [names[3], names[0]]
    np.testing.assert_array_equal(read(asked), np.stack([drawn[name][:, 5:35] for name in asked]))
    assert read([]).shape == (0, 30, 30)
    keep = data.mask_reader(settings("ham10000", ham), size=30, aspect="keep")
    np.testing.assert_array_equal(keep(asked)[0], drawn[asked[0]])
    with pytest.raises(BadInput, match="no image 'nobody'"):
        read(["nobody"])


def test_masks_that_are_missing_or_of_another_shape(ham, classes_folder, npz):
    with pytest.raises(BadInput, match="has no lesion masks: put them into its folder masks"):
        data.mask_reader(settings("ham10000", ham), size=30)
    names = [f"ISIC_{k:07d}" for k in range(13)]
    add_masks(ham, "masks", names)
    read = data.mask_reader(settings("ham10000", ham), size=30)
    with pytest.raises(BadInput, match="Image 'ISIC_0000013' has no lesion mask"):
        read(["ISIC_0000000", "ISIC_0000013"])
    add_masks(ham, "masks", names[:1], shape=(30, 60))
    with pytest.raises(BadInput, match=r"ISIC_0000000\.png cannot be used \(has 60 x 30 px, its picture 40 x 30\)"):
        read(names[:1])
    (ham / "masks" / "ISIC_0000001.png").write_text("no mask")
    with pytest.raises(BadInput, match=r"ISIC_0000001\.png cannot be used"):
        read(names[1:2])
    for source, root in (("folder", classes_folder), ("dermamnist", npz[0])):
        with pytest.raises(BadInput, match=f"Source {source} has no lesion masks"):
            data.mask_reader(settings(source, root), size=30)


def test_the_phantom_knows_its_masks():
    names = data.describe("phantom", n_images=100)["image_id"].tolist()
    square = data.mask_reader(settings("phantom", ""), size=48)(names[5:8])
    assert square.shape == (3, 48, 48)
    keep = data.mask_reader(settings("phantom", ""), size=48, aspect="keep")(names[5:8])
    np.testing.assert_array_equal(np.stack(keep), square)


def test_a_selection_of_ham10000_has_a_table_of_its_own(ham):
    before = data.describe("ham10000", ham)
    (ham / "HAM10000_metadata.csv").rename(ham / "labels.csv")
    pd.testing.assert_frame_equal(data.describe("ham10000", ham), before)


@pytest.mark.skipif(not (SHARED / "ham10000_224").is_dir(), reason="ham10000_224 is not in ../shared/data")
def test_the_real_selections_and_their_masks():
    table = data.describe("ham10000", SHARED / "ham10000_224")
    assert table["label"].value_counts().to_dict() == {
        "nv": 1500,
        "bkl": 583,
        "mel": 491,
        "bcc": 264,
        "akiec": 183,
        "vasc": 80,
        "df": 60,
    }
    ids = table["image_id"][:20].tolist()
    # the 224 px squares are the centres of the whole frames, so the frames' masks fit them
    small, whole = (data.pictures("ham10000", root, ids, size=64) for root in (SHARED / "ham10000_224", HAM))
    assert np.abs(small.astype(int) - whole).mean() < 4
    masks = [data.mask_reader(settings("ham10000", root), size=64)(ids) for root in (SHARED / "ham10000_224", HAM)]
    np.testing.assert_array_equal(*masks)
    assert (masks[0] > 0).any(axis=(1, 2)).all()
    expert = data.describe("ham10000", SHARED / "ham10000_600")["image_id"][:3].tolist()
    keep = data.mask_reader(settings("ham10000", SHARED / "ham10000_600"), size=225, aspect="keep")(expert)
    assert [mask.shape for mask in keep] == [(225, 300)] * 3
