import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stda import BadInput
from stda.measure.scores import (
    auroc,
    average_precision,
    calibration_error,
    confusion,
    confusion_metric,
    metrics_table,
    scores,
    wilson,
)

CLASSES = ["AK", "DF", "MEL", "NV"]


def predictions(n=200, classes=CLASSES, seed=0, labels=None, **columns):
    rng = np.random.default_rng(seed)
    labels = (
        rng.choice(classes, n, p=np.arange(1, len(classes) + 1) / sum(range(len(classes) + 1)))
        if labels is None
        else labels
    )
    logits = rng.normal(size=(len(labels), len(classes))) + 1.5 * (np.array(classes) == np.array(labels)[:, None])
    p = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 2)  # rounded: ties occur
    p = np.clip(p + (1 - p.sum(1, keepdims=True)) / len(classes), 0, 1)
    table = pd.DataFrame({"image_id": [f"i{i}" for i in range(len(labels))], "label": labels})
    table["group"], table["split"] = table["image_id"], "test"
    table["predicted"] = np.array(classes)[p.argmax(1)]
    return pd.concat([table, pd.DataFrame(p, columns=[f"p_{c}" for c in classes])], axis=1).assign(**columns)


def test_scores_agree_with_scikit_learn():
    from sklearn import metrics

    table = predictions()
    ours = scores(table)
    y, answer = table["label"], table["predicted"]
    p = table[[f"p_{c}" for c in CLASSES]].to_numpy()
    one_hot = (y.to_numpy()[:, None] == np.array(CLASSES)).astype(int)
    assert ours["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, answer))
    assert ours["macro_f1"] == pytest.approx(metrics.f1_score(y, answer, average="macro"))
    assert ours["accuracy"] == pytest.approx(metrics.accuracy_score(y, answer))
    assert ours["majority_accuracy"] == pytest.approx(y.value_counts(normalize=True).max())
    assert ours["auroc"] == pytest.approx(metrics.roc_auc_score(one_hot, p, average="macro"))
    assert ours["auprc"] == pytest.approx(metrics.average_precision_score(one_hot, p, average="macro"))
    assert ours["brier"] == pytest.approx(((p - one_hot) ** 2).sum(1).mean())
    recalls = metrics.recall_score(y, answer, average=None, labels=CLASSES)
    precisions = metrics.precision_score(y, answer, average=None, labels=CLASSES)
    assert [ours[f"recall_{c}"] for c in CLASSES] == pytest.approx(recalls)
    assert [ours[f"precision_{c}"] for c in CLASSES] == pytest.approx(precisions)
    assert "sensitivity" not in ours


def test_calibration_error_agrees_with_torchmetrics():
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 300)
    y = rng.integers(0, 4, 300)
    theirs = multiclass_calibration_error(torch.tensor(p), torch.tensor(y), num_classes=4, n_bins=15)
    assert calibration_error(y, p) == pytest.approx(float(theirs), abs=1e-6)


def test_two_classes_have_sensitivity_of_the_rarer_one():
    from sklearn import metrics

    table = predictions(classes=["benign", "malignant"], labels=["benign"] * 40 + ["malignant"] * 10)
    ours = scores(table)
    hit = table["predicted"] == "malignant"
    assert ours["sensitivity"] == pytest.approx(metrics.recall_score(table["label"] == "malignant", hit))
    assert ours["specificity"] == pytest.approx(metrics.recall_score(table["label"] == "benign", ~hit))
    swapped = scores(table, positive="benign")
    assert (swapped["sensitivity"], swapped["specificity"]) == (ours["specificity"], ours["sensitivity"])
    many = scores(predictions(), positive="MEL")
    assert many["sensitivity"] == many["recall_MEL"]


def test_missing_classes_are_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = scores(predictions(labels=["NV"] * 5))
    assert np.isnan(one["recall_AK"])
    assert np.isnan(one["auroc"])
    assert np.isnan(one["auprc"])
    assert one["balanced_accuracy"] == one["recall_NV"]
    assert one["majority_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t.drop(columns="predicted"), "no column 'predicted'"),
        (lambda t: t.assign(label="XX"), "'XX' is not among"),
        (lambda t: t.assign(p_AK=np.nan), "finite"),
        (lambda t: t[["label", "predicted"]], "at least two different classes"),
    ],
)
def test_bad_predictions_are_a_sentence(change, sentence):
    with pytest.raises(BadInput, match=sentence):
        scores(change(predictions()))


def test_unknown_metric_and_positive_class_are_sentences():
    with pytest.raises(BadInput, match="balanced_accuracy, macro_f1, accuracy, sensitivity, specificity"):
        confusion_metric(np.eye(2), "auroc", ["a", "b"])
    with pytest.raises(BadInput, match="'c' is not among"):
        scores(predictions(classes=["a", "b"]), positive="c")


def test_metrics_table_is_long_and_complete():
    parts = [
        predictions(seed=i, replicate=r, arm=a).assign(split=s)
        for i, (r, a, s) in enumerate((r, a, s) for r in (0, 1) for a in ("none", "wgan") for s in ("val", "test"))
    ]
    table = metrics_table(pd.concat(parts))
    assert list(table.columns) == ["replicate", "arm", "split", "metric", "value"]
    assert len(table) == 8 * len(scores(parts[0]))
    row = table.query("replicate == 0 and arm == 'none' and split == 'val' and metric == 'auroc'")
    assert row["value"].item() == scores(parts[0])["auroc"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40), st.integers(1, 5))
def test_confusion_metrics_are_shares_and_scale_free(pairs, factor):
    y, answer = np.array(pairs).T
    matrix = confusion(y, answer, 3)
    for metric in ("accuracy", "balanced_accuracy", "macro_f1", "recall_1", "sensitivity", "specificity"):
        value = confusion_metric(matrix, metric, ["0", "1", "2"], "0")
        assert np.isnan(value) or 0 <= value <= 1
        np.testing.assert_allclose(confusion_metric(matrix * factor, metric, ["0", "1", "2"], "0"), value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=30))
def test_ranking_scores_agree_with_scikit_learn_under_ties(pairs):
    from sklearn import metrics

    y, score = np.array([p[0] for p in pairs]), np.array([p[1] / 4 for p in pairs])
    if y.all() or not y.any():
        assert np.isnan(auroc(y, score))
        assert np.isnan(average_precision(y, score))
    else:
        assert auroc(y, score) == pytest.approx(metrics.roc_auc_score(y, score))
        assert average_precision(y, score) == pytest.approx(metrics.average_precision_score(y, score))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 60), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(successes, n, confidence):
    from scipy.stats import binomtest

    successes = min(successes, n)
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence=confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_of_nothing_is_nan():
    assert np.isnan(wilson(0, 0)).all()
