import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from stda import BadInput
from stda.images import ImageSet
from stda.measure.copying import CopySearch
from stda.measure.membership import membership_attack, membership_table
from stda.measure.neighbours import symmetric


def people(n, classes=("a", "b"), seed=0, shift=0.0, member=None):
    """Return score, membership, labels and lesions of n images, some of them two to a lesion."""
    rng = np.random.default_rng(seed)
    groups = np.array([f"g{k}" for k in np.sort(rng.integers(0, 2 * n // 3, n))])
    member = np.isin(groups, [g for g in np.unique(groups) if rng.random() < 0.6]) if member is None else member
    labels = rng.choice(classes, n)
    common = dict(zip(np.unique(groups), rng.normal(size=len(np.unique(groups))), strict=True))
    score = np.array([common[g] for g in groups]) + rng.normal(size=n) + shift * member
    return score, member, labels, groups


def test_one_class_agrees_with_scikit_learn():
    score, member, _, groups = people(400, shift=1.0)
    found = membership_attack(score, member, np.full(400, "a"), groups)
    assert found["auc"] == pytest.approx(roc_auc_score(member, score), abs=1e-12)
    assert found["low"] < found["auc"] < found["high"]
    false, true, _ = roc_curve(member, score, drop_intermediate=False)
    for key, share in (("found_at_1", 0.01), ("found_at_10", 0.1)):
        assert found[key] == pytest.approx(true[false <= share].max(), abs=1e-12)
    assert (found["n_members"], found["n_others"]) == (member.sum(), (~member).sum())


def test_another_mixture_of_classes_is_no_leak():
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.permutation(["a"] * 900 + ["b"] * 100), rng.permutation(["a"] * 100 + ["b"] * 300)])
    member = np.arange(1400) < 1000
    score = rng.normal(size=1400) + 3 * (labels == "a")  # the generator draws class a best
    found = membership_attack(score, member, labels, np.arange(1400).astype(str))
    assert roc_auc_score(member, score) > 0.75
    assert found["low"] < 0.5 < found["high"]
    # and the weighted mixture is the one of scikit-learn with the same weights
    share = {"a": 900 * 100 / 1000, "b": 100 * 300 / 400}
    count = {("a", True): 900, ("a", False): 100, ("b", True): 100, ("b", False): 300}
    weights = [share[c] / count[c, m] for c, m in zip(labels, member.tolist(), strict=True)]
    assert found["auc"] == pytest.approx(roc_auc_score(member, score, sample_weight=weights), abs=1e-12)


def test_a_class_without_others_is_left_out():
    score, member, labels, groups = people(200)
    odd = np.append(labels, ["c"] * 50)
    more = membership_attack(
        np.append(score, np.full(50, 9.0)),
        np.append(member, [True] * 50),
        odd,
        np.append(groups, [f"x{k}" for k in range(50)]),
    )
    assert more["n_members"] == member.sum()
    assert more["auc"] == membership_attack(score, member, labels, groups)["auc"]


def test_the_interval_holds_chance_as_often_as_it_says():
    held = 0
    for seed in range(200):
        found = membership_attack(*people(240, seed=seed), resamples=200)
        held += found["low"] <= 0.5 <= found["high"]
    assert 180 <= held <= 198


def test_few_lesions_on_a_side_have_no_interval():
    score, member, labels, groups = people(400)
    few = member | np.isin(groups, np.unique(groups[~member])[:19])
    found = membership_attack(score[few], member[few], labels[few], groups[few])
    assert np.isnan([found["low"], found["high"]]).all()
    assert 0 < found["auc"] < 1
    enough = member | np.isin(groups, np.unique(groups[~member])[:40])
    found = membership_attack(score[enough], member[enough], labels[enough], groups[enough])
    assert found["low"] < found["auc"] < found["high"]


def test_false_alarms_that_few_others_cannot_show_are_unknown():
    score, member, labels, groups = people(60)
    found = membership_attack(score, member, labels, groups)
    assert np.isnan(found["found_at_1"])
    assert np.isfinite(found["found_at_10"])
    nobody = membership_attack(score, np.ones(60, bool), labels, groups)
    assert np.isnan([nobody["auc"], nobody["low"], nobody["found_at_10"]]).all()
    assert (nobody["n_members"], nobody["n_others"]) == (0, 0)


def smooth(n, seed):
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(99).normal(size=(6, 8 * 8 * 3))
    images = np.clip(128 + 25 * rng.normal(size=(n, 6)) @ basis, 0, 255).astype(np.uint8).reshape(n, 8, 8, 3)
    ids = [f"s{seed}-{i}" for i in range(n)]
    return ImageSet(images, pd.DataFrame({"image_id": ids, "label": np.where(np.arange(n) % 3, "a", "b")}))


def corner(images):
    return {"features": images[:, :5, :5].reshape(len(images), -1).astype(np.float32)}


def test_a_memoriser_is_attacked_and_a_fresh_sample_is_not():
    train = smooth(200, 0)
    stolen = ImageSet(np.ascontiguousarray(symmetric(train.images[:100], 5)), train.table.iloc[:100])
    sets = {"train": train, "val": smooth(150, 1), "fresh": smooth(100, 2), "stolen": stolen}
    table = membership_table(CopySearch(sets, corner, reference="train", held_out="val"), resamples=200)
    assert table["space"].tolist() == ["pixels"] * 2 + ["features"] * 2
    for _, rows in table.set_index("set").groupby("space"):
        assert rows.loc["fresh", "low"] < 0.5 < rows.loc["fresh", "high"]
        # half of the members are at distance zero, the others are where the rest is
        assert rows.loc["stolen", "auc"] == pytest.approx(0.75, abs=0.06)
        assert rows.loc["stolen", "low"] > 0.6
        assert rows.loc["stolen", "found_at_1"] >= 0.48
        assert rows.loc["stolen", ["n_members", "n_others", "n_synthetic"]].tolist() == [200, 150, 100]


def test_only_classes_that_were_generated_are_tried():
    pool = smooth(60, 2).select(label="b")
    search = CopySearch({"t": smooth(90, 0), "v": smooth(60, 1), "p": pool}, reference="t", held_out="v")
    row = membership_table(search, resamples=50).iloc[0]
    assert (row["n_members"], row["n_others"]) == (30, 20)
    assert membership_table(search, max_members=25, resamples=50)["n_members"].iloc[0] == 25


def test_degenerate_sets_are_defined():
    same = ImageSet(np.zeros((4, 8, 8, 3), np.uint8), smooth(4, 0).table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = CopySearch({"t": same, "v": same, "p": same}, corner, reference="t", held_out="v")
        assert membership_table(search, resamples=50)["auc"].tolist() == [0.5, 0.5]
        other = ImageSet(same.images, same.table.assign(label="c"))
        search = CopySearch({"t": same, "v": same, "p": other}, corner, reference="t", held_out="v")
        assert membership_table(search, resamples=50)["auc"].isna().all()
    with pytest.raises(BadInput, match="confidence is 1"):
        membership_table(search, confidence=1)
