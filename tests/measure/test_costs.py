import warnings

import numpy as np
import pandas as pd
import pytest

from stda import BadInput
from stda.measure.costs import GAIN_COLUMNS, cost_table, equal_compute, gain_sentence, gain_table

ARMS = {"classic": "", "wgan": "wgan", "longer": "", "harmful": "wgan"}


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def manifest(stage, arm="", seconds=10.0, memory=100.0, options=None, **facts):
    return {
        "stage": stage, "arm": arm, "seconds": seconds, "peak_memory_mb": memory,
        "parameters": {"options": options or {}}, "facts": facts,
    }  # fmt: skip


MANIFESTS = [
    *(manifest("wgan", seconds=200, work_seconds=s, images=500, memory=900) for s in (90, 110)),
    *(manifest("classification", "classic", work_seconds=20) for _ in range(2)),
    *(manifest("classification", "wgan", work_seconds=30) for _ in range(2)),
    *(manifest("classification", "harmful", work_seconds=30) for _ in range(2)),
    *(manifest("classification", "longer", work_seconds=120, options={"spend": "wgan"}) for _ in range(2)),
]


def differences(**gains):
    rows = [{"arm": arm, "difference": d, "low": low, "high": high} for arm, (d, low, high) in gains.items()]
    return pd.DataFrame(rows).assign(baseline="classic")


def test_costs_are_means_over_replicates_and_an_arm_bears_its_generator():
    found = cost_table(MANIFESTS, arms=ARMS).set_index("what")
    assert found.loc["wgan", "seconds"] == 100
    assert found.loc["wgan", "images per second of all work"] == pytest.approx((500 / 90 + 500 / 110) / 2)
    assert found["seconds with generator"].to_dict() == {
        "wgan": 100, "arm classic": 20, "arm wgan": 130, "arm harmful": 130, "arm longer": 120
    }  # fmt: skip
    plain = cost_table([manifest("data", seconds=3.0)], arms={})
    assert plain["seconds"].tolist() == [3.0]  # no work seconds noted: those of the notebook


def test_the_price_of_a_gain_and_its_interval():
    found = gain_table(differences(wgan=(0.05, 0.02, 0.08)), MANIFESTS, arms=ARMS)
    assert found.columns.tolist() == list(GAIN_COLUMNS)
    row = found.iloc[0]
    assert (row["seconds"], row["extra_seconds"]) == (130, 110)  # 100 generator + 30 training - 20 of the baseline
    assert (row["low"], row["seconds_per_gain"], row["high"]) == pytest.approx((110 / 8, 110 / 5, 110 / 2))
    assert (row["peak_memory_mb"], row["note"]) == (900, "")
    twice = gain_table(differences(wgan=(0.05, 0.02, 0.08)), MANIFESTS, arms=ARMS, unit=0.02)
    assert twice["seconds_per_gain"].iloc[0] == 2 * row["seconds_per_gain"]


def test_a_gain_that_may_be_zero_has_no_upper_price():
    found = gain_table(differences(wgan=(0.03, -0.01, 0.07), harmful=(-0.04, -0.06, -0.02)), MANIFESTS, arms=ARMS)
    assert found["note"].tolist() == ["no gain shown"] * 2
    assert found["low"].tolist() == [pytest.approx(110 / 7), np.inf]
    assert found["seconds_per_gain"].tolist() == [pytest.approx(110 / 3), np.inf]
    assert found["high"].tolist() == [np.inf, np.inf]
    assert "no price can be given" in gain_sentence(found)


def test_the_same_seconds_spent_otherwise_stand_beside():
    assert equal_compute(MANIFESTS) == {"longer": "wgan"}
    both = differences(wgan=(0.05, 0.02, 0.08), longer=(0.04, 0.01, 0.07))
    found = gain_table(both, MANIFESTS, arms=ARMS).set_index("arm")
    assert found["spends"].to_dict() == {"wgan": "", "longer": "wgan"}
    assert found.loc["longer", "extra_seconds"] == 100  # its own training only
    assert np.isnan(found.loc["longer", "images_per_second"])
    said = gain_sentence(found.reset_index())
    assert "arm wgan: 22 seconds per +0.01 balanced accuracy (13.8 to 55)" in said
    assert "Arm longer spends the seconds of wgan on training: +0.040, 25 seconds per +0.01." in said
    alone = gain_sentence(gain_table(differences(wgan=(0.05, 0.02, 0.08)), MANIFESTS, arms=ARMS))
    assert "No equal-compute arm was run" in alone


def test_an_arm_that_costs_no_more_than_the_baseline_has_no_price():
    quick = [*MANIFESTS, manifest("classification", "quick", work_seconds=5)]
    found = gain_table(differences(quick=(0.05, 0.02, 0.08)), quick, arms={**ARMS, "quick": ""})
    assert found[["low", "seconds_per_gain", "high"]].eq(0).all(axis=None)
    assert found["note"].tolist() == ["not dearer than the baseline"]
    assert "arm quick: +0.050 balanced accuracy for no more seconds" in gain_sentence(found)


def test_a_baseline_that_spends_the_seconds_itself_is_named():
    over_it = differences(wgan=(0.05, 0.02, 0.08)).assign(baseline="longer")
    found = gain_table(over_it, MANIFESTS, arms=ARMS)
    assert found["arm"].tolist() == ["wgan", "longer"]
    assert found.loc[0, "extra_seconds"] == 10  # 100 generator + 30 training - 120 of the longer training
    assert found.loc[1, ["extra_seconds", "gain"]].tolist() == [0, 0]
    assert found.loc[1, "note"] == "the baseline itself"
    assert "The baseline longer spends the seconds of wgan on training already." in gain_sentence(found)


def test_degenerate_requests_have_an_answer():
    empty = gain_table(pd.DataFrame(columns=["arm"]), MANIFESTS, arms=ARMS)
    assert empty.columns.tolist() == list(GAIN_COLUMNS)
    assert "no gain to put a price on" in gain_sentence(empty)
    with pytest.raises(BadInput, match="no manifest of 'arm gone'"):
        gain_table(differences(gone=(0.1, 0.05, 0.2)), MANIFESTS, arms=ARMS)
    with pytest.raises(BadInput, match="above 0"):
        gain_table(differences(wgan=(0.1, 0.05, 0.2)), MANIFESTS, arms=ARMS, unit=0)
