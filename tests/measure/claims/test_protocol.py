import numpy as np
import pandas as pd
import pytest

from stda.measure import claims
from stda.measure.claims.protocol import PUBLISHED

VERDICTS = pd.DataFrame(
    [("a", 0.03, 0.01, 0.05, "helps"), ("b", 0.0, -0.02, 0.02, "undecided"), ("c", -0.1, -0.2, -0.05, "harms")],
    columns=["arm", "difference", "low", "high", "verdict"],
)
AGAINST = pd.DataFrame(
    [
        ("a", "dup", "placebo", "above"), ("a", "wrong", "placebo", "above"), ("a", "oracle", "oracle", "below"),
        ("b", "dup", "placebo", "above"), ("b", "wrong", "placebo", "not told apart"),
    ],
    columns=["arm", "against", "kind", "shown"],
)  # fmt: skip


def test_every_claim_stands_beside_the_arms_that_make_it_again():
    table = claims.under_protocol(VERDICTS, AGAINST, arms={"a": "wgan", "b": "wgan", "c": "nst", "d": "dcgan"})
    wgan = table[table["source"].str.startswith("Kosheleva")]
    assert wgan["arm"].tolist() == ["a", "b"]
    assert wgan["beats its placebos"].tolist() == ["yes", "not shown"]
    assert wgan["printed change"].tolist() == pytest.approx([0.06, 0.06])
    style = table[table["arm"] == "c"].iloc[0]
    assert (style["verdict"], style["beats its placebos"]) == ("harms", "not tested")
    assert np.isnan(style["printed change"])
    missing = table[table["verdict"] == "not run"]
    assert missing["source"].str.split().str[0].tolist() == ["Frid-Adar", "a"]
    assert missing["difference"].isna().all()


def test_a_study_without_judged_arms_has_run_none_of_them():
    table = claims.under_protocol(VERDICTS[:0], AGAINST[:0], arms={})
    assert table["verdict"].tolist() == ["not run"] * len(PUBLISHED)


def test_the_printed_changes_are_those_of_the_papers():
    changes = {generator: told.change() for generator, told in PUBLISHED.items()}
    assert np.isnan(changes.pop("nst"))
    assert changes == pytest.approx({"dcgan": 0.071, "wgan": 0.06, "pggan": 0.074})
