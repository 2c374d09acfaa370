import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stda import BadInput
from stda.measure.bootstrap import Estimate, Spread, count_fold, estimate, lesion_step, pooled_spreads, resample_lesions
from stda.measure.scores import confusion, confusion_metric

CLASSES = ["a", "b", "c"]


def predictions(replicates=2, arms=("none", "wgan"), lesions=12, seed=0, split="test"):
    """Every lesion has one to three images and one class; answers are right 60 % of the time."""
    rng = np.random.default_rng(seed)
    rows = []
    for r in range(replicates):
        tested = rng.choice(2 * lesions, lesions, replace=False)
        images = [(f"L{g}", f"L{g}.{i}", CLASSES[g % 3]) for g in tested for i in range(1 + g % 3)]
        for arm in arms:
            for group, image, label in images:
                answer = label if rng.random() < 0.6 else rng.choice(CLASSES)
                rows.append((r, arm, image, group, split, label, str(answer)))
    return pd.DataFrame(rows, columns=["replicate", "arm", "image_id", "group", "split", "label", "predicted"])


def test_values_are_the_metrics_of_each_replicate_and_arm():
    table = predictions()
    fold = count_fold(table, "test")
    for metric in ("balanced_accuracy", "macro_f1", "accuracy", "recall_b"):
        for r in (0, 1):
            for a, arm in enumerate(fold.arms):
                part = table[(table["replicate"] == r) & (table["arm"] == arm)]
                y, p = (part[c].map(CLASSES.index).to_numpy() for c in ("label", "predicted"))
                expected = confusion_metric(confusion(y, p, 3), metric, CLASSES)
                assert fold.values(metric)[r, a] == pytest.approx(float(expected))


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1", "accuracy"])
def test_resamples_agree_with_a_weighted_sum_over_rows(metric):
    from sklearn import metrics

    table = predictions()
    fold = count_fold(table, "test")
    draws = resample_lesions(fold, metric, resamples=5, seed=3)
    weights = np.random.default_rng(3).standard_exponential((5, fold.n_lesions))
    names = sorted(table["group"].unique())
    for b in range(5):
        part = table.query("replicate == 1 and arm == 'wgan'")
        w = weights[b, part["group"].map(names.index)]
        for label in CLASSES:  # every true class keeps its number of images
            rows = (part["label"] == label).to_numpy()
            w[rows] *= rows.sum() / w[rows].sum()
        score = {
            "balanced_accuracy": metrics.balanced_accuracy_score,
            "macro_f1": lambda *a, **k: metrics.f1_score(*a, average="macro", **k),
            "accuracy": metrics.accuracy_score,
        }[metric]
        expected = score(part["label"], part["predicted"], sample_weight=w)
        assert draws[b, 1, fold.arms.index("wgan")] == pytest.approx(expected)


def test_resamples_do_not_depend_on_the_chunk(monkeypatch):
    fold = count_fold(predictions(), "test")
    whole = resample_lesions(fold, "accuracy", resamples=20, seed=0)
    monkeypatch.setattr("stda.measure.bootstrap.CHUNK", 7)
    np.testing.assert_allclose(resample_lesions(fold, "accuracy", resamples=20, seed=0), whole)


def test_lesions_and_not_images_are_resampled():
    """Repeating every image of a lesion adds no evidence: the spread must stay."""
    table = predictions(1, lesions=60)
    doubled = pd.concat([table, table.assign(image_id=table["image_id"] + "x")])
    one, two = (resample_lesions(count_fold(t, "test"), "accuracy", resamples=400, seed=0) for t in (table, doubled))
    np.testing.assert_allclose(one, two)


def test_the_lesion_spread_of_an_accuracy_is_the_binomial_one():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"image_id": [f"{i}" for i in range(300)], "label": "a"})
    table["predicted"] = np.where(rng.random(300) < 0.7, "a", "b")
    table = table.assign(group=table["image_id"], split="test", replicate=0, arm="none")
    fold = count_fold(table, "test")
    share = fold.values("accuracy")[0, 0]
    draws = resample_lesions(fold, "accuracy", resamples=4000, seed=0)
    assert draws.std() == pytest.approx(np.sqrt(share * (1 - share) / 300), rel=0.05)


def test_arms_must_have_answered_the_same_images():
    table = predictions()
    with pytest.raises(BadInput, match="not scored on the same images"):
        count_fold(table.drop(index=table.index[-1]), "test")
    with pytest.raises(BadInput, match="twice"):
        count_fold(pd.concat([table, table]), "test")
    with pytest.raises(BadInput, match="no rows of split 'val'"):
        count_fold(table, "val")
    with pytest.raises(BadInput, match="predicted 'c' is not among"):
        count_fold(table.assign(label="a", predicted="c"), "test", classes=["a", "b"])


def test_an_arm_that_did_not_run_is_nan_there_and_nowhere_else():
    table = predictions(3)
    fold = count_fold(table[~((table["arm"] == "wgan") & (table["replicate"] == 1))], "test")
    draws = resample_lesions(fold, "macro_f1", resamples=3, seed=0)
    for values in (fold.values("macro_f1"), *draws):
        assert np.isnan(values).tolist() == [[False, False], [False, True], [False, False]]


def test_the_step_is_what_one_lesion_of_the_rarest_class_moves():
    table = predictions(1, lesions=12)
    fold = count_fold(table, "test")
    lesions = table.drop_duplicates("group")["label"].value_counts()
    assert lesion_step(fold, "balanced_accuracy") == pytest.approx(1 / (3 * lesions.min()))
    assert lesion_step(fold, "accuracy") == pytest.approx(1 / 12)
    assert lesion_step(fold, "sensitivity", "b") == pytest.approx(1 / lesions["b"])
    assert lesion_step(fold, "specificity", "b") == pytest.approx(1 / (12 - lesions["b"]))


def test_without_lesion_noise_the_estimate_is_the_plain_t_interval():
    from scipy import stats

    values = np.array([0.01, 0.04, 0.02, 0.05])
    e = estimate(values, np.zeros((4000, 4)) + values)
    assert e.error == pytest.approx(stats.sem(values))
    assert e.interval(0.95) == pytest.approx(stats.t.interval(0.95, 3, values.mean(), e.error))
    assert e.p_two_sided() == pytest.approx(2 * stats.t.sf(values.mean() / e.error, 3))


def test_replicates_that_happen_to_agree_do_not_hide_the_lesion_noise():
    draws = 0.1 * np.random.default_rng(0).normal(size=(2000, 3))
    assert estimate(np.full(3, 0.05), draws).error == pytest.approx(0.1 / np.sqrt(3), rel=0.05)
    shared = np.repeat(draws[:, :1], 3, axis=1)  # one test fold for all: three replicates are not three samples of it
    assert estimate(np.full(3, 0.05), shared).error == pytest.approx(0.1, rel=0.05)
    assert estimate(np.full(3, 0.05), np.full((200, 3), 0.05), step=0.06).error == pytest.approx(0.03 / np.sqrt(3))


def test_the_pooled_spread_is_that_of_the_analysis_of_variance():
    """Against the normal equations: residuals of a least-squares fit of replicate and arm effects."""
    values = np.random.default_rng(0).normal(size=(4, 5)) + np.arange(4)[:, None]
    replicate, arm = np.repeat(np.eye(4), 5, axis=0), np.tile(np.eye(5), (4, 1))
    design = np.hstack([replicate, arm])
    residual = values.ravel() - design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]
    own, difference = pooled_spreads(values)
    assert difference.variance == pytest.approx(2 * (residual**2).sum() / 12)
    assert difference.freedom == 6  # half of (4 - 1) x (5 - 1)
    assert own.variance == pytest.approx(values.var(0, ddof=1).mean())
    assert 3 <= own.freedom <= 15
    assert pooled_spreads(values[:, :2]) is None
    assert pooled_spreads(np.where(np.arange(20).reshape(4, 5) > 6, np.nan, values)) is None
    assert pooled_spreads(np.ones((3, 4)))[0].variance == 0
    assert pooled_spreads(np.random.default_rng(0).normal(size=(4, 20)))[1].freedom == 15  # five for each but one


def test_the_calm_spread_is_the_pooled_one_without_the_arm_that_varies_most():
    values = np.random.default_rng(0).normal(size=(3, 6)) * [1, 1, 1, 9, 1, 1] + np.arange(3)[:, None]
    (own, difference), (own_left, left) = pooled_spreads(values), pooled_spreads(np.delete(values, 3, axis=1))
    assert difference.calm == pytest.approx(left.variance)
    assert own.calm == pytest.approx(own_left.variance)
    assert pooled_spreads(values[:, 2:5])[1].calm == pytest.approx((values[:, 2] - values[:, 4]).var(ddof=1))
    assert pooled_spreads(np.ones((3, 4)))[1].calm == 0


def test_an_arm_far_above_the_calm_ones_has_its_own_degrees_of_freedom():
    values, nothing = np.array([0.0, 0.1, 0.2]), np.zeros((100, 3))  # a variance of 0.01
    for calm, freedom in ((0.01, 9), (0.01 / 3, 9), (0.01 / 6, 2 + 7 / 2**4), (0.0, 2)):
        e = estimate(values, nothing, pooled=Spread(0.02, 9.0, calm))
        assert (e.error, e.freedom) == (pytest.approx(np.sqrt(0.02 / 3)), pytest.approx(freedom))
    assert estimate(np.zeros(3), nothing, pooled=Spread(0.0, 9.0, 0.0)).freedom == 9  # nothing varies: no ratio


def test_pooling_never_narrows_an_arm_below_its_own_spread():
    values, nothing = np.array([0.0, 0.2]), np.zeros((100, 2))
    calm, wild = (estimate(values, nothing, pooled=Spread(v, 7.0, 0.01)) for v in (0.001, 0.5))
    assert calm.error == pytest.approx(estimate(values, nothing).error)
    assert wild.error == pytest.approx(0.5)
    assert calm.freedom == wild.freedom == 7


@settings(max_examples=50, deadline=None)
@given(st.floats(-1, 1), st.floats(0, 1), st.integers(1, 9), st.integers(1, 5), st.floats(0.5, 0.999))
def test_intervals_and_p_values_tell_the_same_story(mean, error, freedom, tied, level):
    e = Estimate(mean, error, freedom, tied)
    low, high = e.interval(level)
    assert low <= mean <= high
    assert 0 <= e.p_two_sided() <= 1
    if min(abs(low), abs(high)) > 1e-9:
        assert (low > 0 or high < 0) == (e.p_two_sided() < 1 - level)
    assert e.p_above(mean - 1) <= e.p_above(mean + 1)
