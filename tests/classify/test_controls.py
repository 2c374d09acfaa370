from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from stda import BadInput, classify, encoders
from stda.classify.controls import (
    BLUR,
    CHUNK,
    NOISE,
    blurred,
    held_back,
    noised,
    self_training,
    subset,
    transformed,
)
from stda.compute import Compute
from stda.images import ImageSet, added_counts

CPU = Compute(torch.device("cpu"), "float32", 1)
COUNTS = {"dark": 9, "light": 6}


@pytest.fixture(scope="module")
def train():
    """Dark and light pictures with a gradient, so that a transformation shows."""
    labels = np.repeat(list(COUNTS), list(COUNTS.values()))
    ground = np.where(labels == "dark", 40, 200)[:, None, None, None] + np.arange(16)[:, None] * 3
    pixels = ground + np.random.default_rng(0).integers(-9, 9, (len(labels), 16, 16, 3))
    table = pd.DataFrame({"image_id": [f"i{n}" for n in range(len(labels))], "label": labels, "split": "train"})
    table["group"] = [f"g{n // 2}" for n in range(len(labels))]
    return ImageSet(pixels.astype(np.uint8), table)


@pytest.fixture(scope="module")
def labeller(train):
    return encoders.train_in_domain(train, steps=15, seed=0, compute=CPU, batch_size=16)


def test_real_pictures_transformed_once_and_labelled_as_they_look(train, labeller):
    pool = self_training(train, {"dark": 12, "light": 3}, seed=1, labeller=labeller, compute=CPU)
    table = pool.table
    assert table["asked_label"].value_counts().to_dict() == {"dark": 12, "light": 3}
    assert table["image_id"].is_unique
    assert set(table["split"]) == {"synthetic"}
    assert table.loc[:8, "source_ids"].nunique() == 9  # every picture once before any again
    sources = train.table.set_index("image_id").loc[table["source_ids"]]
    assert table["group"].tolist() == sources["group"].tolist()
    for picture, name in zip(pool.images, table["source_ids"], strict=True):
        original = train.images[train.table["image_id"] == name][0]
        assert not np.array_equal(picture, original)
        assert abs(picture.mean() - original.mean()) < 40
    opinion = labeller.classify(pool, CPU)
    np.testing.assert_allclose(table[["p_dark", "p_light"]], opinion, atol=1e-6)
    assert table["label"].tolist() == np.array(labeller.classes)[opinion.argmax(axis=1)].tolist()
    np.testing.assert_allclose(table["label_confidence"], opinion.max(axis=1), atol=1e-6)
    again = self_training(train, {"dark": 12, "light": 3}, seed=1, labeller=labeller, compute=CPU)
    assert np.array_equal(again.images, pool.images)


@pytest.mark.parametrize("labels", classify.LABELS)
@pytest.mark.parametrize("protocol", classify.PROTOCOLS)
def test_an_arm_of_self_training_has_the_counts_of_a_generator_s(train, labeller, protocol, labels):
    arm = classify.Arm("self", classify.SELF_TRAINING, 1.0, protocol=protocol, labels=labels)
    training = classify.assemble(arm, train, seed=4, labeller=labeller, compute=CPU)
    wanted = added_counts(train.counts(), ratio=1.0, largest=protocol != "mix")
    composition = training.composition.set_index("class")
    assert composition["added"].to_dict() == {"dark": 0, **wanted}
    alone = training.pretrain if protocol == "pretrain" else training.images
    added = alone.select(split="synthetic")
    assert len(added) == sum(wanted.values())
    assert ("target_dark" in added.table) == (labels == "soft")
    if labels == "style":
        assert added.labels.tolist() == added.table["asked_label"].tolist()


def test_unsure_pictures_are_left_out_and_replaced(train, labeller):
    arm = classify.Arm("self", classify.SELF_TRAINING, 1.0)
    every = classify.assemble(arm, train, labeller=labeller, compute=CPU).images.select(split="synthetic")
    floor = float(every.table["label_confidence"].median())
    sure = classify.Arm("self", classify.SELF_TRAINING, 1.0, min_confidence=floor)
    training = classify.assemble(sure, train, labeller=labeller, compute=CPU)
    added = training.images.select(split="synthetic")
    assert added.table["label_confidence"].min() >= floor
    # of three times as many pictures some more are as sure as the better half
    assert len(every) // 2 < len(added) <= len(every)


def test_without_a_labeller_it_is_a_sentence(train):
    with pytest.raises(BadInput, match="pass a labeller"):
        classify.assemble(classify.Arm("self", classify.SELF_TRAINING), train)


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_the_blur_is_that_of_scipy(size):
    """Torch's "reflect" is SciPy's "mirror": the pixel at the edge is not repeated."""
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(size)) * 2 - 1
    sigma = BLUR * size
    expected = ndimage.gaussian_filter(
        images.numpy().astype(float), (0, 0, sigma, sigma), mode="mirror", radius=int(np.ceil(3 * sigma))
    )
    before = images.clone()
    np.testing.assert_allclose(blurred(images, torch.Generator()).numpy(), expected, atol=1e-6)
    assert torch.equal(images, before)


def test_the_blur_leaves_a_flat_picture_and_the_middle_of_a_ramp():
    flat = torch.full((1, 3, 24, 24), -0.3)
    torch.testing.assert_close(blurred(flat, torch.Generator()), flat)
    ramp = torch.linspace(-1, 1, 24).expand(1, 3, 24, 24)
    torch.testing.assert_close(blurred(ramp, torch.Generator())[..., 5:-5], ramp[..., 5:-5])


def test_noise_has_its_level_in_each_pixel_and_colour_and_is_clipped():
    grey = torch.zeros(40, 3, 16, 16)
    found = noised(grey, torch.Generator().manual_seed(0)).numpy()
    assert abs(found.mean()) < 0.005
    assert found.std() == pytest.approx(NOISE, rel=0.02)
    assert abs(np.corrcoef(found[:, 0].ravel(), found[:, 1].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(found[..., :-1].ravel(), found[..., 1:].ravel())[0, 1]) < 0.05
    assert not np.array_equal(found[0], found[1])
    white = noised(torch.ones(4, 3, 16, 16), torch.Generator().manual_seed(0))
    assert white.max() == 1
    assert (white == 1).float().mean() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(grey, torch.zeros_like(grey))


@pytest.mark.parametrize("how", ["augmented", "noised", "blurred"])
def test_transformed_pictures_are_real_ones_changed_once(train, how):
    made = transformed(train, {"dark": 20, "light": 4}, how, seed=2)
    assert made.counts().to_dict() == {"dark": 20, "light": 4}
    assert set(made.table["split"]) == {"synthetic"}
    assert set(made.table["generator"]) == {how}
    assert made.table["image_id"].is_unique
    times = made.table.loc[made.table["label"] == "dark", "source_ids"].value_counts()
    assert sorted(times) == [2] * 7 + [3] * 2
    originals = train.table.set_index("image_id")
    sources = originals.loc[made.table["source_ids"]]
    assert made.labels.tolist() == sources["label"].tolist()
    assert made.table["group"].tolist() == sources["group"].tolist()
    for picture, name in zip(made.images, made.table["source_ids"], strict=True):
        original = train.images[originals.index.get_loc(name)]
        assert not np.array_equal(picture, original)
        assert abs(picture.mean() - original.mean()) < 40
    same = transformed(train, {"dark": 20, "light": 4}, how, seed=2)
    other = transformed(train, {"dark": 20, "light": 4}, how, seed=3)
    assert np.array_equal(made.images, same.images)
    assert not np.array_equal(made.images, other.images)
    dark = made.select(label="dark").table["source_ids"].to_numpy()
    rounds = [made.select(label="dark").images[dark == dark[0]][i] for i in range(2)]
    assert np.array_equal(*rounds) == (how == "blurred")  # the others draw anew each time


def test_many_pictures_are_changed_like_few(train):
    """Over the end of a chunk the noise goes on, and each picture stays with its row."""
    n = CHUNK + 30
    made = transformed(train, {"dark": n}, "noised", seed=0)
    noise = made.images.astype(int) - np.stack(
        [train.images[train.table["image_id"] == name][0] for name in made.table["source_ids"]]
    )
    assert abs(noise).mean(axis=(1, 2, 3)).max() < 40  # the noise alone; another picture would be far off
    assert not np.array_equal(noise[0], noise[CHUNK])


def reserve(split="held-back", seed=0):
    """Thirty lesions of one to four images, their rows in disorder."""
    random = np.random.default_rng(seed)
    sizes, kinds = random.integers(1, 5, 30), np.resize(["dark", "light", "dark"], 30)
    rows = random.permutation(np.repeat(np.arange(30), sizes))
    table = pd.DataFrame({"image_id": [f"h{i}" for i in range(len(rows))], "label": kinds[rows], "split": split})
    table["group"] = [f"lesion {i}" for i in rows]
    return ImageSet(np.zeros((len(rows), 4, 4, 3), np.uint8), table)


class TestHeldBack:
    def test_a_smaller_number_is_part_of_a_larger(self):
        images, before = reserve(), []
        for n in range(len(images) + 1):
            chosen = held_back(images, {"dark": n, "light": n}, seed=1).table
            for label in ("dark", "light"):
                own = chosen.loc[chosen["label"] == label, "image_id"].tolist()
                assert len(own) == min(n, images.counts()[label])
                before = before if label == "light" else [*before, chosen]
        dark = [c.loc[c["label"] == "dark", "image_id"].tolist() for c in before]
        assert all(more[: len(less)] == less for less, more in pairwise(dark))

    def test_all_images_of_a_lesion_come_before_the_next(self):
        images = reserve()
        for n in (3, 8, 17):
            groups = held_back(images, {"dark": n}, seed=1).table["group"]
            assert (groups != groups.shift()).sum() == groups.nunique()  # side by side
            whole = images.table["group"].value_counts()[groups.unique()[:-1]]
            assert whole.tolist() == [
                int((groups == name).sum()) for name in groups.unique()[:-1]
            ]  # only the last is cut

    def test_the_seed_decides_the_order_of_lesions(self):
        images = reserve()
        orders = [held_back(images, {"dark": 99}, seed=s).table["group"].drop_duplicates().tolist() for s in (1, 1, 2)]
        assert orders[0] == orders[1] != orders[2]
        assert sorted(orders[0]) == sorted(orders[2])
        assert orders[0] != images.select(label="dark").table["group"].drop_duplicates().tolist()

    @pytest.mark.parametrize("split", ["train", "val", "test", "synthetic", ""])
    def test_another_fold_is_refused(self, split):
        with pytest.raises(BadInput, match=rf"was given rows of split \['{split}'\]: set data.oracle_fraction"):
            held_back(ImageSet.concat(reserve(), reserve(split)), {"dark": 1}, seed=0)

    def test_nothing_held_back_is_a_sentence(self):
        with pytest.raises(BadInput, match=r"was given no images: set data\.oracle_fraction"):
            held_back(reserve().select([]), {"dark": 1}, seed=0)


class TestSubset:
    def test_smaller_shares_are_parts_of_larger_ones_lesion_by_lesion(self):
        images = reserve("train", seed=4)
        per_class = images.table.groupby("label")["group"].nunique()
        inner = set()
        for share in (0.001, 0.1, 0.25, 0.5, 0.75, 0.95, 1.0):
            part = subset(images, share, seed=7)
            groups = set(part.table["group"])
            assert inner <= groups
            inner = groups
            whole = images.table[images.table["group"].isin(groups)]  # no lesion is torn, and the order is kept
            assert part.table["image_id"].tolist() == whole["image_id"].tolist()
            expected = {label: max(1, round(share * n)) for label, n in per_class.items()}
            assert part.table.groupby("label")["group"].nunique().to_dict() == expected
        assert inner == set(images.table["group"])

    def test_the_seed_decides_which(self):
        images = reserve("train")
        parts = [set(subset(images, 0.5, seed=s).table["group"]) for s in (0, 0, 1)]
        assert parts[0] == parts[1] != parts[2]

    def test_the_pixels_are_those_of_the_rows(self, train):
        part = subset(train, 0.4, seed=0)
        assert 0 < len(part) < len(train)
        for name, picture in zip(part.table["image_id"], part.images, strict=True):
            assert np.array_equal(picture, train.images[train.table["image_id"] == name][0])

    def test_a_lesion_of_two_labels_counts_once_and_stays_whole(self):
        table = pd.DataFrame({"image_id": list("uvwxyz"), "label": list("aabbba"), "group": list("112233")})
        images = ImageSet(np.zeros((6, 4, 4, 3), np.uint8), table.assign(split="train"))
        for seed in range(5):
            part = subset(images, 0.5, seed=seed)
            assert len(part) == 4
            assert part.table["group"].value_counts().tolist() == [2, 2]
            assert "1" in set(part.table["group"])
