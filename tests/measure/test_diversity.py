import numpy as np
import pytest

from stda import BadInput
from stda.measure.diversity import class_diversity


def brute(x):
    return np.mean([np.linalg.norm(a - b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])


def test_against_all_pairs_far_from_the_origin():
    random = np.random.default_rng(0)
    features = {"real": random.normal(1e4, 1, (30, 5)), "made": random.normal(1e4, 0.3, (20, 5))}
    labels = {"real": np.array(["a", "b", "b"] * 10), "made": np.array(["b", "a"] * 10)}
    found = class_diversity(features, labels, reference="real").set_index("label")
    assert found["set"].tolist() == ["made", "made"]
    assert found["n"].tolist() == [10, 10]
    assert found["n_reference"].tolist() == [10, 20]
    for label, row in found.iterrows():
        parts = [features[name][labels[name] == label] for name in ("made", "real")]
        assert row["diversity"] == pytest.approx(brute(parts[0]) / brute(parts[1]), rel=1e-6)


def test_one_picture_per_class_has_none_and_equal_sets_have_one():
    random = np.random.default_rng(1)
    real, names = random.normal(size=(12, 3)).astype(np.float32), np.array(["a", "b"] * 6)
    sets = {"real": real, "same": real[::-1], "collapsed": np.where(names[:, None] == "a", real[0], real[1])}
    found = class_diversity(sets, {"real": names, "same": names[::-1], "collapsed": names}, reference="real")
    by_set = found.groupby("set")["diversity"]
    assert by_set.get_group("same").to_numpy() == pytest.approx(1, abs=1e-6)
    assert by_set.get_group("collapsed").to_numpy() == pytest.approx(0, abs=1e-6)


def test_only_so_many_images_are_compared_and_single_ones_are_not():
    random = np.random.default_rng(2)
    sets = {"real": random.normal(size=(9, 2)), "made": random.normal(size=(9, 2))}
    names = np.array(["a"] * 8 + ["b"])
    found = class_diversity(sets, {"real": names, "made": names}, reference="real", max_samples=4).set_index("label")
    assert found.loc["a", "diversity"] == pytest.approx(brute(sets["made"][:4]) / brute(sets["real"][:4]))
    assert np.isnan(found.loc["b", "diversity"])


def test_bad_use_is_one_sentence():
    with pytest.raises(BadInput, match="must hold the reference 'real'"):
        class_diversity({"made": np.zeros((2, 2))}, {"made": ["a", "a"]}, reference="real")
    with pytest.raises(BadInput, match="'real' has 2 rows but 1 labels"):
        class_diversity({"real": np.zeros((2, 2))}, {"real": ["a"]}, reference="real")
