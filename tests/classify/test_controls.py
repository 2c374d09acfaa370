import numpy as np
import pandas as pd
import pytest
import torch

from stda import BadInput, classify, encoders
from stda.classify.controls import self_training
from stda.compute import Compute
from stda.images import ImageSet

CPU = Compute(torch.device("cpu"), "float32", 1)
COUNTS = {"dark": 9, "light": 6}


@pytest.fixture(scope="module")
def train():
    """Dark and light pictures with a gradient, so that a transformation shows."""
    labels = np.repeat(list(COUNTS), list(COUNTS.values()))
    ground = np.where(labels == "dark", 40, 200)[:, None, None, None] + np.arange(16)[:, None] * 3
    pixels = ground + np.random.default_rng(0).integers(-9, 9, (len(labels), 16, 16, 3))
    table = pd.DataFrame({"image_id": [f"i{n}" for n in range(len(labels))], "label": labels, "split": "train"})
    table["group"] = [f"g{n // 2}" for n in range(len(labels))]
    return ImageSet(pixels.astype(np.uint8), table)


@pytest.fixture(scope="module")
def labeller(train):
    return encoders.train_in_domain(train, steps=15, seed=0, compute=CPU, batch_size=16)


def test_real_pictures_transformed_once_and_labelled_as_they_look(train, labeller):
    pool = self_training(train, {"dark": 12, "light": 3}, seed=1, labeller=labeller, compute=CPU)
    table = pool.table
    assert table["asked_label"].value_counts().to_dict() == {"dark": 12, "light": 3}
    assert table["image_id"].is_unique
    assert set(table["split"]) == {"synthetic"}
    assert table.loc[:8, "source_ids"].nunique() == 9  # every picture once before any again
    sources = train.table.set_index("image_id").loc[table["source_ids"]]
    assert table["group"].tolist() == sources["group"].tolist()
    for picture, name in zip(pool.images, table["source_ids"], strict=True):
        original = train.images[train.table["image_id"] == name][0]
        assert not np.array_equal(picture, original)
        assert abs(picture.mean() - original.mean()) < 40
    opinion = labeller.classify(pool, CPU)
    np.testing.assert_allclose(table[["p_dark", "p_light"]], opinion, atol=1e-6)
    assert table["label"].tolist() == np.array(labeller.classes)[opinion.argmax(axis=1)].tolist()
    np.testing.assert_allclose(table["label_confidence"], opinion.max(axis=1), atol=1e-6)
    again = self_training(train, {"dark": 12, "light": 3}, seed=1, labeller=labeller, compute=CPU)
    assert np.array_equal(again.images, pool.images)


@pytest.mark.parametrize("labels", classify.LABELS)
@pytest.mark.parametrize("protocol", classify.PROTOCOLS)
def test_an_arm_of_self_training_has_the_counts_of_a_generator_s(train, labeller, protocol, labels):
    arm = classify.Arm("self", classify.SELF_TRAINING, 1.0, protocol=protocol, labels=labels)
    training = classify.assemble(arm, train, seed=4, labeller=labeller, compute=CPU)
    wanted = classify.added_counts(train, 1.0, largest=protocol != "mix")
    composition = training.composition.set_index("class")
    assert composition["added"].to_dict() == {"dark": 0, **wanted}
    alone = training.pretrain if protocol == "pretrain" else training.images
    added = alone.select(split="synthetic")
    assert len(added) == sum(wanted.values())
    assert ("target_dark" in added.table) == (labels == "soft")
    if labels == "style":
        assert added.labels.tolist() == added.table["asked_label"].tolist()


def test_unsure_pictures_are_left_out_and_replaced(train, labeller):
    arm = classify.Arm("self", classify.SELF_TRAINING, 1.0)
    every = classify.assemble(arm, train, labeller=labeller, compute=CPU).images.select(split="synthetic")
    floor = float(every.table["label_confidence"].median())
    sure = classify.Arm("self", classify.SELF_TRAINING, 1.0, min_confidence=floor)
    training = classify.assemble(sure, train, labeller=labeller, compute=CPU)
    added = training.images.select(split="synthetic")
    assert added.table["label_confidence"].min() >= floor
    # of three times as many pictures some more are as sure as the better half
    assert len(every) // 2 < len(added) <= len(every)


def test_without_a_labeller_it_is_a_sentence(train):
    with pytest.raises(BadInput, match="pass a labeller"):
        classify.assemble(classify.Arm("self", classify.SELF_TRAINING), train)
