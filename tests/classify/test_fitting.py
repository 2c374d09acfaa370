import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from stda import BadInput, classify
from stda.classify import fitting
from stda.classify.train import Diverged
from stda.compute import Compute
from stda.images import ImageSet

CPU = Compute(torch.device("cpu"), "float32", 1)
COLOURS = {"amber": (200, 150, 60), "blue": (60, 90, 200)}
SETTINGS = {"classes": sorted(COLOURS), "steps": 5, "batch_size": 8, "augment": "none", "compute": CPU}


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def make(n, split):
    random = np.random.default_rng(list(split.encode()))
    labels = np.resize(list(COLOURS), n)
    images = np.array([COLOURS[label] for label in labels])[:, None, None] + random.integers(-55, 55, (n, 16, 16, 3))
    table = pd.DataFrame({"image_id": [f"{split}{i}" for i in range(n)], "label": labels, "split": split})
    return ImageSet(images.clip(0, 255).astype(np.uint8), table)


TRAIN, VAL, TEST = make(24, "train"), make(10, "val"), make(10, "test")


@pytest.fixture(scope="module")
def ensemble():
    return classify.fit(TRAIN, VAL, rates=[2e-3], seeds=[3, 4, 3], **SETTINGS)


class TestRates:
    def test_the_given_one_comes_first_then_outwards(self):
        assert classify.learning_rates(0.08, 1) == [0.08]
        np.testing.assert_allclose(classify.learning_rates(0.08, 5), [0.08, 0.04, 0.16, 0.02, 0.32])
        assert len(set(classify.learning_rates(0.08, 9))) == 9

    @pytest.mark.parametrize("tries", [0, 10, -1])
    def test_too_many_or_none(self, tries):
        with pytest.raises(BadInput, match=f"tries is {tries}; it must be between 1 and 9"):
            classify.learning_rates(0.1, tries)


KNOBS = {"steps": 100, "seconds_per_step": 0.5, "limit": 4.0}


class TestEqualCompute:
    """What a generator's seconds buy, by hand: 100 updates of half a second are one ordinary training of 50 s."""

    @pytest.mark.parametrize(
        ("seconds", "spend_on", "budget"),
        [
            (120, "steps", (340, 1, 0.0)),
            (120.3, "steps", (340, 1, 0.3)),  # part of an update is not bought
            (120, "ensemble", (100, 3, 20.0)),
            (49, "ensemble", (100, 1, 49.0)),
            (50, "ensemble", (100, 2, 0.0)),
            (1000, "steps", (500, 1, 800.0)),  # the limit: four ordinary trainings on top
            (1000, "ensemble", (100, 5, 800.0)),
            (0, "steps", (100, 1, 0.0)),
            (0, "ensemble", (100, 1, 0.0)),
        ],
    )
    def test_by_hand(self, seconds, spend_on, budget):
        found = classify.equal_compute(seconds=seconds, spend_on=spend_on, **KNOBS)
        assert (found.steps, found.members) == budget[:2]
        assert found.left == pytest.approx(budget[2])
        spent = (found.updates - 100) * 0.5
        assert spent + found.left == pytest.approx(seconds)

    def test_a_limit_of_nothing_buys_nothing_and_half_a_training_no_network(self):
        for limit, steps in ((0.0, 100), (0.5, 150)):
            knobs = {**KNOBS, "seconds": 1000, "limit": limit}
            assert classify.equal_compute(spend_on="steps", **knobs).steps == steps
            assert classify.equal_compute(spend_on="ensemble", **knobs).members == 1

    @pytest.mark.parametrize(
        "change",
        [
            {"seconds_per_step": 0.0},
            {"seconds_per_step": float("nan")},
            {"seconds": -1.0},
            {"seconds": float("nan")},
            {"steps": 0},
            {"limit": -1.0},
        ],
    )
    def test_what_cannot_be_is_a_sentence(self, change):
        with pytest.raises(BadInput, match="cannot be spent on top of"):
            classify.equal_compute(**{**KNOBS, "seconds": 10.0, "spend_on": "steps", **change})


class TestSearch:
    """The choice among rates, with the training replaced by scores that are known."""

    @pytest.fixture
    def trained(self, monkeypatch):
        calls, scores = [], {0.1: [0.5, 0.7, 0.6], 0.2: [0.2, 0.8, 0.3], 0.3: [0.8, 0.1, 0.1]}

        def train(train, val, *, learning_rate, seed, callback, **settings):
            calls.append((learning_rate, seed))
            best = np.maximum.accumulate(scores[learning_rate])
            looks = pd.DataFrame({"step": [1, 2, 3], "val_balanced_accuracy": scores[learning_rate]})
            looks["kept"] = pd.Series(looks["val_balanced_accuracy"] >= best, dtype=object)
            between = pd.DataFrame({"step": [4], "val_balanced_accuracy": [np.nan], "kept": [None]}, dtype=object)
            return f"model {learning_rate} {seed}", pd.concat([looks.astype(object), between])

        monkeypatch.setattr(fitting, "train_classifier", train)
        return calls

    def test_the_best_on_validation_is_kept_and_ties_go_to_the_first(self, trained):
        fitted = classify.fit(None, None, rates=[0.1, 0.2, 0.3], seeds=[7])
        assert fitted.learning_rate == 0.2
        assert fitted.members == ["model 0.2 7"]
        assert fitted.tuning["learning_rate"].tolist() == [0.1, 0.2, 0.3]
        assert fitted.tuning["val_balanced_accuracy"].tolist() == [0.7, 0.8, 0.8]  # of the kept weights, not the last
        assert fitted.tuning["chosen"].tolist() == [False, True, False]
        assert trained == [(0.1, 7), (0.2, 7), (0.3, 7)]
        assert classify.fit(None, None, rates=[0.3, 0.2], seeds=[7]).learning_rate == 0.3

    def test_the_other_members_are_trained_once_with_the_rate_that_was_kept(self, trained):
        fitted = classify.fit(None, None, rates=[0.3, 0.1], seeds=[7, 8, 9])
        assert trained == [(0.3, 7), (0.1, 7), (0.3, 8), (0.3, 9)]
        assert fitted.members == ["model 0.3 7", "model 0.3 8", "model 0.3 9"]
        assert fitted.history["val_balanced_accuracy"].tolist()[:3] == [0.8, 0.1, 0.1]


def test_one_rate_and_one_seed_are_the_training_itself():
    heard = []
    fitted = classify.fit(TRAIN, VAL, rates=[2e-3], seeds=[3], callback=heard.append, **SETTINGS)
    alone, history = classify.train_classifier(TRAIN, VAL, learning_rate=2e-3, seed=3, **SETTINGS)
    expected = classify.predict(alone, TEST, CPU)
    np.testing.assert_array_equal(classify.predict_mean(fitted.members, TEST, CPU), expected)
    pd.testing.assert_frame_equal(fitted.history, history)
    assert fitted.tuning["val_balanced_accuracy"].tolist() == [history["val_balanced_accuracy"].max()]
    assert len(heard) == 5


def test_members_of_an_ensemble_differ_by_their_seed_only(ensemble):
    one, two, same = (classify.predict(member, TEST, CPU) for member in ensemble.members)
    assert abs(one - two).max() > 1e-3
    np.testing.assert_array_equal(one, same)


def test_an_ensemble_predicts_the_mean_of_its_members(ensemble):
    found = classify.predict_mean(ensemble.members[:2], TEST, CPU)
    one, two = (classify.predict(member, TEST, CPU).astype(float) for member in ensemble.members[:2])
    np.testing.assert_allclose(found, (one + two) / 2, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(classify.predict_mean(ensemble.members[1:2], TEST, CPU), two.astype(np.float32))


def test_the_pace_is_the_median_of_updates_without_looks(monkeypatch):
    """A clock that knows: first updates are slow, and so is the last, which looks at the validation fold."""
    seconds = np.full(25, 0.25)
    seconds[:5], seconds[10], seconds[-1] = 3.0, 9.0, 60.0
    monkeypatch.setattr(fitting.time, "perf_counter", iter(np.cumsum(seconds)).__next__)
    seen = {}

    def train(train, val, *, callback, **settings):
        seen.update(settings, val=len(val))
        for step in range(settings["steps"]):
            callback({"step": step})

    monkeypatch.setattr(fitting, "train_classifier", train)
    pace = classify.seconds_per_step(TRAIN, VAL, batch_size=8, pretrain=TRAIN, learning_rate=1e-3)
    assert pace == 0.25
    assert (seen["steps"], seen["pretrain"], seen["pretrain_steps"], seen["val"]) == (25, None, 0, 8)


def test_a_pace_can_be_measured():
    settings = {name: value for name, value in SETTINGS.items() if name != "steps"}
    assert 0 < classify.seconds_per_step(TRAIN, VAL, learning_rate=1e-3, **settings) < 10


def test_a_longer_schedule_is_paid_for_as_often_as_rates_are_tried():
    knobs = {"seconds": 60.0, "seconds_per_step": 0.1, "limit": 100.0}
    once = classify.equal_compute(100, **knobs, spend_on="steps")
    thrice = classify.equal_compute(100, **knobs, spend_on="steps", tries=3)
    assert (once.steps, thrice.steps) == (700, 300)
    assert classify.equal_compute(100, **knobs, spend_on="ensemble", tries=3).members == 7
    with pytest.raises(BadInput, match="Unknown spend_on 'coffee'"):
        classify.equal_compute(100, **knobs, spend_on="coffee")


def test_a_rate_that_diverges_is_out_and_the_last_one_left_raises(monkeypatch):
    def train(images, val, *, learning_rate, **settings):
        if learning_rate > 1:
            raise Diverged("Training diverged: lower learning_rate.")
        return "model", pd.DataFrame({"kept": [True], "val_balanced_accuracy": [0.5]})

    monkeypatch.setattr("stda.classify.fitting.train_classifier", train)
    for rates in ([9.0, 0.1], [0.1, 9.0], [9.0, 0.1, 8.0]):
        found = classify.fit(None, None, rates=rates, seeds=[0])
        assert found.learning_rate == 0.1
        assert found.tuning["val_balanced_accuracy"].isna().tolist() == [rate > 1 for rate in rates]
    with pytest.raises(Diverged):
        classify.fit(None, None, rates=[9.0, 8.0], seeds=[0])
