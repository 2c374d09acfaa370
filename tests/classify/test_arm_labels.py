import numpy as np
import pandas as pd
import pytest
import torch

from stda import BadInput
from stda.classify.labels import asked, codes, one_hot, relabel, targets, with_opinion
from stda.compute import Compute
from stda.images import ImageSet

CPU = Compute(torch.device("cpu"), "float32", 1)
CLASSES = ["a", "b", "c"]
OPINION = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.25, 0.5, 0.25]])


class Labeller:
    """Has the same opinion whatever it sees, and counts how often it is asked."""

    classes, asked = CLASSES, 0

    def classify(self, images, compute):
        self.asked += 1
        return np.resize(OPINION, (len(images), 3)).astype(np.float32)


@pytest.fixture
def pool():
    table = pd.DataFrame({"image_id": ["x", "y", "z"], "label": ["a", "c", "c"], "asked_label": ["b", "b", "c"]})
    table = table.assign(split="synthetic", generator="nst", label_confidence=[0.7, 0.6, 0.25])
    return ImageSet(np.zeros((3, 4, 4, 3), np.uint8), table)


@pytest.fixture
def labelled(pool):
    return with_opinion(pool, CLASSES, labeller=Labeller(), compute=CPU)


@pytest.mark.parametrize(
    ("labels", "wanted", "confidence"),
    [
        ("given", ["a", "c", "c"], [0.7, 0.6, 0.25]),
        ("style", ["b", "b", "c"], [0.2, 0.3, 0.25]),
        ("pseudo", ["a", "c", "b"], [0.7, 0.6, 0.5]),
        ("soft", ["a", "c", "b"], [0.7, 0.6, 0.5]),
    ],
)
def test_labels_and_their_confidence(labelled, labels, wanted, confidence):
    found = relabel(labelled, labels, classes=CLASSES, sure=True)
    assert found.labels.tolist() == wanted
    np.testing.assert_allclose(found.table["label_confidence"], confidence, atol=1e-6)
    assert np.array_equal(found.images, labelled.images)
    if labels == "soft":
        np.testing.assert_allclose(targets(found, CLASSES), OPINION, atol=1e-6)
    else:
        assert targets(found, CLASSES).tolist() == codes(found.labels, CLASSES).tolist()


def test_the_labeller_is_asked_only_where_the_table_has_no_opinion(pool, labelled):
    labeller = Labeller()
    for labels, sure in (("given", False), ("style", False)):
        relabel(pool, labels, classes=CLASSES, sure=sure, labeller=labeller, compute=CPU)
    relabel(labelled, "soft", classes=CLASSES, sure=True, labeller=labeller, compute=CPU)
    assert labeller.asked == 0
    for labels, sure in (("given", True), ("style", True), ("pseudo", False)):
        found = relabel(pool, labels, classes=CLASSES, sure=sure, labeller=labeller, compute=CPU)
        again = relabel(labelled, labels, classes=CLASSES, sure=sure)
        pd.testing.assert_frame_equal(found.table, again.table)
    assert labeller.asked == 3


def test_what_was_asked_for_outlives_the_new_label(pool):
    made = ImageSet(pool.images, pool.table.drop(columns="asked_label"))
    found = relabel(made, "pseudo", classes=CLASSES, labeller=Labeller(), compute=CPU)
    assert found.labels.tolist() == ["a", "c", "b"]
    assert asked(found).tolist() == ["a", "c", "c"]


def test_an_opinion_survives_a_file(labelled, tmp_path):
    labelled.save(tmp_path)
    found = relabel(ImageSet.load(tmp_path), "soft", classes=CLASSES)
    np.testing.assert_allclose(targets(found, CLASSES), OPINION, atol=1e-6)


def test_one_hot(pool):
    assert targets(one_hot(pool, CLASSES), CLASSES).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]


def test_bad_opinions_are_sentences(pool, labelled):
    with pytest.raises(BadInput, match="pass a labeller"):
        relabel(pool, "soft", classes=CLASSES)
    with pytest.raises(BadInput, match="train it here"):
        relabel(pool, "soft", classes=["a", "b"], labeller=Labeller(), compute=CPU)
    for value in (np.nan, -0.1, 0.9):
        damaged = labelled.table.copy()
        damaged.loc[1, "p_a"] = value
        with pytest.raises(BadInput, match="image 'y' are no probabilities"):
            relabel(ImageSet(pool.images, damaged), "pseudo", classes=CLASSES)
