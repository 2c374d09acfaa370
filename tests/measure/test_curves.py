import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t
from sklearn.isotonic import IsotonicRegression

from stda.measure.curves import Contest, fit_curve, place

LESIONS = {"eighth": 125, "quarter": 250, "half": 500, "full": 1000, "oracle": 1500}


def sizes(lesions=LESIONS):
    return pd.DataFrame({"lesions": lesions, "real": {arm: 2.0 * n**1.1 for arm, n in lesions.items()}}, dtype=float)


def contest(values, arms, step=0.0):
    values = np.asarray(values, dtype=float)
    return Contest(list(arms), values, np.zeros((2, *values.shape)), step)


def fitted(c, lesions=LESIONS):
    return fit_curve(c.arms, c.values.mean(0), sizes(lesions), list(lesions))


def test_fit_is_monotone_as_scikit_learn_s_and_a_size_is_one_point():
    rng = np.random.default_rng(0)
    lesions = {**LESIONS, "same": 500}
    means = rng.random(7)
    curve = fit_curve([*lesions, "wgan"], means, sizes(lesions), list(lesions))
    points = [means[0], means[1], (means[2] + means[5]) / 2, means[3], means[4]]
    reference = IsotonicRegression().fit(range(5), points, sample_weight=[1, 1, 2, 1, 1]).predict(range(5))
    np.testing.assert_allclose(curve.fitted, reference)
    np.testing.assert_allclose(curve.size_at(2.0), [500, 2 * 500**1.1])
    np.testing.assert_allclose(curve.size_at(2.5), [np.sqrt(500 * 1000), 2 * np.sqrt(500 * 1000) ** 1.1])
    assert fit_curve(list(lesions), means[:6], sizes({"a": 5, "b": 5, "c": 0}), ["a", "b", "c"]) is None


def test_scores_are_found_on_the_fit_and_level_stretches_give_the_nearest_size():
    curve = fit_curve(list(LESIONS), np.array([0.2, 0.4, 0.4, 0.4, 0.6]), sizes(), list(LESIONS))
    assert curve.find(0.3, 1000) == (pytest.approx(0.5), "")
    assert curve.find(0.5, 1000) == (pytest.approx(3.5), "")
    assert [curve.find(0.4, near)[0] for near in (1, 250, 500, 700, 1e6)] == pytest.approx(
        [1, 1, 2, 2 + np.log(1.4) / np.log(2), 3]
    )
    assert curve.find(0.61, 1000) == (4.0, "more than")
    assert curve.find(0.19, 1000) == (0.0, "less than")
    assert curve.find(0.6, 1e6) == (4.0, "")
    assert curve.find(0.2, 1) == (0.0, "")


def brute_interval(c, curve, arm, confidence, points=4001):
    """Do the same by textbook formulas on a dense grid: pooled residual variance of a randomised block design."""
    n, n_arms = c.values.shape
    residuals = c.values - c.values.mean(0) - c.values.mean(1, keepdims=True) + c.values.mean()
    variance = (residuals**2).sum() / ((n - 1) * (n_arms - 1))
    freedom = max(n - 1, (n - 1) * (n_arms - 1) / 2)
    positions = np.linspace(0, curve.end, points)
    low, high = [], []
    for p in positions:
        left = min(int(p), curve.end - 1)
        w = p - left
        between = (1 - w) * c.values[:, left] + w * c.values[:, left + 1]
        d = c.values[:, c.arms.index(arm)] - between
        error = np.sqrt(max(d.var(ddof=1), variance * (1 + w**2 + (1 - w) ** 2)) / n)
        low.append(t.sf(d.mean() / error, freedom) > (1 - confidence) / 2)
        high.append(t.cdf(d.mean() / error, freedom) > (1 - confidence) / 2)
    start = positions[np.argmax(low)] if any(low) else curve.end
    stop = positions[::-1][np.argmax(high[::-1])] if any(high) else 0.0
    return None if low[0] else start, None if high[-1] else stop


@pytest.mark.parametrize("seed", range(6))
def test_the_interval_is_that_of_textbook_formulas_on_a_dense_grid(seed):
    rng = np.random.default_rng(seed)
    truth = [0.5, 0.58, 0.64, 0.68, 0.7, [0.66, 0.45, 0.8][seed % 3]]
    c = contest(truth + 0.012 * rng.normal(size=(4, 6)), [*LESIONS, "wgan"])
    curve = fitted(c)
    found = place(c, curve, "wgan", near=1000, confidence=0.9)
    expected = brute_interval(c, curve, "wgan", 0.9)
    for mine, theirs in zip((found["low"], found["high"]), expected, strict=True):
        assert mine == theirs if theirs is None else mine == pytest.approx(theirs, abs=0.1)
    assert found["rises"]


@pytest.mark.parametrize("replicates", [3, 5])
def test_on_known_truth_the_interval_covers_and_the_point_is_nearly_unbiased(replicates):
    rng = np.random.default_rng(replicates)

    def truth(lesions):
        return 0.95 - 0.35 * (np.asarray(lesions) / 125) ** -0.4

    worth = {"harmful": -400, "useless": 0, "useful": 300}
    names = [*LESIONS, *worth]
    means = truth([*LESIONS.values(), *(1000 + m for m in worth.values())])
    inside, points = [], []
    for _ in range(50):
        c = contest(means + 0.008 * rng.normal(size=(replicates, 8)) + 0.02 * rng.normal(size=(replicates, 1)), names)
        curve = fitted(c)
        for arm, m in worth.items():
            found = place(c, curve, arm, near=1000, confidence=0.95)
            low, high = (
                open_end if found[k] is None else curve.size_at(found[k])[0] - 1000
                for k, open_end in (("low", -np.inf), ("high", np.inf))
            )
            inside.append(low - 1e-6 <= m <= high + 1e-6)
            points.append(curve.size_at(found["point"])[0] - 1000 - m)
    assert np.mean(inside) >= 0.92  # of 150; 95 % or more in thousands
    assert abs(np.median(points)) < 40  # of 1,000 lesions


def test_degenerate_curves_have_defined_answers():
    warnings.simplefilter("error")
    arms = [*LESIONS, "wgan"]
    same = contest(np.full((3, 6), 0.5), arms, step=0.01)
    found = place(same, fitted(same), "wgan", near=1000, confidence=0.95)
    assert found == {"point": 3.0, "beyond": "", "low": None, "high": None, "rises": False, "above": False}

    exact = contest(np.full((3, 6), 0.5), arms)  # no noise at all: everything is sure
    assert not place(exact, fitted(exact), "wgan", near=1000, confidence=0.95)["rises"]

    falling = contest(np.tile([0.7, 0.6, 0.5, 0.4, 0.3, 0.6], (3, 1)), arms, step=0.001)
    assert not place(falling, fitted(falling), "wgan", near=1000, confidence=0.95)["rises"]

    two = {"half": 500, "full": 1000}
    rising = contest(np.tile([0.5, 0.6, 0.55, 0.9], (3, 1)), ["half", "full", "wgan", "pggan"], step=0.001)
    curve = fit_curve(rising.arms, rising.values.mean(0), sizes(two), list(two))
    found = place(rising, curve, "wgan", near=1000, confidence=0.95)
    assert found["point"] == pytest.approx(0.5)
    assert 0.48 < found["low"] < 0.5 < found["high"] < 0.52
    above = place(rising, curve, "pggan", near=1000, confidence=0.95)
    assert above == {"point": 1.0, "beyond": "more than", "low": 1.0, "high": None, "rises": True, "above": True}


def test_one_replicate_knows_the_lesions_only():
    rng = np.random.default_rng(1)
    values = np.array([[0.5, 0.55, 0.6, 0.65, 0.7, 0.62]])
    c = Contest([*LESIONS, "wgan"], values, values + 0.02 * rng.normal(size=(500, 1, 6)), 0.001)
    found = place(c, fitted(c), "wgan", near=1000, confidence=0.95)
    # the difference of two arms has a deviation of 0.02 * sqrt(2) at the points, where normal quantiles apply
    assert found["low"] == pytest.approx((0.62 - 0.5 - 1.96 * 0.02 * np.sqrt(2)) / 0.05, abs=0.35)
    assert found["high"] == pytest.approx(3.5, abs=0.55)
