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
    training = classify.assemble(classify.Arm("none"), train, pool)
    assert training.images is train
    assert training.pretrain is None
    assert training.composition.to_numpy().tolist() == [["a", 20, 0, 0, 0], ["b", 7, 0, 0, 0], ["c", 4, 0, 0, 0]]


@pytest.mark.parametrize(("ratio", "wanted"), [(1.0, (7, 4)), (0.5, (4, 2)), (2.0, (14, 8))])
def test_counts_are_rounded_per_class_and_the_largest_gets_none(train, pool, ratio, wanted):
    assert classify.added_counts(train, ratio) == {"b": wanted[0], "c": wanted[1]}
    both = classify.assemble(classify.Arm("wgan", "wgan", ratio), train, pool).images
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
    added = classify.assemble(classify.Arm("nst", "nst", 1.0), train, pool).images.select(split="synthetic")
    assert added.table["asked_label"].value_counts().to_dict() == {"b": 7, "c": 4}
    assert added.counts().to_dict() == {"b": 6, "a": 5}


def test_a_pool_made_from_another_fold_is_refused(train, pool):
    arm, own = classify.Arm("wgan", "wgan", 0.5), train.table["image_id"].iloc[0]
    classify.assemble(arm, train, ImageSet(pool.images, pool.table.assign(source_ids=f"{own}|{own}")))
    with pytest.raises(BadInput, match="made from test-3, which is not in this train fold"):
        classify.assemble(arm, train, ImageSet(pool.images, pool.table.assign(source_ids=f"{own}|test-3")))


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.5])
def test_oversampling_repeats_real_images_equally_often(train, ratio):
    arm = classify.Arm("oversample", "oversample", ratio)
    both = classify.assemble(arm, train, seed=3).images
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
    again = classify.assemble(arm, train, seed=3).images
    assert np.array_equal(again.images, both.images)


class TestProtocols:
    """Added images beside the real ones, before them, or in their place."""

    def test_pretraining_takes_the_added_images_first(self, train, pool):
        arm = classify.Arm("wgan", "wgan", 1.0, protocol="pretrain", pretrain_share=0.3)
        training = classify.assemble(arm, train, pool)
        assert training.images is train
        assert training.pretrain.counts().to_dict() == {"b": 7, "c": 4}
        assert set(training.pretrain.table["split"]) == {"synthetic"}
        assert arm.pretrain_steps(100) == 30
        assert classify.Arm("wgan", "wgan").pretrain_steps(100) == 0

    def test_alone_the_largest_class_is_there_too_where_the_pool_has_it(self, train):
        full = make({"a": 12, "b": 14, "c": 8}, "synthetic", "wgan")
        only = classify.assemble(classify.Arm("wgan", "wgan", 0.5, protocol="synthetic-only"), train, full)
        assert only.pretrain is None
        assert set(only.images.table["split"]) == {"synthetic"}
        assert only.images.counts().to_dict() == {"a": 10, "b": 4, "c": 2}
        assert only.composition["real"].tolist() == [0, 0, 0]
        mixed = classify.assemble(classify.Arm("wgan", "wgan", 0.5), train, full)
        assert mixed.composition["added"].tolist() == [0, 4, 2]
        assert mixed.composition["real"].tolist() == [20, 7, 4]

    def test_a_class_without_any_image_is_a_sentence(self, train, pool):
        with pytest.raises(BadInput, match="none is labelled a: make images of every class"):
            classify.assemble(classify.Arm("x", "wgan", protocol="synthetic-only"), train, pool)

    def test_a_pseudo_label_may_supply_the_class(self, train):
        pool = make({"a": 5, "b": 4, "c": 2}, "synthetic", "nst", asked_label=["b"] * 7 + ["c"] * 4)
        only = classify.assemble(classify.Arm("x", "nst", 1.0, protocol="synthetic-only"), train, pool)
        assert only.images.counts().to_dict() == {"a": 5, "b": 4, "c": 2}
        assert only.composition[["wanted", "added", "labelled"]].to_numpy().tolist() == [
            [0, 0, 5],
            [7, 7, 4],
            [4, 4, 2],
        ]

    def test_pretraining_on_one_class_is_refused(self):
        two, pool = make({"a": 20, "b": 8}, "train"), make({"b": 8}, "synthetic", "wgan")
        with pytest.raises(BadInput, match="pre-trains on images labelled b only"):
            classify.assemble(classify.Arm("x", "wgan", protocol="pretrain"), two, pool)

    @pytest.mark.parametrize("protocol", ["pretrain", "synthetic-only"])
    def test_the_placebo_follows_the_protocol(self, train, protocol):
        training = classify.assemble(classify.Arm("x", "oversample", 0.5, protocol=protocol), train)
        alone = training.images if protocol == "synthetic-only" else training.pretrain
        assert alone.counts().to_dict() == {"a": 10, "b": 4, "c": 2}
        assert set(alone.table["split"]) == {"train"}


def opined(pool, sure):
    """Give the images an opinion: class of the label, as sure as the list says."""
    rest = (1 - np.asarray(sure)) / 2
    columns = {f"p_{name}": np.where(pool.labels == name, sure, rest) for name in COUNTS}
    table = pool.table.assign(pseudo_label=pool.labels, label_confidence=sure, **columns)
    return ImageSet(pool.images, table)


class TestConfidence:
    """Images that are labelled with too little confidence are left out."""

    def test_the_next_of_the_class_take_their_places(self, train, pool):
        pool = opined(pool, [0.9, 0.5] * 11)  # every other image is unsure
        training = classify.assemble(classify.Arm("wgan", "wgan", 1.0, min_confidence=0.8), train, pool)
        added = training.images.select(split="synthetic")
        assert added.table["label_confidence"].min() == pytest.approx(0.9)
        assert added.counts().to_dict() == {"b": 7, "c": 4}
        assert added.table["image_id"].tolist() == pool.table["image_id"][::2].tolist()

    def test_when_there_are_no_more_the_table_says_so(self, train, pool):
        pool = opined(pool, [0.9] * 5 + [0.5] * 9 + [0.9] * 8)
        training = classify.assemble(classify.Arm("wgan", "wgan", 1.0, min_confidence=0.8), train, pool)
        assert training.composition[["wanted", "added"]].to_numpy().tolist() == [[0, 0], [7, 5], [4, 4]]
        assert len(training.images) == 31 + 9
        with pytest.raises(BadInput, match="needs 21 images"):
            classify.assemble(classify.Arm("wgan", "wgan", 3.0, min_confidence=0.8), train, pool)

    def test_none_left_is_a_sentence_where_they_train_alone(self, train, pool):
        pool = opined(pool, [0.5] * 22)
        with pytest.raises(BadInput, match="labelled nothing only"):
            classify.assemble(classify.Arm("x", "wgan", protocol="pretrain", min_confidence=0.8), train, pool)


def test_opinions_are_counted_as_asked_too(train, pool):
    """A GAN's images have a label and no asked_label; an opinion changes the first only."""
    confused = opined(pool, [0.8] * 22)
    swapped = confused.table.rename(columns={"p_b": "p_c", "p_c": "p_b"})
    confused = ImageSet(confused.images, swapped)
    training = classify.assemble(classify.Arm("wgan", "wgan", 1.0, labels="pseudo"), train, confused)
    assert training.composition[["wanted", "added", "labelled"]].to_numpy().tolist() == [
        [0, 0, 0],
        [7, 7, 4],
        [4, 4, 7],
    ]


def test_soft_labels_stand_beside_one_hot_real_rows(train, pool):
    pool = opined(pool, [0.8] * 22)
    training = classify.assemble(classify.Arm("wgan", "wgan", 1.0, labels="soft"), train, pool)
    wanted = training.images.table[[f"target_{name}" for name in COUNTS]].to_numpy()
    real = np.eye(3)[np.searchsorted(list(COUNTS), train.labels.astype(str))]
    assert np.array_equal(wanted[: len(train)], real)
    np.testing.assert_allclose(wanted[len(train)], [0.1, 0.8, 0.1])
    both = classify.assemble(classify.Arm("wgan", "wgan", 1.0, labels="soft", protocol="pretrain"), train, pool)
    assert np.array_equal(both.images.table[[f"target_{name}" for name in COUNTS]].to_numpy(), real)


def test_bad_arms_are_sentences(train, pool):
    changes = {
        "sampler": {"sampler": "dice"}, "ratio": {"ratio": 0.0}, "ratio of": {"ratio": -1.0},
        "protocol 'later'": {"protocol": "later"}, "labels 'best'": {"labels": "best"},
        "shares": {"pretrain_share": 1.0}, "min_confidence": {"min_confidence": 1.0},
        "set synthetic": {"protocol": "pretrain"}, "makes no new images": {"labels": "soft"},
        "leave labels": {"min_confidence": 0.5, "synthetic": "oversample"},
    }  # fmt: skip
    for words, change in changes.items():
        with pytest.raises(BadInput, match=words):
            classify.Arm("x", **change)
    arm = classify.Arm("wgan", "wgan", 3.0)
    with pytest.raises(BadInput, match=r"needs 21 images of class b .* made 14: lower"):
        classify.assemble(arm, train, pool)
    with pytest.raises(BadInput, match="run that stage first"):
        classify.assemble(arm, train, None)
    with pytest.raises(BadInput, match="dcgan"):
        classify.assemble(arm, train, make({"b": 30, "c": 30}, "synthetic", "dcgan"))
    for strange in (make({"z": 30}, "synthetic", "wgan"), make({"b": 30}, "synthetic", "wgan", asked_label="z")):
        with pytest.raises(BadInput, match="lacks"):
            classify.assemble(arm, train, strange)


@pytest.mark.parametrize("split", ["val", "test", "synthetic", ""])
def test_the_real_part_is_of_the_train_fold(train, pool, split):
    leaked = ImageSet.concat(train, make({"b": 1}, split))
    for synthetic in ("none", "oversample", "self-training", "wgan"):
        with pytest.raises(BadInput, match="train fold only"):
            classify.assemble(classify.Arm("x", synthetic), leaked, pool)


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
