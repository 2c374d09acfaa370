import warnings

import numpy as np
import pandas as pd
import pytest

from stda import BadInput
from stda.images import ImageSet
from stda.measure.copying import CopySearch, authenticity, copying_table, near_copies, nearest_pairs
from stda.measure.neighbours import symmetric
from stda.measure.scores import wilson


def pictures(n, seed, size=8):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def image_set(images, labels="NV", groups=None):
    ids = [f"i{i}" for i in range(len(images))]
    return ImageSet(
        np.ascontiguousarray(images), pd.DataFrame({"image_id": ids, "label": labels, "group": groups or ids})
    )


def smooth(n, seed):
    """Return smooth low-dimensional pictures, as a phantom would draw."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(99).normal(size=(6, 8 * 8 * 3))
    return np.clip(128 + 25 * rng.normal(size=(n, 6)) @ basis, 0, 255).astype(np.uint8).reshape(n, 8, 8, 3)


def corner(images):
    """Embed images in a space that knows up from down and left from right: one corner of theirs."""
    return {"features": images[:, :5, :5].reshape(len(images), -1).astype(np.float32)}


def search(embed=corner, **change):
    sets = {"train": image_set(smooth(400, 0)), "val": image_set(smooth(150, 1)), "fresh": image_set(smooth(200, 2))}
    return CopySearch(sets | change, embed, reference="train", held_out="val")


def test_a_memoriser_is_caught_and_a_fresh_sample_passes_in_every_space():
    train, fresh = smooth(400, 0), smooth(200, 2)
    noise = np.random.default_rng(3).integers(-3, 4, fresh.shape)
    memorised = symmetric(np.clip(train[:200].astype(int) + noise, 0, 255).astype(np.uint8), 5)
    half = np.concatenate([fresh[:100], memorised[:100]])
    both = copying_table(search(memoriser=image_set(memorised), half=image_set(half)))
    assert both["set"].tolist() == ["val", "fresh", "memoriser", "half"] * 2
    assert both["space"].tolist() == ["pixels"] * 4 + ["features"] * 4
    for _, table in both.set_index("set").groupby("space"):
        assert table["copying"].tolist() == [False, False, True, True]
        assert table.loc["memoriser", "rate"] == 1.0
        assert table.loc["half", "rate"] == pytest.approx(0.5, abs=0.05)
        assert table.loc["half", "rate_low"] < 0.5 < table.loc["half", "rate_high"]
        assert table.loc["memoriser", "median_ratio"] < 0.5
        assert table.loc["memoriser", "authenticity"] < 0.05
        assert table.loc["fresh", "authenticity"] == pytest.approx(table.loc["val", "authenticity"], abs=0.12)
        assert table.loc["half", "authenticity"] == pytest.approx(table.loc["fresh", "authenticity"] / 2, abs=0.08)


def test_without_symmetries_a_turned_copy_is_missed():
    turned = image_set(symmetric(smooth(400, 0)[:100], 1))
    sets = {"train": image_set(smooth(400, 0)), "val": image_set(smooth(150, 1)), "turned": turned}
    for symmetries in (True, False):
        found = CopySearch(sets, corner, reference="train", held_out="val", symmetries=symmetries)
        table = copying_table(found).set_index(["set", "space"])
        assert table.loc["turned", "copying"].tolist() == [symmetries] * 2


def test_only_so_many_images_are_embedded():
    seen = []

    def embed(images):
        seen.append(len(images))
        return corner(images)

    sets = {"train": image_set(pictures(30, 0)), "val": image_set(pictures(20, 1)), "pool": image_set(pictures(9, 2))}
    found = CopySearch(sets, embed, reference="train", held_out="val", max_embedded=12)
    assert seen == [30] + [12] * 8 + [9] * 8
    table = copying_table(found).set_index(["space", "set"])
    assert table["n"].tolist() == [20, 9, 12, 9]
    ids = found.asked["features"]["val"].table["image_id"].tolist()
    assert len(set(ids)) == 12
    assert ids != [f"i{i}" for i in range(12)]


def test_authenticity_is_its_definition():
    """Against two loops over all pairs, the second without images of the same lesion."""
    train, pool = pictures(30, 0), pictures(20, 1)
    groups = [f"g{i // 2}" for i in range(30)]
    sets = {"train": image_set(train, groups=groups), "val": image_set(pictures(10, 2)), "pool": image_set(pool)}
    table = copying_table(CopySearch(sets, reference="train", held_out="val")).set_index("set")

    def distance(x, y):
        turns = [symmetric(x[None], s)[0].astype(float) for s in range(8)]
        return min(np.sqrt((((t - y.astype(float)) / 255) ** 2).mean()) for t in turns)

    authentic = []
    for x in pool:
        every = [distance(x, y) for y in train]
        i = int(np.argmin(every))
        own = min(distance(train[i], train[k]) for k in range(30) if groups[k] != groups[i])
        authentic.append(every[i] > own)
    assert table.loc["pool", "authenticity"] == np.mean(authentic)
    found = table.loc["pool", ["authenticity_low", "authenticity_high"]].tolist()
    assert found == pytest.approx(wilson(sum(authentic), 20))


def test_images_of_one_lesion_count_as_one_in_the_interval():
    one = authenticity(np.array([2.0, 2, 0, 0]), np.ones(4), clusters=["a", "a", "b", "b"])
    assert one["authenticity"] == 0.5
    assert (one["authenticity_low"], one["authenticity_high"]) == pytest.approx(wilson(1, 2))


def test_the_nearest_pairs_are_shown_the_same_way_up():
    train = pictures(6, 0)
    for number in range(8):
        pairs = nearest_pairs(image_set(symmetric(train[:3], number)), image_set(train), n=2)
        assert pairs.shape == (4, 8, 8, 3)
        np.testing.assert_array_equal(pairs[:2], pairs[2:])


def test_fresh_samples_are_rarely_accused():
    rng = np.random.default_rng(0)
    accused = sum(near_copies(rng.gamma(5, size=150), rng.gamma(5, size=100))["copying"] for _ in range(300))
    assert accused <= 9


def test_degenerate_distances_are_defined():
    assert near_copies([0.0, 0.0], [0.0, 0.0])["near_copies"] == 2
    assert np.isnan(near_copies([0.0], [0.0])["median_ratio"])
    assert np.isnan(authenticity([1.0], [np.inf])["authenticity"])


def test_degenerate_sets_are_defined():
    same, one = image_set(np.zeros((5, 8, 8, 3), np.uint8)), image_set(np.full((1, 8, 8, 3), 9, np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        equal = copying_table(CopySearch({"t": same, "v": same, "s": same}, corner, reference="t", held_out="v"))
        single = copying_table(CopySearch({"t": one, "v": one, "s": same}, corner, reference="t", held_out="v"))
    assert not equal["copying"].any()  # where all real images are one, an equal one is no copy
    assert equal["authenticity"].tolist() == [0.0] * 4
    assert single["authenticity"].isna().all()


@pytest.mark.parametrize(
    ("measure", "sentence"),
    [
        (lambda: CopySearch({}, reference="train", held_out="val"), "reference is 'train'"),
        (lambda: search(fresh=image_set(pictures(0, 0))), r"no image in \['fresh'\]"),
        (lambda: search(fresh=image_set(pictures(2, 0, size=16))), "one size"),
        (lambda: search(lambda x: {"features": np.full((len(x), 2), np.nan)}), "NaN"),
        (lambda: near_copies([], [1.0]), "synthetic and held-out"),
        (lambda: near_copies([1.0], [1.0], quantile=0.0), "between 0 and 1"),
        (lambda: authenticity([1.0], []), "one neighbour's distance per image"),
    ],
)
def test_impossible_input_is_a_sentence(measure, sentence):
    with pytest.raises(BadInput, match=sentence):
        measure()
