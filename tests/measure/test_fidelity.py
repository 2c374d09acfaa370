import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stda import BadInput
from stda.measure.fidelity import REAL_ROW, fid, fidelity_table, kid, prdc


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
    assert list(table.index) == [REAL_ROW, "good", "bad", "tiny"]
    assert table["n"].tolist() == [150, 150, 150, 0]
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
