import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stda import BadInput
from stda.images import ImageSet
from stda.measure.copying import (
    copying_table,
    near_copies,
    nearest_features,
    nearest_images,
    nearest_pairs,
    symmetric,
)


def pictures(n, seed, size=8):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def image_set(images):
    ids = [f"i{i}" for i in range(len(images))]
    return ImageSet(np.ascontiguousarray(images), pd.DataFrame({"image_id": ids, "label": "NV"}))


@pytest.mark.parametrize("chunk", [3, 512])
def test_nearest_images_agree_with_brute_force(chunk):
    queries, training = pictures(10, 0), pictures(25, 1)
    found = nearest_images(queries, training, chunk=chunk)
    for i, query in enumerate(queries):
        per_symmetry = [
            [
                np.sqrt((((symmetric(query[None], s)[0].astype(float) - t) / 255) ** 2).mean())
                for t in training.astype(float)
            ]
            for s in range(8)
        ]
        assert found.distance[i] == pytest.approx(np.min(per_symmetry), rel=1e-6)
        assert (found.symmetry[i], found.index[i]) == np.unravel_index(np.argmin(per_symmetry), (8, 25))


def test_the_eight_symmetries_differ():
    assert len({symmetric(pictures(1, 0), s).tobytes() for s in range(8)}) == 8


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 7), st.integers(0, 24))
def test_a_turned_copy_is_found_at_distance_zero(symmetry, index):
    training = pictures(25, 1)
    found = nearest_images(symmetric(training[index : index + 1], symmetry), training)
    assert (found.distance[0], found.index[0]) == (0.0, index)
    plain = nearest_images(symmetric(training[index : index + 1], symmetry), training, symmetries=False)
    assert (plain.distance[0] == 0) == (symmetry == 0)


def test_nearest_features_agree_with_brute_force_far_from_the_origin():
    rng = np.random.default_rng(0)
    queries, training = rng.normal(size=(20, 5)) + 500, rng.normal(size=(40, 5)) + 500
    found = nearest_features(queries, training, chunk=7)
    exact = np.linalg.norm(queries[:, None] - training[None], axis=2)
    assert found.distance == pytest.approx(exact.min(1), rel=1e-3)
    assert (found.index == exact.argmin(1)).all()


def test_a_memoriser_is_caught_and_a_fresh_sample_passes():
    def sample(n, seed):  # smooth low-dimensional pictures, as a phantom would draw
        rng = np.random.default_rng(seed)
        basis = np.random.default_rng(99).normal(size=(6, 8 * 8 * 3))
        return np.clip(128 + 25 * rng.normal(size=(n, 6)) @ basis, 0, 255).astype(np.uint8).reshape(n, 8, 8, 3)

    train, held_out, fresh = sample(400, 0), sample(150, 1), sample(200, 2)
    noise = np.random.default_rng(3).integers(-3, 4, fresh.shape)
    memorised = symmetric(np.clip(train[:200].astype(int) + noise, 0, 255).astype(np.uint8), 5)
    half = np.concatenate([fresh[:100], memorised[:100]])
    every = {"train": train, "val": held_out, "fresh": fresh, "memoriser": memorised, "half": half}
    sets = {name: image_set(images) for name, images in every.items()}
    upright = {**every, "memoriser": symmetric(memorised, 5), "half": np.concatenate([fresh[:100], train[:100]])}
    features = {name: images.reshape(len(images), -1)[:, ::7] for name, images in upright.items()}
    both = copying_table(sets, features, reference="train", held_out="val")
    assert both["set"].tolist() == ["val", "fresh", "memoriser", "half"] * 2
    check_memoriser(both[both["space"] == "pixels"].set_index("set"))
    check_memoriser(both[both["space"] == "features"].set_index("set"))


def check_memoriser(table):
    assert table["copying"].tolist() == [False, False, True, True]
    assert table.loc["memoriser", "rate"] == 1.0
    assert table.loc["half", "rate"] == pytest.approx(0.5, abs=0.05)
    assert table.loc["half", "rate_low"] < 0.5 < table.loc["half", "rate_high"]
    assert table.loc["memoriser", "median_ratio"] < 0.5


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


@pytest.mark.parametrize(
    ("measure", "sentence"),
    [
        (lambda: copying_table({}, {}, reference="train", held_out="val"), "reference is 'train'"),
        (lambda: near_copies([], [1.0]), "synthetic and held-out"),
        (lambda: near_copies([1.0], [1.0], quantile=0.0), "between 0 and 1"),
        (lambda: nearest_images(pictures(1, 0), pictures(1, 0, size=16)), "one size"),
        (lambda: nearest_images(pictures(1, 0), pictures(0, 0)), "no training image"),
        (lambda: nearest_images(pictures(1, 0)[:, :4], pictures(1, 0)[:, :4]), "square images"),
        (lambda: nearest_features(np.ones((2, 3)), np.ones((2, 4))), "one D"),
        (lambda: nearest_features(np.full((2, 3), np.nan), np.ones((2, 3))), "NaN"),
    ],
)
def test_impossible_input_is_a_sentence(measure, sentence):
    with pytest.raises(BadInput, match=sentence):
        measure()
