import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import f_oneway, levene
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score

from stda import BadInput, measure
from stda.measure import repeatability as module

CLASSES = np.array(["a", "b", "c"])


def answers(spreads, *, replicates=3, repeats=4, n=300, seed=0):
    """Trainings whose accuracy scatters around 0.7 with the arm's spread: the same test images in a replicate."""
    rng = np.random.default_rng(seed)
    parts = []
    for r in range(replicates):
        images = rng.permutation(2 * n)[:n]
        labels = CLASSES[images % 3]
        for (arm, spread), k in itertools.product(spreads.items(), range(repeats)):
            right = rng.random(n) < np.clip(0.7 + spread * rng.standard_normal(), 0, 1)
            said = np.where(right, labels, rng.choice(CLASSES, n))
            ids = [f"i{i}" for i in images]
            part = pd.DataFrame({"image_id": ids, "label": labels, "predicted": said})
            parts.append(part.assign(replicate=r, arm=arm, repeat=k))
    return pd.concat(parts, ignore_index=True)


def test_scores_of_every_training_are_those_of_scikit_learn():
    repeats = answers({"x": 0.05}, replicates=2, repeats=2)
    found = measure.training_scores(repeats)
    for row in found.itertuples():
        own = repeats[(repeats["replicate"] == row.replicate) & (repeats["repeat"] == row.repeat)]
        assert row.value == pytest.approx(balanced_accuracy_score(own["label"], own["predicted"]))
    assert found.groupby("replicate")["deviation"].sum().abs().max() < 1e-12
    once = measure.training_scores(repeats[repeats["repeat"] == 0])
    assert once["deviation"].sum() == pytest.approx(0)
    assert once["deviation"].abs().max() > 0


def test_sensitivity_speaks_of_the_rarer_class():
    repeats = pd.DataFrame({"label": ["a", "b", "b"], "predicted": ["a", "b", "a"], "image_id": list("xyz")})
    found = measure.training_scores(repeats.assign(replicate=0, arm="x", repeat=0), metric="specificity")
    assert found["value"].tolist() == [0.5]


def test_pooled_variance_by_hand_and_standard_deviation_of_the_table():
    cells = [np.array([1.0, 3.0]), np.array([10.0, 10.0, 13.0])]
    assert module.pooled_variance(cells) == (pytest.approx((2 + 6) / 3), 3)
    repeats = answers({"base": 0.05, "syn": 0.05})
    table = measure.spread_table(repeats, baseline="base", synthetic=["syn"], resamples=200)
    scores = measure.training_scores(repeats).set_index("arm")
    own = scores.loc["syn"].groupby("replicate")["value"].var()
    assert table.set_index("arm").loc["syn", "sd"] == pytest.approx(np.sqrt(own.mean()))


def test_brown_forsythe_by_hand_and_near_scipy_for_large_cells():
    # odd: the zero goes; even: the equal pair becomes one of sqrt(2) times its size
    odd, even = np.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.array([0.0, 1.0, 3.0, 9.0])
    left, right = [2.0, 3.0, 4.0, 12.0], [np.sqrt(2), 2.0, 7.0]
    assert module.brown_forsythe([odd], [even]) == pytest.approx(f_oneway(left, right).pvalue)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(401), 1.15 * rng.standard_normal(401)
    assert module.brown_forsythe([x], [y]) == pytest.approx(levene(x, y, center="median").pvalue, rel=0.05)
    assert np.isnan(module.brown_forsythe([x[:2]], [y[:2]]))


@pytest.mark.parametrize(("cells", "size"), [(5, 2), (4, 3), (1, 6), (3, 4)])
def test_brown_forsythe_keeps_its_error_rate_over_small_cells(cells, size):
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((800, 2, cells, size))
    found = np.array([module.brown_forsythe(list(x), list(y)) for x, y in draws])
    assert (found < 0.05).mean() < 0.075


@pytest.mark.parametrize(("cells", "size", "paired"), [(5, 3, False), (1, 8, False), (1, 8, True)])
def test_the_interval_of_the_ratio_holds_the_truth(cells, size, paired):
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        split = rng.standard_normal((1 if paired else cells, size)) * paired
        x, y = (split + rng.standard_normal((cells, size)) for _ in range(2))
        low, high = module.ratio_interval(list(x), list(y), paired=paired, confidence=0.95, resamples=400, rng=rng)
        held += low <= 1 <= high
    assert held / 300 > 0.9


def test_a_planted_difference_is_found_with_its_sign():
    repeats = answers({"base": 0.1, "steady": 0.002, "wild": 0.3, "same": 0.1}, replicates=5, repeats=6, n=600)
    table = measure.spread_table(repeats, baseline="base", synthetic=["steady", "wild", "same"])
    verdicts = table.set_index("arm")["verdict"].to_dict()
    assert verdicts == {"base": "", "steady": "supported", "wild": "contradicted", "same": "undecided"}
    assert table["arm"].tolist()[0] == "base"
    sentence = measure.repeatability_sentence(table)
    assert "is supported for steady (variance ratio 0.0" in sentence
    assert "contradicted for wild" in sentence
    assert "not that spreads are equal" in sentence


def test_once_per_replicate_the_spread_is_over_replicates_and_the_sentence_says_so():
    repeats = answers({"base": 0.1, "syn": 0.1}, replicates=6, repeats=1)
    table = measure.spread_table(repeats, baseline="base", synthetic=["syn"], resamples=300).set_index("arm")
    assert table["spread"].eq("over replicates").all()
    scores = measure.training_scores(repeats).set_index("arm")["value"]
    assert table.loc["syn", "sd"] == pytest.approx(scores.loc["syn"].std())
    assert table.loc["syn", "variance_ratio"] == pytest.approx(scores.loc["syn"].var() / scores.loc["base"].var())
    assert np.isnan(table.loc["syn", "agreement"])  # no two trainings of one replicate
    assert 0 < table.loc["syn", "between"] < 1
    assert "mixes the luck of the split" in measure.repeatability_sentence(table.reset_index())


def test_too_few_trainings_say_nothing_and_say_that():
    repeats = answers({"base": 0.1, "syn": 0.1}, replicates=2, repeats=1)
    table = measure.spread_table(repeats, baseline="base", synthetic=["syn"])
    assert table["variance_ratio"].isna().all()
    assert "too few trainings" in measure.repeatability_sentence(table)
    one = repeats[repeats["replicate"] == 0]
    assert measure.spread_table(one, baseline="base", synthetic=["syn"])["sd"].isna().all()
    none = measure.spread_table(repeats, baseline="base", synthetic=[])
    assert "claim was not tested" in measure.repeatability_sentence(none)


def test_agreement_and_kappa_are_those_of_scikit_learn():
    repeats = answers({"x": 0.2}, replicates=2, repeats=2, n=200)
    found = measure.prediction_agreement(repeats).iloc[0]
    wide = repeats.pivot(index=["replicate", "repeat"], columns="image_id", values="predicted")

    def pair(a, b):
        both = wide.loc[[a, b]].dropna(axis=1).to_numpy()
        return (both[0] == both[1]).mean(), cohen_kappa_score(both[0], both[1]), both.shape[1]

    inside = [pair((r, 0), (r, 1)) for r in (0, 1)]
    assert found["agreement"] == pytest.approx(np.mean([p[0] for p in inside]))
    assert found["kappa"] == pytest.approx(np.mean([p[1] for p in inside]))
    across = [pair((0, i), (1, j)) for i in (0, 1) for j in (0, 1)]
    assert found["shared_images"] == across[0][2]
    assert found["between"] == pytest.approx(np.mean([p[0] for p in across]))
    assert found["between_kappa"] == pytest.approx(np.mean([p[1] for p in across]))
    # with two replicates the jackknife over replicates is the t interval of their two agreements
    first, second = (p[0] for p in inside)
    half = 12.7062 * abs(first - second) / 2
    assert found["agreement_low"] == pytest.approx(max(0, (first + second) / 2 - half), abs=1e-5)


def test_agreement_of_equal_answers_is_one_and_kappa_of_one_class_unknown():
    repeats = answers({"x": 0.1}, replicates=1, repeats=1)
    both = pd.concat([repeats, repeats.assign(repeat=1)])
    found = measure.prediction_agreement(both).iloc[0]
    assert (found["agreement"], found["kappa"]) == (1.0, pytest.approx(1.0))
    assert np.isnan(found["between"])
    assert np.isnan(measure.prediction_agreement(both.assign(predicted="a")).iloc[0]["kappa"])


def test_bad_input_is_one_sentence():
    repeats = answers({"base": 0.1, "syn": 0.1}, replicates=2, repeats=1)
    with pytest.raises(BadInput, match="not among the arms"):
        measure.spread_table(repeats, baseline="missing", synthetic=[])
    with pytest.raises(BadInput, match="same replicates"):
        measure.spread_table(
            repeats[(repeats["arm"] == "base") | (repeats["replicate"] == 0)], baseline="base", synthetic=[]
        )
    with pytest.raises(BadInput, match="no column 'repeat'"):
        measure.training_scores(repeats.drop(columns="repeat"))
