import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from stda import BadInput, data, measure
from stda.data import decode, phantom
from stda.images import ImageSet, complete_table
from stda.measure import artefacts

HAM = Path(__file__).resolve().parents[2] / "../shared/data/ham10000"
EYE = Path(__file__).with_name("ham10000_artefacts.csv")  # hair: 2 clear and dark, 1 pale or single, 0 none


@pytest.fixture(scope="module")
def plain():
    table = phantom.describe(64, 8).assign(hair=0, ruler=0, vignette=0)
    return phantom.render(table, size=64)


@pytest.fixture(scope="module")
def calibration():
    return measure.calibrate_detectors(32, n=180).set_index("artefact")


@pytest.mark.parametrize("kind", artefacts.ARTEFACTS)
def test_an_inserted_artefact_raises_its_own_score_most(plain, kind):
    before, after = (measure.artefact_scores(x) for x in (plain, data.insert(plain, kind, seed=1)))
    auc = {k: roc_auc_score(np.repeat([0, 1], len(plain)), np.r_[before[k], after[k]]) for k in artefacts.ARTEFACTS}
    assert auc[kind] > 0.93
    assert auc[kind] == max(auc.values())


def test_the_rim_is_not_a_frame_and_a_frame_is_no_rim(plain):
    plain_scores = measure.artefact_scores(plain)
    rim, frame = (measure.artefact_scores(data.insert(plain, kind, seed=2)) for kind in ("vignette", "frame"))
    assert (rim["frame"] < frame["frame"].min()).all()
    assert (frame["vignette"] > np.quantile(rim["vignette"], 0.1)).mean() < 0.05
    assert (plain_scores["frame"] < frame["frame"].min()).all()


@pytest.mark.parametrize("kind", artefacts.ARTEFACTS)
def test_exposure_does_not_count(plain, kind):
    drawn = data.insert(plain, kind, seed=1)
    darker = np.rint(drawn * 0.6).astype(np.uint8)
    scores = [measure.artefact_scores(images)[kind] for images in (drawn, darker)]
    assert np.corrcoef(scores)[0, 1] > 0.98


def test_turning_and_mirroring_a_picture_changes_no_score(plain):
    ours = measure.artefact_scores(plain)
    for other in (np.rot90(plain, 1, (1, 2)), plain[:, :, ::-1]):
        np.testing.assert_allclose(measure.artefact_scores(np.ascontiguousarray(other)), ours, atol=1e-5)


def test_chunks_change_nothing(plain, monkeypatch):
    whole = measure.artefact_scores(plain)
    monkeypatch.setattr(artefacts, "CHUNK", 7)
    pd.testing.assert_frame_equal(measure.artefact_scores(plain), whole)


def test_the_threshold_is_that_of_the_roc_curve():
    rng = np.random.default_rng(3)
    for _ in range(20):
        truth = rng.random(80) < 0.4
        score = np.round(rng.normal(truth, 1.0), 1)  # with ties
        cut = artefacts.youden_threshold(score, truth)
        false, true, _ = roc_curve(truth, score, drop_intermediate=False)
        reached = artefacts.judge_detector(score, truth, cut)
        assert reached["sensitivity"] + reached["specificity"] - 1 == pytest.approx((true - false).max())
        assert reached["auc"] == pytest.approx(roc_auc_score(truth, score))


def test_the_threshold_of_separate_kinds_lies_between_them():
    assert artefacts.youden_threshold(np.array([1.0, 2.0, 4.0, 5.0]), np.array([False, False, True, True])) == 3.0
    with pytest.raises(BadInput, match="with and without"):
        artefacts.youden_threshold(np.arange(3.0), np.ones(3, bool))


def test_calibration_at_the_study_s_size(calibration):
    assert calibration["size"].eq(32).all()
    assert (calibration["with_artefact"] + calibration["without_artefact"]).to_dict() == {
        "hair": 60, "ruler": 60, "vignette": 60, "frame": 180
    }  # fmt: skip
    assert calibration["seen"].equals(calibration["auc"] >= artefacts.LEAST_AUC)
    assert calibration.loc["hair", "auc"] > 0.85
    assert calibration.loc["ruler", "auc"] > 0.75
    assert calibration.loc["vignette", "auc"] > 0.9
    assert calibration.loc["frame", "auc"] > 0.99


def test_one_seed_draws_the_same_pictures_and_the_two_halves_are_others():
    one, again, other = (artefacts._drawn(16, 64, 0, part)["hair"][0] for part in ("choose", "choose", "judge"))
    np.testing.assert_array_equal(one, again)
    assert not set(one) & set(other)


def test_the_true_shares_of_the_phantom_lie_in_their_intervals(calibration):
    table = phantom.describe(240, 31)
    images = phantom.render(table, size=32)
    hairy = np.concatenate([data.insert(images[::2], "hair", seed=5), images[1::2]])
    sets = {"real": ImageSet(images, complete_table(table)), "hairy": ImageSet(hairy, complete_table(table))}
    detectors = calibration.reset_index()
    found = {name: measure.detect_artefacts(part, detectors) for name, part in sets.items()}
    shares = measure.prevalence_table(found, detectors, reference="real").set_index(["set", "artefact"])
    for name in phantom.ARTEFACTS:
        row = shares.loc[("real", name)]
        assert row["corrected_low"] <= table[name].mean() <= row["corrected_high"]
    assert shares.loc["hairy", "than_reference"].to_dict() == {
        "hair": "more", "ruler": "undecided", "vignette": "undecided", "frame": "undecided"
    }  # fmt: skip


def test_a_detector_that_only_guesses_is_not_used():
    truth = np.arange(40) % 2 == 0
    assert not artefacts.judge_detector(np.random.default_rng(0).random(40), truth, 0.5)["seen"]
    assert artefacts.judge_detector(truth.astype(float), truth, 0.5)["seen"]


def test_degenerate_pictures_have_scores():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flat = np.stack([np.full((16, 16, 3), level, np.uint8) for level in (0, 7, 255)])
        np.testing.assert_allclose(measure.artefact_scores(flat), 0, atol=1e-4)
        assert measure.artefact_scores(flat[:0]).shape == (0, 4)
        assert measure.artefact_scores(flat[:1]).shape == (1, 4)


def test_bad_pictures_are_a_sentence():
    for bad in (np.zeros((2, 15, 15, 3), np.uint8), np.zeros((2, 32, 40, 3), np.uint8), np.zeros((2, 32, 32, 3))):
        with pytest.raises(BadInput, match="square uint8"):
            measure.artefact_scores(bad)


@pytest.mark.skipif(not HAM.is_dir(), reason="HAM10000 is not in ../shared/data/ham10000")
@pytest.mark.parametrize(("size", "least"), [(32, 0.78), (64, 0.85)])
def test_hair_on_photographs_against_the_eye(size, least):
    eye = pd.read_csv(EYE)
    held_out = eye[(eye["part"] == "held out") & (eye["hair"] != 1)]
    images, failed = decode.decode([HAM / "images" / f"{name}.jpg" for name in held_out["image_id"]], size=size)
    assert not failed
    assert roc_auc_score(held_out["hair"] == 2, measure.artefact_scores(images)["hair"]) > least
