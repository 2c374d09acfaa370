import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from stda import BadInput, measure
from stda.measure import realism
from stda.measure.fidelity import halves

SIZE = 96
DEPTH = np.minimum.outer(*(np.minimum(np.arange(SIZE), np.arange(SIZE)[::-1]),) * 2)


def pictures(n, seed):
    """Smooth random pictures with some grain, much like skin: no frame, nothing that repeats."""
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.standard_normal((n, SIZE, SIZE, 3)), (0, 5, 5, 0)) * 200
    grain = gaussian_filter(rng.standard_normal((n, SIZE, SIZE, 1)), (0, 0.7, 0.7, 0)) * 8
    return np.clip(150 + noise + grain, 0, 255).astype(np.uint8)


REAL, OTHER = pictures(40, 0), pictures(40, 1)


def changed(images, difference):
    return np.clip(images.astype(float) + difference, 0, 255).astype(np.uint8)


def ratios(images):
    return measure.border_artefacts(images, OTHER, width=4).set_index("measure")


def test_weighted_auroc_is_that_of_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    score, positives, weights = rng.integers(0, 6, 60), rng.random(60) < 0.4, rng.random((5, 60))
    expected = [roc_auc_score(positives, score, sample_weight=w) for w in weights]
    np.testing.assert_allclose(realism.weighted_auroc(positives, score, weights), expected)


def features(n, shift=0.0, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 12)) + shift


def test_a_shifted_set_is_told_apart_and_real_images_are_not():
    sets = {"real": features(240), "same": features(120, seed=1), "far": features(120, 2.0, seed=2)}
    found = measure.real_or_synthetic(sets, reference="real", resamples=200).set_index("set")
    assert found.index.tolist() == ["real (other half)", "same", "far"]
    assert found.loc["far", "auc"] > 0.99
    for name in ("real (other half)", "same"):
        assert found.loc[name, "low"] < 0.5 < found.loc[name, "high"]
    assert (found["n"] == 120).all()


def test_a_small_set_is_listed_without_numbers_and_shrinks_no_other():
    sets = {"real": features(240), "far": features(120, 2.0, seed=2), "few": features(6, seed=3)}
    found = measure.real_or_synthetic(sets, reference="real", resamples=50).set_index("set")
    assert np.isnan(found.loc["few", "auc"])
    assert found.loc["few", "note"] == "not measured: needs at least 20 images on both sides, there are 6 and 120"
    assert found.loc["far", "n"] == 120


def test_rows_of_one_group_never_train_the_classifier_that_judges_them():
    """Copies of one another across the fold boundary would let a classifier recognise the sets by heart."""
    rng = np.random.default_rng(0)
    synthetic = rng.standard_normal((15, 400)).repeat(8, axis=0)
    real = rng.standard_normal((15, 400)).repeat(16, axis=0)
    sets, groups = {"real": real, "x": synthetic}, {"real": np.arange(240) // 16, "x": 100 + np.arange(120) // 8}
    torn = measure.real_or_synthetic(sets, reference="real", resamples=100).set_index("set")
    kept = measure.real_or_synthetic(sets, reference="real", groups=groups, folds=3, resamples=100).set_index("set")
    assert torn.loc["x", "auc"] > 0.95
    assert kept.loc["x", "auc"] < 0.75


def test_halves_share_no_group():
    code = np.repeat(np.arange(7), [1, 9, 2, 2, 5, 1, 4])
    for seed in range(20):
        first, second = halves(np.arange(len(code)), code, np.random.default_rng(seed))
        assert not set(code[first]) & set(code[second])
        assert len(first) + len(second) == len(code)
        # no lesion is skipped: what is short of one half is at most one lesion
        assert len(code) / 2 - 9 <= len(first) <= (len(code) + 1) // 2
    first, second = halves(np.arange(10), np.zeros(10, int), np.random.default_rng(0))
    assert (len(first), len(second)) == (0, 10)


def test_real_pictures_have_ratios_near_one():
    found = ratios(REAL)
    assert ((found["low"] < 1.05) & (found["high"] > 0.95)).all()


def test_a_tiled_frame_is_caught_by_edges_and_tiling():
    rng = np.random.default_rng(3)
    tile = np.tile(rng.integers(-25, 25, (4, 4, 3)), (SIZE // 4, SIZE // 4, 1))
    found = ratios(changed(REAL, tile * (DEPTH < 4)[..., None]))
    assert found.loc["edges", "low"] > 1.5
    assert found.loc["tiling", "low"] > 1.5


def test_a_tinted_frame_is_caught_by_colour_alone():
    found = ratios(changed(REAL, np.array([20, 0, 0]) * (DEPTH < 4)[..., None]))
    assert found.loc["colour", "low"] > 1.5
    assert found.loc["tiling", "high"] < 1.5


def test_noise_all_over_is_no_frame():
    rng = np.random.default_rng(4)
    found = ratios(changed(REAL, rng.normal(0, 12, REAL.shape)))
    assert (found["low"] < 1.1).all()


def test_flat_pictures_have_no_artefact():
    flat = np.full((3, SIZE, SIZE, 3), 120, np.uint8)
    found = measure.border_artefacts(flat, flat)
    assert found["ratio"].tolist() == [1.0, 1.0, 1.0]
    assert found["low"].isna().all()


@pytest.mark.parametrize("strength", [0.15, 0.4])
def test_a_ghost_shows_as_the_autocorrelation_that_theory_says(strength):
    content = REAL[:10]
    shifted = np.roll(content, (7, 11), axis=(1, 2)).astype(float)
    ghost = ((content + strength * shifted) / (1 + strength)).astype(np.uint8)
    found = measure.ghosting(ghost, content)
    assert np.median(found) == pytest.approx(strength / (1 + strength**2), abs=0.05)
    assert np.median(measure.ghosting(changed(content, 10), content)) < 0.08
    # what one of the sources has is no ghost
    assert np.median(measure.ghosting(ghost, content, ghost)) < 0.01


def test_autocorrelation_against_brute_force():
    rng = np.random.default_rng(5)
    image = rng.integers(0, 255, (40, 48, 3)).astype(np.uint8)
    found = realism._autocorrelation(image, 1.0)
    from scipy.ndimage import gaussian_laplace

    sharp = gaussian_laplace(image @ realism.LUMA, 1.0)
    window = np.outer(np.hanning(42)[1:-1], np.hanning(50)[1:-1])
    sharp = (sharp - sharp.mean()) * window

    def at(values, down, right):
        a, b = values[down:, right:], values[: 40 - down, : 48 - right]
        return (a * b).sum() / (values**2).sum()

    expected = [at(sharp, d, r) / at(window, d, r) for d in range(11) for r in range(11) if 6 <= np.hypot(d, r) <= 10]
    assert np.abs(found[:, None] - np.array(expected)).min(0).max() < 1e-9


@pytest.mark.parametrize(("n_real", "n_pool"), [(12, 60), (60, 12), (12, 12), (2, 1)])
def test_too_few_images_on_a_side_are_a_note(n_real, n_pool):
    sets = {"real": features(n_real), "x": features(n_pool, seed=1)}
    table = measure.real_or_synthetic(sets, reference="real", resamples=20).set_index("set")
    assert np.isnan(table.loc["x", "auc"])
    assert table.loc["x", "n"] == 0
    assert f"there are {n_pool} and {n_real // 2}" in table.loc["x", "note"]
    assert np.isnan(table.loc["real (other half)", "auc"]) == (n_real < 40)


def test_too_few_lesions_on_a_side_are_a_note():
    sets = {"real": features(60), "x": features(40, seed=1)}
    contents = {"x": np.arange(40) % 3}  # style transfer of three content lesions
    table = measure.real_or_synthetic(sets, reference="real", groups=contents, resamples=20).set_index("set")
    assert "5 lesions" in table.loc["x", "note"]
    assert table.loc["real (other half)", "auc"] > 0
    one = measure.real_or_synthetic(sets, reference="real", groups={"real": ["a"] * 60}, resamples=20)
    assert one["auc"].isna().all()


def test_bad_input_is_one_sentence():
    with pytest.raises(BadInput, match="must hold the real images"):
        measure.real_or_synthetic({"real": features(20)}, reference="real")
    with pytest.raises(BadInput, match="one D"):
        measure.real_or_synthetic({"real": features(20), "x": features(20)[:, :3]}, reference="real")
    with pytest.raises(BadInput, match="3 groups"):
        measure.real_or_synthetic({"real": features(20), "x": features(20)}, reference="real", groups={"x": ["a"] * 3})
    with pytest.raises(BadInput, match="NaN"):
        measure.real_or_synthetic({"real": features(20), "x": features(20) * np.nan}, reference="real")
    with pytest.raises(BadInput, match="resize"):
        measure.border_artefacts(REAL, REAL[:, :50])
    with pytest.raises(BadInput, match="no inside"):
        measure.border_artefacts(REAL, REAL, width=24)
    with pytest.raises(BadInput, match="uint8"):
        measure.border_artefacts(REAL.astype(float), REAL)
    with pytest.raises(BadInput, match="content pictures"):
        measure.ghosting(REAL)
    with pytest.raises(BadInput, match="one of each"):
        measure.ghosting(REAL, REAL[:3])
    with pytest.raises(BadInput, match="too small"):
        measure.ghosting(REAL[:1, :16, :16], REAL[:1, :16, :16])
