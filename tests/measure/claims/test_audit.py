"""The audit against random confusion matrices (never flagged) and planted contradictions (always flagged)."""

from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stda.measure import claims

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
WRONG = ("impossible", "inconsistent")


def printed(part, whole, how, undefined="0"):
    """Print a share the way ``how`` says: digits, rounding, percent."""
    if whole == 0:
        return {"0": f"{0:.{how['digits']}f}", "1": f"{1:.{how['digits']}f}"}.get(undefined, undefined)
    digits = how["digits"]
    with localcontext() as context:
        context.prec = 60
        exact = Decimal(part) / Decimal(whole) if not isinstance(part, Fraction) else None
        if exact is None:
            value = part / Fraction(whole)
            exact = Decimal(value.numerator) / Decimal(value.denominator)
        exact = exact * (100 if how["percent"] else 1)
        places = max(digits - 2, 0) if how["percent"] else digits
        text = str(exact.quantize(Decimal(1).scaleb(-places), how["rounding"]))
    return f"{text} %" if how["percent"] else text.replace("0.", ".", 1) if how["bare"] else text


@st.composite
def matrices(draw, least=2, most=6):
    """Confusion matrices of small and large sets, with classes that have no image or no answer."""
    k = draw(st.integers(least, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1, 3, 12, 150]))
    matrix = rng.poisson(scale * rng.dirichlet(np.ones(k), k) * rng.uniform(0, 2, (k, 1)))
    matrix += np.diag(rng.poisson(scale * rng.uniform(0, 2), k)) * draw(st.booleans())
    for axis in (0, 1):
        if draw(st.integers(0, 3)) == 0:
            empty = rng.integers(k)
            matrix[(empty, slice(None)) if axis == 0 else (slice(None), empty)] = 0
    if matrix.sum() == 0:
        matrix[0, 0] = 1
    return matrix


prints = st.fixed_dictionaries(
    {
        "digits": st.integers(1, 4),
        "rounding": st.sampled_from([ROUND_HALF_UP, ROUND_HALF_EVEN]),
        "percent": st.booleans(),
        "bare": st.booleans(),
        "undefined": st.sampled_from(["0", "1", "", "nan"]),
        "weights": st.sampled_from(["support", "prior", "prior and n", "none"]),
        "csv": st.booleans(),
    }
)


def class_rates(matrix):
    """Return per class the parts and wholes of its rates."""
    matrix = [[int(cell) for cell in row] for row in matrix]
    n = sum(map(sum, matrix))
    for c, row in enumerate(matrix):
        hits, support, answers = row[c], sum(row), sum(other[c] for other in matrix)
        yield {
            "precision": (hits, answers),
            "recall": (hits, support),
            "F1": (2 * hits, support + answers),
            "specificity": (n - support - answers + hits, n - support),
            "accuracy": (n - support - answers + 2 * hits, n),
            "prior": (support, n),
            "support": support,
        }


def written(matrix, how, changed=None):
    """Write the table of a confusion matrix as text; ``changed`` maps (class, column) or a fact to other text."""
    rates, changed = list(class_rates(matrix)), changed or {}
    n, hits = int(matrix.sum()), int(np.trace(matrix))
    columns = ["precision", "recall", "F1", "specificity", "accuracy"]
    columns += {"support": ["support"], "none": []}.get(how["weights"], ["prior"])
    rows = []
    for c, rate in enumerate(rates):
        cells = {
            name: str(rate["support"]) if name == "support" else printed(*rate[name], how, how["undefined"])
            for name in columns
        }
        rows.append([f"c{c}", *(changed.get((c, name), cells[name]) for name in columns)])
    facts = {"accuracy": printed(hits, n, how)}
    facts |= {"n": f"{n:,}"} if how["weights"] in ("support", "prior and n") else {}
    if how["undefined"] in ("0", "1"):
        value = int(how["undefined"])
        for name in ("precision", "recall", "F1"):
            shares = [Fraction(a, b) if b else Fraction(value) for a, b in (rate[name] for rate in rates)]
            facts[f"macro {name}"] = printed(sum(shares), len(shares), how)
            total = sum(share * rate["support"] for share, rate in zip(shares, rates, strict=True))
            facts[f"weighted {name}"] = printed(total, n, how)
    known = [Fraction(*rate["recall"]) for rate in rates if rate["support"]]
    facts["balanced accuracy"] = printed(sum(known), len(known), how)
    facts |= {key: text for key, text in changed.items() if isinstance(key, str)}
    mark = " ; " if how["csv"] else " | "
    lines = [f"{key}: {text}" for key, text in facts.items()]
    lines += [mark.join(["class", *columns])] + ([] if how["csv"] else ["|".join(["---"] * (len(columns) + 1))])
    return "\n".join(lines + [mark.join(row) for row in rows])


def wrong(text):
    found = claims.audit(claims.parse(text))
    return found[found["finding"].isin(WRONG)]


def plain(**more):
    how = {"digits": 3, "rounding": ROUND_HALF_UP, "percent": False, "bare": False, "undefined": "0", "csv": True}
    return {**how, "weights": "support", **more}


@SETTINGS
@given(matrices(), prints)
def test_the_table_of_a_confusion_matrix_is_never_flagged(matrix, how):
    text = written(matrix, how)
    assert wrong(text).empty, text


@SETTINGS
@given(matrices(), prints, st.integers(0, 2**32 - 1))
def test_two_tables_of_one_test_set_are_never_flagged(matrix, how, seed):
    rng = np.random.default_rng(seed)
    other = np.stack([rng.multinomial(row.sum(), rng.dirichlet(np.ones(len(matrix)))) for row in matrix])
    text = f"# a\n{written(matrix, how)}\n# b\n{written(other, how)}\n"
    assert wrong(text).empty, text


@SETTINGS
@given(matrices(most=2), prints, st.sampled_from(["positives", "prevalence", "classes", "averaging"]))
def test_two_class_rates_of_a_matrix_are_never_flagged(matrix, how, known):
    positive, negative = class_rates(matrix)
    n = int(matrix.sum())
    facts = {
        "sensitivity": printed(*positive["recall"], how, how["undefined"]),
        "specificity": printed(*negative["recall"], how, how["undefined"]),
        "precision": printed(*positive["precision"], how, how["undefined"]),
        "NPV": printed(*negative["precision"], how, how["undefined"]),
        "F1": printed(*positive["F1"], how, how["undefined"]),
        "accuracy": printed(int(np.trace(matrix)), n, how),
        "n": str(n),
    }
    facts |= {
        "positives": {"positives": str(positive["support"])},
        "prevalence": {"prevalence": printed(positive["support"], n, how)},
        "classes": {"classes": "2"},
        "averaging": {"averaging": "binary"},
    }[known]
    text = "\n".join(f"{key}: {value}" for key, value in facts.items())
    assert wrong(text).empty, text


@SETTINGS
@given(matrices(least=3), prints)
def test_micro_averaged_pairs_are_recognised_and_never_flagged(matrix, how):
    k, n, hits = len(matrix), int(matrix.sum()), int(np.trace(matrix))
    pair = printed(hits, n, how), printed((k - 2) * n + hits, (k - 1) * n, how)
    text = "averaging: micro\nclasses: {}\naccuracy: {}\nsensitivity: {}\nspecificity: {}".format(k, pair[0], *pair)
    found = claims.audit(claims.parse(text))
    assert claims.passed(found), text
    assert "one number, not two" in set(found["finding"])


@SETTINGS
@given(matrices(), prints, st.data())
def test_an_f1_outside_the_harmonic_range_is_always_flagged(matrix, how, data):
    rates = list(class_rates(matrix))
    c = data.draw(st.integers(0, len(rates) - 1))
    how = {**how, "digits": max(how["digits"], 2), "undefined": "0"}
    half = Fraction(1, 2 * 10 ** how["digits"])
    p, r = (Fraction(a, b) if b else Fraction(0) for a, b in (rates[c]["precision"], rates[c]["recall"]))
    # F1 moves at most twice as fast as precision and recall together, and each is known to a unit
    moved = 2 * p * r / (p + r) + 12 * half if p + r else 12 * half
    if moved > 1:
        moved -= 24 * half
    named = wrong(written(matrix, how, {(c, "F1"): printed(moved, 1, how)}))
    assert (
        (named["statement"] == "F1 is the harmonic mean of precision and recall")
        & named["arithmetic"].str.startswith(f"c{c}:")
    ).any()


@SETTINGS
@given(st.integers(1, 40), st.integers(2, 4), st.data())
def test_a_recall_that_no_whole_number_gives_is_always_flagged(support, digits, data):
    unit = 10**digits
    fits = {
        round(Fraction(k, support) * unit + e) for k in range(support + 1) for e in (Fraction(-1, 2), 0, Fraction(1, 2))
    }
    gaps = sorted(set(range(unit + 1)) - fits)
    if not gaps:
        return
    text = f"class,recall,support\na,{data.draw(st.sampled_from(gaps)) / unit:.{digits}f},{support}\nb,1.0,7\n"
    (row,) = wrong(text).itertuples()
    assert (row.finding, row.statement) == ("impossible", "recall is a whole number of right answers")


@SETTINGS
@given(matrices(), st.data())
def test_a_precision_that_needs_more_answers_than_there_are_images_is_always_flagged(matrix, data):
    rates = list(class_rates(matrix))
    full = [c for c, rate in enumerate(rates) if rate["recall"][0]]
    if not full:
        return
    c, n = data.draw(st.sampled_from(full)), int(matrix.sum())
    # hits / (n + 1 or more), printed with so many digits that rounding cannot save it
    answers = n + data.draw(st.integers(1, 3 * n))
    how = plain(digits=9)
    text = written(matrix, how, {(c, "precision"): printed(rates[c]["recall"][0], answers, how), (c, "F1"): ""})
    assert (wrong(text)["finding"] == "impossible").any()


@SETTINGS
@given(matrices(), st.sampled_from(["accuracy", "macro F1", "weighted precision", "balanced accuracy", "macro recall"]))
def test_a_moved_summary_is_always_flagged(matrix, name):
    how = plain()
    true = claims.parse(written(matrix, how)).tables[0]
    kind, _, rate = name.partition(" ")
    value = true.averages[kind][rate.lower()] if kind in ("macro", "weighted") else true.facts[name]
    mean = (value.low + value.high) / 2
    moved = mean + Fraction(2, 10) if mean < Fraction(1, 2) else mean - Fraction(2, 10)
    # means over other sets of classes (with images, with both rates) are usages too, so take full matrices
    if (matrix.sum(0) == 0).any() or (matrix.sum(1) == 0).any() or (name == "macro F1" and matrix.trace() == 0):
        return
    text = written(matrix, how, {name: printed(moved, 1, how)})
    candidates = claims.audit(claims.parse(text))
    row = candidates[candidates["statement"].str.startswith(name.replace("F1", "f1"))]
    flagged = wrong(text)
    assert not flagged.empty or "harmonic mean of mean" in " ".join(row["arithmetic"]), text


@pytest.mark.parametrize(
    ("text", "finding", "said"),
    [
        (
            "n: 100\nclass,precision,recall,support\na,.60,.90,40\nb,.70,.90,60\n",
            "impossible",
            "the classes need at least 137 predictions (a 60, b 77), but the test set has 100 images.",
        ),
        (
            "n: 100\nclass,precision,recall,support\na,1.00,.50,40\nb,1.00,.50,60\n",
            "impossible",
            "the classes get at most 50 predictions (a 20, b 30), but each of the 100 test images gets one.",
        ),
        (
            "n: 90\nclass,recall,support\na,.50,40\nb,.50,60\n",
            "inconsistent",
            "100 images of 2 classes, but the test set has 90.",
        ),
        (
            "classes: 2\nn: 120\nclass,recall,support\na,.50,40\nb,.50,60\n",
            "inconsistent",
            "100 images of 2 classes, but the test set has 120.",
        ),
        (
            "class,recall,prior\na,.50,.4\nb,.50,.3\n",
            "inconsistent",
            "the priors of 2 classes add up to 0.600 to 0.800, rounding included, and must be 1.",
        ),
        (
            "n: 7\naccuracy: .50\n",
            "impossible",
            "of 7 images, 3 right are 0.429 and 4 right are 0.571; .50 is neither.",
        ),
        (
            "sensitivity: .90\nspecificity: .80\naccuracy: .70\naveraging: binary\n",
            "inconsistent",
            "with any numbers of images the recalls give an accuracy of 0.795 to 0.905, rounding included, but .70",
        ),
        (
            "sensitivity: .90\nspecificity: .80\naccuracy: .90\nprevalence: .10\n",
            "inconsistent",
            "with the priors given the recalls give an accuracy of",
        ),
        (
            "sensitivity: .90\nspecificity: .80\npositives: 7\nn: 30\n",
            "impossible",
            "positive: recall .90 of 7 images is no whole number of right answers: 6/7 is 0.857 and 7/7 is 1.000",
        ),
        (
            "averaging: micro\nclasses: 3\nsensitivity: 76.8\nspecificity: 90.0\n",
            "inconsistent",
            "specificity is 100 - (100 - 76.8) / 2 = 88.38 % to 88.42 %, rounding included, but 90.0 is printed",
        ),
        (
            "n: 50\nclass,precision,recall,specificity,support\na,.50,.50,.99,20\nb,.667,.667,.5,30\n",
            "inconsistent",
            "leave 10 false positives among 30 images of other classes, which no specificity of .99 has",
        ),
        (
            "class,sensitivity,specificity,accuracy,support\na,.50,.90,.95,20\nb,.90,.50,.70,20\n",
            "inconsistent",
            "a: sensitivity .50 and specificity .90 at 20 of 40 images give an accuracy of 0.695 to 0.705, but .95",
        ),
        (
            "n: 40\nclass,precision,recall,support\na,.50,1.00,10\nb,1.00,1.00,10\nc,1.00,.50,20\n",
            "",
            "no class has more wrong answers than the others have missed images.",
        ),
        (
            "class,recall,support\na,.50,40\nb,.70,60\nmean,.90,100\n",
            "inconsistent",
            "mean of recall over 2 classes: 0.595 to 0.605; weighted mean of recall: 0.615 to 0.625, rounding included",
        ),
    ],
)
def test_each_contradiction_has_its_sentence(text, finding, said):
    found = claims.audit(claims.parse(text))
    rows = found[found["finding"] == finding] if finding else found
    assert any(said in arithmetic for arithmetic in rows["arithmetic"]), found["arithmetic"].tolist()
    assert claims.passed(found) == (not finding)


def test_wrong_answers_must_find_images_that_others_missed():
    # a gets 20 answers too many, b and c miss none
    text = "n: 60\nclass,precision,recall,support\na,.500,1.00,20\nb,1.00,1.00,20\nc,1.00,1.00,20\n"
    found = wrong(text)
    assert "predictions of all classes" in " ".join(found["statement"])
    # the same number of answers in all, but a's wrong ones outnumber what the others missed
    text = "n: 60\nclass,precision,recall,support\na,.500,.50,20\nb,1.00,.95,20\nc,.905,.95,20\n"
    assert "wrong answers of a class" in " ".join(wrong(text)["statement"])


def test_below_the_trivial_line_is_no_contradiction():
    found = claims.audit(claims.parse("n: 100\naccuracy: .51\nclass,support\na,80\nb,20\n"))
    assert claims.passed(found)
    (row,) = found[found["finding"] == "below the trivial line"].itertuples()
    assert row.arithmetic == "always answering a reaches 80.0 %, more than accuracy .51."


def test_what_cannot_be_checked_says_what_is_missing():
    found = claims.audit(claims.parse("accuracy: .5\nclass,precision,recall,F1\na,.5,.5,.5\nb,.5,,.5\n"))
    said = dict(zip(found["statement"] + found["finding"], found["arithmetic"], strict=True))
    assert said["F1 is the harmonic mean of precision and recallcannot be checked"] == "b: recall missing"
    assert any("number of test images is missing" in text for text in said.values())


def test_rates_that_nothing_holds_against_say_so():
    (row,) = claims.audit(claims.parse("precision: .5\nrecall: .4\nF1: .7\n")).itertuples()
    assert row.finding == "cannot be checked"
    assert "nothing to hold precision, recall, f1 against" in row.arithmetic


def test_a_set_without_images_gives_no_number():
    for text in ("n: 0\naccuracy: .5\n", "class,recall,support\na,.0,0\nb,.0,0\n"):
        found = claims.audit(claims.parse(f"# x\n{text}\n# y\n{text}"))
        assert claims.passed(found)
        assert "nan" not in " ".join(found["arithmetic"])


def test_other_classes_or_other_test_sets_are_not_compared():
    for second in ("n: 50\nclass,recall\na,.1\nc,.2\n", "n: 60\nclass,recall\na,.1\nb,.2\n"):
        found = claims.audit(claims.parse(f"# x\nn: 50\nclass,recall\na,.1\nb,.2\n# y\n{second}"))
        (row,) = found[found["table"] == "x → y"].itertuples()
        assert row.finding == "cannot be checked"
        assert "differ" in row.arithmetic


def test_a_table_with_extreme_numbers_is_audited_in_reasonable_time():
    text = "n: 3,000,000\nclass,precision,recall,F1,prior\na,.5,.5,.5,.3\nb,.7,.7,.7,.7\n"
    assert claims.passed(claims.audit(claims.parse(text)))


def test_one_class_alone_is_not_taken_for_the_whole_test_set():
    found = claims.audit(claims.parse("class,precision,recall,F1,support\nMEL,.50,.50,.50,20\n"))
    assert claims.passed(found)
    assert "below the trivial line" not in set(found["finding"])
    # 10 wrong answers fit into 100 images, not into 25
    for n, fits in ((100, True), (25, False)):
        assert (
            claims.passed(claims.audit(claims.parse(f"n: {n}\nclass,precision,recall,support\nMEL,.50,.50,20\n")))
            == fits
        )


def test_a_contradiction_says_that_it_takes_the_listed_classes_for_all():
    rows = "class,precision,recall,support\nakiec,.55,.49,65\nbcc,.66,.72,103\n"  # two of seven
    (row,) = wrong(rows).itertuples()
    assert "Taken for granted: there are 2 classes" in row.arithmetic
    assert claims.passed(claims.audit(claims.parse(f"classes: 7\n{rows}")))
    assert "Taken for granted" not in " ".join(wrong(f"classes: 2\n{rows}")["arithmetic"])
