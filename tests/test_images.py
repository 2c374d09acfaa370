import numpy as np
import pandas as pd
import pytest

from stda import BadInput
from stda.images import COLUMNS, ImageSet, added_counts, require_train, to_tensor, to_uint8


def make(n=6, size=4, split="train", first=0):
    rng = np.random.default_rng(first)
    table = pd.DataFrame(
        {"image_id": [f"{first + i:03d}" for i in range(n)], "label": ["NA", "b"] * (n // 2), "split": split}
    )
    return ImageSet(rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), table)


def test_missing_columns_are_filled_as_for_a_real_image():
    images = make()
    assert tuple(images.table.columns[:7]) == COLUMNS
    assert images.table["group"].tolist() == images.table["image_id"].tolist()
    assert images.table["label_confidence"].eq(1.0).all()


def test_save_and_load_keep_pixels_and_text(tmp_path):
    images = make()
    images.save(tmp_path)
    again = ImageSet.load(tmp_path)
    assert isinstance(again.images, np.memmap)
    np.testing.assert_array_equal(again.images, images.images)
    # "001" stays text and a class called NA does not become a missing value
    pd.testing.assert_frame_equal(again.table, images.table)


def test_concat_is_rows_below_each_other():
    a, b = make(4), make(2, first=10)
    both = ImageSet.concat(a, b)
    np.testing.assert_array_equal(both.images, np.concatenate([a.images, b.images]))
    assert both.table["image_id"].tolist() == a.table["image_id"].tolist() + b.table["image_id"].tolist()
    with pytest.raises(BadInput, match="resize"):
        ImageSet.concat(a, make(2, size=8))


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([3, 1], [3, 1]),
        (np.array([True, False, True, False, False, True]), [0, 2, 5]),
        (slice(1, 3), [1, 2]),
        ([], []),
        (None, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_select_by_rows_keeps_pixels_and_table_together(rows, wanted):
    images = make()
    picked = images.select(rows)
    assert picked.table["image_id"].tolist() == [f"{i:03d}" for i in wanted]
    np.testing.assert_array_equal(picked.images, images.images[wanted])


def test_select_by_columns():
    assert make().select(label="NA").labels.tolist() == ["NA"] * 3
    assert len(make().select(label=["NA", "b"], split="val")) == 0


def test_tensors_are_nchw_in_minus_one_to_one_and_come_back_exactly():
    images = make()
    tensor = images.as_tensor()
    assert tuple(tensor.shape) == (6, 3, 4, 4)
    expected = images.images.astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-6)
    every_level = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    np.testing.assert_array_equal(to_uint8(to_tensor(every_level)), every_level)


@pytest.mark.parametrize("images", [np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 3), np.float32)])
def test_wrong_pixels_are_refused(images):
    with pytest.raises(BadInput, match="uint8"):
        ImageSet(images, pd.DataFrame({"image_id": ["a", "b"], "label": ["x", "y"]}))


def test_table_must_agree():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(BadInput, match="3 rows"):
        ImageSet(pixels, pd.DataFrame({"image_id": list("abc"), "label": "x"}))
    with pytest.raises(BadInput, match="no column 'label'"):
        ImageSet(pixels, pd.DataFrame({"image_id": list("ab")}))
    with pytest.raises(BadInput, match="Unknown split"):
        ImageSet(pixels, pd.DataFrame({"image_id": list("ab"), "label": "x", "split": "tset"}))


@pytest.mark.parametrize("split", ["val", "test", "held-back", "synthetic", ""])
def test_fitting_on_anything_but_train_raises(split):
    require_train(make(), "x")
    with pytest.raises(BadInput, match="train fold only"):
        require_train(ImageSet.concat(make(), make(2, split=split, first=20)), "x")
    with pytest.raises(BadInput, match="no rows"):
        require_train(make().select([]), "x")


COUNTS = pd.Series({"nv": 50, "a": 21, "z": 21, "rare": 3})  # as ImageSet.counts() orders them


@pytest.mark.parametrize(
    ("knobs", "wanted"),
    [
        ({}, {"a": 10, "rare": 2, "z": 10}),
        ({"ratio": 10.0}, {"a": 210, "rare": 30, "z": 210}),
        ({"ratio": 0.01}, {"a": 0, "rare": 0, "z": 0}),
        ({"largest": True}, {"a": 10, "nv": 25, "rare": 2, "z": 10}),
        ({"count": 128}, {"a": 128, "rare": 128, "z": 128}),
        ({"balance": True}, {"a": 29, "rare": 47, "z": 29}),
        ({"balance": True, "largest": True}, {"a": 29, "nv": 0, "rare": 47, "z": 29}),
        ({"classes": ["z", "nv"]}, {"nv": 25, "z": 10}),
        ({"classes": ["rare"], "count": 5, "largest": True}, {"rare": 5}),
        ({"classes": ["rare", "rare"], "balance": True}, {"rare": 47}),
    ],
)
def test_added_counts_per_class(knobs, wanted):
    found = added_counts(COUNTS, **knobs)
    assert list(found.items()) == list(wanted.items())
    assert {type(n) for n in found.values()} == {int}


def test_added_counts_of_equal_classes_spare_the_first_by_name():
    images = make()
    assert added_counts(images.counts(), ratio=1.0) == {"b": 3}
    assert added_counts(images.counts(), balance=True, largest=True) == {"NA": 0, "b": 0}
    assert added_counts(images.select(label="b").counts()) == {}


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"ratio": 0.0}, "positive"),
        ({"ratio": float("nan")}, "positive"),
        ({"count": -1}, "count is -1"),
        ({"count": 3, "balance": True}, "choose one"),
        ({"classes": ["rare", "nope"]}, r"\['nope'\] here; the classes are \['a', 'nv', 'rare', 'z'\]"),
    ],
)
def test_added_counts_refuses(knobs, said):
    with pytest.raises(BadInput, match=said):
        added_counts(COUNTS, **knobs)
