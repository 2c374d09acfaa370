import warnings

import numpy as np
import pytest
from scipy import stats

from stda import BadInput
from stda.measure.bootstrap import Estimate
from stda.measure.power import Rule, chances, expected_maximum, power_table, replicates_needed
from stda.measure.simulation import Design, simulate_study
from stda.measure.verdict import decide, judge

RULE = Rule("accuracy", 0.02, 0.05)


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(("count", "n_arms"), [(2, 1), (5, 1), (20, 4)])
def test_without_an_effect_of_interest_it_is_the_noncentral_t(count, n_arms):
    found = chances(Estimate(0.3, 0.015, 2), 3, Rule("accuracy", 0.0, 0.05), truth=0.02, counts=[count], n_arms=n_arms)
    shift = 0.02 / (0.015 * np.sqrt(3 / count))
    limit = stats.t.isf(0.025 / n_arms, count - 1)
    assert found.helps[0] == pytest.approx(stats.nct.sf(limit, count - 1, shift), abs=0.005)
    assert found.harms[0] == pytest.approx(stats.nct.cdf(-limit, count - 1, shift), abs=0.005)
    assert found.equivalent[0] == 0


@pytest.mark.parametrize("truth", [-0.02, 0.0, 0.01, 0.03])
@pytest.mark.parametrize(("count", "spread"), [(4, 0.01), (12, 0.02)])
def test_chances_are_how_often_the_rule_calls(truth, count, spread):
    rng, n = np.random.default_rng(0), 4000
    samples = rng.normal(truth, spread, (n, count))
    calls = []
    for mean, error in zip(samples.mean(1), samples.std(1, ddof=1) / np.sqrt(count), strict=True):
        e = Estimate(mean, error, count - 1)
        # the rule of decide for one arm
        same = max(e.p_above(-0.02), e.p_below(0.02)) <= 0.05
        calls.append(
            "equivalent" if same else "undecided" if e.p_two_sided() > 0.05 else "helps" if mean > 0 else "harms"
        )
    e = Estimate(0.5, spread / np.sqrt(7), 6)
    found = chances(e, 7, RULE, truth=truth, counts=[count])
    for name in ("helps", "harms", "equivalent"):
        assert getattr(found, name)[0] == pytest.approx(calls.count(name) / n, abs=0.025), name
    assert found.decided[0] == pytest.approx(1 - calls.count("undecided") / n, abs=0.025)


def test_the_rule_in_the_check_above_is_that_of_decide():
    for mean in (-0.03, -0.005, 0.0, 0.012, 0.04):
        e = Estimate(mean, 0.008, 9)
        same = max(e.p_above(-0.02), e.p_below(0.02)) <= 0.05
        call = "equivalent" if same else "undecided" if e.p_two_sided() > 0.05 else "helps" if mean > 0 else "harms"
        assert decide({"gan": (e, 10)}, "classic", RULE)["verdict"].item() == call


def test_the_luck_of_the_chosen_baseline_is_taken_off():
    rng, n, count, tied = np.random.default_rng(1), 20000, 12, 4
    arm, baselines = rng.normal(0.04, 0.03, (n, count)), rng.normal(0, 0.03, (n, tied, count))
    best = baselines.mean(2).argmax(1)  # the worst case: validation ranks as test does
    difference = arm - baselines[np.arange(n), best]
    t = difference.mean(1) / difference.std(1, ddof=1) * np.sqrt(count)
    observed = (t > stats.t.isf(0.025, count - 1)).mean()
    e = Estimate(0.0, 0.03 * np.sqrt(2 / 6), 5, tied)
    rule = Rule("accuracy", 0.0, 0.05)
    assert chances(e, 6, rule, truth=0.04, counts=[count]).helps[0] == pytest.approx(observed, abs=0.03)
    assert chances(e, 6, rule, truth=0.04, counts=[count], lucky=False).helps[0] > observed + 0.1


def test_a_rough_spread_is_averaged_over_what_it_may_be():
    rng = np.random.default_rng(2)
    e, counts = Estimate(0.0, 0.012, 4), [5, 15]
    errors = 0.012 * np.sqrt(4 / rng.chisquare(4, 2000))
    drawn = [chances(Estimate(0.0, error, 4), 5, RULE, truth=0.04, counts=counts) for error in errors]
    found = chances(e, 5, RULE, truth=0.04, counts=counts, rough=True)
    for name in ("helps", "harms", "equivalent"):
        assert getattr(found, name) == pytest.approx(np.mean([getattr(c, name) for c in drawn], axis=0), abs=0.015)
    sure = chances(Estimate(0.0, 0.012, 1e6), 5, RULE, truth=0.04, counts=counts)
    same = chances(Estimate(0.0, 0.012, 1e6), 5, RULE, truth=0.04, counts=counts, rough=True)
    assert same.helps == pytest.approx(sure.helps, abs=1e-3)


def test_the_expected_maximum_of_few_normal_values_is_known():
    known = [0.0, 1 / np.sqrt(np.pi), 1.5 / np.sqrt(np.pi), 1.029375]
    assert [expected_maximum(k) for k in (1, 2, 3, 4)] == pytest.approx(known, abs=1e-6)


def test_the_planned_number_of_replicates_has_the_promised_power():
    rule = Rule("accuracy", 0.0, 0.05)
    needed = replicates_needed(Estimate(0.02, 0.015, 2), 3, rule)
    samples = np.random.default_rng(0).normal(0.02, 0.015 * np.sqrt(3), (4000, needed))
    power = (stats.ttest_1samp(samples, 0, axis=1).pvalue <= 0.05).mean()
    assert 0.78 <= power <= 0.85
    assert replicates_needed(Estimate(0.02, 0.015, 2), 3, rule, n_arms=4) > needed
    assert replicates_needed(Estimate(0.0, 0.015, 2), 3, rule) is None
    assert 3 < replicates_needed(Estimate(0.0, 0.015, 2), 3, RULE) < 100


@pytest.mark.parametrize("mean", [-0.03, 0.0, 0.012, 0.03])
@pytest.mark.parametrize("tied", [1, 3])
def test_no_smaller_number_would_do(mean, tied):
    e = Estimate(mean, 0.02, 4, tied)
    counts = np.arange(6, 1001)
    decided = chances(e, 5, RULE, truth=mean, counts=counts, n_arms=3, lucky=False).decided
    assert replicates_needed(e, 5, RULE, n_arms=3) == counts[decided >= 0.8][0]
    assert replicates_needed(Estimate(0.5, 0.0, 4), 5, RULE) == 6  # no spread at all


def test_the_power_table_answers_from_the_verdicts():
    design = Design(replicates=4, effects=(0.03, 0.0), lesions={"MEL": 60, "NV": 200}, recalls={"MEL": 0.5, "NV": 0.8})
    verdicts = judge(simulate_study(design, seed=0), design.synthetic, smallest_effect=0.03, resamples=100)
    table = power_table(verdicts, smallest_effect=0.03, replicates=(4, 40, 400))
    assert table["arm"].tolist() == ["synthetic0"] * 3 + ["synthetic1"] * 3
    assert table["true_difference"].tolist() == [0.0, 0.03, 0.06] * 2
    assert table["call"].tolist() == ["equivalent", "helps", "helps"] * 2
    power = table[["4 replicates", "40 replicates", "400 replicates"]].to_numpy()
    assert ((power >= 0) & (power <= 1)).all()
    assert (np.diff(power, axis=1) > 0).all()
    row = verdicts.iloc[1]
    e = Estimate(row["difference"], row["error"], row["freedom"], row["tied_baselines"])
    rule = Rule("balanced_accuracy", 0.03, 0.05)
    expected = chances(e, 4, rule, truth=0.06, counts=[40], n_arms=2, rough=True).helps[0]
    assert table["40 replicates"].iloc[-1] == pytest.approx(expected)
    for i, needed in enumerate(table["replicates_needed"]):
        again = power_table(verdicts, smallest_effect=0.03, replicates=(needed - 1, needed)).iloc[i]
        assert again[f"{needed - 1} replicates"] < 0.8 <= again[f"{needed} replicates"]
    harmed = power_table(verdicts, smallest_effect=0.03, effects=(-2,), replicates=(40,))
    assert harmed["call"].tolist() == ["harms", "harms"]


def test_one_replicate_and_no_arm_have_no_power_to_show():
    single = decide({"gan": (Estimate(0.1, 0.01, np.inf), 1)}, "classic", RULE)
    table = power_table(single, smallest_effect=0.02, replicates=(3,))
    assert table["3 replicates"].isna().all()
    assert table["replicates_needed"].tolist() == [None] * 3
    assert power_table(decide({}, "", RULE), smallest_effect=0.02).empty
    far = decide({"gan": (Estimate(0.1, 9.0, 2), 3)}, "classic", RULE)
    assert power_table(far, smallest_effect=0.02)["replicates_needed"].tolist() == [None] * 3


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"replicates": (1, 5)}, "one replicate decides nothing"),
        ({"smallest_effect": 0.0}, "size above 0"),
        ({"smallest_effect": float("nan")}, "size above 0"),
        ({"verdicts": decide({"gan": (Estimate(0, 1, 2), 3)}, "b", RULE).drop(columns="error")}, "no column 'error'"),
    ],
)
def test_impossible_plans_are_a_sentence(knobs, sentence):
    verdicts = decide({"gan": (Estimate(0.0, 0.01, 2), 3)}, "classic", RULE)
    with pytest.raises(BadInput, match=sentence):
        power_table(**{"verdicts": verdicts, "smallest_effect": 0.02, **knobs})
