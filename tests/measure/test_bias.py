import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2_contingency

from stda import BadInput, measure
from stda.images import ImageSet, complete_table
from stda.measure import bias

DETECTORS = pd.DataFrame(
    {
        "artefact": ["hair", "ruler"], "size": 32, "threshold": [0.01, 0.01], "sensitivity": [0.9, 0.6],
        "specificity": [0.8, 0.7], "auc": [0.95, 0.7], "with_artefact": 200, "without_artefact": 300,
        "seen": [True, False],
    }
)  # fmt: skip


def found(n, share, *, seed=0, classes=("a", "b"), clusters=None, strength=0.0):
    """A detected table: hair with this share, ``strength`` more in class a."""
    rng = np.random.default_rng(seed)
    label = rng.choice(classes, n)
    hair = rng.random(n) < share + strength * (label == classes[0])
    cluster = np.arange(n) if clusters is None else rng.integers(clusters, size=n)
    return pd.DataFrame({"label": label, "cluster": cluster, "hair": hair, "ruler": rng.random(n) < 0.5})


# --------------------------------------------------------------------------------------------------- corrected shares


def test_the_correction_is_rogan_and_gladen_s():
    assert bias.corrected_share(0.34, 500, 0.9, 0.8, n_with=200, n_without=300)[0] == pytest.approx(0.2)
    value, low, high = bias.corrected_share(0.3, 10**9, 1.0, 1.0, n_with=10**9, n_without=10**9)
    assert (value, low, high) == pytest.approx((0.3, 0.3, 0.3), abs=1e-3)
    assert bias.corrected_share(0.05, 100, 0.9, 0.8, n_with=200, n_without=300)[:2] == (0.0, 0.0)  # clipped


def test_a_perfect_detector_has_nearly_wilson_s_interval():
    from stda.measure.scores import wilson

    _, low, high = bias.corrected_share(0.2, 300, 1.0, 1.0, n_with=10**7, n_without=10**7)
    assert (low, high) == pytest.approx(wilson(60, 300), abs=0.004)


@pytest.mark.parametrize(
    ("truth", "sensitivity", "specificity"), [(0.05, 0.85, 0.9), (0.3, 0.9, 0.8), (0.6, 0.7, 0.95)]
)
def test_the_interval_covers_the_truth(truth, sensitivity, specificity):
    rng, covered, n, n_with, n_without = np.random.default_rng(1), 0, 200, 60, 120
    for _ in range(600):
        share = rng.binomial(n, truth * sensitivity + (1 - truth) * (1 - specificity)) / n
        se, sp = rng.binomial(n_with, sensitivity) / n_with, rng.binomial(n_without, specificity) / n_without
        _, low, high = bias.corrected_share(share, n, se, sp, n_with=n_with, n_without=n_without)
        covered += low <= truth <= high
    assert 0.93 <= covered / 600 <= 1


def test_a_detector_like_a_coin_has_no_corrected_share():
    assert np.isnan(bias.corrected_share(0.3, 100, 0.5, 0.5, n_with=50, n_without=50)).all()
    assert np.isnan(bias.corrected_share(0.3, 0, 0.9, 0.9, n_with=50, n_without=50)).all()


# ---------------------------------------------------------------------------------------------------------- prevalence


def prevalence(**sets):
    table = measure.prevalence_table(sets, DETECTORS, reference="real")
    return table[table["artefact"] == "hair"].set_index("set")


def test_more_fewer_and_undecided():
    table = prevalence(real=found(800, 0.3), more=found(800, 0.5, seed=1), fewer=found(800, 0.1, seed=2),
                       same=found(800, 0.3, seed=3))  # fmt: skip
    assert table["than_reference"].tolist() == ["is the reference", "more", "fewer", "undecided"]
    row, gain = table.loc["more"], 0.9 + 0.8 - 1
    assert row["difference"] == pytest.approx((row["detected"] - table.loc["real", "detected"]) / gain)
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    assert (table["low"] < table["detected"]).all()
    assert table["corrected"].between(0, 1).all()


def test_equal_sets_are_rarely_called_different():
    called = 0
    for seed in range(200):
        table = prevalence(real=found(300, 0.3, seed=seed), other=found(300, 0.3, seed=1000 + seed))
        called += table.loc["other", "than_reference"] != "undecided"
    assert called <= 20  # 5 % expected


def test_what_cannot_be_seen_has_no_number():
    table = measure.prevalence_table({"real": found(50, 0.3)}, DETECTORS, reference="real")
    row = table[table["artefact"] == "ruler"].iloc[0]
    assert row["than_reference"] == "cannot be seen at 32 px"
    assert row[["detected", "corrected", "difference"]].isna().all()


def test_pictures_of_one_lesion_are_not_independent():
    hits = np.repeat(np.random.default_rng(0).random(40) < 0.3, 10)
    alone = bias._share(hits, pd.Series(np.arange(400)), 0.95)
    clustered = bias._share(hits, pd.Series(np.repeat(np.arange(40), 10)), 0.95)
    assert alone.effective == pytest.approx(400)
    assert clustered.effective == pytest.approx(40)
    assert clustered.high - clustered.low > 2.5 * (alone.high - alone.low)
    assert bias._share(np.zeros(400, bool), pd.Series(np.repeat(np.arange(40), 10)), 0.95).effective == 40


def test_classes_with_few_images_say_so():
    real, other = found(400, 0.2, seed=1), found(400, 0.2, seed=2, strength=0.5)
    rare = pd.DataFrame({"label": "c", "cluster": [9000, 9001], "hair": True, "ruler": False})
    table = measure.class_prevalence({"real": real, "gan": pd.concat([other, rare])}, DETECTORS, reference="real")
    table = table.set_index("class")
    assert table["than_reference"].to_dict() == {"a": "more", "b": "undecided", "c": "too few images"}
    assert table.loc["c", ["detected", "difference"]].isna().all()
    assert set(table["artefact"]) == {"hair"}


# --------------------------------------------------------------------------------------------------------- association


def test_chi_square_is_scipy_s():
    rng = np.random.default_rng(4)
    for _ in range(10):
        labels, hits = rng.integers(4, size=90), rng.random(90) < 0.4
        counts = np.array([[((labels == k) & (hits == h)).sum() for k in range(4)] for h in (False, True)])
        assert bias.chi_square(hits, labels) == pytest.approx(chi2_contingency(counts, correction=False)[0])


def test_v_has_no_bias_and_reaches_one():
    rng = np.random.default_rng(5)
    labels = rng.integers(4, size=(300, 60))
    null = [bias.cramers_v(bias.chi_square(rng.random(60) < 0.4, row), 60, 4) for row in labels]
    raw = [np.sqrt(bias.chi_square(rng.random(60) < 0.4, row) / 60) for row in labels]
    assert np.mean(null) < 0.5 * np.mean(raw)
    same = np.arange(2000) % 2
    assert bias.cramers_v(bias.chi_square(same == 1, same), 2000, 2) == pytest.approx(1, abs=0.01)
    assert np.isnan(bias.cramers_v(0.0, 10, 1))


def test_a_shortcut_is_found_and_independence_is_not():
    sets = {"real": found(400, 0.3, seed=1), "gan": found(400, 0.2, seed=2, strength=0.4)}
    table = measure.association_table(sets, DETECTORS).set_index("set")
    assert table.loc["gan", "p_value"] < 0.01
    assert table.loc["gan", "v"] > 0.3
    assert table.loc["real", "p_value"] > 0.05
    assert table.loc["real", "v"] < 0.15


def test_the_permutation_test_keeps_its_level_with_clusters():
    """Hair belongs to the lesion, several views each: shuffling pictures would call 5 % far too often."""
    rng, called = np.random.default_rng(6), 0
    for seed in range(100):
        hair, label = rng.random(40) < 0.4, rng.choice(["a", "b"], 40)
        each = pd.DataFrame({"label": label, "cluster": np.arange(40), "hair": hair, "ruler": False})
        table = measure.association_table(
            {"real": each.loc[np.repeat(np.arange(40), 5)]}, DETECTORS, shuffles=99, seed=seed
        )
        called += table.loc[0, "p_value"] <= 0.05
    assert called <= 12


# ----------------------------------------------------------------------------------------------------- pictures, errors


def test_detection_takes_lesions_and_contents_as_clusters():
    images = np.random.default_rng(0).integers(100, 200, (3, 32, 32, 3), dtype=np.uint8)
    table = pd.DataFrame({"image_id": ["x", "y", "z"], "label": "a", "group": ["g", "g", "z"]})
    table["source_ids"] = ["", "", "content|style"]
    detected = measure.detect_artefacts(ImageSet(images, complete_table(table)), DETECTORS)
    assert detected["cluster"].tolist() == ["g", "g", "content"]
    assert detected[["hair", "ruler"]].dtypes.eq(bool).all()


def test_errors_are_sentences_and_degenerate_sets_have_answers():
    small = ImageSet(
        np.zeros((1, 16, 16, 3), np.uint8), complete_table(pd.DataFrame({"image_id": ["x"], "label": "a"}))
    )
    with pytest.raises(BadInput, match="calibrated at \\[32\\] px"):
        measure.detect_artefacts(small, DETECTORS)
    with pytest.raises(BadInput, match="not among the sets"):
        measure.prevalence_table({"gan": found(10, 0.5)}, DETECTORS, reference="real")
    with pytest.raises(BadInput, match="holds no images"):
        measure.prevalence_table({"real": found(0, 0.5)}, DETECTORS, reference="real")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = prevalence(real=found(1, 1.0), other=found(1, 0.0))
        assert one.loc["other", "than_reference"] == "undecided"
        measure.association_table({"real": found(1, 1.0)}, DETECTORS, shuffles=9)
