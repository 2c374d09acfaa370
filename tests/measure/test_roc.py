import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stda import BadInput
from stda.measure.roc import delong, lesion_influence, reweighted_precision, threshold_at


def beats(a, b):
    return 1.0 if a > b else 0.5 if a == b else 0.0


def brute(positives, scores, lesions, *, geometric=False):
    """DeLong's placements as loops, summed over lesions as Obuchowski (1997) does; (AUROCs, covariance)."""
    positive, negative = np.flatnonzero(positives), np.flatnonzero(~positives)
    v10 = np.array([[np.mean([beats(s[i], s[j]) for j in negative]) for i in positive] for s in scores])
    v01 = np.array([[np.mean([beats(s[i], s[j]) for i in positive]) for j in negative] for s in scores])
    theta = v10.mean(1)
    covariance = np.zeros((len(scores), len(scores)))
    names = sorted(set(lesions))
    n10, n01 = len(set(lesions[positive])), len(set(lesions[negative]))
    f10, f01 = n10 / (n10 - 1), n01 / (n01 - 1)
    f11 = np.sqrt(f10 * f01) if geometric else len(names) / (len(names) - 1)
    for a, b in itertools.product(range(len(scores)), repeat=2):
        for name in names:
            xa, xb = (sum(v10[k, lesions[positive] == name] - theta[k]) / len(positive) for k in (a, b))
            ya, yb = (sum(v01[k, lesions[negative] == name] - theta[k]) / len(negative) for k in (a, b))
            covariance[a, b] += f10 * xa * xb + f01 * ya * yb + f11 * (xa * yb + ya * xb)
    return theta, covariance


def study(rng, n=40, arms=3, lesions=None, mixed=False):
    """Scores on a grid, so that ties occur; a lesion's images share their label unless ``mixed``."""
    lesions = np.arange(n) if lesions is None else rng.integers(0, lesions, n)
    hard = rng.normal(size=n)[lesions]
    positives = rng.random(n) < 0.4 if mixed else (rng.random(n) < 0.4)[lesions]
    scores = np.round(positives + hard + rng.normal(size=(arms, n)), 1)
    return positives, scores, lesions


@pytest.mark.parametrize("seed", range(4))
def test_single_images_are_delong_s(seed):
    positives, scores, _ = study(np.random.default_rng(seed))
    found = delong(positives, scores)
    negative, positive = scores[:, ~positives], scores[:, positives]
    wins = (positive[:, :, None] > negative[:, None]) + 0.5 * (positive[:, :, None] == negative[:, None])
    # the textbook form: covariances of the placements of both kinds, each over its number of images
    s10, s01 = np.cov(wins.mean(2)), np.cov(wins.mean(1))
    np.testing.assert_allclose(found.auroc, wins.mean((1, 2)), atol=1e-12)
    np.testing.assert_allclose(found.covariance, s10 / positive.shape[1] + s01 / negative.shape[1], atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_lesions_of_one_label_are_obuchowski_s(seed):
    positives, scores, lesions = study(np.random.default_rng(seed), lesions=15)
    found = delong(positives, scores, lesions)
    expected = brute(positives, scores, lesions)
    np.testing.assert_allclose(found.auroc, expected[0], atol=1e-12)
    np.testing.assert_allclose(found.covariance, expected[1], atol=1e-12)
    assert found.covariance[0, 0] != pytest.approx(delong(positives, scores).covariance[0, 0], rel=0.01)


def test_groups_with_both_labels_take_the_geometric_mean_of_the_factors():
    positives, scores, lesions = study(np.random.default_rng(1), lesions=15, mixed=True)
    found = delong(positives, scores, lesions).covariance
    np.testing.assert_allclose(found, brute(positives, scores, lesions, geometric=True)[1], atol=1e-12)
    assert np.linalg.eigvalsh(found).min() > -1e-15
    positives, scores, lesions = study(np.random.default_rng(1), n=200, lesions=80, mixed=True)
    found, hers = delong(positives, scores, lesions).covariance, brute(positives, scores, lesions)[1]
    np.testing.assert_allclose(np.diag(found), np.diag(hers), rtol=0.01)


def test_auroc_is_scikit_learn_s_and_copies_of_images_add_no_evidence():
    from sklearn.metrics import roc_auc_score

    positives, scores, lesions = study(np.random.default_rng(2), lesions=20)
    once = delong(positives, scores, lesions)
    assert once.auroc == pytest.approx([roc_auc_score(positives, s) for s in scores])
    twice = delong(np.tile(positives, 2), np.tile(scores, 2), np.tile(lesions, 2))
    np.testing.assert_allclose(twice.covariance, once.covariance, atol=1e-12)


def test_intervals_of_a_difference_hold_the_truth_as_often_as_they_say():
    """300 test folds of two classifiers with known AUROCs on clustered images: coverage within binomial error."""
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    gains, own, held = np.array([1.0, 1.6]), 0.8, 0
    truth = norm.cdf(gains / np.sqrt(2 * (1 + own**2)))  # binormal: lesion and image spread, both kinds alike
    for _ in range(300):
        lesions = np.repeat(np.arange(120), rng.integers(1, 4, 120))
        positives = (np.arange(120) % 3 == 0)[lesions]
        shared = rng.normal(size=120)[lesions]
        scores = gains[:, None] * positives + shared + own * rng.normal(size=(2, len(lesions)))
        difference, error = delong(positives, scores, lesions).difference(1, 0)
        held += abs(difference - (truth[1] - truth[0])) <= 1.96 * error
    assert 0.91 <= held / 300 <= 0.98


def test_what_cannot_be_known_is_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        none = delong(np.zeros(3, bool), np.arange(3.0))
        single = delong(np.array([True, False, False]), np.arange(3.0))
        perfect = delong(np.array([False, False, True, True]), np.arange(4.0))
        equal = delong(np.array([False, False, True, True]), np.ones((2, 4)))
    assert np.isnan(none.auroc).all()
    assert np.isnan(none.covariance).all()
    assert single.auroc == [0.0]
    assert np.isnan(single.covariance).all()
    assert (perfect.auroc, perfect.covariance) == (1.0, 0.0)
    assert equal.difference(0, 1) == (0.0, 0.0)


def test_misaligned_input_is_a_sentence():
    with pytest.raises(BadInput, match="align them"):
        delong(np.array([True, False]), np.ones((1, 3)))


def test_influences_are_those_of_a_slightly_heavier_lesion():
    """The derivative of a weighted AUROC by one lesion's weight, without the small-sample factor."""
    from sklearn.metrics import roc_auc_score

    positives, scores, lesions = study(np.random.default_rng(3), lesions=12)
    _, influence = lesion_influence(positives, scores, lesions, n_lesions=12)
    np.testing.assert_allclose(influence.sum(0), 0, atol=1e-12)
    for lesion in sorted(set(lesions)):
        own = lesions == lesion
        heavier = [roc_auc_score(positives, scores[0], sample_weight=1 + h * own) for h in (1e-4, -1e-4)]
        n = len(set(lesions[positives == positives[own][0]]))
        slope = (heavier[0] - heavier[1]) / 2e-4 * np.sqrt(n / (n - 1))
        assert influence[lesion, 0] == pytest.approx(slope, abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=30))
def test_reweighted_precision_agrees_with_scikit_learn(rows):
    from sklearn.metrics import average_precision_score

    positives, scores, lesions = (np.array(column) for column in zip(*rows, strict=True))
    if positives.all() or not positives.any():
        return
    weights = np.random.default_rng(0).standard_exponential((4, 3))
    found = reweighted_precision(positives, scores.astype(float), lesions, weights)
    for b in range(3):
        w = weights[lesions, b]
        for kind in (True, False):  # every class keeps its number of images
            w[positives == kind] *= (positives == kind).sum() / w[positives == kind].sum()
        assert found[b] == pytest.approx(average_precision_score(positives, scores, sample_weight=w))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=2, max_size=40),
    st.sampled_from([0.5, 0.56, 0.8, 0.9, 1.0]),
)
def test_the_threshold_is_the_best_point_of_the_roc_curve(rows, specificity):
    from sklearn.metrics import roc_curve

    positives, scores = np.array([r[0] for r in rows]), np.array([r[1] / 10 for r in rows])
    if positives.all() or not positives.any():
        return
    threshold = threshold_at(scores[~positives], specificity)
    assert (scores[~positives] <= threshold).mean() >= specificity - 1e-12
    false, found, _ = roc_curve(positives, scores, drop_intermediate=False)
    best = found[false <= 1 - specificity + 1e-12].max()
    assert (scores[positives] > threshold).mean() == pytest.approx(best)


def test_a_threshold_of_nothing_is_nan_and_of_nonsense_a_sentence():
    assert np.isnan(threshold_at(np.empty(0), 0.9))
    for wrong in (0, 1.1, np.nan):
        with pytest.raises(BadInput, match=r"such as 0\.9"):
            threshold_at(np.arange(3.0), wrong)
