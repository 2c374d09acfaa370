import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stda import BadInput
from stda.images import ImageSet
from stda.measure.neighbours import (
    TrainingIndex,
    nearest_images,
    nearest_rows,
    pixel_rows,
    symmetric,
    versions,
)


def pictures(n, seed, size=8):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def image_set(images, groups=None):
    table = {"image_id": [f"i{i}" for i in range(len(images))], "label": "NV"}
    return ImageSet(np.ascontiguousarray(images), pd.DataFrame(table | ({"group": groups} if groups else {})))


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


def test_nearest_rows_agree_with_brute_force_far_from_the_origin():
    rng = np.random.default_rng(0)
    queries, training = rng.normal(size=(20, 5)) + 500, rng.normal(size=(40, 5)) + 500
    found = nearest_rows(queries, training, chunk=7)
    exact = np.linalg.norm(queries[:, None] - training[None], axis=2)
    assert found.distance == pytest.approx(exact.min(1), rel=1e-9)
    assert (found.index == exact.argmin(1)).all()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_rows_in_blocks_agree_with_brute_force_apart_from_their_own_group(kind):
    rng = np.random.default_rng(0)
    queries, training = rng.normal(size=(30, 6)).astype(kind), rng.normal(size=(50, 6)).astype(kind)
    groups = rng.integers(0, 4, 30), rng.integers(0, 4, 50)
    exact = np.linalg.norm(queries[:, None].astype(float) - training[None].astype(float), axis=2)
    exact[groups[0][:, None] == groups[1][None]] = np.inf
    found = nearest_rows(queries, training, apart=groups, chunk=7, block=11)
    np.testing.assert_array_equal(found.index, exact.argmin(1))
    np.testing.assert_allclose(found.distance, exact.min(1), rtol=1e-12)


def test_without_an_allowed_neighbour_the_distance_is_infinite():
    alone = nearest_rows(np.ones((2, 3)), np.zeros((4, 3)), apart=(np.array([0, 1]), np.zeros(4, int)))
    assert alone.distance.tolist() == [np.inf, np.sqrt(3)]


def test_the_index_knows_its_own_nearest_image_of_another_group():
    images = pictures(12, 3)
    images[5] = symmetric(images[2:3], 6)[0]  # a turned twin of another group, and one of the same group
    images[7] = images[4]
    groups = [f"g{i}" for i in range(12)]
    groups[7] = "g4"
    index = TrainingIndex(image_set(images, groups), pixel_rows)
    own = index.own("pixels", np.array([2, 5, 4, 4]))
    others = [i for i in range(12) if i not in (4, 7)]
    assert own[:2].tolist() == [0, 0]
    assert own[2] == own[3] == nearest_images(images[[4]], images[others]).distance[0]
    assert own[2] == index.own("pixels", np.array([7]))[0]


def test_a_single_lesion_has_no_other():
    index = TrainingIndex(image_set(pictures(3, 0), ["a", "a", "a"]), pixel_rows)
    assert np.isinf(index.own("pixels", np.array([1]))).all()


def test_large_images_are_averaged_and_turns_do_not_matter():
    large = pictures(3, 0, size=16)
    rows = pixel_rows(large, max_side=8)["pixels"]
    exact = large.reshape(3, 8, 2, 8, 2, 3).astype(float).mean((2, 4))
    assert abs(rows.reshape(3, 8, 8, 3) - exact).max() <= 0.5
    for number in range(8):
        turned = pixel_rows(np.ascontiguousarray(symmetric(large, number)), max_side=8)["pixels"]
        np.testing.assert_array_equal(turned.reshape(3, 8, 8, 3), symmetric(rows.reshape(3, 8, 8, 3), number))
    np.testing.assert_array_equal(pixel_rows(large, max_side=12)["pixels"], rows)


@pytest.mark.parametrize(("size", "side"), [(16, 16), (64, 64), (96, 48), (224, 56), (256, 64), (299, 299), (127, 127)])
def test_pixels_are_averaged_to_between_32_and_64_where_the_size_can_be_divided(size, side):
    assert pixel_rows(np.zeros((1, size, size, 3), np.uint8))["pixels"].shape == (1, 3 * side**2)


@pytest.mark.parametrize(
    ("measure", "sentence"),
    [
        (lambda: nearest_images(pictures(1, 0), pictures(1, 0, size=16)), "one size"),
        (lambda: nearest_images(pictures(1, 0), pictures(0, 0)), "no training image"),
        (lambda: nearest_images(pictures(1, 0)[:, :4], pictures(1, 0)[:, :4]), "square images"),
        (lambda: versions(pictures(2, 0), lambda x: {"features": np.full((len(x), 2), np.inf)}), "features hold NaN"),
    ],
)
def test_impossible_input_is_a_sentence(measure, sentence):
    with pytest.raises(BadInput, match=sentence):
        measure()
