import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stda import BadInput, measure
from stda.measure.attention import COLUMNS

KNOBS = {"baseline": "plain", "resamples": 500, "seed": 1}


def study(shifts, *, replicates=4, n=40, spread=0.01, noise=0.1, methods=("deep_taylor",), seed=0):
    """Gains of every arm on the same images of a replicate; ``shifts`` is what an arm adds to the lesion's own gain."""
    rng, parts = np.random.default_rng(seed), []
    own = rng.normal(0.2, 0.15, 200)
    for r in range(replicates):
        lesions = rng.choice(200, n, replace=False)
        for arm, shift in shifts.items():
            for method in methods:
                gain = own[lesions] + shift + rng.normal(0, spread) + rng.normal(0, noise, n)
                table = pd.DataFrame({"image_id": [f"i{k}" for k in lesions], "group": [f"g{k}" for k in lesions]})
                label = [f"c{k % 3}" for k in lesions]
                parts.append(table.assign(replicate=r, arm=arm, method=method, label=label, gain=gain))
    return pd.concat(parts, ignore_index=True)


THREE = {"plain": 0.0, "classic": 0.0, "wgan": 0.15, "nst": -0.15, "dcgan": 0.0}
JUDGED = ["wgan", "nst", "dcgan"]


def test_an_arm_that_looks_more_one_that_looks_less_and_one_that_does_not_differ():
    found = measure.attention_table(study(THREE), synthetic=JUDGED, smallest_difference=0.05, **KNOBS)
    assert found.columns.tolist() == list(COLUMNS)
    assert found["arm"].tolist() == JUDGED
    assert found["answer"].tolist() == ["more", "less", "equivalent"]
    assert found["difference"].tolist() == pytest.approx([0.15, -0.15, 0.0], abs=0.06)
    assert found["what"].eq("lesion").all()
    assert found[["replicates", "images", "left_out"]].to_numpy().tolist() == [[4, 160, 0]] * 3
    assert ((found["low"] < found["difference"]) & (found["difference"] < found["high"])).all()
    text = measure.attention_sentence(found)
    assert "more for wgan by deep_taylor (+1" in text
    assert "less for nst by deep_taylor (-1" in text
    assert "equivalent for dcgan" in text


def test_the_difference_is_the_paired_mean():
    table = study({"plain": 0.0, "wgan": 0.1}, replicates=2, n=7)
    wide = table.pivot(index=["replicate", "image_id"], columns="arm", values="gain")
    own = (wide["wgan"] - wide["plain"]).groupby("replicate").mean().mean()
    found = measure.attention_table(table, synthetic=["wgan"], **KNOBS)
    assert found["difference"][0] == pytest.approx(own, rel=1e-12)


def test_a_wide_spread_over_replicates_gives_the_t_interval_of_the_replicates():
    table = study({"plain": 0.0, "wgan": 0.0}, replicates=3, spread=0.1, noise=1e-6)
    wide = table.pivot(index=["replicate", "image_id"], columns="arm", values="gain")
    means = (wide["wgan"] - wide["plain"]).groupby("replicate").mean()
    low, high = stats.t.interval(0.9, 2, means.mean(), means.std() / np.sqrt(3))
    found = measure.attention_table(table, synthetic=["wgan"], confidence=0.9, **KNOBS)
    assert found[["low", "high"]].to_numpy()[0] == pytest.approx([low, high], rel=1e-4)
    assert found["p_value"][0] == pytest.approx(stats.ttest_1samp(means, 0).pvalue, rel=1e-4)


def test_one_replicate_shows_the_lesions_only_and_decides_nothing():
    table = study({"plain": 0.0, "wgan": 0.5}, replicates=1, n=90)
    table.loc[(table["arm"] == "wgan") & (table["label"] == "c0"), "gain"] += 1.0
    found = measure.attention_table(table, synthetic=["wgan"], **(KNOBS | {"resamples": 5000})).iloc[0]
    wide = table.pivot(index=["label", "image_id"], columns="arm", values="gain")
    difference = wide["wgan"] - wide["plain"]
    inner = (difference - difference.groupby("label").transform("mean")).std(ddof=0)  # classes keep their share
    assert found["answer"] == "undecided"
    assert found["evidence"] == "lesions only"
    assert np.isnan(found["p_value"])
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * inner / np.sqrt(90), rel=0.05)
    text = measure.attention_sentence(found.to_frame().T)
    assert "undecided in 1 of 1 comparisons" in text
    assert "one replicate decides nothing" in text


def test_the_family_is_all_of_the_table():
    table = study({"plain": 0.0, "wgan": 0.03, "nst": 0.0}, methods=("a", "b", "c"), noise=0.05)
    found = measure.attention_table(table, synthetic=["wgan", "nst"], smallest_difference=0.0, **KNOBS)
    assert found[["method", "arm"]].to_numpy().tolist() == [[m, arm] for m in "abc" for arm in ("wgan", "nst")]
    order = found["p_value"].sort_values().index
    stepped = np.maximum.accumulate(found["p_value"][order] * np.arange(6, 0, -1)).clip(upper=1.0)
    assert found["p_holm"][order].tolist() == pytest.approx(stepped.tolist())
    outside = (found["low"] > 0) | (found["high"] < 0)
    assert (outside == (found["p_holm"] <= 0.05)).all()
    assert found["p_equivalence"].eq(1.0).all()  # no smallest difference: nothing is called equivalent
    assert set(found["answer"]) <= {"more", "less", "no difference seen"}


def test_artefacts_are_compared_one_by_one_by_what_they_drew():
    parts = []
    for kind, shift in (("hair", 0.0), ("ruler", 0.2)):
        gains = study({"plain": 0.0, "wgan": shift}, seed=4)
        parts.append(gains.rename(columns={"gain": "drawn_in"}).assign(artefact=kind, gain=9.0))
    found = measure.attention_table(pd.concat(parts), synthetic=["wgan"], **KNOBS).set_index("what")
    assert found.loc["ruler", "answer"] == "more"
    assert found.loc["hair", "answer"] != "more"
    assert "Relevance drawn to ruler, against arm plain: more for wgan" in measure.attention_sentence(
        found.reset_index()
    )


def test_maps_without_positive_relevance_leave_with_their_pair():
    table = study({"plain": 0.0, "wgan": 0.1}, replicates=2, n=20)
    table.loc[[0, 25], "gain"] = np.nan  # rows 0 to 19 are the baseline's, 20 to 39 the arm's
    found = measure.attention_table(table, synthetic=["wgan"], **KNOBS).iloc[0]
    assert (found["images"], found["left_out"], found["replicates"]) == (38, 2, 2)
    wide = table.pivot(index=["replicate", "image_id"], columns="arm", values="gain")
    own = (wide["wgan"] - wide["plain"]).dropna().groupby("replicate").mean().mean()
    assert found["difference"] == pytest.approx(own, rel=1e-12)
    table["gain"] = table["gain"].where(table["replicate"] == 1)  # a whole replicate without a share
    found = measure.attention_table(table, synthetic=["wgan"], **KNOBS).iloc[0]
    assert (found["images"], found["left_out"], found["replicates"]) == (20, 20, 1)


def test_arms_that_never_met_the_baseline_are_not_compared():
    table = study({"plain": 0.0, "wgan": 0.0, "nst": 0.0}, replicates=4)
    table = table[(table["arm"] != "nst") | (table["replicate"] > 1)]
    some = table[(table["arm"] != "plain") | (table["replicate"] < 2)]  # the baseline is explained in 0 and 1 only
    found = measure.attention_table(some, synthetic=["wgan", "nst", "gone"], **KNOBS)
    assert found["replicates"].tolist() == [2, 0, 0]
    assert found["answer"].tolist()[1:] == ["not compared"] * 2
    assert found.loc[1:, ["difference", "low", "high", "p_holm", "level"]].isna().all(axis=None)
    assert found["level"][0] == 0.95  # what was not compared is no member of the family
    text = measure.attention_sentence(found)
    assert "comparisons; not compared: nst, gone. Not compared is an arm that was never" in text


def test_a_baseline_that_was_not_explained_is_said():
    table = study({"classic": 0.0, "wgan": 0.0})
    found = measure.attention_table(table, synthetic=["wgan"], **KNOBS)
    assert found["answer"].tolist() == ["not compared"]
    assert "against arm plain: not compared: wgan. Not compared is" in measure.attention_sentence(found)


@pytest.mark.parametrize(("rows", "synthetic"), [(0, ["wgan"]), (9, [])])
def test_nothing_to_compare_is_a_sentence(rows, synthetic):
    empty = measure.attention_table(study(THREE).iloc[:rows], synthetic=synthetic, **KNOBS)
    assert len(empty) == 0
    assert empty.columns.tolist() == list(COLUMNS)
    assert "nothing to compare" in measure.attention_sentence(empty)


def test_tables_can_be_joined():
    full = measure.attention_table(study(THREE), synthetic=JUDGED, **KNOBS)
    empty = measure.attention_table(study(THREE).iloc[:0], synthetic=JUDGED, **KNOBS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = pd.concat([empty, full], ignore_index=True)
    pd.testing.assert_frame_equal(both, full)


def test_maps_that_are_all_the_same_do_not_differ():
    table = study({"plain": 0.0, "wgan": 0.0}, replicates=3)
    table["gain"] = table["group"].str[1:].astype(float) / 1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure.attention_table(table, synthetic=["wgan"], **KNOBS).iloc[0]
        none = measure.attention_table(table, synthetic=["wgan"], smallest_difference=0, **KNOBS).iloc[0]
    assert (found["difference"], found["low"], found["high"], found["answer"]) == (0, 0, 0, "equivalent")
    assert (none["p_value"], none["answer"]) == (1.0, "no difference seen")


def test_methods_that_contradict_each_other_are_said():
    up, down = study({"plain": 0.0, "wgan": 0.2}), study({"plain": 0.0, "wgan": -0.2}, methods=("gradient",))
    found = measure.attention_table(pd.concat([up, down]), synthetic=["wgan"], **KNOBS)
    assert found["answer"].tolist() == ["more", "less"]
    assert "contradict each other on wgan" in measure.attention_sentence(found)


def test_only_the_pooled_arms_lend_their_spread():
    table = study({"plain": 0.0, "wgan": 0.0, "nst": 0.0, "quarter": 0.0}, spread=0.002, noise=0.01)
    wild = (table["arm"] == "quarter") & (table["replicate"] > 1)
    table.loc[wild, "gain"] += 0.5
    alone = measure.attention_table(table, synthetic=["wgan"], pool=["plain", "wgan", "nst"], **KNOBS)
    everyone = measure.attention_table(table, synthetic=["wgan"], **KNOBS)
    assert everyone["high"][0] - everyone["low"][0] > 5 * (alone["high"][0] - alone["low"][0])


def test_bad_input_is_one_sentence():
    table = study({"plain": 0.0, "wgan": 0.0}, replicates=2)
    for change, said in (
        ({"synthetic": ["plain"]}, "judged against itself"),
        ({"confidence": 0.2}, "confidence is 0.2"),
        ({"resamples": 10}, "resamples is 10"),
        ({"smallest_difference": -1}, "smallest_difference is -1"),
    ):
        with pytest.raises(BadInput, match=said):
            measure.attention_table(table, **(KNOBS | {"synthetic": ["wgan"]} | change))
    with pytest.raises(BadInput, match="no column 'gain'"):
        measure.attention_table(table.drop(columns="gain"), synthetic=["wgan"], **KNOBS)
    with pytest.raises(BadInput, match="not explained on the same images"):
        measure.attention_table(table.iloc[1:], synthetic=["wgan"], **KNOBS)
    with pytest.raises(BadInput, match="two maps of one image"):
        measure.attention_table(pd.concat([table, table.iloc[:1]]), synthetic=["wgan"], **KNOBS)
    moved = table.assign(group=table["group"].where(table["arm"] == "plain", "another"))
    with pytest.raises(BadInput, match="not explained on the same images"):
        measure.attention_table(moved, synthetic=["wgan"], **KNOBS)


def test_false_answers_are_rare_without_a_difference():
    wrong = 0
    for k in range(60):
        table = study(dict.fromkeys(THREE, 0.0), replicates=3, n=20, spread=0.02, seed=k)
        found = measure.attention_table(table, synthetic=JUDGED, **(KNOBS | {"resamples": 100, "seed": k}))
        wrong += bool((found["p_holm"] <= 0.05).any())
    assert wrong <= stats.binom.ppf(0.999, 60, 0.05)
