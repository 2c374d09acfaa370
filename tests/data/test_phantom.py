import time

import numpy as np
import pytest

from stda import BadInput, data
from stda.data import phantom


@pytest.fixture(scope="module")
def table():
    return phantom.describe(1500, 0)


def test_classes_keep_the_proportions_of_isic_2019(table):
    counts = table["label"].value_counts()
    assert counts.sum() == len(table) == 1500
    for name, n in phantom.LESIONS.items():
        assert abs(counts[name] - 1500 * n / sum(phantom.LESIONS.values())) <= 1
    assert table.groupby("label")["group"].nunique().min() >= phantom.MIN_LESIONS
    assert table.groupby("group")["label"].nunique().max() == 1
    assert set(table["group"].value_counts()) == {1, 2, 3}
    assert table["image_id"].is_unique


def test_the_smallest_set_still_splits():
    table = phantom.describe(100, 3)
    assert len(table) == 100
    assert table.groupby("label")["group"].nunique().min() >= phantom.MIN_LESIONS
    data.split(table, val_fraction=0.2, test_fraction=0.3, seed=0)
    with pytest.raises(BadInput, match="n_images is 50"):
        phantom.describe(50, 0)


def test_latents_follow_the_stated_density():
    table = phantom.describe(20_000, 5).drop_duplicates("group")
    for name in ("NV", "MEL"):
        latents = table.loc[table["label"] == name, list(phantom.LATENTS)].to_numpy()
        error = phantom.SPREAD / np.sqrt(len(latents))
        assert np.abs(latents.mean(0) - phantom.MEANS[phantom.CLASSES.index(name)]).max() < 4.5 * error
        assert np.abs(latents.std(0) - phantom.SPREAD).max() < 0.1


def test_a_picture_can_be_drawn_alone_and_again(table):
    rows = table.iloc[[3, 900, 77]]
    together = phantom.render(rows, size=32)
    np.testing.assert_array_equal(phantom.render(rows.iloc[[1]], size=32)[0], together[1])
    ids = rows["image_id"].tolist()
    np.testing.assert_array_equal(data.pictures("phantom", "", ids, size=32, n_images=1500, seed=0), together)
    assert not np.array_equal(data.pictures("phantom", "", ids, size=32, n_images=1500, seed=1), together)


def test_another_size_shows_the_same_scene(table):
    rows = table.iloc[:6]
    small, large = phantom.render(rows, size=64), phantom.render(rows, size=224)
    difference = np.abs(data.resize(large, 64).astype(int) - small).mean(axis=(1, 2, 3))
    assert difference.max() < 6


def test_views_share_the_lesion_but_not_the_camera(table):
    rows = table[table["group"] == table["group"].value_counts().index[0]]
    pictures = phantom.render(rows, size=48)
    assert rows[list(phantom.LATENTS)].drop_duplicates().shape[0] == 1
    assert not np.array_equal(pictures[0], pictures[1])


def test_artefacts_do_not_depend_on_the_class():
    table = phantom.describe(20_000, 1)
    for name, chance in phantom.ARTEFACTS.items():
        shares = table.groupby("label")[name].mean()
        for label in ("NV", "MEL", "BCC"):
            assert abs(shares[label] - chance) < 0.04


def test_artefacts_are_drawn(table):
    row = table.iloc[[0]].assign(hair=0, ruler=0, vignette=0)
    plain = phantom.render(row, size=96).astype(int)
    for name in phantom.ARTEFACTS:
        marked = phantom.render(row.assign(**{name: 1}), size=96).astype(int)
        assert (marked - plain).min() < -30  # all of them darken


def test_drawing_is_fast(table, monkeypatch):
    monkeypatch.setenv("STDA_THREADS", "1")
    phantom.render(table.iloc[:4], size=96)
    best = min(_seconds(table.iloc[k : k + 20]) for k in (0, 40, 80)) / 20
    assert best < 0.02  # 2 to 3 ms on an idle core; wide, because the machine is shared


def _seconds(rows):
    start = time.perf_counter()
    phantom.render(rows, size=96)
    return time.perf_counter() - start


def test_the_posterior_is_that_of_scipy():
    from scipy.stats import multivariate_normal

    latents = np.random.default_rng(0).normal(0, 1.5, (20, len(phantom.LATENTS)))
    cov = np.eye(len(phantom.LATENTS)) * phantom.SPREAD**2
    density = np.stack([multivariate_normal(mean, cov).logpdf(latents) for mean in phantom.MEANS], axis=1)
    expected = np.exp(density - density.max(1, keepdims=True))
    np.testing.assert_allclose(phantom.posterior(latents), expected / expected.sum(1, keepdims=True), rtol=1e-6)


def test_two_classes_reach_the_textbook_error():
    from scipy.stats import norm

    # two Gaussians of equal spread: the Bayes accuracy is Phi(distance / 2)
    a, b = (phantom.MEANS[phantom.CLASSES.index(name)] for name in ("AK", "SCC"))
    expected = norm.cdf(np.linalg.norm(a - b) / phantom.SPREAD / 2)
    rows = phantom.describe(1500, 0)
    rows = rows[rows["label"].isin(["AK", "SCC"])]
    scores = phantom.bayes_scores(rows, draws=40_000)
    assert abs(scores["ceiling"] - expected) < 4 * scores["ceiling_se"]


def test_the_ceiling_is_neither_trivial_nor_out_of_reach(table):
    scores = phantom.bayes_scores(table)
    assert 0.9 < scores["ceiling"] < 0.96
    assert scores["ceiling_se"] < 0.002
    assert abs(scores["on_rows"] - scores["ceiling"]) < 4 * scores["on_rows_se"] + 0.01
    assert len(phantom.ceiling(table)) == 3
    assert phantom.ceiling(table, "ham10000")["balanced accuracy"].isna().all()
    with pytest.raises(BadInput, match="known density"):
        phantom.bayes_scores(table.drop(columns="z_size"))


def test_thumbnails_alone_tell_something_about_the_class():
    # a linear rule on 8 x 8 pixels: far above guessing (1/8), far below the ceiling
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.metrics import balanced_accuracy_score

    table = phantom.describe(400, 2)
    flat = data.resize(phantom.render(table, size=32), 8).reshape(len(table), -1) / 255.0
    train = np.isin(table["group"], table["group"].unique()[::2])
    rule = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3, priors=np.full(8, 1 / 8))
    guess = rule.fit(flat[train], table["label"][train]).predict(flat[~train])
    assert 0.2 < balanced_accuracy_score(table["label"][~train], guess) < 0.8


def test_a_subset_of_classes():
    some = data.load("phantom", size=16, n_images=120, classes="MEL,NV")
    assert some.classes == ["MEL", "NV"]
    with pytest.raises(BadInput, match="'XYZ'"):
        data.load("phantom", size=16, n_images=120, classes="MEL,XYZ")


def test_the_mask_covers_the_lesion_and_nothing_else(table):
    rows = table[table["label"] == "NV"].iloc[:30].assign(hair=0, ruler=0, vignette=0)
    masks, pictures = phantom.masks(rows, size=64) > 0, phantom.render(rows, size=64).astype(float).mean(-1)
    assert masks.shape == (30, 64, 64)
    shares = masks.mean(axis=(1, 2))
    assert ((shares > 0.005) & (shares < 0.9)).all()
    darker = [picture[~mask].mean() - picture[mask].mean() for mask, picture in zip(masks, pictures, strict=True)]
    assert np.median(darker) > 15  # a naevus is darker than the skin around it
    rng = np.random.default_rng(0)
    shuffled = masks[rng.permutation(30)]
    other = [picture[~mask].mean() - picture[mask].mean() for mask, picture in zip(shuffled, pictures, strict=True)]
    assert np.median(darker) > np.median(other)


def test_a_mask_is_the_same_scene_at_every_size_and_alone(table):
    rows = table.iloc[:5]
    small, large = phantom.masks(rows, size=32), phantom.masks(rows, size=128)
    assert set(np.unique(large)) == {0, 255}
    assert (large[:, 2::4, 2::4] != small).mean() < 0.01
    np.testing.assert_array_equal(phantom.masks(rows.iloc[[3]], size=32)[0], small[3])
    assert phantom.masks(rows.iloc[:0], size=32).shape == (0, 32, 32)
