import warnings

import numpy as np
import pandas as pd
import pytest

from stda import BadInput
from stda.classify.selection import choose_rows, farthest_first, placebo_labels
from stda.images import ImageSet


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def greedy(points, n):
    """Take the point nearest to the centre, then again and again the one whose nearest taken one is farthest."""
    points = points.astype(float)
    taken = [min(range(len(points)), key=lambda i: np.sum((points[i] - points.mean(0)) ** 2))]
    while len(taken) < min(n, len(points)):
        left = [i for i in range(len(points)) if i not in taken]
        taken.append(max(left, key=lambda i: min(np.sum((points[i] - points[j]) ** 2) for j in taken)))
    return taken


@pytest.mark.parametrize("n", [0, 1, 2, 7, 30, 99])
@pytest.mark.parametrize("seed", range(4))
def test_farthest_first_is_the_greedy_k_centre(seed, n):
    """Points on a coarse grid: many ties and copies."""
    points = np.random.default_rng(seed).integers(0, 4, (30, 3)).astype(np.float32)
    assert farthest_first(points, n).tolist() == greedy(points, n)[:n]


def test_farthest_first_covers_within_twice_the_best_radius():
    """Gonzalez's bound, against the best of all choices of three among eleven."""
    from itertools import combinations

    points = np.random.default_rng(5).normal(size=(11, 2))

    def radius(chosen):
        return np.linalg.norm(points[:, None] - points[list(chosen)], axis=2).min(1).max()

    best = min(radius(chosen) for chosen in combinations(range(11), 3))
    assert best <= radius(farthest_first(points, 3)) <= 2 * best


def test_farthest_first_of_nothing_and_of_copies():
    assert farthest_first(np.zeros((0, 5)), 3).tolist() == []
    assert farthest_first(np.ones((4, 2)), 3).tolist() == [0, 1, 2]


CANDIDATES = {"b": np.array([1, 3, 4, 8]), "c": np.array([0, 5, 7])}
SURE = np.array([0.1, 0.5, 0.99, 0.9, 0.5, 0.2, 0.98, 0.6, 0.7])


def test_all_takes_the_first_and_confident_the_surest():
    knobs = {"wanted": {"b": 3, "c": 2}, "confidence": SURE}
    assert choose_rows(CANDIDATES, select="all", **knobs).tolist() == [0, 1, 3, 4, 5]
    # of the two with 0.5 the earlier; rows 2 and 6 are surer than any, but nobody's candidates
    assert choose_rows(CANDIDATES, select="confident", **knobs).tolist() == [1, 3, 5, 7, 8]


def test_diverse_spreads_out_within_each_class():
    features = np.zeros((9, 1))
    features[[1, 3, 4, 8], 0] = [0.0, 0.1, 10.0, -9.0]  # the mean is 0.275: row 3 is nearest, then 4, then 8
    features[[0, 5, 7], 0] = [5.0, 5.1, 9.0]  # the mean is 6.4: row 5, then 7
    knobs = {"confidence": SURE, "features": features}
    rows = choose_rows(CANDIDATES, {"b": 3, "c": 2}, select="diverse", **knobs)
    assert rows.tolist() == [3, 4, 5, 7, 8]
    assert choose_rows(CANDIDATES, {"b": 0, "c": 1}, select="diverse", **knobs).tolist() == [5]


@pytest.mark.parametrize("select", ["all", "confident", "diverse"])
def test_fewer_candidates_than_wanted_come_all_and_none_is_nothing(select):
    knobs = {"select": select, "confidence": SURE, "features": np.arange(18.0).reshape(9, 2)}
    few = {"b": np.zeros(0, int), "c": CANDIDATES["c"]}
    assert choose_rows(few, {"b": 2, "c": 9}, **knobs).tolist() == [0, 5, 7]
    assert choose_rows({}, {}, **knobs).tolist() == []


def pool(counts, **columns):
    labels = np.random.default_rng(3).permutation(np.repeat(list(counts), list(counts.values())))
    table = pd.DataFrame({"image_id": [f"s{i}" for i in range(len(labels))], "label": labels, "split": "synthetic"})
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return ImageSet(pixels, table.assign(generator="wgan", **columns))


@pytest.mark.parametrize("counts", [{"a": 20, "b": 12, "c": 9}, {"a": 30, "b": 30}, {"a": 1, "b": 2, "c": 1, "d": 4}])
@pytest.mark.parametrize("how", ["shuffled", "wrong"])
def test_placebo_labels_keep_the_numbers_and_everything_else(counts, how):
    images = pool(counts)
    placebo = placebo_labels(images, how, classes=list("abcd"), seed=1)
    assert placebo.counts().to_dict() == counts
    assert np.array_equal(placebo.images, images.images)
    assert placebo.table["asked_label"].tolist() == images.labels.tolist()
    others = [c for c in images.table if c not in ("label", "asked_label")]
    pd.testing.assert_frame_equal(placebo.table[others], images.table[others])
    if how == "wrong":
        assert not (placebo.labels == images.labels).any()


@pytest.mark.parametrize("seed", range(5))
def test_wrong_is_never_right_even_where_one_class_has_most_images(seed):
    images = pool({"a": 70, "b": 5, "c": 4, "d": 3})
    wrong = placebo_labels(images, "wrong", classes=list("abcd"), seed=seed)
    assert not (wrong.labels == images.labels).any()
    # a's labels go to the 12 others and theirs to 12 of a; the 58 left over get b, c and d in turn
    extra = wrong.counts() - pd.Series({"a": 12, "b": 5, "c": 4, "d": 3})
    assert extra["a"] == 0
    assert sorted(extra[["b", "c", "d"]]) == [19, 19, 20]


def test_shuffled_labels_say_nothing_and_follow_the_seed():
    images = pool({"a": 300, "b": 100})
    one, again, other = (placebo_labels(images, "shuffled", classes=list("ab"), seed=s) for s in (0, 0, 1))
    assert one.labels.tolist() == again.labels.tolist() != other.labels.tolist()
    right = (one.labels == images.labels).mean()  # by luck 0.75^2 + 0.25^2 = 0.625, give or take 0.02
    assert 0.55 < right < 0.70
    assert (
        placebo_labels(images, "wrong", classes=list("abcd"), seed=0).labels.tolist()
        == placebo_labels(images, "wrong", classes=list("abcd"), seed=0).labels.tolist()
    )


def test_the_asked_class_outlives_a_placebo():
    images = pool({"a": 4, "b": 4}, asked_label=["b"] * 8)
    assert placebo_labels(images, "wrong", classes=list("abcd"), seed=0).table["asked_label"].tolist() == ["b"] * 8


@pytest.mark.parametrize(("counts", "found"), [({"a": 5}, "all are a"), ({"a": 0}, "all are missing")])
def test_one_class_cannot_be_shuffled(counts, found):
    with pytest.raises(BadInput, match=f"Labels 'shuffled' need added images of two classes or more, but {found}"):
        placebo_labels(pool(counts), "shuffled", classes=["a", "b"], seed=0)


def test_images_of_one_class_get_the_other_labels_of_the_train_fold():
    wrong = placebo_labels(pool({"b": 5}), "wrong", classes=["a", "b", "c"], seed=0)
    assert wrong.counts().to_dict() == {"a": 3, "c": 2}
    assert not len(placebo_labels(pool({"b": 0}), "wrong", classes=["a", "b"], seed=0))
