"""The shipped examples reproduce what METHODS.md, section 6, lists."""

import subprocess
import sys

import pytest

from stda import BadInput
from stda.measure import claims


def found(name, finding, statement="", table=""):
    rows = claims.audit(claims.example(name))
    rows = rows[(rows["finding"] == finding) & rows["statement"].str.contains(statement, regex=False)]
    return rows.loc[rows["table"].str.contains(table, regex=False), "arithmetic"].tolist()


REAL, MIXED = "Real images only", "With 128 generated images"


@pytest.mark.parametrize("table", [REAL, MIXED])
def test_nevi_need_more_predictions_than_the_set_has(table):
    (said,) = [text for text in found("isic2019-report", "impossible", "fit into", table) if text.startswith("NV:")]
    assert "2,955 / 0.345 = 8,565.2 predictions, but the test set has 7,599 images" in said


@pytest.mark.parametrize("table", [REAL, MIXED])
def test_basal_cell_carcinoma_has_no_such_f1(table):
    (said,) = found("isic2019-report", "inconsistent", "harmonic mean", table)
    assert said.startswith("BCC: the harmonic mean of precision .33 and recall .08 is 0.122 to 0.136")


def test_the_recalls_do_not_allow_the_change_of_accuracy():
    at_priors, at_any = found("isic2019-report", "inconsistent", "change of accuracy")
    assert "a change of \N{MINUS SIGN}0.9 to +1.0 points" in at_priors
    assert "a change of \N{MINUS SIGN}1.0 to +2.5 points" in at_any
    assert "whatever the classes' shares" in at_any
    assert all("accuracy 33 % to 39 % is a change of +5.0 to +7.0" in said for said in (at_priors, at_any))


def test_the_accuracy_is_below_always_answering_nevus():
    (said,) = found("isic2019-report", "below the trivial line", table=MIXED)
    assert said == "always answering NV reaches 50.8 %, more than accuracy 39 %."


def test_a_recall_that_rounds_to_nothing_leaves_no_precision():
    said = " ".join(found("isic2019-report", "impossible", "precision is right answers", MIXED))
    assert "DF: recall .00 of 71 to 72 images leaves 0 right answers, so precision is 0 or undefined, but .06" in said
    assert "SCC: recall .00 of 188 to 189 images leaves 0 right answers" in said


def test_four_classes_do_not_share_all_predictions():
    (said,) = found("isic2019-report-generated-only", "inconsistent")
    assert "is 0.888 to 0.981; it is the share of all predictions and must be 1" in said
    (line,) = found("isic2019-report-generated-only", "below the trivial line")
    assert line.startswith("always answering AK reaches 43.6 %")


@pytest.mark.parametrize(("model", "sens", "spec"), [("classic", "76.8", "88.4"), ("synthetic", "84.2", "92.1")])
def test_sensitivity_and_specificity_are_one_number(model, sens, spec):
    (said,) = found("progressive-gan", "one number, not two", table=model)
    assert f"100 - (100 - {sens}) / 2 = {spec} %, which is the {spec} printed" in said


def test_lesions_right_and_the_p_values_of_every_overlap():
    assert found("frid-adar-2018", "consistent", "whole number") == [
        "78.6 % of 182 images is 143 right answers.",
        "85.7 % of 182 images is 156 right answers.",
    ]
    (said,) = found("frid-adar-2018", "computed", "McNemar")
    assert said.startswith("143 and 156 of 182 are right")
    assert "p is 0.0002 if no image got worse" in said
    assert "at most 0.05 for up to 12 such images (0.0470), 0.0533 with 13" in said


def test_wilson_intervals_are_those_of_a_public_library():
    from scipy.stats import binomtest

    said = found("frid-adar-2018", "computed", "interval")
    for right, text in zip((143, 156), said, strict=True):
        low, high = binomtest(right, 182).proportion_ci(method="wilson")
        assert f"{low * 100:.1f} to {high * 100:.1f} %" in text


def test_which_examples_pass():
    assert {name: claims.passed(claims.audit(claims.example(name))) for name in claims.examples()} == {
        "frid-adar-2018": True,
        "isic2019-report-generated-only": False,
        "isic2019-report": False,
        "progressive-gan": True,
    }
    with pytest.raises(BadInput, match="There is no example 'isic'; there are frid-adar-2018, isic2019"):
        claims.example("isic")


def test_the_audit_itself_loads_neither_torch_nor_scikit_learn():
    # without what its neighbours in stda.measure import
    code = """
import importlib.util, sys, types
package = types.ModuleType("stda.measure")
package.__path__ = list(importlib.util.find_spec("stda").submodule_search_locations)[:1]
package.__path__[0] += "/measure"
sys.modules["stda.measure"] = package
from stda.measure import claims
assert claims.run(["example:frid-adar-2018"]) == 0
print(sorted({"torch", "sklearn", "matplotlib"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.endswith("cannot be checked.\n[]\n")
