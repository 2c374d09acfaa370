import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from stda import BadInput, measure

CLASSES = np.array(["a", "b", "c"])


def answers(n=300, seed=0):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"image_id": [f"i{k:04d}" for k in range(n)], "group": [f"g{k // 2}" for k in range(n)]})
    label = rng.choice(CLASSES, n, p=[0.6, 0.3, 0.1])
    predicted = np.where(rng.random(n) < 0.7, label, rng.choice(CLASSES, n))
    return table.assign(split="test", label=label, predicted=predicted)


def moved(before, share, *, to="b", seed=1):
    """The same answers, of which about this share become ``to``."""
    change = np.random.default_rng(seed).random(len(before)) < share
    return before.assign(predicted=np.where(change, to, before["predicted"]))


BEFORE = answers()
AFTER = {
    "hair": moved(BEFORE, 0.4),
    "ruler": BEFORE,
    "light like hair": moved(BEFORE, 0.05, to="a"),
    "light like ruler": moved(BEFORE, 0.3),
}


def test_rates_changes_and_movers_against_brute_force():
    table = measure.switch_table(measure.switches(BEFORE, AFTER)).set_index("altered")
    for name, after in AFTER.items():
        row = table.loc[name]
        assert row["switched"] == pytest.approx((after["predicted"] != BEFORE["predicted"]).mean())
        scores = [balanced_accuracy_score(t["label"], t["predicted"]) for t in (after, BEFORE)]
        assert row["change"] == pytest.approx(scores[0] - scores[1])
        assert row["low"] <= row["switched"] <= row["high"]
        assert row["change_low"] <= row["change"] <= row["change_high"]
    net = (AFTER["hair"]["predicted"] == "b").sum() - (BEFORE["predicted"] == "b").sum()
    assert (table.loc["hair", "toward"], table.loc["hair", "gain"]) == ("b", net)
    assert (table.loc["ruler", "toward"], table.loc["ruler", "gain"]) == ("none", 0)


def test_the_light_is_the_scale():
    table = measure.switch_table(measure.switches(BEFORE, AFTER)).set_index("altered")
    assert table.loc["hair", "light"] == table.loc["light like hair", "switched"]
    assert table.loc["hair", "beyond"] == pytest.approx(table.loc["hair", "switched"] - table.loc["hair", "light"])
    assert table.loc["hair", "beyond_low"] > 0
    assert table.loc["ruler", "beyond_high"] < 0
    assert table.loc["light like hair", ["light", "beyond"]].isna().all()
    text = measure.disturbed_sentence(table.reset_index())
    assert "More answers switch than under as strong a light with: hair" in text
    assert "Fewer with: ruler" in text


def test_the_order_of_the_rows_does_not_matter():
    table = measure.switches(BEFORE, AFTER)
    one, other = (measure.switch_table(t) for t in (table, table.sample(frac=1, random_state=0)))
    pd.testing.assert_frame_equal(one, other.set_index("altered").loc[one["altered"]].reset_index())


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_the_difference_to_the_light_keeps_its_level(share):
    """Two alterations that switch alike are told apart in about 5 % of studies, lesions as clusters, also when rare."""
    called = 0
    for seed in range(150):
        before = answers(120, seed)
        after = {"x": moved(before, share, seed=seed + 500), "light like x": moved(before, share, seed=seed + 900)}
        row = measure.switch_table(measure.switches(before, after), resamples=200).iloc[0]
        called += row["beyond_low"] > 0 or row["beyond_high"] < 0
    assert called <= 17


def test_a_few_switched_images_against_none_decide_nothing():
    """Exact sign test: 3 lesions to 0 has p 0.25, 9 to 0 has 0.004."""
    for count, shown in ((1, False), (3, False), (9, True)):
        places = np.flatnonzero(BEFORE["predicted"] != "c")[::4][:count]
        after = BEFORE.assign(predicted=np.where(np.isin(np.arange(len(BEFORE)), places), "c", BEFORE["predicted"]))
        row = measure.switch_table(measure.switches(BEFORE, {"x": after, "light like x": BEFORE})).iloc[0]
        assert row["switched"] == row["beyond"] == pytest.approx(count / len(BEFORE))
        assert (row["beyond_low"] > 0) == shown


def test_degenerate_answers_have_rates():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = BEFORE.iloc[:1]
        row = measure.switch_table(measure.switches(one, {"hair": one})).iloc[0]
        assert (row["switched"], row["change"], row["toward"]) == (0, 0, "none")
        assert row["high"] > 0.5  # one picture says little


def test_bad_input_is_a_sentence():
    with pytest.raises(BadInput, match="other pictures"):
        measure.switches(BEFORE, {"hair": BEFORE.iloc[::-1]})
    with pytest.raises(BadInput, match="No alteration"):
        measure.switches(BEFORE, {})
    with pytest.raises(BadInput, match="no column"):
        measure.switch_table(BEFORE)


# ----------------------------------------------------------------------------------------------------------------- arms


def study(rates, n_replicates=3):
    """Switches of arms whose answers to inserted hair change with these rates."""
    parts = []
    for r in range(n_replicates):
        before = answers(200, seed=r)
        for k, (arm, rate) in enumerate(rates.items()):
            after = {
                "hair": moved(before, rate, seed=31 * r + k),
                "light like hair": moved(before, 0.05, seed=77 * r + k),
            }
            parts.append(measure.switches(before, after).assign(replicate=r, arm=arm))
    return pd.concat(parts, ignore_index=True)


def test_arms_are_compared_in_pairs():
    table = study({"balanced": 0.1, "wgan": 0.6, "dcgan": 0.1})
    rates = measure.switch_rates(table, baseline="balanced").set_index("arm")
    assert rates["than_baseline"].to_dict() == {"balanced": "is the baseline", "wgan": "more", "dcgan": "undecided"}
    for arm, part in table[table["altered"] == "hair"].groupby("arm"):
        own = part.groupby("replicate").apply(lambda t: (t["before"] != t["after"]).mean(), include_groups=False)
        assert rates.loc[arm, "switched"] == pytest.approx(own.mean())
    assert rates.loc["wgan", "difference"] == pytest.approx(
        rates.loc["wgan", "switched"] - rates.loc["balanced", "switched"]
    )
    assert rates.loc["wgan", "light"] < 0.1
    assert "wgan under hair" in measure.switch_sentence(rates.reset_index())


def test_one_replicate_decides_nothing():
    rates = measure.switch_rates(study({"balanced": 0.0, "wgan": 0.9}, 1), baseline="balanced")
    assert rates["than_baseline"].tolist() == ["is the baseline", "undecided"]
    assert rates["replicates"].eq(1).all()
    assert "one decides nothing" in measure.switch_sentence(rates)
    several = measure.switch_sentence(measure.switch_rates(study({"balanced": 0.9, "wgan": 0.0}), baseline="balanced"))
    assert "one decides nothing" not in several
    assert "less often than it: wgan under hair" in several


def test_arms_must_have_seen_the_same_pictures():
    table = study({"balanced": 0.1, "wgan": 0.2})
    with pytest.raises(BadInput, match="same pictures"):
        measure.switch_rates(table.drop(table[table["arm"] == "wgan"].index[0]), baseline="balanced")
    with pytest.raises(BadInput, match="has no switches"):
        measure.switch_rates(table, baseline="none")
