import warnings

import numpy as np
import pandas as pd
import pytest

from stda import BadInput
from stda.measure import bootstrap
from stda.measure.calibration import (
    COLDEST,
    COLUMNS,
    HOTTEST,
    MEASURES,
    calibrate,
    calibration_sentence,
    calibration_table,
    fit_temperature,
    temper,
    top_answers,
)
from stda.measure.scores import scores

CLASSES = ["AK", "DF", "MEL"]


def softmax(z):
    powers = np.exp(z - z.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def drawn(rng, n, temperature, classes=3):
    """Labels that are drawn from the honest probabilities, and probabilities that are ``1 / temperature`` as sure."""
    logits = rng.normal(size=(n, classes)) * 2
    honest = softmax(logits)
    labels = np.array([rng.choice(classes, p=p) for p in honest])
    return labels, honest, softmax(logits * temperature)


def study(replicates=2, arms=("classic", "wgan"), lesions=90, seed=0, temperature=3.0):
    rng, parts = np.random.default_rng(seed), []
    of = np.repeat(np.arange(lesions), 1 + np.arange(lesions) % 3)
    for r in range(replicates):
        logits = rng.normal(size=(len(of), 3)) * 2
        labels = np.array([rng.choice(3, p=p) for p in softmax(logits)])
        fold = np.where(rng.permutation(lesions) < lesions // 2, "test", "val")[of]
        for arm in arms:
            p = softmax((logits + 0.3 * rng.normal(size=logits.shape)) * temperature)
            table = pd.DataFrame({"image_id": [f"i{k}" for k in range(len(of))], "group": [f"L{k}" for k in of]})
            table = table.assign(replicate=r, arm=arm, split=fold, label=np.array(CLASSES)[labels])
            table["predicted"] = np.array(CLASSES)[p.argmax(1)]
            parts.append(pd.concat([table, pd.DataFrame(p, columns=[f"p_{c}" for c in CLASSES])], axis=1))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(("classes", "temperature"), [(2, 2.5), (3, 0.6), (8, 1.7)])
def test_the_temperature_is_the_one_that_scipy_finds_by_search(classes, temperature):
    from scipy.optimize import minimize_scalar

    labels, _, p = drawn(np.random.default_rng(0), 300, temperature, classes)

    def loss(t):
        return -np.log(softmax(np.log(p) / t)[np.arange(len(labels)), labels]).mean()

    found = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9})
    assert fit_temperature(labels, p) == pytest.approx(found.x, rel=1e-5)
    grid = [loss(t) for t in np.geomspace(0.05, 20, 400)]
    assert loss(fit_temperature(labels, p)) <= min(grid)


def test_a_known_temperature_comes_back_and_the_honest_probabilities_with_it():
    labels, honest, p = drawn(np.random.default_rng(1), 4000, 3.0)
    temperature = fit_temperature(labels, p)
    assert temperature == pytest.approx(3.0, rel=0.1)
    known = p.min(1) > 1e-12
    np.testing.assert_allclose(temper(p, 3.0)[known], honest[known], atol=1e-12)
    np.testing.assert_allclose(temper(p, 3.0), honest, atol=1e-3)  # smaller ones count as 1e-12
    np.testing.assert_allclose(temper(p, 1.0), p, atol=1e-12)


def test_limits_are_defined_without_a_warning():
    right, wrong = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.1, 0.9], [0.8, 0.2]])
    sure = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_temperature(np.array([0, 1]), right) == COLDEST
        assert fit_temperature(np.array([0, 1]), wrong) == HOTTEST
        assert fit_temperature(np.array([0, 1]), np.full((2, 2), 0.5)) == 1.0
        two_of_three = fit_temperature(np.array([0, 1, 1]), sure)
        softer = temper(sure, two_of_three)
    np.testing.assert_allclose(softer.max(1), 2 / 3, atol=1e-6)  # a model that is sure is softened to its hit rate
    with pytest.raises(BadInput, match="no validation image"):
        fit_temperature(np.empty(0, int), np.empty((0, 2)))


def test_calibrating_changes_no_answer_and_only_the_test_probabilities():
    predictions = study(1, ("classic",))
    val, test = (predictions[predictions["split"] == s] for s in ("val", "test"))
    temperature, scaled = calibrate(val, test)
    columns = [f"p_{c}" for c in CLASSES]
    pd.testing.assert_frame_equal(scaled.drop(columns=columns), test.drop(columns=columns))
    np.testing.assert_allclose(scaled[columns], temper(test[columns].to_numpy(), temperature))
    assert (np.array(CLASSES)[scaled[columns].to_numpy().argmax(1)] == test["predicted"]).all()
    confidence, right = top_answers(scaled)
    assert confidence == pytest.approx(scaled[columns].max(axis=1).to_numpy())
    assert right.tolist() == (test["label"] == test["predicted"]).tolist()


def test_the_table_is_the_mean_of_each_replicate_s_scores_before_and_after():
    from sklearn.metrics import log_loss

    predictions = study()
    table = calibration_table(predictions, resamples=100).set_index(["arm", "measure"])
    assert list(table.reset_index()) == ["arm", "measure", *[c for c in COLUMNS if c not in ("arm", "measure")]]
    for arm in ("classic", "wgan"):
        found = {state: {m: [] for m in MEASURES} for state in ("before", "after")}
        for _, part in predictions[predictions["arm"] == arm].groupby("replicate"):
            test = part[part["split"] == "test"]
            _, scaled = calibrate(part[part["split"] == "val"], test)
            for state, own in (("before", test), ("after", scaled)):
                p = own[[f"p_{c}" for c in CLASSES]].to_numpy()
                values = scores(own) | {"nll": log_loss(own["label"], np.clip(p, 1e-12, 1), labels=CLASSES)}
                for m in MEASURES:
                    found[state][m].append(values[m])
        for m in MEASURES:
            row = table.loc[(arm, m)]
            for state in ("before", "after"):
                assert row[state] == pytest.approx(np.mean(found[state][m]), abs=1e-9)
            assert row["change"] == pytest.approx(row["after"] - row["before"])
            assert row["low"] <= row["change"] <= row["high"]


def test_resamples_agree_with_weighted_scores(monkeypatch):
    """One replicate: the draws behind the interval against a plain weighted computation over rows."""
    from sklearn.metrics import log_loss

    kept = []
    monkeypatch.setattr(bootstrap, "estimate", lambda v, d, **k: kept.append(d) or bootstrap.Estimate(v.mean(), 0, 1))
    predictions = study(1, ("classic",))
    calibration_table(predictions, resamples=100, seed=5)
    val, test = (predictions[predictions["split"] == s] for s in ("val", "test"))
    _, scaled = calibrate(val, test)
    names = sorted(test["group"].unique())
    weights = np.random.default_rng(5).standard_exponential((100, len(names)))
    labels = test["label"].map(CLASSES.index).to_numpy()
    for b in range(3):
        w = weights[b, test["group"].map(names.index)]
        for c in range(3):
            w[labels == c] *= (labels == c).sum() / w[labels == c].sum()
        nll, brier, ece = [], [], []
        for own in (test, scaled):
            p = own[[f"p_{c}" for c in CLASSES]].to_numpy()
            nll.append(log_loss(own["label"], np.clip(p, 1e-12, 1), labels=CLASSES, sample_weight=w))
            brier.append(np.average(((p - np.eye(3)[labels]) ** 2).sum(1), weights=w))
            gap = w * ((p.argmax(1) == labels) - p.max(1))
            bins = np.digitize(p.max(1), np.linspace(0, 1, 16), right=True)
            ece.append(sum(abs(gap[bins == k].sum()) for k in set(bins)) / w.sum())
        for draws, (before, after) in zip(kept, (ece, brier, nll), strict=True):
            assert draws[b, 0] == pytest.approx(after - before)


def test_too_sure_models_are_mended_and_honest_ones_left_alone():
    sure, honest = (calibration_table(study(4, lesions=400, temperature=t), resamples=200) for t in (3.0, 1.0))
    ece = sure[sure["measure"] == "ece"]
    assert (ece["temperature"] > 2).all()
    assert (ece["high"] < 0).all()
    assert honest["temperature"].between(0.8, 1.3).all()
    words = calibration_sentence(sure)
    assert "2 of 2 arms were too sure" in words
    assert "lies below zero for 2 and above zero for 0" in words


def test_an_arm_that_did_not_run_in_a_replicate_counts_where_it_did():
    predictions = study()
    gone = predictions[(predictions["replicate"] == 0) | (predictions["arm"] != "wgan")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = calibration_table(gone, resamples=100).set_index(["arm", "measure"])
    assert table["replicates"].to_dict()[("wgan", "ece")] == 1
    alone = calibration_table(predictions[predictions["replicate"] == 0], resamples=100).set_index(["arm", "measure"])
    columns = ["temperature", "before", "after"]
    np.testing.assert_allclose(table.loc["wgan", columns].astype(float), alone.loc["wgan", columns].astype(float))


@pytest.mark.parametrize(
    ("change", "knobs", "sentence"),
    [
        (lambda t: t[t["split"] == "test"], {}, "no validation predictions"),
        (lambda t: t[t["split"] == "val"], {}, "no rows of split 'test'"),
        (lambda t: t.assign(p_AK=2.0), {}, r"finite numbers in \[0, 1\]"),
        (lambda t: t.drop(columns=["p_AK", "p_DF"]), {}, "at least two columns"),
        (lambda t: t, {"resamples": 5}, "100 or more"),
        (lambda t: t, {"confidence": 95}, "confidence is 95"),
        (lambda t: t.drop(columns="arm"), {}, "no column 'arm'"),
    ],
)
def test_bad_input_is_a_sentence(change, knobs, sentence):
    with pytest.raises(BadInput, match=sentence):
        calibration_table(change(study(1)), **knobs)
