import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stda import BadInput
from stda.measure import distances
from stda.measure.fidelity import COPIES_ROW, REAL_ROW, class_fidelity, fid, fidelity_table, kid, kid_of_subsets, prdc


def clouds(n=120, m=90, d=8, shift=0.5, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d))
    return rng.normal(size=(n, d)) @ mix, rng.normal(size=(m, d)) @ mix * 1.2 + shift


def torchmetrics_of(metric, x, y):
    import torch

    class Passthrough(torch.nn.Module):
        num_features = x.shape[1]

        def forward(self, features):
            return features

    measure = metric(Passthrough())
    measure.update(torch.tensor(x), real=True)
    measure.update(torch.tensor(y), real=False)
    return measure.compute()


@pytest.mark.parametrize(("n", "m", "d"), [(120, 90, 8), (12, 90, 30), (20, 15, 30)])
def test_fid_agrees_with_torchmetrics_for_many_and_for_few_images(n, m, d):
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = clouds(n, m, d)
    theirs = torchmetrics_of(lambda net: FrechetInceptionDistance(feature=net).set_dtype(torch.float64), x, y)
    assert fid(x, y) == pytest.approx(float(theirs), rel=1e-5)


def test_fid_has_the_closed_form_of_one_dimension():
    x, y = clouds(50, 70, 1)
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert fid(x, y) == pytest.approx(expected)


def test_fid_of_features_that_never_fire_is_that_of_the_others():
    x, y = clouds()
    dead = [np.hstack([a, np.zeros((len(a), 3))]) for a in (x, y)]
    assert fid(*dead) == pytest.approx(fid(x, y), rel=1e-6)
    assert fid(x, x) == pytest.approx(0, abs=1e-5)


def brute_mmd(x, y):
    def kernel(a, b):
        return (float(np.dot(a, b)) / len(a) + 1) ** 3

    xx = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    return xx + yy - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kid_agrees_with_brute_force():
    x, y = clouds(20, 14)
    assert kid(x, y)["kid"] == pytest.approx(brute_mmd(x, y))


def test_kid_agrees_with_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = clouds(80, 80)
    mean, std = torchmetrics_of(lambda net: KernelInceptionDistance(feature=net, subsets=5, subset_size=80), x, y)
    ours = kid(x, y, subset_size=80)
    assert ours["kid"] == pytest.approx(float(mean), rel=1e-6)
    assert ours["subset_std"] == pytest.approx(float(std), abs=1e-6 * abs(float(mean)))
    assert np.isnan(ours["kid_low"])  # all subsets are the whole set: no interval can come from them


def test_kid_has_the_expectation_of_its_kernel():
    # one dimension, N(0, 1) and N(s, 1): E (ab + 1)^3 = 1 + 3 E[a]E[b] + 3 E[a^2]E[b^2] + E[a^3]E[b^3]
    def expected(s, t):
        return 1 + 3 * s * t + 3 * (s * s + 1) * (t * t + 1) + (s**3 + 3 * s) * (t**3 + 3 * t)

    truth = expected(0, 0) + expected(0.5, 0.5) - 2 * expected(0, 0.5)
    rng = np.random.default_rng(0)
    found = [kid(rng.normal(size=(30, 1)), rng.normal(0.5, 1, (30, 1)), subsets=0)["kid"] for _ in range(3000)]
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / np.sqrt(3000))
    assert np.std(found) / np.sqrt(3000) < 0.05 * truth


@pytest.mark.parametrize(("size", "n_subsets"), [(3, 4), (30, 25)])  # each alone, and all rows at once
def test_kid_of_given_subsets_is_that_of_the_rows(size, n_subsets, monkeypatch):
    x, y = (a.astype(np.float32) for a in clouds(60, 50))
    rng = np.random.default_rng(0)
    rows_x, rows_y = (np.array([rng.permutation(n)[:size] for _ in range(n_subsets)]) for n in (60, 50))
    expected = [brute_mmd(x[a].astype(float), y[b].astype(float)) for a, b in zip(rows_x, rows_y, strict=True)]
    np.testing.assert_allclose(kid_of_subsets(x, y, rows_x, rows_y), expected, rtol=1e-9)
    rough = kid_of_subsets(x, y, rows_x, rows_y, dtype=np.float32)
    np.testing.assert_allclose(rough, expected, atol=1e-5 * np.abs(expected).max())
    assert len(kid_of_subsets(x, y, rows_x[:0], rows_y[:0])) == 0


def test_in_blocks_every_value_is_the_same(monkeypatch):
    x, y = (a.astype(np.float32) for a in clouds(50, 41))
    few = [np.hstack([a] * 6) for a in (x, y)]  # 48 dimensions: many images on one side, few on the other
    rows = np.array([np.random.default_rng(i).permutation(41)[:30] for i in range(6)])

    def values():
        of_kid = kid(x, y, subsets=20)
        return [*of_kid.values(), fid(x, y), fid(*few), *prdc(x, y).values(), *kid_of_subsets(x, y, rows, rows)]

    whole = values()
    monkeypatch.setattr(distances.blocks, "__defaults__", (7,))
    np.testing.assert_allclose(values(), whole, rtol=1e-6)


def test_fid_of_known_gaussians_with_many_images():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    variances, others = np.array([4, 2, 1, 1, 0.5, 0.1]), np.array([1, 2, 3, 0.5, 0.5, 1])
    x = rng.normal(size=(40000, 6)) * np.sqrt(variances) @ turn
    y = (rng.normal(size=(40000, 6)) * np.sqrt(others) + [1, 0, 0, 0, 0, 0]) @ turn
    truth = 1 + ((np.sqrt(variances) - np.sqrt(others)) ** 2).sum()  # covariances that commute
    assert fid(x, y) == pytest.approx(truth, rel=0.03)


def test_kid_subsets_and_seed_are_honoured():
    x, y = clouds(60, 40)
    first = kid(x, y, subsets=50, seed=3)
    assert first == kid(x, y, subsets=50, seed=3)
    assert first != kid(x, y, subsets=50, seed=4)
    assert first["kid_low"] < first["kid"] < first["kid_high"]


def test_kid_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    big = rng.normal(size=(1500, 3)), rng.normal(size=(1500, 3)) + 0.7
    truth, covered = kid(*big, subsets=0)["kid"], 0
    for _ in range(60):
        r = kid(rng.normal(size=(60, 3)), rng.normal(size=(60, 3)) + 0.7, subsets=100)
        covered += r["kid_low"] <= truth <= r["kid_high"]
    assert 50 <= covered <= 60


def brute_prdc(real, fake, k):
    def radius(x, i):
        return sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)[k - 1]

    rr, rf = [radius(real, i) for i in range(len(real))], [radius(fake, j) for j in range(len(fake))]
    d = np.array([[np.linalg.norm(a - b) for b in fake] for a in real])
    inside = d < np.array(rr)[:, None]
    return {
        "precision": inside.any(0).mean(),
        "recall": (d < np.array(rf)[None]).any(1).mean(),
        "density": inside.sum() / (k * len(fake)),
        "coverage": inside.any(1).mean(),
    }


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 40), st.sampled_from([0.0, 1000.0]))
def test_prdc_agrees_with_brute_force_whatever_the_chunk(seed, k, chunk, far):
    real, fake = clouds(30, 22, 3, seed=seed)
    ours = prdc(real + far, fake + far, k=k, chunk=chunk)
    assert ours == pytest.approx(brute_prdc(real + far, fake + far, k))


def test_density_and_coverage_of_equal_distributions_have_their_closed_form_at_small_n():
    # a new point is inside the ball to the k-th of n - 1 others with k / n; none of n is: the nearest k are all real
    rng = np.random.default_rng(0)
    n, k = 20, 5
    found = [prdc(rng.normal(size=(n, 6)), rng.normal(size=(n, 6)), k=k) for _ in range(400)]
    missed = np.prod([(n - 1 - i) / (2 * n - 1 - i) for i in range(k)])
    assert np.mean([f["density"] for f in found]) == pytest.approx(1, abs=0.03)
    assert np.mean([f["coverage"] for f in found]) == pytest.approx(1 - missed, abs=0.01)


def test_copies_on_the_edge_of_a_ball_are_outside_whatever_the_rounding():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(80, 5))
    copies = real[rng.integers(0, 80, 80)]
    inside = np.linalg.norm(real[:, None] - copies[None], axis=2)
    radius = np.sort(np.linalg.norm(real[:, None] - real[None], axis=2), axis=1)[:, 5]
    expected = (inside < radius[:, None] * (1 - 1e-6)).sum() / (5 * 80)
    for far, scale in ((0, 1), (100, 1), (0, 0.3)):
        assert prdc(real * scale + far, copies * scale + far)["density"] == pytest.approx(expected, rel=1e-12)


def test_equal_images_are_defined_without_a_warning():
    x, _ = clouds()
    same = np.full((20, 8), 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prdc(same, same) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
        assert prdc(x, same)["recall"] == 0
        assert kid(same, same)["kid"] == pytest.approx(0, abs=1e-12)
        assert fid(same, same) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("measure", "sentence"),
    [
        (lambda: kid(np.ones((1, 3)), np.ones((5, 3))), "at least two images"),
        (lambda: fid(np.ones((1, 3)), np.ones((5, 3))), "at least two images"),
        (lambda: prdc(np.ones((5, 3)), np.ones((9, 3)), k=5), "more than 5 images"),
        (lambda: kid(np.ones((5, 3)), np.ones((5, 4))), "one encoder"),
        (lambda: fid(np.full((5, 3), np.nan), np.ones((5, 3))), "NaN"),
        (lambda: kid(np.ones((5, 3)), np.ones((9, 3)), subset_size=6), "at most 5"),
        (lambda: kid_of_subsets(np.ones((5, 3)), np.ones((5, 3)), [[0, 0]], [[0, 1]]), "must differ"),
        (lambda: kid_of_subsets(np.ones((5, 3)), np.ones((5, 3)), [[0, 5]], [[0, 1]]), "lie in 0 to 4"),
        (lambda: kid_of_subsets(np.ones((5, 3)), np.ones((5, 3)), [[0]], [[0]]), "a, b >= 2"),
        (lambda: class_fidelity({"a": np.ones((5, 3))}, {"a": ["x"]}, reference="a", seed=0), "one for each row"),
        (
            lambda: fidelity_table({"a": np.ones((5, 3)), COPIES_ROW: np.ones((5, 3))}, reference="a", seed=0),
            "none",
        ),
        (lambda: fidelity_table({"a": np.ones((5, 3))}, reference="train", seed=0), "reference 'train'"),
    ],
)
def test_impossible_input_is_a_sentence(measure, sentence):
    with pytest.raises(BadInput, match=sentence):
        measure()


def test_table_compares_equal_counts_and_ranks_the_sets():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(400, 6)).astype(np.float32)
    sets = {"good": rng.normal(size=(150, 6)), "bad": rng.normal(size=(300, 6)) + 2, "tiny": rng.normal(size=(9, 6))}
    sets = {"train": reference, **sets}
    table = fidelity_table(sets, reference="train", seed=0, subsets=20).set_index("set")
    assert list(table.index) == [REAL_ROW, COPIES_ROW, "good", "bad", "tiny"]
    assert table["n"].tolist() == [150, 150, 150, 150, 0]
    assert (table["n_reference"] == 150).all()
    assert np.isnan(table.loc["tiny", "kid"])
    assert "at least 20" in table.loc["tiny", "note"]
    assert table.loc["bad", "kid_low"] > table.loc["good", "kid_high"]
    assert table.loc["good", "coverage"] > 0.8 > table.loc["bad", "coverage"]
    assert abs(table.loc[REAL_ROW, "kid"]) < table.loc["bad", "kid"] / 10
    again = fidelity_table(sets, reference="train", seed=0, subsets=20).set_index("set")
    assert again.equals(table)


def test_table_keeps_a_lesion_on_one_side():
    rng = np.random.default_rng(0)
    lesions = rng.normal(size=(100, 6))
    train = {"train": np.repeat(lesions, 2, axis=0)}  # two equal pictures of each lesion
    torn = fidelity_table(train, reference="train", seed=0).iloc[0]
    kept = fidelity_table(train, reference="train", seed=0, groups=np.repeat(np.arange(100), 2)).iloc[0]
    assert kept["n"] == 100
    assert torn["fid"] < kept["fid"]


def test_the_table_does_not_depend_on_the_scale_of_an_encoder():
    rng = np.random.default_rng(3)
    sets = {"train": rng.normal(size=(200, 5)), "made": rng.normal(0.5, 1, size=(60, 5))}
    one = fidelity_table(sets, reference="train", seed=0, subsets=20)
    other = fidelity_table({name: 300 * f for name, f in sets.items()}, reference="train", seed=0, subsets=20)
    pd.testing.assert_frame_equal(one, other)


def test_stored_training_images_score_better_than_real_ones():
    rng = np.random.default_rng(0)
    table = fidelity_table({"train": rng.normal(size=(300, 6))}, reference="train", seed=0).set_index("set")
    real, copies = table.loc[REAL_ROW], table.loc[COPIES_ROW]
    assert copies["n"] == real["n"] == 150
    assert copies["kid"] < real["kid"]
    assert copies["fid"] < real["fid"]
    assert copies["precision"] == 1 >= real["precision"]


def two_classes(rng):
    labels = {"train": np.array(["a"] * 500 + ["b"] * 60), "made": np.array(["a"] * 300 + ["b"] * 25 + ["c"] * 9)}
    labels["good"] = labels["train"]
    made = rng.normal(size=(334, 4))
    made[300:325] += 3  # class b only is wrong
    return {"train": rng.normal(size=(560, 4)), "made": made, "good": rng.normal(size=(560, 4))}, labels


def test_class_table_finds_the_class_that_is_wrong_and_says_what_the_count_cannot_carry():
    features, labels = two_classes(np.random.default_rng(0))
    table = class_fidelity(features, labels, reference="train", seed=0)
    assert list(table.columns[:2]) == ["label", "set"]
    table = table.set_index(["label", "set"])
    assert list(table.loc["a"].index) == [REAL_ROW, COPIES_ROW, "made", "good"]
    assert table["n"].tolist() == [250] * 4 + [25] * 4
    assert table.loc[("a", "made"), "kid"] < table.loc[("a", REAL_ROW), "kid_high"]
    assert table.loc[("b", "made"), "kid_low"] > table.loc[("b", REAL_ROW), "kid_high"]
    assert table.loc[("b", "made"), "coverage"] < 0.3 < 0.8 < table.loc[("b", "good"), "coverage"]
    assert table["fid"].isna().all()
    assert table.loc["a", "precision"].notna().all()
    assert table.loc["b", ["precision", "recall"]].isna().all(axis=None)
    assert (
        table.loc[("b", "good"), "note"] == "no precision and recall: need 100 images on both sides; no FID: needs 2048"
    )
    pd.testing.assert_frame_equal(
        class_fidelity(features, labels, reference="train", seed=0).set_index(["label", "set"]), table
    )


def test_a_class_with_too_few_images_is_a_row_that_says_how_many_without_a_warning():
    rng = np.random.default_rng(0)
    labels = {"train": np.array(["a"] * 50 + ["b"]), "made": np.array(["a"] * 12)}
    features = {"train": rng.normal(size=(51, 4)), "made": rng.normal(size=(12, 4))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = class_fidelity(features, labels, reference="train", seed=0).set_index(["label", "set"])
    assert table["n"].to_dict() == {
        ("a", REAL_ROW): 25, ("a", COPIES_ROW): 25, ("a", "made"): 0,
        ("b", REAL_ROW): 0, ("b", COPIES_ROW): 0, ("b", "made"): 0,
    }  # fmt: skip
    assert "at least 20 images on both sides, there are 12 and 25" in table.loc[("a", "made"), "note"]
    assert "there are 0 and 1" in table.loc[("b", "made"), "note"]
    assert table.loc["b", ["kid", "fid", "coverage"]].isna().all(axis=None)


def test_class_table_keeps_a_lesion_on_one_side_in_every_class():
    rng = np.random.default_rng(0)
    train = {"train": np.repeat(rng.normal(size=(100, 6)), 2, axis=0)}  # two equal pictures of each lesion
    labels, lesions = {"train": np.repeat(["a", "b"], 100)}, np.repeat(np.arange(100), 2)
    torn = class_fidelity(train, labels, reference="train", seed=0)
    kept = class_fidelity(train, labels, reference="train", seed=0, groups=lesions)
    real = kept["set"] == REAL_ROW
    assert (kept.loc[real, "n"] == 50).all()
    assert (torn.loc[real, "density"] > kept.loc[real, "density"]).all()
