import warnings

import numpy as np
import pandas as pd
import pytest

from stda import BadInput
from stda.images import ImageSet
from stda.measure.fidelity import COPIES_ROW, REAL_ROW
from stda.measure.pyramids import (
    from_pyramid,
    laplacian_pyramid,
    pyramid_distance,
    sliced_wasserstein,
    structure_table,
)


def noise(n, size, seed, scale=30.0):
    return np.random.default_rng(seed).normal(128, scale, (n, size, size, 3)).astype(np.float32)


def image_set(images, group=None):
    names = [str(i) for i in range(len(images))]
    group = names if group is None else group
    return ImageSet(
        images.clip(0, 255).astype(np.uint8), pd.DataFrame({"image_id": names, "label": "a", "group": group})
    )


@pytest.mark.parametrize(("size", "sides"), [(64, [64, 32, 16]), (45, [45, 23]), (32, [32, 16]), (28, [28]), (9, [9])])
def test_the_pyramid_holds_the_image_and_goes_down_to_16_pixels(size, sides):
    images = noise(2, size, 0)
    levels = laplacian_pyramid(images)
    assert [level.shape[1] for level in levels] == sides
    np.testing.assert_allclose(from_pyramid(levels), images, atol=1e-3)


def test_a_plain_image_has_no_detail_and_its_mean_at_the_coarsest_level():
    fine, coarse = laplacian_pyramid(np.full((1, 32, 32, 3), 77.0))
    np.testing.assert_allclose(fine, 0, atol=1e-4)
    np.testing.assert_allclose(coarse, 77, atol=1e-4)


def brute_level(image):
    """One coarser level by explicit sums with mirrored edges."""
    weights, size = np.array([1, 4, 6, 4, 1]) / 16, len(image)
    mirror = [abs(i) if i < size else 2 * (size - 1) - i for i in range(-2, size + 2)]
    out = np.zeros(((size + 1) // 2, (size + 1) // 2))
    for r in range(len(out)):
        for c in range(len(out)):
            for dy in range(5):
                for dx in range(5):
                    out[r, c] += weights[dy] * weights[dx] * image[mirror[2 * r + dy], mirror[2 * c + dx]]
    return out


@pytest.mark.parametrize("size", [32, 33])
def test_the_coarse_level_is_the_blurred_image_at_every_second_pixel(size):
    image = noise(1, size, 3)
    np.testing.assert_allclose(laplacian_pyramid(image)[-1][0, :, :, 0], brute_level(image[0, :, :, 0]), rtol=1e-5)


def test_sliced_distance_agrees_with_scipy_direction_by_direction():
    from scipy.stats import wasserstein_distance

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.normal(0.5, 2, size=(40, 3))
    ways = np.random.default_rng(5).normal(size=(10, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    expected = np.mean([wasserstein_distance(x @ way, y @ way) for way in ways])
    assert sliced_wasserstein(x, y, seed=5, directions=10, repeats=1) == pytest.approx(expected, rel=1e-12)


def test_sliced_distance_of_a_shift_is_the_mean_of_its_projections():
    # |u . s| averaged over unit directions u in three dimensions is |s| / 2
    x = np.random.default_rng(0).normal(size=(500, 3))
    assert sliced_wasserstein(x, x + np.array([0, 2.0, 0]), seed=0, directions=2000) == pytest.approx(1, rel=0.02)
    assert sliced_wasserstein(x, x[::-1].copy(), seed=0) == 0


def test_sliced_distance_of_two_gaussians_has_its_closed_form():
    # one dimension: W1 of N(0, 1) and N(0, 2) is E|z| = sqrt(2 / pi)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40000, 1)), 2 * rng.normal(size=(40000, 1))
    assert sliced_wasserstein(x, y, seed=0, directions=1, repeats=1) == pytest.approx(np.sqrt(2 / np.pi), rel=0.02)


def test_equal_sets_are_at_zero_and_the_seed_decides():
    images = noise(60, 32, 0)
    assert pyramid_distance(images, images, seed=1) == {32: 0, 16: 0}
    apart = pyramid_distance(images[:30], images[30:], seed=1)
    assert apart == pyramid_distance(images[:30], images[30:], seed=1)
    assert apart != pyramid_distance(images[:30], images[30:], seed=2)


def octave(low, high, n, size, seed):
    """Noise that has the frequencies from low to high, in cycles per pixel, and no other."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    noise = np.fft.fft2(np.random.default_rng(seed).normal(size=(n, size, size, 3)), axes=(1, 2))
    noise[:, (frequency < low) | (frequency >= high)] = 0
    return np.fft.ifft2(noise, axes=(1, 2)).real


@pytest.mark.parametrize(("low", "high", "side"), [(0.25, 0.5, 64), (0.0625, 0.09, 32), (0.001, 0.03, 16)])
def test_noise_of_one_octave_lies_in_that_level(low, high, side):
    levels = laplacian_pyramid(octave(low, high, 8, 64, 0))
    # what every level adds to the full-size image, by its variance there
    added = {}
    for i, level in enumerate(levels):
        only = [values if j == i else np.zeros_like(values) for j, values in enumerate(levels)]
        added[level.shape[1]] = from_pyramid(only).var()
    assert added[side] > 0.5 * sum(added.values())
    assert max(added, key=added.get) == side


def test_a_fault_of_one_scale_is_seen_at_that_level_only():
    base = sum(30 * octave(*band, 120, 64, i) for i, band in enumerate([(0.2, 0.5), (0.06, 0.1), (0.001, 0.03)]))
    a, b = base[:60], base[60:]
    rows, columns = np.indices((64, 64))
    checks = 40 * (-1.0) ** (rows + columns)[..., None]  # the highest frequency there is: the blur removes it
    slopes = 60 * np.cos(np.pi * columns / 63)[..., None]  # half a wave from edge to edge
    scale = pyramid_distance(a, b, seed=0)
    for fault, side in ((checks, 64), (slopes, 16)):
        found = pyramid_distance(a, b + fault, seed=0)
        for level in scale:
            if level == side:
                assert found[level] > 2 * scale[level]
            else:
                assert found[level] < 1.5 * scale[level]


def test_a_colour_cast_is_not_seen_and_blur_is_seen_at_the_finest_level():
    from scipy.ndimage import gaussian_filter

    images = gaussian_filter(noise(240, 32, 0, 200), (0, 0.7, 0.7, 0))
    a, b = images[:120], images[120:]
    scale = pyramid_distance(a, b, seed=0)
    cast = pyramid_distance(a, 0.7 * b + [40, 0, 0], seed=0)
    assert cast == pytest.approx(scale, rel=1e-3)
    blurred = pyramid_distance(a, gaussian_filter(b, (0, 1, 1, 0)), seed=0)
    assert blurred[32] > 3 * scale[32]
    assert blurred[32] / scale[32] > 2 * blurred[16] / scale[16]


def test_table_has_its_scale_and_finds_the_fault():
    from scipy.ndimage import gaussian_filter

    images = gaussian_filter(noise(160, 32, 0, 100), (0, 0.7, 0.7, 0))
    sets = {"train": image_set(images[:120], [str(i // 2) for i in range(120)]), "good": image_set(images[120:])}
    sets |= {
        "checked": image_set(images[:50] + 60 * (-1.0) ** np.indices((32, 32)).sum(0)[..., None]),
        "few": image_set(images[:3]),
    }
    table = structure_table(sets, reference="train", seed=0, patches=32).set_index("set")
    assert list(table.index) == [REAL_ROW, COPIES_ROW, "good", "checked", "few"]
    assert table["n"].tolist() == [40, 40, 40, 40, 0]
    assert table["available"].tolist() == [60, 60, 40, 50, 3]
    assert table.loc["checked", "swd_32"] > 1.5 * table.loc[REAL_ROW, "swd_32"]
    assert table.loc["good", "swd_32"] < 1.3 * table.loc[REAL_ROW, "swd_32"]
    assert table.loc[COPIES_ROW, "swd_mean"] < 1.2 * table.loc[REAL_ROW, "swd_mean"]
    np.testing.assert_allclose(table["swd_mean"], table[["swd_32", "swd_16"]].mean(axis=1, skipna=False))
    assert "there are 3 and 60" in table.loc["few", "note"]
    assert np.isnan(table.loc["few", "swd_mean"])
    assert table.equals(structure_table(sets, reference="train", seed=0, patches=32).set_index("set"))


def test_plain_and_single_images_are_defined_without_a_warning():
    plain = np.full((30, 32, 32, 3), 9, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pyramid_distance(plain, plain + 3, seed=0, patches=4) == {32: 0, 16: 0}
        one = structure_table({"train": image_set(plain[:1])}, reference="train", seed=0)
    assert one["n"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("measure", "sentence"),
    [
        (lambda: pyramid_distance(noise(2, 6, 0), noise(2, 6, 0), seed=0), "at least 7 pixels"),
        (lambda: pyramid_distance(noise(2, 32, 0), noise(3, 32, 0), seed=0), "equal number"),
        (lambda: sliced_wasserstein(np.ones((2, 3)), np.ones((3, 3)), seed=0), "equal numbers"),
        (lambda: structure_table({"a": image_set(noise(2, 32, 0))}, reference="b", seed=0), "reference 'b'"),
        (
            lambda: structure_table(
                {"a": image_set(noise(2, 32, 0)), "b": image_set(noise(2, 16, 0))}, reference="a", seed=0
            ),
            "one image size",
        ),
    ],
)
def test_impossible_input_is_a_sentence(measure, sentence):
    with pytest.raises(BadInput, match=sentence):
        measure()
