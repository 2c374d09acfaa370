import functools
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from stda import BadInput
from stda.measure.bootstrap import Estimate, count_fold
from stda.measure.placebos import (
    BAND_COLUMNS,
    COLUMNS,
    _family,
    differences,
    placebo_bands,
    placebo_sentence,
    placebo_table,
)
from stda.measure.verdict import judge, paired_differences

CLASSES = ["DF", "MEL", "NV"]
SKILL = {"classic": 0.6, "wgan": 0.8, "nst": 0.62, "duplicates": 0.62, "wgan-shuffled": 0.45, "oracle": 0.95}
PLACEBOS = {"wgan": ["duplicates", "wgan-shuffled"], "nst": ["duplicates"]}


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def predictions(replicates=4, skill=SKILL, n=90, seed=0):
    rng, parts = np.random.default_rng(seed), []
    label = np.resize(CLASSES, n)
    wrong = np.roll(label, 1)
    for r in range(replicates):
        for arm, right in skill.items():
            for split in ("val", "test"):
                answer = np.where(rng.random(n) < right, label, wrong)
                part = pd.DataFrame({"label": label, "predicted": answer, "split": split})
                part["image_id"] = [f"{split}{r}-{i}" for i in range(n)]
                parts.append(part.assign(replicate=r, arm=arm, group=[f"{split}{r}-{i // 2}" for i in range(n)]))
    return pd.concat(parts, ignore_index=True)


@functools.cache
def usual():
    return predictions()


def compared(table=None, placebos=PLACEBOS, oracles=("oracle",), **knobs):
    return placebo_table(usual() if table is None else table, placebos, oracles, **{"resamples": 100, **knobs})


def test_every_arm_is_held_against_its_placebos_and_the_oracle():
    found = compared()
    assert found.columns.tolist() == list(COLUMNS)
    assert list(zip(found["arm"], found["against"], found["kind"], strict=True)) == [
        ("wgan", "duplicates", "placebo"),
        ("wgan", "wgan-shuffled", "placebo"),
        ("wgan", "oracle", "oracle"),
        ("nst", "duplicates", "placebo"),
        ("nst", "oracle", "oracle"),
    ]
    assert found["shown"].tolist() == ["above", "above", "below", "not told apart", "below"]
    assert found["replicates"].eq(4).all()


def test_a_difference_is_the_mean_of_paired_scores():
    table = usual()
    test = table[table["split"] == "test"].groupby(["replicate", "arm"])
    score = test.apply(lambda t: balanced_accuracy_score(t["label"], t["predicted"])).unstack()
    found = compared(table)
    expected = [(score[row.arm] - score[row.against]).mean() for row in found.itertuples()]
    np.testing.assert_allclose(found["difference"], expected)


def test_placebos_and_oracles_are_families_of_their_own():
    found = compared()
    for _, family in found.groupby("kind"):
        ordered = np.sort(family["p_value"].to_numpy())
        stepped = np.minimum(1, np.maximum.accumulate(ordered * np.arange(len(ordered), 0, -1)))
        np.testing.assert_allclose(np.sort(family["p_holm"]), stepped)
    assert found["level"].min() >= 0.95 - 1e-12
    outside = (found["low"] > 0) | (found["high"] < 0)
    assert outside.tolist() == (found["p_holm"] <= 0.05).tolist() == (found["shown"] != "not told apart").tolist()
    alone = compared(oracles=())
    pd.testing.assert_frame_equal(alone, found[found["kind"] == "placebo"].reset_index(drop=True))


def test_against_the_verdict_with_the_placebo_as_the_only_baseline():
    """One placebo and one synthetic arm: the same difference, p-value and interval as a verdict against it."""
    table = predictions(skill={"duplicates": 0.62, "wgan": 0.7})
    own = compared(table, {"wgan": ["duplicates"]}, []).iloc[0]
    judged = judge(table, ["wgan"], resamples=100).iloc[0]
    for column in ("difference", "low", "high", "p_value", "p_holm"):
        assert own[column] == pytest.approx(judged[column])


def test_against_the_differences_of_the_verdict():
    """The same estimates as paired_differences, one opponent at a time; the pool is what the spread is taken over."""
    fold = count_fold(usual(), "test")
    for pool in (None, ["classic", "wgan", "duplicates"]):
        found = differences(usual(), ["wgan", "nst"], "duplicates", resamples=100, seed=3, pool=pool)
        knobs = {"resamples": 100, "seed": 3, "pool": pool}
        expected = paired_differences(fold, ["wgan", "nst"], "duplicates", "balanced_accuracy", **knobs)
        for row, (e, n) in zip(found.itertuples(), expected.values(), strict=True):
            assert (row.difference, row.low, row.high, row.replicates) == (e.mean, *e.interval(0.95), n)


def test_bands_are_differences_to_the_baseline():
    table = usual()
    bands = placebo_bands(table, "classic", PLACEBOS, ["oracle"], resamples=100)
    assert bands.columns.tolist() == list(BAND_COLUMNS)
    assert bands["against"].tolist() == ["duplicates", "wgan-shuffled", "duplicates", "oracle", "oracle"]
    plain = differences(table, ["duplicates", "wgan-shuffled", "oracle"], "classic", resamples=100).set_index("arm")
    for row in bands.itertuples():
        assert (row.difference, row.low, row.high) == tuple(plain.loc[row.against, ["difference", "low", "high"]])
    assert bands.loc[3, "low"] > 0
    assert "duplicates" not in placebo_bands(table, "duplicates", PLACEBOS, [], resamples=100)["against"].tolist()


def test_differences_of_no_arm_are_an_empty_table():
    assert differences(predictions(), [], "classic").columns.tolist()[:2] == ["arm", "baseline"]


def test_the_sentence_names_what_was_beaten_and_what_was_not():
    said = placebo_sentence(compared(), ["wgan", "nst"])
    assert "wgan beats all of its placebos (duplicates, wgan-shuffled) and stays below the oracle (oracle)." in said
    assert "nst does not beat all of its placebos: it is not told apart from duplicates, and stays below" in said


def test_an_arm_above_the_oracle_is_suspicious():
    table = predictions(skill={**SKILL, "oracle": 0.4})
    assert "suspicious" in placebo_sentence(compared(table), ["wgan", "nst"])
    equal = predictions(skill={**SKILL, "oracle": 0.8})
    assert "not told apart from the oracle" in placebo_sentence(compared(equal), ["wgan"])


def test_an_arm_worse_than_its_placebo_is_called_so():
    table = predictions(skill={**SKILL, "duplicates": 0.95})
    assert "is worse than duplicates" in placebo_sentence(compared(table), ["wgan"])


def test_without_placebos_the_sentence_says_that_nothing_was_tested():
    empty = compared(placebos={"wgan": [], "nst": []}, oracles=())
    assert len(empty) == 0
    assert empty.columns.tolist() == list(COLUMNS)
    assert "No placebo was run" in placebo_sentence(empty, ["wgan", "nst"])
    assert "there is no claim" in placebo_sentence(empty, [])
    some = placebo_sentence(compared(placebos={"wgan": ["duplicates"], "nst": []}, oracles=()), ["wgan", "nst"])
    assert "Arm nst was not tested against placebos." in some


def test_one_replicate_tells_nothing_apart():
    found = compared(predictions(1))
    assert found["shown"].eq("not told apart").all()
    assert found[["p_value", "p_holm"]].isna().all(axis=None)
    assert "One replicate tells nothing apart" in placebo_sentence(found, ["wgan", "nst"])


def test_impossible_requests_are_sentences():
    with pytest.raises(BadInput, match="cannot be its own placebo"):
        compared(placebos={"wgan": ["wgan"]})
    with pytest.raises(BadInput, match="share no replicate"):
        compared(placebos={"wgan": ["never-run"]})
    with pytest.raises(BadInput, match="cannot be resampled"):
        compared(metric="auroc")


def test_a_placebo_is_called_beaten_in_few_studies_where_nothing_differs():
    """2,000 studies of six comparisons whose truth is zero: any false call in at most 5 %, three errors allowed."""
    rng, pairs = np.random.default_rng(0), [(arm, against) for arm in "abc" for against in "xy"]
    false = []
    for means in 0.01 * rng.standard_t(4, (2000, 6)):
        rows = _family([(Estimate(m, 0.01, 4.0), 5) for m in means], pairs, "placebo", "accuracy", 0.05)
        false.append(any(row["shown"] != "not told apart" for row in rows))
    assert np.mean(false) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
    assert np.mean(false) > 0.03  # nor is it blind
