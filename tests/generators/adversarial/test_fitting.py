import math

import numpy as np
import pytest
import torch
from gan_cases import CPU, TINY, discs, noisy_judge

import stda.generators as generators
from stda import BadInput
from stda.images import ImageSet


def fit(name="wgan", *, held_out=None, judge=None, callback=None, steps=12, train=None, **knobs):
    generator = generators.create(name, compute=CPU, **(TINY[name] | knobs))
    parts = {"held_out": held_out, "judge": judge, "callback": callback}
    return generator, generator.fit(train or discs(), steps=steps, seed=3, **parts)


VAL = discs(split="val", seed=1)


@pytest.mark.parametrize("name", list(TINY))
def test_looks_come_every_so_many_steps_and_at_the_end(name):
    _, history = fit(name, held_out=VAL, judge=noisy_judge, watch_every=4, steps=20)
    looked = history[history["kid"].notna()]
    for _, rows in looked.groupby("model"):
        first = history[history["model"] == rows["model"].iloc[0]]["step"].iloc[0] - 1
        last = history[history["model"] == rows["model"].iloc[0]]["step"].iloc[-1]
        assert (rows["step"] - first).tolist() == [*range(4, last - first, 4), last - first]
    assert looked[["d_train", "d_held_out"]].notna().all(axis=None)
    assert history.loc[history["kid"].isna(), ["d_train", "d_held_out"]].isna().all(axis=None)


@pytest.mark.parametrize("name", list(TINY))
def test_looking_does_not_change_what_is_learnt(name):
    looked, _ = fit(name, held_out=VAL, judge=noisy_judge, watch_every=1)
    alone, _ = fit(name)
    for key, network in alone.models.items():
        weights = looked.models[key].state_dict()
        assert all(torch.equal(value, weights[k]) for k, value in network.state_dict().items())


def test_the_judge_sees_held_out_images_and_as_many_synthetic_ones_of_the_same_labels():
    seen = []

    def judge(real, synthetic):
        seen.append((real, synthetic))
        return {"kid": 0.0}

    fit("dcgan", held_out=VAL, judge=judge, watch_every=6, watch_images=4)
    assert [sorted(set(real.labels)) for real, _ in seen] == [["dark"], ["light"]]
    for real, synthetic in seen:
        assert isinstance(synthetic, ImageSet)
        assert len(real) == len(synthetic) == 4
        assert real.labels.tolist() == synthetic.labels.tolist()
        assert set(real.table["split"]) == {"val"}
        assert set(synthetic.table["split"]) == {"synthetic"}


def test_the_critic_s_opinion_is_of_the_images_themselves():
    # a critic whose score is the mean grey level tells the mean of what it is shown
    generator = generators.create("wgan", compute=CPU, watch_every=1, **TINY["wgan"])
    generator.opinion = lambda training, images, labels: images.mean(dim=(1, 2, 3))
    train, val = discs(counts={"dark": 3, "light": 1}), discs(counts={"dark": 1, "light": 3}, split="val")
    history = generator.fit(train, steps=1, seed=0, held_out=val)
    assert history["d_train"].iloc[0] == pytest.approx(train.as_tensor().mean().item(), abs=1e-6)
    assert history["d_held_out"].iloc[0] == pytest.approx(val.as_tensor().mean().item(), abs=1e-6)
    assert "kid" not in history


def test_the_best_weights_are_kept_where_asked():
    values = iter([5.0, 2.0, math.nan, 3.0, 2.0])
    shots = []

    def judge(real, synthetic):
        shots.append(synthetic)
        return {"kid": next(values), "copies": float(len(shots))}

    generator, history = fit(held_out=VAL, judge=judge, watch_every=2, steps=10, keep="best")
    assert generator.kept == {"(all)": 4}
    assert history["kid"].dropna().tolist() == [5.0, 2.0, 3.0, 2.0]
    assert history["copies"].dropna().tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    again = generator.regenerate(shots[1].table)
    assert np.array_equal(again, shots[1].images)
    assert not np.array_equal(again, shots[4].images)

    values = iter([5.0, 2.0, math.nan, 3.0, 2.0])
    last, _ = fit(held_out=VAL, judge=judge, watch_every=2, steps=10)
    assert last.kept == {"(all)": 10}


def test_a_judge_that_never_can_tell_keeps_the_last():
    generator, _ = fit(held_out=VAL, judge=lambda real, synthetic: {"kid": math.nan}, watch_every=5, keep="best")
    assert generator.kept == {"(all)": 12}


def test_patience_waits_for_looks_that_can_tell():
    _, history = fit(held_out=VAL, judge=lambda r, s: {"kid": math.nan}, watch_every=2, patience=2, steps=20)
    assert len(history) == 20


def test_a_look_asks_in_the_batches_of_training():
    sizes = []
    generator = generators.create("pggan", compute=CPU, watch_every=1, **(TINY["pggan"] | {"batch_size": 8}))
    opinion = generator.opinion
    generator.opinion = lambda training, x, labels: sizes.append(len(x)) or opinion(training, x, labels)
    generator.fit(
        discs(counts={"dark": 30, "light": 9}), steps=1, seed=0, held_out=discs(counts={"dark": 21}, split="val")
    )
    assert sizes == [8, 8, 8, 8]  # of 21 images each, whole batches
    sizes.clear()
    generator.fit(discs(), steps=1, seed=0, held_out=discs(counts={"dark": 7}, split="val"))
    assert sizes == [4, 4]  # whole groups of the minibatch deviation


def test_patience_ends_training():
    values = iter([3.0, 1.0, 2.0, 2.0, 0.0])
    generator, history = fit(
        held_out=VAL, judge=lambda r, s: {"kid": next(values)}, watch_every=2, steps=40, patience=2, keep="best"
    )
    assert history["step"].tolist() == list(range(1, 9))
    assert generator.kept == {"(all)": 4}


def test_a_network_that_still_grows_is_neither_kept_nor_stopped():
    # the judge likes it the less the larger it is: the first look at the full size is the best that counts
    values = iter(range(100))
    knobs = {"watch_every": 3, "keep": "best", "patience": 2, "train": discs(size=16), "steps": 60}
    generator, history = fit(
        "pggan", held_out=discs(size=16, split="val"), judge=lambda r, s: {"kid": next(values)}, **knobs
    )
    grown = history[(history["resolution"] == 16) & (history["alpha"] == 1) & history["kid"].notna()]
    assert len(history[history["kid"].notna()]) > len(grown) + 2
    assert generator.kept == {"(all)": grown["step"].iloc[0]}
    assert history["step"].iloc[-1] == grown["step"].iloc[2] < 60


def test_only_the_validation_fold_is_looked_at():
    for split in ("train", "test", "", "synthetic"):
        with pytest.raises(BadInput, match="watched on the validation fold only"):
            fit(held_out=discs(split=split), watch_every=1)
    with pytest.raises(BadInput, match="no rows"):
        fit(held_out=VAL.select([]), watch_every=1)
    for knobs in ({"keep": "best"}, {"patience": 2}, {"keep": "best", "watch_every": 1}):
        with pytest.raises(BadInput, match="go by looks: set watch_every, and give held_out and judge"):
            fit(**knobs)


def test_a_class_without_held_out_images_is_not_looked_at():
    _, history = fit("dcgan", held_out=VAL.select(label="dark"), judge=noisy_judge, watch_every=2)
    assert set(history.loc[history["kid"].notna(), "model"]) == {"dark"}


@pytest.mark.parametrize("name", list(TINY))
def test_augmentation_is_recorded_and_moves(name):
    _, history = fit(name, augment="adaptive", augment_images=200, augment_target=0.01, steps=24)
    assert history["augment_p"].between(0, 1).all()
    for _, rows in history.groupby("model"):
        moved = rows[rows["augment_p"].diff() != 0].iloc[1:]
        assert (moved["augment_p"].diff() > 0).iloc[1:].tolist() == (moved["overfitting"] > 0.01).iloc[1:].tolist()
        assert len(moved) or (rows["overfitting"] <= 0.01).all()
    _, plain = fit(name, steps=24)
    assert (plain["augment_p"] == 0).all()
    _, always = fit(name, augment="diffaugment", steps=4)
    assert (always["augment_p"] == 1).all()


def test_bad_augmentation_is_one_sentence():
    with pytest.raises(BadInput, match="augment is 'much'"):
        generators.create("wgan", augment="much")
    with pytest.raises(BadInput, match="policy"):
        generators.create("wgan", augment="diffaugment", augment_policy=["blur"])
