import hashlib

import numpy as np
import pandas as pd
import pytest

from stda import BadInput, data


def table_of(sizes_by_class):
    """One row per image: {"a": [1, 3]} is a class with a lesion of one image and one of three."""
    rows = []
    for label, sizes in sizes_by_class.items():
        for k, size in enumerate(sizes):
            rows += [(f"{label}{k}_{i}", label, f"{label}{k}") for i in range(size)]
    return pd.DataFrame(rows, columns=["image_id", "label", "group"])


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return table_of({"a": rng.integers(1, 4, 400), "b": rng.integers(1, 4, 40), "c": [1, 2, 1, 3, 1]})


def test_no_group_is_torn_and_every_class_is_everywhere(table):
    for seed in range(5):
        folds = data.split(table, val_fraction=0.2, test_fraction=0.3, seed=seed)
        assert table.assign(fold=folds).groupby("group")["fold"].nunique().max() == 1
        assert table.assign(fold=folds).groupby("label")["fold"].nunique().min() == 3


def test_fractions_hold_within_each_class(table):
    folds = data.split(table, val_fraction=0.2, test_fraction=0.3, seed=1)
    shares = pd.crosstab(table["label"], folds, normalize="index")
    assert abs(shares.loc["a", "test"] - 0.3) < 0.01
    assert abs(shares.loc["a", "val"] - 0.2) < 0.01
    assert abs(shares.loc["b", "test"] - 0.3) < 0.05


def test_the_seed_decides_and_the_order_of_rows_does_not(table):
    one = data.split(table, val_fraction=0.2, test_fraction=0.3, seed=1)
    assert (one == data.split(table, val_fraction=0.2, test_fraction=0.3, seed=1)).all()
    assert (one != data.split(table, val_fraction=0.2, test_fraction=0.3, seed=2)).any()
    order = np.random.default_rng(0).permutation(len(table))
    assert (data.split(table.iloc[order], val_fraction=0.2, test_fraction=0.3, seed=1) == one[order]).all()


def test_every_group_is_as_likely_in_the_test_fold(table):
    # choosing the best of several deals must not favour small or large groups
    in_test = sum(
        data.split(table, val_fraction=0.2, test_fraction=0.3, seed=seed)[table["label"] == "a"] == "test"
        for seed in range(40)
    )
    sizes = table[table["label"] == "a"].groupby("group")["group"].transform("size")
    assert abs(in_test[sizes == 1].mean() - in_test[sizes == 3].mean()) < 2.0


def test_three_groups_suffice_and_two_do_not():
    folds = data.split(table_of({"a": [1] * 20, "c": [5, 1, 1]}), val_fraction=0.2, test_fraction=0.3, seed=0)
    assert set(folds[20:]) == {"train", "val", "test"}
    with pytest.raises(BadInput, match=r"Class 'c' has a single lesion.*at least 3"):
        data.split(table_of({"a": [1] * 20, "c": [7]}), val_fraction=0.2, test_fraction=0.3, seed=0)
    with pytest.raises(BadInput, match=r"Class 'c' has only 2 lesion"):
        data.split(table_of({"a": [1] * 20, "c": [7, 2]}), val_fraction=0.2, test_fraction=0.3, seed=0)


def test_an_image_split_tears_lesions(table):
    folds = data.split(table, val_fraction=0.2, test_fraction=0.3, seed=1, by="image")
    assert table.assign(fold=folds).groupby("group")["fold"].nunique().max() > 1
    shares = pd.crosstab(table["label"], folds, normalize="index")
    assert abs(shares.loc["a", "test"] - 0.3) < 0.01


def test_patients_with_several_classes():
    rows = [(f"i{k}", "ab"[k % 2], f"p{k // 2}") for k in range(60)] + [(f"c{k}", "c", f"p{k}") for k in range(6)]
    table = pd.DataFrame(rows, columns=["image_id", "label", "group"])
    folds = data.split(table, val_fraction=0.2, test_fraction=0.3, seed=0)
    assert table.assign(fold=folds).groupby("group")["fold"].nunique().max() == 1
    assert table.assign(fold=folds).groupby("label")["fold"].nunique().min() == 3
    # every patient has both classes, and "b" always comes with the rarer "a": too few of its own is found out
    rows = [(f"a{k}", "a", f"p{k % 3}") for k in range(3)] + [(f"b{k}", "b", "p0") for k in range(9)]
    with pytest.raises(BadInput, match="Class 'b'"):
        data.split(
            pd.DataFrame(rows, columns=["image_id", "label", "group"]), val_fraction=0.2, test_fraction=0.3, seed=0
        )


# of the table above with seed 1, as the splits were before there was a held-back fold
STORED = {
    "group": "91b7a48e29ffef2535ac87c8a69ae9586582bddcf4c99b134b189692c92afa25",
    "image": "4ccbb53cb0fa7f51672f42c8ad72872ddd7d7a56f2ad5aca98ed353e21f975ed",
}


@pytest.mark.parametrize("by", ["group", "image"])
def test_without_a_held_back_fold_nothing_has_changed(table, by):
    folds = data.split(table, val_fraction=0.2, test_fraction=0.3, seed=1, by=by)
    assert hashlib.sha256(" ".join(folds).encode()).hexdigest() == STORED[by]


@pytest.mark.parametrize("by", ["group", "image"])
def test_the_held_back_fold_is_taken_from_train_alone(table, by):
    knobs = {"val_fraction": 0.2, "test_fraction": 0.3, "seed": 1, "by": by}
    without, folds = data.split(table, **knobs), data.split(table, oracle_fraction=0.2, **knobs)
    assert set(folds) == {"train", "val", "test", data.HELD_BACK}
    kept = folds != data.HELD_BACK
    assert (folds[kept] == without[kept]).all()
    assert (without[~kept] == "train").all()
    shares = pd.crosstab(table["label"], folds, normalize="index")[data.HELD_BACK]
    assert abs(shares["a"] - 0.2) < 0.01
    assert abs(shares["b"] - 0.2) < 0.05
    groups = table.assign(fold=folds).groupby("group")["fold"].nunique()
    assert (groups.max() == 1) == (by == "group")
    assert (folds != data.split(table, oracle_fraction=0.2, **(knobs | {"seed": 2}))).any()
    order = np.random.default_rng(0).permutation(len(table))
    assert (data.split(table.iloc[order], oracle_fraction=0.2, **knobs) == folds[order]).all()


def test_every_group_is_as_likely_to_be_held_back(table):
    knobs = {"val_fraction": 0.2, "test_fraction": 0.3, "oracle_fraction": 0.2}
    own = (table["label"] == "a").to_numpy()
    times = sum(data.split(table, seed=seed, **knobs)[own] == data.HELD_BACK for seed in range(40))
    sizes = table[own].groupby("group")["group"].transform("size")
    assert abs(times[sizes == 1].mean() - times[sizes == 3].mean()) < 2.0


@pytest.mark.parametrize(("lesions", "held_back"), [(3, 0), (4, 1), (5, 1), (20, 4)])
def test_a_class_keeps_a_train_lesion_before_it_gives_one(lesions, held_back):
    table = table_of({"a": [1] * 40, "c": [1] * lesions})
    folds = data.split(table, val_fraction=0.2, test_fraction=0.3, seed=0, oracle_fraction=0.2)[40:]
    assert (folds == data.HELD_BACK).sum() == held_back
    assert {"train", "val", "test"} <= set(folds)


@pytest.mark.parametrize("fraction", [-0.1, 0.5, 1.0, float("nan")])
def test_impossible_held_back_fractions(table, fraction):
    with pytest.raises(BadInput, match="oracle_fraction"):
        data.split(table, val_fraction=0.2, test_fraction=0.3, seed=0, oracle_fraction=fraction)


@pytest.mark.parametrize(("val", "test"), [(0, 0.3), (0.2, 0), (0.5, 0.5), (-0.1, 0.3), (0.2, 1.2)])
def test_impossible_fractions(table, val, test):
    with pytest.raises(BadInput, match="fraction"):
        data.split(table, val_fraction=val, test_fraction=test, seed=0)
    with pytest.raises(BadInput, match="patient"):
        data.split(table, val_fraction=0.2, test_fraction=0.3, seed=0, by="patient")
