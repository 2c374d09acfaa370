import time
import warnings

import numpy as np
import pandas as pd
import pytest

from stda import BadInput
from stda.measure import bootstrap
from stda.measure.roc import delong, threshold_at
from stda.measure.scores import scores
from stda.measure.two_class import (
    COLUMNS,
    answers_at,
    auroc_differences,
    auroc_errors,
    resample_precision,
    score_fold,
    two_class_sentence,
    two_class_table,
    two_class_texts,
)

CLASSES = ["benign", "malignant"]
ARMS = ("classic", "none", "wgan")


def study(replicates=3, arms=ARMS, lesions=120, seed=0, gain=None, images=3):
    """Lesions of one to ``images`` images, half of them tested in each replicate; scores on a grid of thousandths."""
    rng = np.random.default_rng(seed)
    kind = np.where(np.arange(lesions) % 4 == 0, "malignant", "benign")
    of = np.repeat(np.arange(lesions), 1 + np.arange(lesions) % images)
    hard, parts = rng.normal(size=lesions)[of], []
    for r in range(replicates):
        fold = np.where(rng.permutation(lesions) < lesions // 2, "test", "val")[of]
        for arm in arms:
            signal = (kind[of] == "malignant") * (1.5 + (gain or {}).get(arm, 0.0))
            p = np.round(1 / (1 + np.exp(0.7 - signal - 0.7 * hard - 0.7 * rng.normal(size=len(of)))), 3)
            table = pd.DataFrame({"replicate": r, "arm": arm, "image_id": [f"i{k}" for k in range(len(of))]})
            table = table.assign(group=[f"L{k}" for k in of], split=fold, label=kind[of])
            table["predicted"] = np.where(p > 0.5, "malignant", "benign")
            parts.append(table.assign(p_benign=1 - p, p_malignant=p))
    return pd.concat(parts, ignore_index=True)


def fold_of(predictions):
    return score_fold(predictions, "test", classes=CLASSES, positive="malignant")


def table_of(predictions, **knobs):
    knobs = {"baseline": "classic", "synthetic": ["wgan"], "resamples": 200, **knobs}
    return two_class_table(predictions, **knobs)


def test_values_are_the_means_of_each_replicate_s_scores():
    predictions = study()
    table = table_of(predictions).set_index("arm")
    assert list(table.reset_index().columns[1:]) == list(COLUMNS[1:])
    test = predictions[predictions["split"] == "test"]
    for arm in ARMS:
        each = [scores(part, positive="malignant") for _, part in test[test["arm"] == arm].groupby("replicate")]
        fold = fold_of(predictions)
        areas = [delong(fold.positives[r], fold.scores[r]).auroc for r in range(3)]
        assert table.loc[arm, "sensitivity"] == pytest.approx(np.mean([s["sensitivity"] for s in each]))
        assert table.loc[arm, "specificity"] == pytest.approx(np.mean([s["specificity"] for s in each]))
        assert table.loc[arm, "auroc"] == pytest.approx(np.mean(areas, 0)[ARMS.index(arm)])
    assert (table["positive"] == "malignant").all()  # the rarer one
    assert table["kind"].to_dict() == {"classic": "real", "none": "real", "wgan": "synthetic"}
    for metric in ("sensitivity", "sensitivity_fixed", "specificity_reached", "auroc", "auprc"):
        assert (table[f"{metric}_low"] < table[metric]).all()
        assert (table[metric] < table[f"{metric}_high"]).all()


def test_average_precision_is_scikit_learn_s():
    from sklearn.metrics import average_precision_score

    fold = fold_of(study())
    values, _ = resample_precision(fold, resamples=100, seed=0)
    for r, a in np.ndindex(values.shape):
        assert values[r, a] == pytest.approx(average_precision_score(fold.positives[r], fold.scores[r][a]))


def test_one_replicate_has_the_clustered_delong_interval():
    predictions = study(1, lesions=400)
    fold = fold_of(predictions)
    found = delong(fold.positives[0], fold.scores[0], fold.lesions[0])
    table = table_of(predictions).set_index("arm")
    for a, arm in enumerate(ARMS):
        half = 1.959964 * np.sqrt(found.covariance[a, a])
        assert table.loc[arm, "auroc_low"] == pytest.approx(found.auroc[a] - half, abs=1e-6)
        assert table.loc[arm, "auroc_high"] == pytest.approx(found.auroc[a] + half, abs=1e-6)
    difference, error = found.difference(2, 0)
    e, n = auroc_differences(fold, ["wgan"], "classic")["wgan"]
    assert (e.mean, n) == (pytest.approx(difference), 1)
    assert e.error == pytest.approx(max(error, fold.step() / 2))
    assert table[["p_value", "p_holm"]].isna().all(axis=None)  # one replicate decides nothing


def test_lesions_that_two_replicates_test_are_no_second_evidence():
    """A replicate that repeats another's predictions adds nothing: the lesion error of the mean stays."""
    one = study(1)
    two = pd.concat([one, one.assign(replicate=1)])
    apart = pd.concat([one, one.assign(replicate=1, group=one["group"] + "x", image_id=one["image_id"] + "x")])
    alone, again, other = (auroc_errors(fold_of(table))[1] for table in (one, two, apart))
    np.testing.assert_allclose(again.mean(1).std(0), alone[:, 0].std(0))
    np.testing.assert_allclose(other.mean(1).std(0), alone[:, 0].std(0) / np.sqrt(2))


def test_linear_errors_have_the_spread_of_reweighted_lesions():
    from sklearn.metrics import roc_auc_score

    fold, rng = fold_of(study(1, lesions=400)), np.random.default_rng(0)
    _, errors = auroc_errors(fold)
    weights = rng.standard_exponential((300, fold.answers.n_lesions))
    given = fold.positives[0], fold.scores[0][0]
    draws = [roc_auc_score(*given, sample_weight=w[fold.lesions[0]]) for w in weights]
    assert errors[:, 0, 0].std() == pytest.approx(np.std(draws), rel=0.15)


def test_the_threshold_comes_from_validation_and_is_read_on_test():
    predictions = study()
    again = answers_at(predictions, 0.8, classes=CLASSES, positive="malignant")
    reached = []
    for (_, _), part in predictions.groupby(["replicate", "arm"]):
        val, test = part[part["split"] == "val"], part[part["split"] == "test"]
        threshold = threshold_at(val.loc[val["label"] == "benign", "p_malignant"].to_numpy(), 0.8)
        mine = again.merge(test[["replicate", "arm", "image_id"]])
        assert (mine["predicted"] == "malignant").tolist() == (test["p_malignant"] > threshold).tolist()
        benign = mine["label"] == "benign"
        reached.append((mine.loc[benign, "predicted"] == "benign").mean())
    table = table_of(predictions, specificity=0.8)
    assert table["specificity_reached"].mean() == pytest.approx(np.mean(reached))
    # moving the test scores cannot move the threshold
    moved = predictions.assign(p_malignant=predictions["p_malignant"] * np.where(predictions["split"] == "test", 0, 1))
    assert (answers_at(moved, 0.8, classes=CLASSES, positive="malignant")["predicted"] == "benign").all()


def test_a_real_gain_is_found_and_corrected_for_the_number_of_arms():
    arms = ("classic", "none", "wgan", "nst")
    predictions = study(5, arms, lesions=300, gain={"wgan": 1.0})
    table = table_of(predictions, synthetic=["wgan", "nst"]).set_index("arm")
    assert table.index[0] == "wgan"
    assert table.loc["wgan", "p_holm"] == pytest.approx(2 * table.loc["wgan", "p_value"])
    assert table.loc["wgan", "auroc_difference_low"] > 0
    assert table.loc["nst", "p_holm"] > 0.05
    assert table.loc[["classic", "none"], "auroc_difference"].isna().all()
    wider = table_of(predictions, synthetic=["wgan", "nst"], tied_baselines=3).set_index("arm")
    assert wider.loc["nst", "auroc_difference_high"] > table.loc["nst", "auroc_difference_high"]
    shown = two_class_texts(table.reset_index()).set_index("arm")
    assert shown.loc["wgan", "auroc"].startswith(f"{table.loc['wgan', 'auroc']:.3f} [0.")
    assert shown.loc["wgan", "auroc difference"].startswith("+0.")
    assert pd.isna(shown.loc["none", "auroc difference"])
    words = two_class_sentence(table.reset_index())
    assert "Arm wgan changes it by +" in words
    assert "1 of 2 arms with synthetic images cannot be told" in words


def test_arms_off_the_pool_lend_their_spread_to_no_difference():
    """A placebo with labels that say nothing is no arm of the comparison: its spread changes nothing."""
    predictions = study(4, (*ARMS, "wrong"), gain={"wrong": -3.0})
    within = table_of(predictions, pool=ARMS).set_index("arm").loc["wgan"]
    alone = table_of(predictions[predictions["arm"] != "wrong"]).set_index("arm").loc["wgan"]
    columns = ["auroc_difference", "auroc_difference_low", "auroc_difference_high", "p_holm"]
    assert within[columns].tolist() == alone[columns].tolist()
    assert table_of(predictions).set_index("arm").loc["wgan", columns].tolist() != alone[columns].tolist()


def test_null_differences_are_rarely_called():
    """60 studies of three replicates without any effect: at most 5 % of calls, within binomial error."""
    called = 0
    for seed in range(60):
        found = auroc_differences(fold_of(study(3, lesions=80, seed=seed)), ["wgan"], "classic")
        called += found["wgan"][0].p_two_sided() <= 0.05
    assert called <= 8  # at a rate of 5 % more than this once in 300 times


def test_studies_with_more_classes_have_a_sentence_and_no_table():
    table = table_of(study(1).assign(p_other=0.0))
    assert table.empty
    assert list(table.columns) == list(COLUMNS)
    assert "more than two classes" in two_class_sentence(table)
    assert two_class_texts(table).empty


def test_degenerate_folds_have_defined_answers():
    one_kind = study(1)
    one_kind = one_kind[(one_kind["label"] == "benign") | (one_kind["split"] == "val")]
    flat = study(2).assign(p_malignant=0.5, p_benign=0.5, predicted="benign")
    perfect = study(2)
    perfect = perfect.assign(p_malignant=perfect["label"].eq("malignant") * 1.0, predicted=perfect["label"])
    gone = study(2)
    gone = gone[(gone["replicate"] == 0) | (gone["arm"] != "wgan")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind, equal, full, part = (table_of(t, positive="malignant") for t in (one_kind, flat, perfect, gone))
    assert kind[["sensitivity", "auroc", "auprc", "auroc_difference"]].isna().all(axis=None)
    assert kind["specificity"].notna().all()
    assert equal[["auroc", "specificity"]].drop_duplicates().to_numpy().tolist() == [[0.5, 1.0]]
    assert equal["sensitivity_fixed"].eq(0).all()
    assert full["auroc"].eq(1).all()
    assert (full["auroc_low"] < 1).all()  # a perfect score on a few lesions is no certainty
    assert full.set_index("arm").loc["wgan", "p_holm"] == 1
    assert part.set_index("arm")["replicates"].to_dict() == {"classic": 2, "none": 2, "wgan": 1}
    assert np.isnan(part.set_index("arm").loc["wgan", "p_value"])


@pytest.mark.parametrize(
    ("change", "knobs", "sentence"),
    [
        (lambda t: t, {"baseline": "best"}, "no arm 'best'"),
        (lambda t: t, {"synthetic": ["gan"]}, "no arm 'gan'"),
        (lambda t: t, {"positive": "other"}, "'other' is not among"),
        (lambda t: t, {"specificity": 90}, "such as 0.9"),
        (lambda t: t, {"confidence": 95}, "confidence is 95"),
        (lambda t: t, {"resamples": 10}, "at least 100"),
        (lambda t: t.assign(p_malignant=np.nan), {}, "no finite numbers"),
        (lambda t: t[t["split"] == "test"], {}, "No validation fold"),
        (lambda t: t.drop(columns="group"), {}, "no column 'group'"),
    ],
)
def test_bad_input_is_a_sentence(change, knobs, sentence):
    with pytest.raises(BadInput, match=sentence):
        table_of(change(study(1)), **knobs)


def test_two_thousand_resamples_of_a_large_study_take_seconds():
    """A tenth of 20 arms x 5 replicates x 2,000 images: the whole must take about a minute."""
    fold = fold_of(study(2, [f"a{i}" for i in range(5)], lesions=2000))
    started = time.process_time()
    resample_precision(fold, resamples=2000, seed=0)
    auroc_errors(fold)
    assert len(fold.positives[0]) > 1500
    assert time.process_time() - started < 6
    assert bootstrap.CHUNK < 2000  # memory stays small
