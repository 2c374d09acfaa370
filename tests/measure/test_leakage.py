import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm, ttest_ind_from_stats
from sklearn.metrics import balanced_accuracy_score, recall_score

from stda import BadInput
from stda.measure import inflation_sentence, inflation_table, leaked_share
from stda.measure.bootstrap import Estimate
from stda.measure.leakage import ALL_CLASSES, INFLATION_COLUMNS, _welch

CLASSES = {"DF": 40, "MEL": 120, "NV": 240}  # images of each, two of a lesion


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def study(seed, *, replicates=4, arms=("classic", "wgan"), right=0.6, gain=(), luck=0.03, by="group", spread=1.0):
    """Each replicate tests a fresh third of the lesions (or of the images); ``gain`` is what a leak adds to a class."""
    rng, lesions = np.random.default_rng(seed), np.random.default_rng(99)
    table = pd.DataFrame({"label": np.repeat(list(CLASSES), list(CLASSES.values()))})
    table["image_id"] = [f"i{k:04d}" for k in range(len(table))]
    table["group"] = [f"L{k // 2:04d}" for k in range(len(table))]
    hard = np.repeat(lesions.normal(0, 0.15 * spread, len(table) // 2), 2)  # the same lesions in every study
    other = dict(zip(CLASSES, np.roll(list(CLASSES), 1), strict=True))
    parts = []
    for r in range(replicates):
        unit = table["image_id"] if by == "image" else table["group"]
        taken = unit.map(dict(zip(unit.unique(), rng.random(unit.nunique()) < 1 / 3, strict=True))).to_numpy()
        for arm in arms:
            chance = right + hard + rng.normal(0, luck) + table["label"].map(dict(gain)).fillna(0).to_numpy()
            hit = rng.random(len(table)) < chance
            answers = np.where(hit, table["label"], table["label"].map(other))
            parts.append(table.assign(replicate=r, arm=arm, split="test", predicted=answers)[taken])
    return pd.concat(parts, ignore_index=True)


def test_scores_and_their_difference_are_those_of_a_public_library():
    honest, leaky = study(0), study(1, replicates=3, by="image")
    table = inflation_table(honest, leaky, ["wgan"], resamples=100)
    assert table.columns.tolist() == list(INFLATION_COLUMNS)
    assert table["class"].tolist() == [ALL_CLASSES, *CLASSES]
    for part, column in ((honest, "honest"), (leaky, "leaky")):
        runs = [rows for _, rows in part[part["arm"] == "wgan"].groupby("replicate")]
        recalls = np.mean(
            [recall_score(t["label"], t["predicted"], labels=list(CLASSES), average=None) for t in runs], 0
        )
        overall = np.mean([balanced_accuracy_score(t["label"], t["predicted"]) for t in runs])
        np.testing.assert_allclose(table[column], [overall, *recalls])
    np.testing.assert_allclose(table["inflation"], table["leaky"] - table["honest"])
    assert (table["replicates_honest"] == 4).all()
    assert (table["replicates_leaky"] == 3).all()
    assert (table["evidence"] == "replicates and lesions").all()


@pytest.mark.parametrize(("ns", "sds"), [((4, 4), (1.0, 1.0)), ((2, 9), (0.1, 0.7)), ((12, 3), (2.0, 0.0))])
def test_without_common_lesions_it_is_welchs_test(ns, sds):
    halves = [Estimate(m, sd / np.sqrt(n), n - 1) for m, sd, n in zip((0.2, 0.9), sds, ns, strict=True)]
    found = _welch(halves, shared=0.0, floor=0.0)
    wanted = ttest_ind_from_stats(0.9, sds[1], ns[1], 0.2, sds[0], ns[0], equal_var=False)
    assert found.mean == pytest.approx(0.7)
    assert found.p_two_sided() == pytest.approx(wanted.pvalue)


def one_image_lesions(prefix, n, hits):
    labels = np.repeat(["a", "b"], n)
    table = pd.DataFrame({"label": labels, "predicted": labels, "replicate": 0, "arm": "x", "split": "test"})
    table["image_id"] = table["group"] = [f"{prefix}{k}" for k in range(2 * n)]
    table.loc[hits : n - 1, "predicted"] = "b"
    return table


def test_one_replicate_has_the_closed_form_of_its_lesions():
    # the Bayesian bootstrap of a share p of n lesions has variance p (1 - p) / (n + 1)
    honest, leaky = one_image_lesions("h", 50, 20), one_image_lesions("l", 80, 60)
    row = inflation_table(honest, leaky, ["x"], resamples=20_000).set_index("class").loc["a"]
    error = np.sqrt(0.4 * 0.6 / 51 + 0.75 * 0.25 / 81)
    width = norm.ppf((1 + row["level"]) / 2) * error
    assert row["inflation"] == pytest.approx(0.35)
    assert row["high"] - row["inflation"] == pytest.approx(width, rel=0.03)
    assert row["evidence"] == "lesions only"
    assert row["verdict"] == "undecided"  # although its interval leaves out zero
    assert row["low"] > 0
    assert np.isnan(row["p_value"])


def test_common_lesions_cancel_down_to_half_a_lesion_a_side():
    honest = one_image_lesions("h", 50, 20)
    row = inflation_table(honest, honest, ["x"], resamples=200).set_index("class").loc["a"]
    assert row["inflation"] == 0
    floor = np.sqrt(2) * (1 / 50) / 2
    assert row["high"] == pytest.approx(norm.ppf((1 + row["level"]) / 2) * floor)
    assert row["low"] == pytest.approx(-row["high"])


def test_no_p_value_is_below_welchs_own_for_the_replicates():
    for seed in range(5):
        honest, leaky = study(seed, arms=("a",), luck=0.08), study(100 + seed, arms=("a",), luck=0.08, by="image")
        row = inflation_table(honest, leaky, ["a"], resamples=100).iloc[0]
        scores = [
            [balanced_accuracy_score(t["label"], t["predicted"]) for _, t in part.groupby("replicate")]
            for part in (leaky, honest)
        ]
        error = np.sqrt(sum(np.var(s, ddof=1) / len(s) for s in scores))
        e = Estimate(row["inflation"], error, 6.0)  # Welch's degrees of freedom are at most n + m - 2
        assert row["p_value"] >= e.p_two_sided()


def test_a_leak_is_found_where_it_is():
    honest, leaky = study(0, replicates=6), study(1, replicates=6, gain={"MEL": 0.35, "NV": -0.3}, by="image")
    table = inflation_table(honest, leaky, ["classic", "wgan"], confidence=0.9)
    for _, rows in table.groupby("arm"):
        called = rows.set_index("class")["verdict"]
        assert called[["DF", "MEL", "NV"]].tolist() == ["undecided", "inflated", "deflated"]
        excluded = (rows["low"] > 0) | (rows["high"] < 0)
        assert (excluded == (rows["verdict"] != "undecided")).all()
        assert ((rows["p_holm"] <= 0.1) == excluded).all()
        assert (rows["p_holm"] >= rows["p_value"]).all()
        assert rows["level"].iloc[0] == pytest.approx(0.9)  # the score over all classes is a question of its own
        assert rows["level"].iloc[1:].max() > 0.9
    words = inflation_sentence(table, arm="wgan")
    assert "inflated: MEL (+" in words
    assert "deflated: NV (-" in words


def test_without_a_leak_hardly_anything_is_called():
    n, calls = 50, {"overall": 0, "classes": 0}
    for seed in range(n):
        honest = study(2 * seed, replicates=3, arms=("a",), luck=0.05)
        leaky = study(2 * seed + 1, replicates=3, arms=("a",), luck=0.05, by="image")
        called = inflation_table(honest, leaky, ["a"], resamples=100, seed=seed)["verdict"] != "undecided"
        calls["overall"] += called.iloc[0]
        calls["classes"] += called.iloc[1:].any()
    most = binom.ppf(0.999, n, 0.05)  # what a true rate of 5 % stays within
    assert max(calls.values()) <= most, calls


def test_a_class_that_one_study_never_tests_is_not_asked():
    honest, leaky = study(0), study(1, by="image")
    leaky = leaky[leaky["label"] != "DF"]
    table = inflation_table(honest, leaky, ["wgan"], resamples=100).set_index("class")
    assert table.loc["DF", ["leaky", "inflation", "low", "high", "p_value", "level"]].isna().all()
    assert table.loc["DF", ["verdict", "evidence", "replicates_leaky"]].tolist() == ["undecided", "none", 0]
    assert table.loc[["MEL", "NV"], "level"].max() <= 0.975  # Holm over two classes, not three
    assert "undecided" in inflation_sentence(table.reset_index(), arm="wgan")


def test_one_replicate_on_one_side_decides_nothing():
    table = inflation_table(study(0), study(1, replicates=1, gain={"MEL": 0.4}), ["wgan"], resamples=100)
    assert (table["verdict"] == "undecided").all()
    assert (table["evidence"] == "lesions only").all()
    assert table["p_holm"].isna().all()
    assert np.isfinite(table[["low", "high"]]).all(axis=None)
    assert "one decides nothing" in inflation_sentence(table, arm="wgan")


def test_the_leaked_share_is_what_a_person_counts():
    rows = [("1", "a", "L1", "train"), ("2", "a", "L1", "test"), ("3", "a", "L2", "val"), ("4", "a", "L2", "test")]
    rows += [("5", "b", "L3", "test"), ("6", "b", "L3", "held-back"), ("7", "b", "L4", "train")]
    one = pd.DataFrame(rows, columns=["image_id", "label", "group", "split"])
    two = one.assign(split=["train", "test", "train", "test", "train", "test", "train"])
    shares = leaked_share([one, two])
    assert shares["class"].tolist() == ["a", "b", ALL_CLASSES]
    np.testing.assert_allclose(shares["leaked_share"], [(0.5 + 1) / 2, (0 + 1) / 2, (1 / 3 + 1) / 2])
    np.testing.assert_allclose(shares["test_images"], [2, 1, 3])
    with pytest.raises(BadInput, match=r"table\.csv"):
        leaked_share([])


def test_the_share_stands_beside_the_inflation():
    shares = pd.DataFrame({"class": [*CLASSES, ALL_CLASSES], "leaked_share": [0.1, 0.2, 0.6, 0.5]})
    honest, leaky = study(0), study(1, gain={"MEL": 0.1, "NV": 0.3})
    table = inflation_table(honest, leaky, ["wgan"], leaked=shares, resamples=100)
    np.testing.assert_allclose(table["leaked_share"], [0.3, 0.1, 0.2, 0.6])  # balanced: the mean over classes
    accuracy = inflation_table(honest, leaky, ["wgan"], leaked=shares, metric="accuracy", resamples=100)
    assert accuracy["leaked_share"].iloc[0] == 0.5
    rank = table["inflation"].iloc[1:].rank().corr(table["leaked_share"].iloc[1:].rank())
    assert f"rank correlation of {rank:+.2f}" in inflation_sentence(table, arm="wgan")
    assert "rank" not in inflation_sentence(inflation_table(honest, leaky, ["wgan"], resamples=100), arm="wgan")


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"arms": ["nst"]}, r"honest study has the arms .* not \['nst'\]"),
        ({"arms": []}, "none at all"),
        ({"metric": "auroc"}, "is one of"),
        ({"confidence": 1.0}, "confidence is 1"),
        ({"resamples": 10}, "resamples is 10"),
    ],
)
def test_what_cannot_be_is_refused(knobs, said):
    with pytest.raises(BadInput, match=said):
        inflation_table(study(0), study(1), **{"arms": ["wgan"], **knobs})


def test_studies_of_other_images_are_refused():
    honest, leaky = study(0), study(1)
    with pytest.raises(BadInput, match="another lesion or class"):
        inflation_table(honest, leaky.assign(group="L"), ["wgan"])
    with pytest.raises(BadInput, match="no arm 'x'"):
        inflation_sentence(inflation_table(honest, leaky, ["wgan"], resamples=100), arm="x")
