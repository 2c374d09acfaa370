import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stda import BadInput
from stda.measure.bootstrap import Estimate, FoldCounts, count_fold, estimate, pooled_spreads
from stda.measure.verdict import (
    COLUMNS,
    Rule,
    arm_table,
    best_baseline,
    choose_baseline,
    decide,
    holm,
    holm_levels,
    judge,
    paired_differences,
)

CLASSES = ["DF", "MEL", "NV"]
SKILL = {"none": 0.5, "classic": 0.65, "wgan": 0.9, "nst": 0.4}


def predictions(replicates=4, skill=SKILL, n=(30, 60, 90), seed=0, splits=("val", "test"), noise=0.01):
    """Each arm is right with the probability ``skill``, a little different in every replicate."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(CLASSES, n)
    parts = []
    for r in range(replicates):
        for arm, right in skill.items():
            for split in splits:
                correct = rng.random(len(labels)) < right + noise * rng.normal()
                wrong = np.roll(CLASSES, 1)[np.repeat(range(3), n)]
                part = pd.DataFrame({"label": labels, "predicted": np.where(correct, labels, wrong)})
                part["image_id"] = [f"{split}{i}" for i in range(len(labels))]
                part["group"] = [f"{split}{i // 2}" for i in range(len(labels))]
                p = np.full((len(labels), 3), 0.1)
                p[np.arange(len(p)), part["predicted"].map(CLASSES.index)] = 0.8
                part[[f"p_{c}" for c in CLASSES]] = p
                parts.append(part.assign(replicate=r, arm=arm, split=split))
    return pd.concat(parts, ignore_index=True)


def judged(table=None, arms=("wgan", "nst"), **knobs):
    return judge(predictions() if table is None else table, arms, **{"resamples": 300, **knobs}).set_index("arm")


def test_clear_effects_are_called_by_their_names():
    table = predictions(skill={**SKILL, "dcgan": 0.65}, replicates=5)
    found = judged(table, ["wgan", "nst", "dcgan"])
    assert found.reset_index().columns.tolist() == list(COLUMNS)
    assert found["verdict"].tolist() == ["helps", "harms", "undecided"]
    assert (found["baseline"] == "classic").all()
    assert found.loc["wgan", "difference"] == pytest.approx(0.25, abs=0.05)
    assert found.loc["wgan", "low"] > 0 > found.loc["nst", "high"]
    assert found["replicates_needed"].isna().tolist() == [True, True, False]
    assert found.loc["dcgan", "replicates_needed"] > 5
    assert (found["evidence"] == "replicates and lesions").all()
    assert "5 replicates" in found.loc["dcgan", "reason"]


def test_the_difference_is_the_mean_of_the_paired_ones():
    from sklearn.metrics import balanced_accuracy_score

    table = predictions()
    test = table[table["split"] == "test"].groupby(["replicate", "arm"])
    score = test.apply(lambda t: balanced_accuracy_score(t["label"], t["predicted"])).unstack()
    found = judged(table)
    assert found["difference"].to_numpy() == pytest.approx(
        (score[["wgan", "nst"]].sub(score["classic"], axis=0)).mean()
    )


def test_the_baseline_is_chosen_on_validation_and_not_on_test():
    table = predictions()
    swap = {"none": "classic", "classic": "none"}
    on_test = (table["split"] == "test") & table["arm"].isin(list(swap))
    table.loc[on_test, "arm"] = table.loc[on_test, "arm"].map(swap)  # now 'none' is the best on test
    assert (judged(table)["baseline"] == "classic").all()


def test_a_study_with_nothing_to_judge_has_its_baseline_from_validation_too():
    table = predictions()
    table.loc[(table["split"] == "test") & (table["arm"] == "classic"), "predicted"] = "NV"  # bad on test
    assert best_baseline(table, ["none", "classic"]) == "classic" == judged(table)["baseline"].iloc[0]
    with pytest.raises(BadInput, match="honest baseline"):
        best_baseline(table, [])


def test_no_interval_of_a_difference_leaves_what_is_possible():
    found = decide({"x": (Estimate(0.1, 0.9, 1), 2)}, "b", Rule("accuracy", 0.01, 0.05))
    assert found[["low", "high"]].to_numpy().tolist() == [[-1, 1]]


def test_arms_that_validation_cannot_tell_apart_are_tied():
    fold = count_fold(predictions(5, {"a": 0.7, "b": 0.7, "bad": 0.3, "wgan": 0.9}), "val")
    chosen, tied = choose_baseline(fold, ["a", "b", "bad"], "balanced_accuracy")
    assert chosen in tied
    assert tied == ["a", "b"]
    single = count_fold(predictions(1, {"a": 0.7, "bad": 0.3, "wgan": 0.9}), "val")
    assert choose_baseline(single, ["a", "bad"], "accuracy") == ("a", ["a", "bad"])
    same = count_fold(predictions(3).assign(predicted="NV"), "val")
    assert len(choose_baseline(same, ["none", "classic", "nst"], "accuracy")[1]) == 3


def test_placebos_and_subsets_change_nothing():
    """Arms in neither list are no baseline, no member of Holm's family, and lend no spread to the others."""
    skill = {**SKILL, "placebo": 0.99, "quarter": 0.2}
    table = predictions(3, skill, noise=0.05)
    found = judged(table, baselines=["none", "classic"])
    assert (found["baseline"] == "classic").all()
    alone = table[~table["arm"].isin(["placebo", "quarter"])]
    pd.testing.assert_frame_equal(found, judged(alone))
    assert (judged(table)["baseline"] == "placebo").all()
    assert (judged(table, baselines=["none"])["baseline"] == "none").all()


def test_an_arm_missing_in_a_replicate_is_judged_on_the_others():
    table = predictions(5)
    table = table[~((table["replicate"] == 2) & table["arm"].isin(["wgan", "none"]))]
    assert judged(table)["replicates"].tolist() == [4, 5]


def test_one_replicate_never_decides():
    found = judged(predictions(1))
    assert found["verdict"].tolist() == ["undecided", "undecided"]
    assert found[["p_value", "p_holm", "p_equivalence"]].isna().all(axis=None)
    assert (found["evidence"] == "lesions only").all()
    assert found.loc["wgan", "low"] > 0  # what the interval alone would have claimed
    assert "One replicate decides nothing" in found.loc["wgan", "reason"]


def test_equivalence_wins_over_a_real_but_tiny_difference():
    rule = Rule("accuracy", 0.02, 0.05)
    sets = {"tiny": (Estimate(0.005, 0.0005, 9), 10), "zero": (Estimate(0.0, 0.0005, 9), 10)}
    sets |= {"large": (Estimate(0.05, 0.0005, 9), 10), "vague": (Estimate(0.0, 0.1, 9), 10)}
    found = decide(sets, "classic", rule).set_index("arm")
    assert found["verdict"].tolist() == ["equivalent", "equivalent", "helps", "undecided"]
    assert "not zero" in found.loc["tiny", "reason"]
    assert "not zero" not in found.loc["zero", "reason"]
    never = decide(sets, "classic", Rule("accuracy", 0.0, 0.05)).set_index("arm")
    assert never["verdict"].tolist() == ["helps", "undecided", "helps", "undecided"]


def test_equivalence_of_one_arm_is_the_usual_interval_rule():
    for mean, error in ((0.004, 0.003), (0.004, 0.0035), (0.0, 0.0054), (0.0, 0.0055), (-0.008, 0.001)):
        e = Estimate(mean, error, 9)
        low, high = e.interval(0.90)
        called = decide({"x": (e, 10)}, "b", Rule("accuracy", 0.01, 0.05))["verdict"].item() == "equivalent"
        assert called == (low > -0.01 and high < 0.01)


def brute_holm(p, alpha):
    """Reject in order while p <= alpha / hypotheses left, as Holm wrote it."""
    rejected = [False] * len(p)
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] > alpha / (len(p) - rank):
            break
        rejected[i] = True
    return rejected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_his_procedure_rejects(p, alpha):
    adjusted = holm(np.array(p))
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-15).all()
    close = np.isclose(np.multiply.outer(p, np.arange(1, len(p) + 1)), alpha).any()
    if not close:
        assert (adjusted <= alpha).tolist() == brute_holm(p, alpha)
        assert ((1 - holm_levels(np.array(p), alpha)) >= np.array(p)).tolist() == brute_holm(p, alpha)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-0.1, 0.1), st.floats(0.001, 0.05)), min_size=1, max_size=6), st.integers(1, 3))
def test_an_interval_leaves_out_zero_exactly_when_holm_rejects(numbers, tied):
    arms = {f"g{i}": (Estimate(m, e, 4, tied), 5) for i, (m, e) in enumerate(numbers)}
    found = decide(arms, "classic", Rule("accuracy", 0.01, 0.05))
    outside = (found["low"] > 0) | (found["high"] < 0)
    clear = (found["p_holm"] - 0.05).abs() > 1e-9
    assert (outside == (found["p_holm"] <= 0.05))[clear].all()


def simulated_fold(rng, replicates, arms, lift, *, shared, n=(20, 14, 10)):
    """Count answers of a small study: varying lesions, lucky trainings, a true ``lift`` on log-odds."""
    true = np.repeat(np.arange(3), np.array(n) * 3)
    difficulty = rng.normal(0.8, 1, len(true))
    counts, lesions = [], []
    for r in range(replicates):
        if not (shared and r):
            tested = np.concatenate([rng.choice(np.flatnonzero(true == c), k, replace=False) for c, k in enumerate(n)])
        luck = rng.normal(0, 0.25, (len(arms), 3))[:, true[tested]]
        logit = difficulty[tested] + luck + np.array([lift.get(arm, 0.0) for arm in arms])[:, None]
        right = rng.random(logit.shape) < 1 / (1 + np.exp(-logit))
        answer = np.where(right, true[tested], (true[tested] + rng.integers(1, 3, logit.shape)) % 3)
        c = np.zeros((len(arms), len(tested), 3, 3))
        c[np.arange(len(arms))[:, None], np.arange(len(tested)), true[tested], answer] = 1
        counts.append(c)
        lesions.append(tested)
    return FoldCounts(CLASSES, list(arms), list(range(replicates)), counts, lesions, len(true))


def simulated_verdicts(rng, replicates, *, lift=None, shared=False, baselines=2, generators=3):
    arms = [f"real{i}" for i in range(baselines)] + [f"gan{i}" for i in range(generators)]
    synthetic = arms[baselines:]
    val, test = (simulated_fold(rng, replicates, arms, lift or {}, shared=shared) for _ in range(2))
    chosen, tied = choose_baseline(val, arms[:baselines], "balanced_accuracy")
    found = paired_differences(test, synthetic, chosen, "balanced_accuracy", resamples=100, seed=0)
    estimates = {arm: (Estimate(e.mean, e.error, e.freedom, len(tied)), n) for arm, (e, n) in found.items()}
    return decide(estimates, chosen, Rule("balanced_accuracy", 0.01, 0.05))["verdict"]


@pytest.mark.parametrize("shared", [False, True], ids=["own-folds", "one-fold"])
@pytest.mark.parametrize("replicates", [2, 3, 5])
def test_studies_without_any_effect_are_called_in_at_most_five_percent(replicates, shared):
    rng = np.random.default_rng(replicates)
    n, called = 100, 0
    for _ in range(n):
        called += simulated_verdicts(rng, replicates, shared=shared).isin(["helps", "harms"]).any()
    assert called / n <= 0.05


@pytest.mark.parametrize("baselines", [1, 4])
def test_choosing_the_luckiest_baseline_does_not_make_the_others_harmful(baselines):
    """The worst case: validation ranks the trainings exactly as test does, so the luckiest is always taken."""
    rng = np.random.default_rng(0)
    n, called = 600, 0
    for _ in range(n):
        luck = rng.normal(0, 0.02, (10, baselines + 4))
        best = int(luck[:, :baselines].mean(0).argmax())
        difference = luck[:, baselines:] - luck[:, [best]]
        error = difference.std(0, ddof=1) / np.sqrt(10)
        p = [Estimate(m, e, 9, baselines).p_two_sided() for m, e in zip(difference.mean(0), error, strict=True)]
        called += (holm(np.array(p)) <= 0.05).any()
    assert called / n <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / n)


def test_a_study_without_synthetic_arms_has_an_empty_table():
    assert judged(arms=[]).empty
    assert judged(arms=[]).reset_index().columns.tolist() == list(COLUMNS)


@pytest.mark.parametrize(("replicates", "at_least"), [(3, 15), (5, 27)])
def test_large_effects_are_found(replicates, at_least):
    rng = np.random.default_rng(1)
    found = [simulated_verdicts(rng, replicates, lift={"gan0": 2.5}).iloc[0] for _ in range(30)]
    assert found.count("helps") >= at_least
    assert found.count("harms") == 0


@pytest.mark.parametrize("baselines", [4, 12])
def test_a_generator_that_varies_more_than_the_others_is_seldom_called_by_chance(baselines):
    rng, spread = np.random.default_rng(0), np.array([1] * baselines + [3, 1, 1, 1]) * 0.02
    n, called = 1500, 0
    for _ in range(n):
        values = rng.normal(size=(2, baselines + 4)) * spread
        pooled = pooled_spreads(values)[1]
        differences = (values[:, baselines:] - values[:, :1]).T
        p = [estimate(d, np.zeros((2, 2)), pooled=pooled).p_two_sided() for d in differences]
        called += (holm(np.array(p)) <= 0.05).any()
    assert called / n <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / n)


def test_arm_table_shows_every_arm_best_first():
    shown = arm_table(
        predictions(), ["wgan", "nst"], metrics=("balanced_accuracy", "auroc", "recall_DF"), resamples=200
    )
    assert shown["arm"].tolist() == ["wgan", "classic", "none", "nst"]
    assert shown["kind"].tolist() == ["synthetic", "real", "real", "synthetic"]
    for metric in ("balanced_accuracy", "auroc", "recall_DF"):
        assert (shown[f"{metric}_low"] < shown[metric]).all()
        assert (shown[metric] < shown[f"{metric}_high"]).all()
    one = arm_table(predictions(1), ["wgan", "nst"], metrics=("accuracy", "auroc"), resamples=200)
    assert one[["auroc_low", "auroc_high"]].isna().all(axis=None)
    assert one[["accuracy_low", "accuracy_high"]].notna().all(axis=None)


def test_two_class_metrics_can_be_judged():
    table = predictions()
    table[["label", "predicted"]] = table[["label", "predicted"]].where(table[["label", "predicted"]] == "MEL", "rest")
    for metric in ("sensitivity", "specificity"):
        assert judged(table, metric=metric)["verdict"]["wgan"] == "helps"


@pytest.mark.parametrize(
    ("change", "knobs", "sentence"),
    [
        (lambda t: t, {"arms": ["vae"]}, "'vae'"),
        (lambda t: t, {"arms": list(SKILL)}, "honest baseline"),
        (lambda t: t, {"baselines": []}, "honest baseline"),
        (lambda t: t, {"baselines": ["classik"]}, "baselines \\['classik'\\] must be among"),
        (lambda t: t, {"baselines": ["none", "nst"]}, "\\['nst'\\] are synthetic"),
        (lambda t: t, {"metric": "auroc"}, "choose one of balanced_accuracy"),
        (lambda t: t, {"metric": "sensitivity"}, "positive class"),
        (lambda t: t, {"smallest_effect": -0.1}, "smallest_effect is -0.1"),
        (lambda t: t, {"confidence": 95}, "confidence is 95"),
        (lambda t: t, {"resamples": 10}, "resamples is 10"),
        (lambda t: t[t["split"] == "test"], {}, "no rows of split 'val'"),
        (lambda t: t.drop(columns="group"), {}, "no column 'group'"),
        (lambda t: t.drop(index=t.index[-1]), {}, "same images"),
    ],
)
def test_bad_studies_are_a_sentence(change, knobs, sentence):
    with pytest.raises(BadInput, match=sentence):
        judged(change(predictions(2)), **knobs)


def test_the_verdict_is_repeatable_and_quick():
    table = predictions(3, {f"arm{i}": 0.6 for i in range(8)}, n=(200, 600, 1200))
    start = time.perf_counter()
    first = judged(table, [f"arm{i}" for i in range(4)], resamples=2000)
    assert time.perf_counter() - start < 20  # eight arms, 2,000 test images; 2 s on an idle core
    pd.testing.assert_frame_equal(first, judged(table, [f"arm{i}" for i in range(4)], resamples=2000))
