import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from stda import BadInput
from stda.images import ImageSet
from stda.measure.similarity import SCALE_WEIGHTS, class_similarity, ms_ssim, pair_error, scales_that_fit, ssim


def pictures(n, size, seed=0, rough=1.5):
    from scipy.ndimage import gaussian_filter

    values = gaussian_filter(np.random.default_rng(seed).normal(size=(n, size, size, 3)), (0, rough, rough, 0))
    return (128 + 60 * values / values.std()).clip(0, 255).astype(np.uint8)


def pairs(n, size):
    x = pictures(n, size)
    y = (0.6 * x + 0.4 * pictures(n, size, seed=1)).astype(np.uint8)
    tensors = [torch.from_numpy(a).permute(0, 3, 1, 2).double() / 255 for a in (x, y)]
    return x, y, tensors


@pytest.mark.parametrize("size", [11, 32, 45])
def test_ssim_agrees_with_torchmetrics(size):
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y, tensors = pairs(70 if size == 11 else 4, size)
    theirs = structural_similarity_index_measure(*tensors, data_range=1.0, reduction="none").numpy()
    np.testing.assert_allclose(ssim(x, y), theirs, rtol=1e-7)
    np.testing.assert_allclose(ssim(x, y, dtype="float32"), theirs, atol=1e-4)


@pytest.mark.parametrize(("size", "scales"), [(192, 5), (64, 3), (45, 3), (32, 2)])
def test_ms_ssim_agrees_with_torchmetrics(size, scales):
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    assert scales_that_fit(size) == scales
    x, y, tensors = pairs(2, size)
    weights = np.array(SCALE_WEIGHTS[:scales]) / np.sum(SCALE_WEIGHTS[:scales])
    theirs = multiscale_structural_similarity_index_measure(
        *tensors, data_range=1.0, reduction="none", betas=tuple(weights.tolist())
    )
    np.testing.assert_allclose(ms_ssim(x, y), theirs.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ms_ssim(x, y, dtype="float32"), theirs.numpy(), atol=1e-4)


def test_ssim_is_the_formula_window_by_window():
    x, y, _ = pairs(1, 12)
    weights = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(weights, weights) / np.outer(weights, weights).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    padded = [np.pad(a[0].astype(float), ((5, 5), (5, 5), (0, 0)), mode="reflect") for a in (x, y)]
    expected = []
    for row, column, channel in np.ndindex(12, 12, 3):
        a, b = (p[row : row + 11, column : column + 11, channel] for p in padded)
        m, n = (weights * a).sum(), (weights * b).sum()
        s, t, c = (weights * (a - m) ** 2).sum(), (weights * (b - n) ** 2).sum(), (weights * (a - m) * (b - n)).sum()
        expected.append((2 * m * n + c1) * (2 * c + c2) / ((m * m + n * n + c1) * (s + t + c2)))
    assert ssim(x, y)[0] == pytest.approx(np.mean(expected), rel=1e-9)


def test_equal_plain_and_opposite_images_are_defined_without_a_warning():
    x, plain = pictures(2, 32), np.full((2, 32, 32, 3), 80, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for measure in (ssim, ms_ssim):
            assert measure(x, x) == pytest.approx(1)
            assert measure(plain, plain) == pytest.approx(1)
            assert measure(x[:0], x[:0]).shape == (0,)
        assert (ssim(x, 255 - x) < 0).all()
        assert (ms_ssim(x, 255 - x) == 0).all()


def set_of(images, labels, **columns):
    names = [str(i) for i in range(len(images))]
    return ImageSet(images, pd.DataFrame({"image_id": names, "label": labels, **columns}))


def test_a_collapsed_class_is_more_alike_than_the_real_one():
    labels = np.array(["a", "b"] * 30)
    real = pictures(60, 32)
    made = pictures(60, 32, seed=1)
    made[::2] = made[:4:2][np.arange(30) % 2]  # class a has two pictures left
    sets = {"made": set_of(made, labels, generator="g"), "train": set_of(real, labels)}
    table = class_similarity(sets, reference="train", seed=0).set_index(["set", "label"])
    assert list(table.index) == [("train", "a"), ("train", "b"), ("made", "a"), ("made", "b")]
    assert (table["scales"] == 2).all()
    assert (table["pairs"] == 200).all()
    for key in ("ssim", "ms_ssim"):
        assert table.loc[("made", "a"), f"{key}_low"] > table.loc[("train", "a"), f"{key}_high"]
        assert table.loc[("made", "b"), f"{key}_low"] < table.loc[("train", "b"), f"{key}_high"]
    again = class_similarity(sets, reference="train", seed=0).set_index(["set", "label"])
    pd.testing.assert_frame_equal(again, table)


def test_all_pairs_of_a_small_class_are_every_pair_once():
    images = pictures(6, 16)
    found = class_similarity({"train": set_of(images, "a")}, reference="train", seed=0).iloc[0]
    every = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    expected = ssim(images[[i for i, _ in every]], images[[j for _, j in every]])
    assert found["pairs"] == 15
    assert found["ssim"] == pytest.approx(expected.mean())


def test_real_pairs_are_of_different_lesions():
    images = np.repeat(pictures(10, 16), 2, axis=0)  # each lesion twice
    lesions = np.repeat([f"l{i}" for i in range(10)], 2)
    sets = {"train": set_of(images, "a", group=lesions), "made": set_of(images, "a", group=lesions, generator="g")}
    table = class_similarity(sets, reference="train", seed=0).set_index("set")
    assert table["pairs"].to_dict() == {"train": 180, "made": 190}
    assert table.loc["made", "ssim"] > table.loc["train", "ssim"]
    # both photographs of a lesion are one draw: the interval must not take them for two
    once = class_similarity({"t": set_of(images[::2], "a")}, reference="t", seed=0).iloc[0]
    width = table.loc["train", "ssim_high"] - table.loc["train", "ssim_low"]
    assert width > 0.9 * (once["ssim_high"] - once["ssim_low"])


def test_a_class_without_pairs_has_a_note():
    real = set_of(pictures(3, 16), ["a", "a", "b"], group=["l", "l", "m"])
    table = class_similarity({"train": real}, reference="train", seed=0).set_index("label")
    assert table["pairs"].tolist() == [0, 0]
    assert np.isnan(table["ssim"]).all()
    assert "2 images hold no pair" in table.loc["a", "note"]


def test_pair_error_agrees_with_the_double_sum():
    rng = np.random.default_rng(0)
    units = rng.permutation(12)
    a, b = units[rng.integers(0, 6, 25)], units[6 + rng.integers(0, 6, 25)]
    strength = rng.normal(size=12)
    values = strength[a] + strength[b] + 0.1 * rng.normal(size=25)
    r = values - values.mean()
    total = sum(r[p] * r[q] for p in range(25) for q in range(25) if {a[p], b[p]} & {a[q], b[q]})
    assert pair_error(values, a, b) == pytest.approx(np.sqrt(total / (25 * 24)))


def test_pairs_of_the_same_two_units_have_no_error():
    assert np.isnan(pair_error(np.array([0.1, 0.2, 0.4]), np.array([0, 1, 0]), np.array([1, 0, 1])))
    assert np.isnan(pair_error(np.array([0.1]), np.array([0]), np.array([1])))


def test_interval_of_pair_means_covers_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        strength = rng.normal(size=40)
        i, j = np.triu_indices(40, 1)
        keep = rng.permutation(len(i))[:200]
        values = strength[i[keep]] + strength[j[keep]] + rng.normal(size=200)
        covered += abs(values.mean()) < 1.96 * pair_error(values, i[keep], j[keep])
    assert 176 <= covered <= 198


@pytest.mark.parametrize(
    ("measure", "sentence"),
    [
        (lambda: ssim(pictures(1, 10), pictures(1, 10)), "at least 11 pixels"),
        (lambda: ms_ssim(pictures(1, 16), pictures(2, 16)), "one shape"),
        (lambda: class_similarity({"a": set_of(pictures(2, 16), "x")}, reference="b", seed=0), "reference 'b'"),
    ],
)
def test_impossible_input_is_a_sentence(measure, sentence):
    with pytest.raises(BadInput, match=sentence):
        measure()
