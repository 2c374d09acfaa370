import numpy as np
import pandas as pd
import pytest

from stda import BadInput, measure
from stda.measure.labels import clustered_share
from stda.measure.scores import wilson

CLASSES = ["mel", "nv"]


def pool(**columns):
    """Two pairs at two strengths: at 5 iterations the labeller still sees the content, at 30 one has flipped."""
    table = pd.DataFrame(
        {
            "image_id": list("abcd"),
            "source_ids": ["c1|s1", "c2|s2", "c1|s1", "c2|s2"],
            "iteration": [5, 5, 30, 30],
            "asked_label": "mel",
            "content_label": "nv",
            "pseudo_label": ["nv", "nv", "mel", "nv"],
            "p_mel": [0.1, 0.2, 0.7, 0.4],
            "p_nv": [0.9, 0.8, 0.3, 0.6],
            "label_confidence": [0.9, 0.8, 0.7, 0.6],
        }
    )
    return table.assign(**columns)


def row(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_agreement_by_strength_by_hand():
    opinions = {"other": np.array(["nv", "mel", "mel", "mel"]), "soft": np.array([[0.9, 0.1]] * 3 + [[0.0, 1.0]])}
    found = measure.label_fidelity(pool(), opinions=opinions)
    assert set(found["iteration"]) == {5, 30}
    late = {"iteration": 30, "labeller": "pseudo-label"}
    assert row(found, **late, agrees_with="style class")["share"] == 0.5
    assert row(found, **late, agrees_with="content class")["share"] == 0.5
    assert row(found, **late, agrees_with="other")["share"] == 0.5
    assert row(found, **late, agrees_with="style class")["probability"] == pytest.approx((0.7 + 0.4) / 2)
    assert row(found, **late, agrees_with="other")["probability"] == pytest.approx(0.55)
    assert row(found, iteration=30, labeller="soft", agrees_with="style class")["share"] == 0.5
    assert row(found, iteration=30, labeller="soft", agrees_with="style class")["probability"] == pytest.approx(0.45)
    assert np.isnan(row(found, iteration=5, labeller="other", agrees_with="style class")["probability"])
    assert row(found, iteration=5, labeller="other", agrees_with="style class")["share"] == 0.5


def test_rows_can_be_parted_by_weight_or_by_nothing():
    found = measure.label_fidelity(pool(weight=[1.0, 1.0, 10.0, 10.0]).drop(columns="iteration"))
    assert found["weight"].unique().tolist() == [1.0, 10.0]
    found = measure.label_fidelity(pool(), by=[])
    assert row(found, agrees_with="style class")["n"] == 4
    found = measure.label_fidelity(pool(), by=["iteration", "asked_label"])
    assert set(found["asked_label"]) == {"mel"}


def test_flips_against_the_labeller_and_against_the_truth():
    found = measure.flip_rate(pool(), own_opinion={"c1": "nv", "c2": "mel"})
    mind, truth = "the content's pseudo-label", "the content's class"
    assert row(found, iteration=5, against=mind)["share"] == 0.5  # c2 looked like mel before, like nv after
    assert row(found, iteration=5, against=mind)["to_style"] == 0.0
    assert row(found, iteration=5, against=truth)["share"] == 0.0
    assert row(found, iteration=30, against=truth)["share"] == 0.5
    assert row(found, iteration=30, against=truth)["to_style"] == 0.5
    with pytest.raises(BadInput, match="'c2'"):
        measure.flip_rate(pool(), own_opinion={"c1": "nv"})


def test_a_confidence_filter_keeps_what_is_sure():
    curve = measure.confidence_curve(pool(), thresholds=[0.0, 0.65, 0.85, 0.95])
    style = curve[curve["agrees_with"] == "style class"]
    assert style["kept"].tolist() == [1.0, 0.75, 0.25, 0.0]
    np.testing.assert_allclose(style["share"], [1 / 4, 1 / 3, 0.0, np.nan])
    assert style["n"].tolist() == [4, 3, 1, 0]
    with pytest.raises(BadInput, match="label_confidence"):
        measure.confidence_curve(pool(label_confidence=np.nan))


def test_pictures_used_once_give_wilson_s_interval():
    hits = np.arange(40) < 12
    found = clustered_share(hits, np.arange(40), np.arange(40)[::-1])
    assert found["n_effective"] == pytest.approx(40)
    assert (found["low"], found["high"]) == pytest.approx(wilson(12, 40))


def test_identical_copies_count_once():
    hits = np.repeat(np.arange(30) < 12, 7)
    found = clustered_share(hits, np.repeat(np.arange(30), 7), np.repeat(np.arange(30), 7))
    assert found["share"] == pytest.approx(0.4)
    # a little below 30: the quantiles know that 30 clusters, not 210 images, were seen
    assert 27 < found["n_effective"] < 30


def test_two_way_variance_against_brute_force():
    rng = np.random.default_rng(0)
    contents, styles, hits = rng.integers(0, 9, 300), rng.integers(0, 12, 300), rng.random(300) < 0.3
    residuals = hits - hits.mean()
    related = (contents[:, None] == contents) | (styles[:, None] == styles)
    variance = float((np.outer(residuals, residuals) * related).sum()) / 300**2
    share = hits.mean()
    from scipy.stats import t

    effective = 300 / max(1, variance / (share * (1 - share) / 300)) * (t.ppf(0.975, 299) / t.ppf(0.975, 8)) ** 2
    assert clustered_share(hits, contents, styles)["n_effective"] == pytest.approx(effective)


def test_intervals_hold_the_truth_when_contents_decide():
    """Each content picture has its own chance to flip: the plain interval fails, the clustered one holds."""
    rng = np.random.default_rng(1)
    contents, styles = np.repeat(np.arange(25), 8), np.tile(np.arange(8), 25)
    plain = held = 0
    for _ in range(400):
        hits = rng.random(200) < rng.beta(1.5, 1.5, 25)[contents]
        low, high = wilson(int(hits.sum()), 200)
        plain += low <= 0.5 <= high
        found = clustered_share(hits, contents, styles)
        held += found["low"] <= 0.5 <= found["high"]
    assert plain / 400 < 0.85
    assert held / 400 > 0.92


def test_what_cannot_have_an_interval_has_none():
    one_content = clustered_share(np.array([True, False, True]), np.zeros(3), np.arange(3))
    assert one_content["share"] == pytest.approx(2 / 3)
    assert np.isnan(one_content["low"])
    assert np.isnan(clustered_share(np.zeros(0, bool), np.zeros(0), np.zeros(0))["share"])
    agreed = clustered_share(np.ones(40, bool), np.arange(40) % 5, np.arange(40))
    assert (agreed["low"], agreed["high"]) == pytest.approx(wilson(5, 5))  # no variance seen: a cluster is a trial


def test_pictures_of_one_lesion_are_one():
    alone = measure.label_fidelity(pool(), by=[])
    together = measure.label_fidelity(pool(), by=[], lesions={"c1": "l", "c2": "l"})
    assert np.isfinite(alone["low"]).all()
    assert np.isnan(together["low"]).all()


def test_bad_input_is_one_sentence():
    with pytest.raises(BadInput, match="no column 'pseudo_label'"):
        measure.label_fidelity(pool().drop(columns="pseudo_label"))
    with pytest.raises(BadInput, match=r"speaks of 2 images"):
        measure.label_fidelity(pool(), opinions={"x": np.array(["nv", "nv"])})
    with pytest.raises(BadInput, match="has shape"):
        measure.label_fidelity(pool(), opinions={"x": np.ones((4, 3))})
    with pytest.raises(BadInput, match="source_ids must read"):
        measure.label_fidelity(pool(source_ids="c1"))
    with pytest.raises(BadInput, match="no rows"):
        measure.label_fidelity(pool().iloc[:0])
