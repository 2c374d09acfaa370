from itertools import islice

import numpy as np
import pandas as pd
import pytest

from stda import BadInput, classify
from stda.classify.arms import batches
from stda.images import ImageSet, added_counts

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
    assert training.composition.to_numpy().tolist() == [
        ["a", 20, 20, 0, 0, 0],
        ["b", 7, 7, 0, 0, 0],
        ["c", 4, 4, 0, 0, 0],
    ]


@pytest.mark.parametrize(("ratio", "wanted"), [(1.0, (7, 4)), (0.5, (4, 2)), (2.0, (14, 8))])
def test_counts_are_rounded_per_class_and_the_largest_gets_none(train, pool, ratio, wanted):
    assert added_counts(train.counts(), ratio=ratio) == {"b": wanted[0], "c": wanted[1]}
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
    assert copies.counts().to_dict() == added_counts(train.counts(), ratio=ratio)
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
    with pytest.raises(BadInput, match=r"needs 21 images of class b, .* made 14: ask for fewer"):
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


def lesions(counts, split):
    """Two images per lesion."""
    images = make(counts, split)
    groups = [f"{split}-{label}-{n // 2}" for label, k in counts.items() for n in range(k)]
    return ImageSet(images.images, images.table.assign(group=groups))


class TestAmounts:
    """How many images of which class, and which of them."""

    @pytest.mark.parametrize(
        ("change", "added"),
        [
            ({"count": 5}, {"a": 0, "b": 5, "c": 5}),
            ({"count": 5, "classes": ["c"]}, {"a": 0, "b": 0, "c": 5}),
            ({"count": 3, "classes": ["c", "a"]}, {"a": 3, "b": 0, "c": 3}),
            ({"balance": True}, {"a": 0, "b": 13, "c": 16}),
            ({"balance": True, "classes": ["b"]}, {"a": 0, "b": 13, "c": 0}),
            ({"ratio": 2.0, "classes": ["c"]}, {"a": 0, "b": 0, "c": 8}),
            ({"ratio": 0.5, "protocol": "pretrain"}, {"a": 10, "b": 4, "c": 2}),
        ],
    )
    @pytest.mark.parametrize("synthetic", ["wgan", "oversample", "noised", "blurred", "augmented", "oracle"])
    def test_every_kind_of_added_image_has_the_same_counts(self, train, synthetic, change, added):
        plenty = {"a": 20, "b": 16, "c": 16}
        pools = {"wgan": make(plenty, "synthetic", "wgan"), "oracle": lesions(plenty, "held-back")}
        training = classify.assemble(classify.Arm("x", synthetic, **change), train, pools.get(synthetic))
        found = training.composition.set_index("class")
        assert found["added"].to_dict() == found["wanted"].to_dict() == found["labelled"].to_dict() == added
        trained = len(training.images) + (len(training.pretrain) if training.pretrain else 0)
        assert trained == len(train) + sum(added.values())

    def test_a_class_that_is_not_there_and_two_ways_to_count_are_refused(self, train, pool):
        for change, said in (
            ({"classes": ["z"]}, "No class"),
            ({"count": 2, "balance": True}, "choose one"),
            ({"count": -1}, "count is -1"),
        ):
            with pytest.raises(BadInput, match=said):
                classify.assemble(classify.Arm("wgan", "wgan", **change), train, pool)

    def test_the_surest_of_each_class(self, train, pool):
        sure = np.random.default_rng(0).permutation(np.linspace(0.4, 0.95, 22))
        training = classify.assemble(classify.Arm("x", "wgan", 0.5, select="confident"), train, opined(pool, sure))
        found = set(training.images.select(split="synthetic").table["image_id"])
        table = pool.table.assign(sure=sure).sort_values("sure", ascending=False)
        assert found == {*table[table["label"] == "b"]["image_id"][:4], *table[table["label"] == "c"]["image_id"][:2]}

    def test_the_farthest_apart_by_the_labeller_s_features(self, train, pool, monkeypatch):
        """Fourteen of class b in a row, but for one far out: of two, the one nearest to the mean and that."""
        features = np.arange(22.0)[:, None] / 100
        features[5] = 50.0
        monkeypatch.setattr("stda.classify.arms.encode", lambda labeller, images, compute: features[: len(images)])
        arm = classify.Arm("x", "wgan", count=2, classes=["b"], select="diverse")
        training = classify.assemble(arm, train, pool, labeller=object(), compute=object())
        assert training.images.select(split="synthetic").table["image_id"].tolist() == [
            "syntheticwgan5",
            "syntheticwgan13",
        ]

    @pytest.mark.parametrize("select", ["confident", "diverse"])
    def test_selecting_without_a_labeller_is_a_sentence(self, train, pool, select):
        with pytest.raises(BadInput, match="pass a labeller and compute"):
            classify.assemble(classify.Arm("x", "wgan", select=select), train, pool)

    def test_unknown_ways_to_select_are_refused(self):
        with pytest.raises(BadInput, match="Unknown select 'best' of arm 'x'; use all, confident, diverse"):
            classify.Arm("x", "wgan", select="best")


class TestPlacebos:
    @pytest.mark.parametrize("labels", ["shuffled", "wrong"])
    @pytest.mark.parametrize("protocol", ["mix", "pretrain"])
    def test_the_generator_s_images_with_labels_that_say_nothing(self, train, pool, labels, protocol):
        arm = classify.Arm("x", "wgan", 1.0, labels=labels, protocol=protocol)
        training = classify.assemble(arm, train, pool, seed=5)
        honest = classify.assemble(classify.Arm("y", "wgan", 1.0, protocol=protocol), train, pool, seed=5)
        part = training.pretrain or training.images.select(split="synthetic")
        same = honest.pretrain or honest.images.select(split="synthetic")
        assert np.array_equal(part.images, same.images)
        assert part.table["asked_label"].tolist() == same.labels.tolist()
        wrong = part.labels != same.labels
        assert wrong.any()
        # 7 of b and 4 of c: all of c and 4 of b change places, the 3 left over of b have only c to go to
        labelled = {"a": 0, "b": 4, "c": 7} if labels == "wrong" else {"a": 0, "b": 7, "c": 4}
        assert wrong.all() == (labels == "wrong")
        found = training.composition.set_index("class")
        assert found["labelled"].to_dict() == labelled
        assert found["added"].to_dict() == found["wanted"].to_dict() == {"a": 0, "b": 7, "c": 4}
        real = training.images.select(split="train")
        assert real.labels.tolist() == train.labels.tolist()

    def test_one_class_of_images_has_no_placebo(self, train, pool):
        with pytest.raises(BadInput, match="all are b"):
            classify.assemble(classify.Arm("x", "wgan", labels="shuffled", classes=["b"]), train, pool)

    @pytest.mark.parametrize("synthetic", ["noised", "blurred", "augmented", "oracle"])
    def test_real_pictures_keep_their_labels(self, synthetic):
        for change in ({"labels": "wrong"}, {"labels": "pseudo"}, {"min_confidence": 0.5}):
            with pytest.raises(BadInput, match="Arm 'x' makes no new images: leave labels 'given'"):
                classify.Arm("x", synthetic, **change)


class TestOracle:
    def test_it_counts_what_it_adds_as_real_images_of_new_lesions(self):
        train, reserve = lesions(COUNTS, "train"), lesions({"a": 8, "b": 6, "c": 3}, "held-back")
        training = classify.assemble(classify.Arm("oracle", "oracle", 1.0), train, reserve, seed=1)
        # a has 10 lesions; b 4 (of 7 images) and 3 more; c 2 and 2 more; of b 7 are wanted and 6 are there
        assert training.composition.to_numpy().tolist() == [
            ["a", 20, 10, 0, 0, 0],
            ["b", 13, 7, 7, 6, 6],
            ["c", 7, 4, 4, 3, 3],
        ]
        assert set(training.images.table["split"]) == {"train", "held-back"}
        assert training.images.table["image_id"].is_unique

    @pytest.mark.parametrize(
        ("protocol", "real", "lesion"),
        [("pretrain", [28, 13, 7], [14, 7, 4]), ("synthetic-only", [8, 6, 3], [4, 3, 2])],
    )
    def test_it_follows_the_protocol(self, protocol, real, lesion):
        train, reserve = lesions(COUNTS, "train"), lesions({"a": 8, "b": 6, "c": 3}, "held-back")
        training = classify.assemble(classify.Arm("oracle", "oracle", 1.0, protocol=protocol), train, reserve)
        assert training.composition["real"].tolist() == real
        assert training.composition["lesions"].tolist() == lesion
        alone = training.pretrain or training.images
        assert set(alone.table["split"]) == {"held-back"}

    def test_more_of_it_keeps_the_less(self):
        train, reserve = lesions(COUNTS, "train"), lesions({"b": 20, "c": 20}, "held-back")
        less, more = (
            classify.assemble(classify.Arm("oracle", "oracle", count=n), train, reserve, seed=2).images for n in (4, 10)
        )
        assert set(less.table["image_id"]) < set(more.table["image_id"])

    def test_without_held_back_images_it_is_a_sentence(self, train, pool):
        with pytest.raises(BadInput, match="pass those of split held-back"):
            classify.assemble(classify.Arm("x", "oracle"), train)
        with pytest.raises(BadInput, match=r"set data\.oracle_fraction"):
            classify.assemble(classify.Arm("x", "oracle"), train, pool)


class TestLearningCurve:
    def test_shares_are_nested_and_counted(self):
        train, inner = lesions({"a": 40, "b": 16, "c": 8}, "train"), set()
        for share, counts in ((0.25, [10, 4, 2]), (0.5, [20, 8, 4]), (1.0, [40, 16, 8])):
            training = classify.assemble(classify.Arm("x", real_share=share), train, seed=9)
            assert training.composition["real"].tolist() == counts
            assert training.composition["lesions"].tolist() == [n // 2 for n in counts]
            assert inner < set(training.images.table["group"])
            inner = set(training.images.table["group"])

    def test_every_class_is_kept(self):
        train = lesions({"a": 40, "b": 16, "c": 2}, "train")
        training = classify.assemble(classify.Arm("x", real_share=0.01), train)
        assert training.composition["lesions"].tolist() == [1, 1, 1]

    @pytest.mark.parametrize("change", [{"real_share": 0.0}, {"real_share": 1.5}, {"synthetic": "wgan"}])
    def test_a_subset_adds_nothing(self, change):
        with pytest.raises(BadInput, match="real_share of arm 'x' is"):
            classify.Arm("x", **{"real_share": 0.5, **change})
