import time
import warnings

import numpy as np
import pandas as pd
import pytest

from stda import BadInput
from stda.measure import variance
from stda.measure.variance import design, variance_sentence, variance_table

CLASSES = ["DF", "NV"]
SPLITS = {r: r // 2 for r in range(8)}


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def balanced(n_splits, n_replicates, n_repeats):
    """Return the split and replicate of every training."""
    split = np.repeat(np.arange(n_splits), n_replicates * n_repeats)
    return split, np.repeat(np.arange(n_splits * n_replicates), n_repeats)


def drawn(rng, split, replicate, sd, n=1):
    """Draw ``n`` studies of scores ``(n, trainings)``; ``sd`` is that of split, generator and classifier."""
    levels = [split, replicate, np.arange(len(split))]
    return sum(s * rng.normal(size=(n, codes.max() + 1))[:, codes] for s, codes in zip(sd, levels, strict=True))


def trained(arms=("classic", "wgan"), splits=SPLITS, repeats=2, n=200, seed=0, luck=(0.0, 0.0, 0.0), skill=0.7):
    """Return test answers of trainings whose skill has a part of the split, the replicate and the training."""
    rng = np.random.default_rng(seed)
    by_split = {s: luck[0] * rng.normal() for s in sorted(set(splits.values()))}
    parts = []
    for r, s in splits.items():
        for arm in arms:
            generator = luck[1] * rng.normal() if arm == "wgan" else 0.0
            for k in range(repeats):
                right = rng.random(n) < skill + by_split[s] + generator + luck[2] * rng.normal()
                label = np.resize(CLASSES, n)
                wrong = np.where(label == "NV", "DF", "NV")
                part = pd.DataFrame({"label": label, "predicted": np.where(right, label, wrong)})
                part["image_id"] = [f"s{s}-{i}" for i in range(n)]
                parts.append(part.assign(replicate=r, arm=arm, repeat=k))
    repeats = pd.concat(parts, ignore_index=True)
    lesions = repeats[["image_id"]].drop_duplicates()
    return repeats, lesions.assign(group=lesions["image_id"])


def table_of(repeats, predictions, *, splits=SPLITS, **knobs):
    arms, kinds = {"wgan": "wgan", "classic": ""}, {"wgan": "synthetic", "classic": "real"}
    knobs = {"arms": arms, "kinds": kinds, "resamples": 100, **knobs}
    return variance_table(repeats, predictions, splits=splits, **knobs)


def test_mean_squares_of_a_balanced_design_against_plain_sums():
    split, replicate = balanced(3, 2, 4)
    values = np.random.default_rng(0).normal(size=24)
    y = values.reshape(3, 2, 4)
    squares = [
        8 * ((y.mean((1, 2)) - y.mean()) ** 2).sum() / 2,
        4 * ((y.mean(2) - y.mean((1, 2))[:, None]) ** 2).sum() / 3,
        ((y - y.mean(2, keepdims=True)) ** 2).sum() / 18,
    ]
    made = design(split, replicate)
    np.testing.assert_allclose(made.mean_squares(values), squares)
    np.testing.assert_allclose(made.weights, [[8, 4, 1], [0, 4, 1], [0, 0, 1]])
    parts = [(squares[0] - squares[1]) / 8, (squares[1] - squares[2]) / 4, squares[2]]
    np.testing.assert_allclose(made.solve(made.mean_squares(values)), parts)


@pytest.mark.parametrize(
    ("split", "replicate"),
    [
        balanced(4, 2, 2),
        ([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 0, 0, 1, 2, 3, 3, 4, 4, 5, 5]),
        ([0, 0, 1, 1, 1, 2], [0, 1, 2, 3, 4, 5]),
        balanced(4, 1, 3),
    ],
    ids=["balanced", "unbalanced", "one training", "one replicate per split"],
)
def test_expected_mean_squares_against_the_trace_of_the_quadratic_forms(split, replicate):
    """E[y'Qy] = sum of part x trace(Q Z Z'), for the projections that the mean squares are made of."""
    made = design(split, replicate)
    n = len(made.split)
    codes = [made.split, made.replicate, np.arange(n)]
    projections = [np.full((n, n), 1 / n)]
    projections += [(same := c[:, None] == c) / same.sum(0) for c in codes]
    for level in np.flatnonzero(made.seen):
        form = (projections[level + 1] - projections[level]) / made.freedom[level]
        expected = [np.trace(form @ (c[:, None] == c)) for c in codes]
        np.testing.assert_allclose(made.weights[level], expected, atol=1e-12)


def test_known_parts_are_recovered_on_average_and_covered_by_their_intervals(monkeypatch):
    monkeypatch.setattr(variance, "DRAWS", 1000)
    rng, sd, noise, n = np.random.default_rng(0), (0.02, 0.015, 0.01), 0.01, 500
    split, replicate = [0] * 5 + [1] * 4 + [2] * 5 + [3] * 3 + [4] * 4, [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 5]
    replicate += [6, 7, 7, 8, 8, 9, 9]
    made = design(split, replicate)
    scores = drawn(rng, made.split, made.replicate, (np.hypot(sd[0], noise), *sd[1:]), n)
    squares = made.mean_squares(scores)
    found = made.solve(squares)
    error = found.std(0) / np.sqrt(n)
    truth = np.array(sd) ** 2
    assert (np.abs(found.mean(0) - [truth[0] + noise**2, *truth[1:]]) < 4 * error).all()
    covered = np.zeros(3)
    for one in squares:
        rows = variance._rows("wgan", "synthetic", made, one, noise**2, True, 0.95, rng)[:3]
        covered += [row["low"] <= s <= row["high"] for row, s in zip(rows, sd, strict=True)]
    assert ((covered / n > 0.92) & (covered / n < 0.985)).all(), covered / n


def test_an_arm_without_generator_has_no_generator_part():
    """On average over studies it is zero: unbiased, so below zero about as often as above."""
    split, replicate = balanced(3, 2, 2)
    made = design(split, replicate)
    scores = drawn(np.random.default_rng(1), split, replicate, (0.02, 0.0, 0.01), 2000)
    part = made.solve(made.mean_squares(scores))[:, 1]
    assert abs(part.mean()) < 4 * part.std() / np.sqrt(len(part))
    assert 0.35 < (part < 0).mean() < 0.75


def test_parts_of_simulated_answers():
    """Skill differs between splits and generators, not between classifiers; classic has no generator."""
    splits = {r: r // 2 for r in range(20)}
    repeats, predictions = trained(splits=splits, luck=(0.08, 0.06, 0.0), n=300, seed=3)
    found = table_of(repeats, predictions, splits=splits).set_index(["arm", "part"])
    assert found.loc["wgan"].index.tolist() == ["split", "generator", "classifier", "test sampling"]
    assert found.loc[("wgan", "split"), "low"] < 0.08 < found.loc[("wgan", "split"), "high"]
    assert found.loc[("wgan", "generator"), "sd"] == pytest.approx(0.06, abs=0.025)
    assert found.loc[("classic", "generator"), "sd"] < 0.02
    assert found.loc[("classic", "generator"), "note"].startswith("no generator: a check")
    # a training's own luck on the test images is binomial: sqrt(0.7 x 0.3 / 300)
    assert found.loc[("classic", "classifier"), "sd"] == pytest.approx(0.0265, abs=0.008)
    assert found.groupby("arm")["share"].sum().tolist() == pytest.approx([1, 1])
    np.testing.assert_allclose(found["sd"] ** 2, found["variance"])


def alike(n_splits, *, shared=False):
    """Return answers of trainings that answer each image alike: right in 7 of 10 images, drawn anew by each split."""
    rng, parts, label = np.random.default_rng(0), [], np.resize(CLASSES, 100)
    for s in range(n_splits):
        rng = np.random.default_rng(0) if shared else rng
        predicted = np.where(rng.random(100) < 0.7, label, np.where(label == "NV", "DF", "NV"))
        fold = pd.DataFrame({"label": label, "predicted": predicted})
        fold["image_id"] = [f"{0 if shared else s}-{i}" for i in range(100)]
        cells = [(r, arm, k) for r in (2 * s, 2 * s + 1) for arm in ("classic", "wgan") for k in (0, 1)]
        parts += [fold.assign(replicate=r, arm=arm, repeat=k) for r, arm, k in cells]
    repeats = pd.concat(parts, ignore_index=True)
    return repeats, repeats[["image_id"]].drop_duplicates().assign(group=lambda t: t["image_id"])


def test_what_the_test_lesions_explain_is_taken_out_of_the_split():
    found = table_of(*alike(14), splits={r: r // 2 for r in range(28)}, resamples=200)
    found = found.set_index(["arm", "part"])["sd"]
    assert found[("wgan", "test sampling")] == pytest.approx(np.sqrt(0.7 * 0.3 / 100), rel=0.15)
    assert found[("wgan", "split")] < 0.03
    assert found[("wgan", "generator")] == found[("wgan", "classifier")] == 0


def test_lesions_that_all_splits_test_are_no_difference_between_splits():
    apart, together = (table_of(*alike(4, shared=shared))["variance"].sum() for shared in (False, True))
    assert apart > 1e-4
    assert together < 1e-20


@pytest.mark.parametrize(
    ("splits", "repeats", "wgan", "classic"),
    [
        ({0: 0, 1: 1, 2: 2}, 2, ["split + generator", "classifier"], ["split", "classifier"]),
        ({0: 0, 1: 1, 2: 2}, 1, ["split + generator + classifier"], ["split + classifier"]),
        ({0: 0, 1: 0, 2: 1, 3: 1}, 1, ["split", "generator + classifier"], ["split", "classifier"]),
        ({0: 0, 1: 0}, 2, ["generator", "classifier"], ["generator", "classifier"]),
        ({0: 0}, 3, ["classifier"], ["classifier"]),
        ({0: 0}, 1, [], []),
    ],
)
def test_what_a_design_cannot_tell_apart_stays_joined(splits, repeats, wgan, classic):
    found = table_of(*trained(splits=splits, repeats=repeats, n=40), splits=splits)
    parts = found.groupby("arm")["part"].agg(list)
    assert parts["wgan"] == [*wgan, "test sampling"]
    assert parts["classic"] == [*classic, "test sampling"]
    assert np.isfinite(found["variance"]).all()
    assert found["share"].isna().all() == (len(set(splits.values())) == 1)
    said = variance_sentence(found)
    assert ("replicates_per_split" in said) == any(p.startswith("split + generator") for p in wgan)
    assert ("set repeats" in said) == any("+ classifier" in p for p in wgan)
    assert ("One split shows nothing" in said) == (len(set(splits.values())) == 1)
    assert ("So few splits" in said) == (len(set(splits.values())) > 1)


def test_one_split_still_has_its_test_lesions():
    found = table_of(*trained(splits={0: 0}, repeats=1, n=400), splits={0: 0}, resamples=1000)
    rows = found[found["part"] == "test sampling"]
    assert rows["sd"].to_numpy() == pytest.approx(np.sqrt(0.7 * 0.3 / 400), rel=0.15)


def test_arms_are_pooled_by_kind():
    repeats, predictions = trained(arms=("a", "b", "wgan", "shuffled"), luck=(0.05, 0, 0.02))
    kinds = {"a": "real", "b": "real", "wgan": "synthetic", "shuffled": "placebo"}
    arms = {"a": "", "b": "", "wgan": "wgan", "shuffled": "wgan"}
    found = table_of(repeats, predictions, arms=arms, kinds=kinds)
    assert found["arm"].drop_duplicates().tolist() == ["a", "b", "wgan", "shuffled", "all real"]
    wide = found[found["part"] == "classifier"].set_index("arm")
    assert wide.loc["all real", "variance"] == pytest.approx(wide.loc[["a", "b"], "variance"].mean())
    assert wide.loc["all real", "freedom"] == 2 * wide.loc["a", "freedom"]
    split = found[found["part"] == "split"].set_index("arm")
    assert split.loc["all real", "freedom"] == split.loc["a", "freedom"] == 3
    assert "Over all real arms the largest part" in variance_sentence(found)


def test_arms_of_other_designs_keep_their_own_and_are_not_pooled():
    repeats, predictions = trained(arms=("a", "b"))
    repeats = repeats[(repeats["arm"] == "a") | (repeats["repeat"] == 0)]
    found = table_of(repeats, predictions, arms={}, kinds={})
    assert found.groupby("arm")["trainings"].first().to_dict() == {"a": 16, "b": 8}


def test_all_equal_scores_have_no_variance_and_no_shares():
    repeats, predictions = trained()
    found = table_of(repeats.assign(predicted="NV"), predictions)
    assert found["variance"].max() < 1e-20
    assert found["share"].isna().all()


def test_the_same_seed_gives_the_same_table():
    data = trained(n=40)
    pd.testing.assert_frame_equal(table_of(*data, seed=5), table_of(*data, seed=5))


def test_impossible_requests_are_sentences():
    repeats, predictions = trained(n=40)
    with pytest.raises(BadInput, match="Replicate 7 has no split"):
        table_of(repeats, predictions, splits=dict.fromkeys(range(7), 0))
    with pytest.raises(BadInput, match="is not in the predictions"):
        table_of(repeats, predictions.iloc[1:])
    with pytest.raises(BadInput, match="cannot be resampled"):
        table_of(repeats, predictions, metric="auroc")
    with pytest.raises(BadInput, match="lies in two splits"):
        design([0, 1], [0, 0])


def test_a_large_study_takes_seconds():
    repeats, predictions = trained(arms=("classic", "wgan", "a", "b"), n=500)
    start = time.perf_counter()
    table_of(repeats, predictions, resamples=300, arms={}, kinds={})
    assert time.perf_counter() - start < 10
