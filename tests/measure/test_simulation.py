import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from stda import BadInput
from stda.measure.bootstrap import count_fold
from stda.measure.power import Rule
from stda.measure.simulation import Design, simulate_folds, simulate_study
from stda.measure.verdict import judge, judge_folds

TINY = Design(
    replicates=3,
    baselines=2,
    effects=(0.1, 0.0),
    lesions={"DF": 15, "MEL": 60, "NV": 150},
    recalls={"DF": 0.4, "MEL": 0.6, "NV": 0.85},
)


@pytest.mark.parametrize("design", [TINY, replace(TINY, replicates=1, effects=(0.0,), noisier=(3.0,), fold=0.5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_short_way_is_the_way_through_the_table(design, seed):
    table, folds = simulate_study(design, seed=seed), simulate_folds(design, seed=seed)
    for split, fold in zip(("val", "test"), folds, strict=True):
        long = count_fold(table, split, classes=design.classes)
        assert sorted(fold.arms) == long.arms
        order = [fold.arms.index(arm) for arm in long.arms]
        assert fold.replicates == long.replicates
        assert fold.n_lesions == long.n_lesions
        for r in range(design.replicates):
            np.testing.assert_array_equal(fold.counts[r][order], long.counts[r])
            np.testing.assert_array_equal(fold.lesions[r], long.lesions[r])
    baselines = [arm for arm in design.arms if arm not in design.synthetic]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = judge_folds(*folds, design.synthetic, baselines, Rule("balanced_accuracy", 0.05, 0.05), resamples=200)
        usual = judge(table, design.synthetic, smallest_effect=0.05, resamples=200)
    pd.testing.assert_frame_equal(short, usual)


def test_expected_recalls_are_the_stated_ones():
    design = replace(TINY, replicates=1, noisier=(3.0,), seed=0.3)
    recalls = []
    for seed in range(1500):
        counts = simulate_folds(design, seed=seed)[1].counts[0].sum(1)
        recalls.append(np.diagonal(counts, axis1=1, axis2=2) / counts.sum(-1))
    recalls = np.array(recalls)
    error = recalls.std(0) / np.sqrt(len(recalls))
    truth = np.array([0.4, 0.6, 0.85]) + np.array([0, 0, 0.1, 0])[:, None]
    assert (abs(recalls.mean(0) - truth) < 4 * error).all()
    assert error.max() < 0.01
    balanced = recalls.mean(2)
    own, wide = ((balanced[:, i] - balanced[:, 0]).std() for i in (1, 2))
    assert wide > 1.1 * own


def test_folds_are_drawn_by_lesion_from_one_finite_set():
    table = simulate_study(replace(TINY, replicates=8), seed=0)
    label = table.groupby("group")["label"].nunique()
    assert (label == 1).all()
    assert table["group"].nunique() <= 225
    assert table.groupby(["replicate", "group"])["split"].nunique().max() == 1  # never in both folds of a replicate
    drawn = table[table["split"] == "test"].groupby("replicate")["group"].agg(set)
    per_class = table[(table["split"] == "test") & (table["replicate"] == 0)].groupby("label")["group"].nunique()
    assert per_class.to_dict() == {"DF": 3, "MEL": 12, "NV": 30}
    overlap = [len(drawn[i] & drawn[j]) / 45 for i in range(8) for j in range(i)]
    assert 0.12 < np.mean(overlap) < 0.28  # two random fifths of one set share a fifth
    images = table.drop_duplicates("image_id").groupby("group").size()
    assert set(images) <= {1, 2, 3, 4}
    assert images.max() > 1


def test_images_of_a_lesion_are_answered_alike_and_hard_lesions_are_hard_for_all():
    table = simulate_study(replace(TINY, replicates=10, lesions={"DF": 50, "MEL": 50, "NV": 600}), seed=3)
    nevi = table[(table["label"] == "NV") & (table["split"] == "test")]
    right = (nevi["predicted"] == "NV").astype(float) - (nevi["predicted"] == "NV").mean()
    keys = [nevi["replicate"], nevi["arm"], nevi["group"]]
    pairs = right.groupby(keys).agg(["first", "last", "size"])
    pairs = pairs[pairs["size"] > 1]
    assert np.corrcoef(pairs["first"], pairs["last"])[0, 1] > 0.25
    wide = right.groupby(keys).mean().unstack("arm")
    assert wide.corr().loc["real0", "synthetic1"] > 0.1


def test_a_seed_gives_one_study():
    pd.testing.assert_frame_equal(simulate_study(TINY, seed=5), simulate_study(TINY, seed=5))
    assert not simulate_study(TINY, seed=5)["predicted"].equals(simulate_study(TINY, seed=6)["predicted"])


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"replicates": 0}, "needs a replicate"),
        ({"effects": ()}, "a synthetic arm"),
        ({"noisier": (1, 2, 3)}, "noisier"),
        ({"effects": (0.2,)}, "keep within"),
        ({"recalls": {"DF": 0.5}}, "give both"),
        ({"fold": 0.6}, "fold is 0.6"),
        ({"fold": 0.01}, "fold is 0.01"),
    ],
)
def test_impossible_designs_are_a_sentence(knobs, sentence):
    with pytest.raises(BadInput, match=sentence):
        replace(TINY, **knobs)
