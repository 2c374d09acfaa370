from itertools import islice

import numpy as np
import pandas as pd
import pytest

from stda import BadInput, classify
from stda.classify.arms import batches
from stda.images import ImageSet

COUNTS = {"a": 20, "b": 7, "c": 4}


def make(counts, split, generator="", **columns):
    labels = np.repeat(list(counts), list(counts.values()))
    table = pd.DataFrame({"image_id": [f"{split}{generator}{i}" for i in range(len(labels))], "label": labels})
    table = table.assign(split=split, generator=generator, **columns)
    pixels = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    return ImageSet(pixels, table)


@pytest.fixture
def train():
    return make(COUNTS, "train")


@pytest.fixture
def pool():
    return make({"b": 14, "c": 8}, "synthetic", "wgan")


def test_an_arm_without_synthetic_images_is_the_train_fold(train, pool):
    assert classify.assemble(classify.Arm("none"), train, pool) is train


@pytest.mark.parametrize(("ratio", "wanted"), [(1.0, (7, 4)), (0.5, (4, 2)), (2.0, (14, 8))])
def test_counts_are_rounded_per_class_and_the_largest_gets_none(train, pool, ratio, wanted):
    assert classify.added_counts(train, ratio) == {"b": wanted[0], "c": wanted[1]}
    both = classify.assemble(classify.Arm("wgan", "wgan", ratio), train, pool)
    added = both.select(split="synthetic")
    assert np.array_equal(both.images[: len(train)], train.images)
    assert added.table["image_id"].tolist() == [
        *pool.table["image_id"][: wanted[0]],
        *pool.table["image_id"][14 : 14 + wanted[1]],
    ]
    for row, pixels in zip(added.table["image_id"], added.images, strict=True):
        assert np.array_equal(pixels, pool.images[pool.table["image_id"] == row][0])


def test_pseudo_labels_are_trained_with_but_counted_as_asked(train):
    pool = make({"a": 5, "b": 6}, "synthetic", "nst", asked_label=["b"] * 7 + ["c"] * 4)
    added = classify.assemble(classify.Arm("nst", "nst", 1.0), train, pool).select(split="synthetic")
    assert added.table["asked_label"].value_counts().to_dict() == {"b": 7, "c": 4}
    assert added.counts().to_dict() == {"b": 6, "a": 5}


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.5])
def test_oversampling_repeats_real_images_equally_often(train, ratio):
    arm = classify.Arm("oversample", "oversample", ratio)
    both = classify.assemble(arm, train, seed=3)
    copies = both.select(slice(len(train), None))
    assert copies.counts().to_dict() == classify.added_counts(train, ratio)
    assert both.table["image_id"].is_unique
    assert set(copies.table["split"]) == {"train"}
    for label in ("b", "c"):
        times = copies.select(label=label).table["source_ids"].value_counts()
        times = times.reindex(train.select(label=label).table["image_id"], fill_value=0)
        assert times.max() - times.min() <= 1
    originals = train.table.set_index("image_id")
    for row, pixels in zip(copies.table.itertuples(), copies.images, strict=True):
        source = originals.index.get_loc(row.source_ids)
        assert np.array_equal(pixels, train.images[source])
        assert row.group == originals["group"].iloc[source]
    again = classify.assemble(arm, train, seed=3)
    assert np.array_equal(again.images, both.images)


def test_bad_arms_are_sentences(train, pool):
    for change, words in (({"sampler": "dice"}, "sampler"), ({"ratio": 0.0}, "ratio"), ({"ratio": -1.0}, "ratio")):
        with pytest.raises(BadInput, match=words):
            classify.Arm("x", **change)
    arm = classify.Arm("wgan", "wgan", 3.0)
    with pytest.raises(BadInput, match=r"needs 21 images of class b .* made 14: lower"):
        classify.assemble(arm, train, pool)
    with pytest.raises(BadInput, match="run that stage first"):
        classify.assemble(arm, train, None)
    with pytest.raises(BadInput, match="dcgan"):
        classify.assemble(arm, train, make({"b": 30, "c": 30}, "synthetic", "dcgan"))
    with pytest.raises(BadInput, match="lacks"):
        classify.assemble(arm, train, make({"z": 30}, "synthetic", "wgan"))


@pytest.mark.parametrize("split", ["val", "test", "synthetic", ""])
def test_the_real_part_is_of_the_train_fold(train, pool, split):
    leaked = ImageSet.concat(train, make({"b": 1}, split))
    for arm in (classify.Arm("none"), classify.Arm("oversample", "oversample"), classify.Arm("wgan", "wgan")):
        with pytest.raises(BadInput, match="train fold only"):
            classify.assemble(arm, leaked, pool)


@pytest.mark.parametrize("split", ["val", "test", "train"])
def test_the_added_part_is_synthetic(train, pool, split):
    leaked = ImageSet.concat(pool, make({"b": 1}, split, "wgan"))
    with pytest.raises(BadInput, match="synthetic images only"):
        classify.assemble(classify.Arm("wgan", "wgan"), train, leaked)


def test_shuffle_deals_every_row_before_any_again():
    labels = np.zeros(10, int)
    drawn = np.concatenate(list(islice(batches(labels, sampler="shuffle", batch_size=4, seed=0), 5)))
    for start in (0, 10):
        assert sorted(drawn[start : start + 10]) == list(range(10))
    assert not np.array_equal(drawn[:10], drawn[10:])


def test_balanced_draws_classes_equally_and_rows_equally_within_them():
    labels = np.repeat([0, 1, 3], [30, 5, 2])
    drawn = np.concatenate(list(islice(batches(labels, sampler="balanced", batch_size=7, seed=1), 90)))
    per_class = np.bincount(labels[drawn], minlength=4)
    assert per_class.tolist() == [210, 210, 0, 210]
    per_row = np.bincount(drawn, minlength=len(labels))
    assert per_row.tolist() == [7] * 30 + [42] * 5 + [105] * 2


@pytest.mark.parametrize("sampler", classify.SAMPLERS)
def test_samplers_follow_the_seed(sampler):
    labels = np.repeat([0, 1], [9, 4])
    a, b, c = (np.stack(list(islice(batches(labels, sampler=sampler, batch_size=6, seed=s), 3))) for s in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_unknown_sampler():
    with pytest.raises(BadInput, match="balanced"):
        next(batches(np.zeros(3, int), sampler="dice", batch_size=2, seed=0))
