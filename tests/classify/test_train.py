import numpy as np
import pandas as pd
import pytest
import torch

from stda import BadInput, classify
from stda.classify.labels import one_hot
from stda.compute import Compute
from stda.images import ImageSet

CPU = Compute(torch.device("cpu"), "float32", 1)
COLOURS = {"amber": (200, 150, 60), "blue": (60, 90, 200), "clay": (150, 80, 70)}


def make(counts, split, seed=0, size=16):
    """Discs of a colour per class on a noisy ground: learnt in a few steps."""
    random = np.random.default_rng([seed, *split.encode()])
    labels = np.repeat(list(counts), list(counts.values()))
    images = random.integers(90, 160, (len(labels), size, size, 3))
    y, x = np.mgrid[:size, :size] - size / 2
    for image, label in zip(images, labels, strict=True):
        image[y**2 + x**2 < (size / 3) ** 2] = COLOURS[label]
    images = (images + random.integers(-20, 20, images.shape)).clip(0, 255).astype(np.uint8)
    table = pd.DataFrame({"image_id": [f"{split}{i}" for i in range(len(labels))], "label": labels, "split": split})
    return ImageSet(images, table)


@pytest.fixture(scope="module")
def folds():
    return make({"amber": 60, "blue": 20, "clay": 8}, "train"), make({"amber": 20, "blue": 10, "clay": 5}, "val")


@pytest.fixture(scope="module")
def synthetic():
    made = make({"amber": 30, "blue": 30, "clay": 30}, "synthetic", seed=4)
    return ImageSet(made.images, made.table.assign(generator="gan"))


def fit(train, val, **knobs):
    settings = {"classes": sorted(COLOURS), "steps": 12, "batch_size": 16, "seed": 0, "compute": CPU} | knobs
    return classify.train_classifier(train, val, **settings)


@pytest.fixture(scope="module")
def fitted(folds):
    return fit(*folds, steps=40)


def test_it_learns(fitted, folds):
    model, history = fitted
    test = make({"amber": 20, "blue": 20, "clay": 20}, "test", seed=9)
    answers = classify.predict(model, test, CPU).argmax(axis=1)
    assert classify.balanced_accuracy(np.repeat([0, 1, 2], 20), answers) > 0.9
    assert history["step"].tolist() == list(range(1, 41))
    assert history["loss"].iloc[-5:].mean() < history["loss"].iloc[:5].mean()
    assert history["learning_rate"].max() == pytest.approx(2e-3, rel=1e-3)


def test_balanced_accuracy_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    targets, answers = random.choice(5, 200, p=[0.6, 0.2, 0.1, 0.1, 0]), random.integers(0, 5, 200)
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        wanted = metrics.balanced_accuracy_score(targets, answers)
    assert classify.balanced_accuracy(targets, answers) == pytest.approx(wanted)


def test_the_best_checkpoint_is_kept(folds):
    model, history = fit(*folds, steps=15, learning_rate=0.02, evaluate_every=1)
    answers = classify.predict(model, folds[1], CPU).argmax(axis=1)
    targets = np.searchsorted(sorted(COLOURS), folds[1].labels.astype(str))
    best = history["val_balanced_accuracy"].max()
    assert classify.balanced_accuracy(targets, answers) == pytest.approx(best)
    kept = history.loc[history["kept"].astype(bool), "val_balanced_accuracy"]
    assert kept.is_monotonic_increasing
    assert kept.iloc[-1] == best


def test_every_arm_makes_the_same_number_of_updates(folds):
    train, val = folds
    synthetic = make({"blue": 200, "clay": 200}, "synthetic")
    synthetic = ImageSet(synthetic.images, synthetic.table.assign(generator="gan"))
    for images, sampler in ((train, "shuffle"), (train, "balanced"), (ImageSet.concat(train, synthetic), "balanced")):
        seen = []
        _, history = fit(images, val, steps=5, sampler=sampler, callback=seen.append)
        assert len(history) == 5
        assert [record["step"] for record in seen] == [1, 2, 3, 4, 5]
        assert {record["steps"] for record in seen} == {5}


def test_the_seed_decides_and_the_global_state_is_left_alone(folds):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, _ = fit(*folds, steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    b, _ = fit(*folds, steps=3)
    c, _ = fit(*folds, steps=3, seed=1)
    states = [model.state_dict() for model in (a, b, c)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


class TestPretraining:
    """Two phases, one budget of updates, one choice of the checkpoint."""

    def test_the_updates_are_shared_and_each_phase_has_its_cycle(self, folds, synthetic):
        seen = []
        _, history = fit(*folds, steps=30, pretrain=synthetic, pretrain_steps=12, callback=seen.append)
        assert [record["step"] for record in seen] == list(range(1, 31))
        assert history["step"].tolist() == list(range(1, 31))
        assert history["phase"].tolist() == ["pretrain"] * 12 + ["train"] * 18
        for name, rates in history.groupby("phase")["learning_rate"]:
            peak = rates.reset_index(drop=True)
            assert peak.max() == pytest.approx(2e-3, rel=2e-2), name
            assert 0 < peak.argmax() < len(peak) - 1
            assert peak.iloc[-1] < 1e-5

    def test_the_checkpoint_is_of_the_last_phase(self, folds, synthetic):
        knobs = {"steps": 20, "pretrain_steps": 19, "evaluate_every": 1, "learning_rate": 0.02}
        model, history = fit(*folds, pretrain=synthetic, **knobs)
        looks = history.dropna(subset="val_balanced_accuracy")
        assert looks["kept"].astype(bool).tolist() == [False] * 19 + [True]
        answers = classify.predict(model, folds[1], CPU).argmax(axis=1)
        targets = np.searchsorted(sorted(COLOURS), folds[1].labels.astype(str))
        assert classify.balanced_accuracy(targets, answers) == pytest.approx(looks["val_balanced_accuracy"].iloc[-1])

    def test_it_knows_what_it_saw_first(self, folds, synthetic):
        _, history = fit(*folds, steps=41, pretrain=synthetic, pretrain_steps=40)
        _, short = fit(*folds, steps=1)
        assert history["val_balanced_accuracy"].iloc[39] > 0.9
        assert history["loss"].iloc[40] < short["loss"].iloc[0] / 2

    def test_rows_of_another_fold_are_refused_in_either_phase(self, folds, synthetic):
        leaked = ImageSet.concat(synthetic, make({"clay": 1}, "test"))
        with pytest.raises(BadInput, match="train fold only"):
            fit(*folds, steps=9, pretrain=leaked, pretrain_steps=4)

    @pytest.mark.parametrize(("given", "steps"), [(True, 0), (True, 12), (False, 3)])
    def test_a_phase_without_images_or_steps_is_a_sentence(self, folds, synthetic, given, steps):
        with pytest.raises(BadInput, match=f"{steps} of 12 steps"):
            fit(*folds, pretrain=synthetic if given else None, pretrain_steps=steps)


class TestSoftTargets:
    """Cross-entropy with probabilities."""

    def test_one_hot_probabilities_train_like_labels(self, folds):
        hard, soft = fit(*folds), fit(one_hot(folds[0], sorted(COLOURS)), folds[1])
        np.testing.assert_allclose(hard[1]["loss"], soft[1]["loss"], rtol=1e-4)

    def test_the_loss_is_the_mixture_of_the_hard_ones(self, folds):
        """Cross-entropy is linear in the target, and nothing else about a shuffled step depends on the labels."""
        mixture, knobs = {"amber": 0.5, "blue": 0.2, "clay": 0.3}, {"steps": 1, "sampler": "shuffle"}
        table = folds[0].table.assign(**{f"target_{name}": share for name, share in mixture.items()})
        _, soft = fit(ImageSet(folds[0].images, table), folds[1], **knobs)
        expected = 0.0
        for name, share in mixture.items():
            _, hard = fit(ImageSet(folds[0].images, folds[0].table.assign(label=name)), folds[1], **knobs)
            expected += share * hard["loss"].iloc[0]
        assert soft["loss"].iloc[0] == pytest.approx(expected, rel=1e-5)

    def test_probabilities_that_do_not_sum_to_one(self, folds):
        damaged = one_hot(folds[0], sorted(COLOURS))
        table = damaged.table.assign(target_blue=0.7)
        with pytest.raises(BadInput, match="no probabilities"):
            fit(ImageSet(damaged.images, table), folds[1])


def test_an_arm_may_train_on_synthetic_rows_alone(folds, synthetic):
    model, _ = fit(synthetic, folds[1], steps=40)
    answers = classify.predict(model, folds[1], CPU).argmax(axis=1)
    targets = np.searchsorted(sorted(COLOURS), folds[1].labels.astype(str))
    assert classify.balanced_accuracy(targets, answers) > 0.9


@pytest.mark.parametrize("split", ["val", "test", ""])
def test_training_rows_are_train_or_synthetic(folds, split):
    with pytest.raises(BadInput, match="train fold only"):
        fit(ImageSet.concat(folds[0], make({"clay": 1}, split)), folds[1])


@pytest.mark.parametrize("split", ["train", "test", "synthetic", ""])
def test_validation_rows_are_val(folds, split):
    with pytest.raises(BadInput, match="val fold only"):
        fit(folds[0], ImageSet.concat(folds[1], make({"clay": 1}, split, seed=5)))


def test_no_image_is_in_both_folds(folds):
    train, val = folds
    copied = ImageSet(val.images, val.table.assign(split="train"))
    with pytest.raises(BadInput, match="in train and in val"):
        fit(ImageSet.concat(train, copied), val)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ["amber", "blue"]}, "clay"),
        ({"classes": ["amber"]}, "two different"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 1}, "batch_size"),
        ({"augment": "mixdown"}, "classic"),
        ({"sampler": "dice"}, "balanced"),
        ({"network": "vgg19"}, "vgg8"),
        ({"learning_rate": 1e12, "augment": "none"}, "lower learning_rate"),
    ],
)
def test_bad_input_is_a_sentence(folds, change, words):
    with pytest.raises(BadInput, match=words):
        fit(*folds, **change)


def test_empty_and_unequal_folds_are_refused(folds):
    train, val = folds
    with pytest.raises(BadInput, match="no rows"):
        fit(train.select(np.zeros(len(train), bool)), val)
    with pytest.raises(BadInput, match="no rows"):
        fit(train, val.select(np.zeros(len(val), bool)))
    with pytest.raises(BadInput, match="resize"):
        fit(train, make({"clay": 3}, "val", size=12))


def test_predictions_do_not_depend_on_the_batch_and_sum_to_one(fitted, folds):
    whole = classify.predict(fitted[0], folds[1], CPU)
    parts = classify.predict(fitted[0], folds[1], CPU, batch_size=3)
    np.testing.assert_allclose(whole, parts, atol=1e-5)
    np.testing.assert_allclose(whole.sum(axis=1), 1, atol=1e-5)
    assert classify.predict(fitted[0], folds[1].select(slice(0, 0)), CPU).shape == (0, 3)
    with pytest.raises(BadInput, match="16 px"):
        classify.predict(fitted[0], make({"clay": 1}, "test", size=20), CPU)


def test_example_batch(folds):
    arm = classify.Arm("balanced")
    batch = classify.example_batch(folds[0], arm, n=12, seed=3)
    assert batch.shape == (12, 16, 16, 3)
    assert batch.dtype == np.uint8
    assert np.array_equal(batch, classify.example_batch(folds[0], arm, n=12, seed=3))


@pytest.mark.parametrize("augment", ["fivecrop", "trivial", "randaugment", "mixup", "cutmix"])
def test_every_augmentation_trains_and_is_drawn_by_the_seed(folds, augment):
    first, again = (fit(*folds, steps=4, augment=augment)[1]["loss"] for _ in range(2))
    assert first.equals(again)
    assert not first.equals(fit(*folds, steps=4, augment=augment, seed=1)[1]["loss"])


def test_the_loss_that_is_asked_for_is_minimised(folds):
    plain = fit(*folds, steps=4, sampler="shuffle")[1]["loss"]
    assert not plain.equals(fit(*folds, steps=4, sampler="shuffle", loss="focal")[1]["loss"])
    with pytest.raises(BadInput, match="Unknown loss"):
        fit(*folds, loss="hinge")
