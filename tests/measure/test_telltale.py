import warnings

import numpy as np
import pytest

from stda import BadInput, compute, measure
from stda.encoders.base import activations, encode
from stda.encoders.in_domain import InDomain, in_domain_network, merge_batch_norm
from stda.measure.realism import weighted_auroc

RNG = np.random.default_rng(0)
REAL, SHIFTED = RNG.standard_normal((120, 12)), RNG.standard_normal((80, 12)) + np.eye(12)[3] * 2.5


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_the_classifier_points_at_what_differs_and_tells_unseen_images_apart():
    told = measure.find_telltale(REAL, SHIFTED)
    assert abs(told.weights).argmax() == 3
    assert told.weights[3] > 0
    score = np.concatenate([REAL[told.real], SHIFTED[told.synthetic]]) @ told.weights + told.bias
    kind = np.arange(len(score)) >= len(told.real)
    assert weighted_auroc(kind, score, np.ones((1, len(score))))[0] > 0.9
    assert abs(score[kind].mean() + score[~kind].mean()) < abs(score[kind].mean())  # zero lies between the two


def test_rows_of_one_lesion_are_fitted_or_looked_at_never_both():
    groups = np.repeat(np.arange(40), 3), np.arange(80) % 40  # each synthetic image has a real image's lesion
    told = measure.find_telltale(REAL, SHIFTED, groups=groups)
    looked_at = set(groups[0][told.real]) | set(groups[1][told.synthetic])
    fitted = set(np.delete(groups[0], told.real)) | set(np.delete(groups[1], told.synthetic))
    assert not looked_at & fitted
    assert len(looked_at) == len(fitted) == 20


def test_a_map_averages_to_the_score_of_the_pooled_features():
    machine = compute.setup("float32", threads=1)
    trunk, head = in_domain_network(2)
    trunk = merge_batch_norm(trunk.eval())
    provenance = {"name": "in-domain", "normalisation": "half", "sha256": "x"}
    encoder = InDomain(trunk, head, ["a", "b"], 32, provenance)
    images = RNG.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    features = encode(encoder, images, compute=machine)
    told = measure.find_telltale(features, features[:25] * 1.5)
    maps = told.maps(activations(encoder, images, compute=machine))
    assert maps.shape == (30, 4, 4)
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), features @ told.weights + told.bias, rtol=1e-4, atol=1e-4)


def test_only_the_place_that_differs_tells_the_sets_apart():
    real, synthetic = RNG.standard_normal((60, 3, 4)), RNG.standard_normal((50, 3, 4))
    synthetic[:, 1, 2] += 4
    found = measure.position_auc(real, synthetic)
    assert found.shape == (3, 4)
    assert found[1, 2] > 0.98
    assert np.delete(found.ravel(), 6).max() < 0.75
    assert (measure.position_auc(np.ones((3, 2, 2)), np.ones((2, 2, 2))) == 0.5).all()


def test_white_noise_has_a_flat_spectrum_of_its_variance():
    noise = np.clip(RNG.normal(128, 20, (300, 32, 32, 1)), 0, 255).round().astype(np.uint8).repeat(3, axis=3)
    power = measure.power_spectrum(noise).mean(axis=0)
    assert power[0] == 0
    np.testing.assert_allclose(power[2:], 400, rtol=0.06)


def test_a_wave_shows_at_its_frequency_and_a_blur_at_the_high_ones():
    x = np.arange(64)
    wave = (128 + 60 * np.cos(2 * np.pi * 9 * x / 64))[None, None, :, None] * np.ones((1, 64, 1, 3))
    assert measure.power_spectrum(wave.astype(np.uint8))[0].argmax() == 9
    real = np.clip(RNG.normal(128, 20, (80, 32, 32, 3)), 0, 255).astype(np.uint8)
    other = np.clip(RNG.normal(128, 20, (40, 32, 32, 3)), 0, 255)
    blurred = ((other + np.roll(other, 1, 1) + np.roll(other, 1, 2) + np.roll(other, (1, 1), (1, 2))) / 4).astype(
        np.uint8
    )
    sets = {"real": real, "blurred": blurred.astype(np.uint8)}
    table = measure.spectrum_table(sets, reference="real", groups=np.arange(80) // 2)
    by_set = {name: rows.set_index("waves") for name, rows in table.groupby("set")}
    assert list(by_set) == ["blurred", "real (other half)"]
    assert by_set["blurred"].loc[1:3, "ratio"].between(0.5, 1.5).all()
    assert (by_set["blurred"].loc[12:, "high"] < 0.5).all()
    inside = (by_set["real (other half)"]["low"] < 1) & (by_set["real (other half)"]["high"] > 1)
    assert inside.mean() > 0.8


def test_equal_flat_pictures_have_no_power_and_no_interval():
    flat = np.full((6, 16, 16, 3), 90, dtype=np.uint8)
    table = measure.spectrum_table({"real": flat, "x": flat}, reference="real")
    assert (table["ratio"] == 1).all()
    assert table[["low", "high"]].isna().all(axis=None)


def test_halves_with_fewer_than_ten_images_are_not_judged():
    assert measure.find_telltale(REAL, SHIFTED[:12]) is None
    assert measure.find_telltale(REAL[:12], SHIFTED) is None
    one_content = measure.find_telltale(REAL, SHIFTED, groups=(np.arange(len(REAL)), np.full(len(SHIFTED), -1)))
    assert one_content is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: measure.find_telltale(REAL, SHIFTED[:, :5]), "one D"),
        (lambda: measure.find_telltale(REAL * np.nan, SHIFTED), "NaN"),
        (lambda: measure.find_telltale(REAL, SHIFTED, groups=(np.arange(3), np.arange(80))), "must agree"),
        (lambda: measure.find_telltale(REAL, SHIFTED).maps(np.ones((1, 5, 2, 2))), "encoder of the features"),
        (lambda: measure.position_auc(np.ones((0, 2, 2)), np.ones((1, 2, 2))), "N > 0"),
        (lambda: measure.power_spectrum(np.zeros((1, 8, 9, 3), np.uint8)), "square"),
        (lambda: measure.spectrum_table({"x": np.zeros((5, 8, 8, 3), np.uint8)}, reference="real"), "'real'"),
    ],
)
def test_unusable_input_is_refused_in_one_sentence(call, words):
    with pytest.raises(BadInput, match=words):
        call()
