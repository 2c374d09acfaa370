import warnings

import numpy as np
import pandas as pd
import pytest

from stda import BadInput
from stda.measure.exchange import (
    COLUMNS,
    CURVE_COLUMNS,
    WORDS,
    exchange_sentence,
    exchange_table,
    exchange_texts,
    learning_curve,
)

TRAIN = {"nv": 800, "mel": 160, "df": 40}  # lesions; twice as many images
TEST = {"nv": 120, "mel": 80, "df": 40}
SHARES = {"quarter": 0.25, "half": 0.5, "full": 1.0, "oracle": 1.5}
CURVE = list(SHARES)
# the recall of each arm is read off 0.6 + 0.1 * log2(share), so that a share of 2 ** x is worth that much
EFFECT = {**SHARES, "wgan": 2**0.25, "dcgan": 2**-0.5, "nst": 1.0}


def study(effects=EFFECT, *, replicates=3, noise=0.0, slope=0.1, classes=("nv", "mel", "df"), seed=0):
    rng = np.random.default_rng(seed)
    answers, counts = [], []
    for r in range(replicates):
        for arm, effect in effects.items():
            for name in classes:
                n = TEST[name]
                recall = 0.6 + slope * np.log2(effect) + noise * rng.normal()
                right = np.arange(n) < round(n * min(max(recall, 0), 1))
                other = classes[0] if name != classes[0] else classes[1]
                part = pd.DataFrame({"label": name, "predicted": np.where(right, name, other)})
                part["image_id"] = [f"{name}{i}" for i in range(n)]
                answers.append(part.assign(group=part["image_id"], replicate=r, arm=arm, split="test"))
                lesions = TRAIN[name] * SHARES.get(arm, 1)
                added = 0 if arm in SHARES or name == "nv" else TRAIN[name]
                row = {"replicate": r, "arm": arm, "class": name, "real": 2 * lesions, "lesions": lesions}
                counts.append(row | {"wanted": added, "added": added, "labelled": added})
    return pd.concat(answers, ignore_index=True), pd.DataFrame(counts)


def table(effects=EFFECT, *, curve_arms=CURVE, synthetic=("wgan", "dcgan", "nst"), **knobs):
    answers, counts = study(effects, **knobs)
    return exchange_table(answers, counts, curve_arms=curve_arms, synthetic=synthetic, resamples=200)


def test_a_known_worth_is_found_in_images_and_lesions_for_all_and_per_class():
    found = table()
    assert tuple(found.columns) == COLUMNS
    assert found["arm"].tolist() == [arm for arm in ("wgan", "dcgan", "nst") for _ in range(3)]
    assert found["class"].tolist() == ["all", "df", "mel"] * 3
    rows = found.set_index(["arm", "class"])
    # recalls are rounded to whole test images (one of 40 is 0.025), hence the tolerance
    assert rows.loc[("dcgan", "mel"), "worth"] == pytest.approx(320 * (2**-0.5 - 1), rel=0.08)
    assert rows.loc[("nst", "all"), "worth"] == pytest.approx(0, abs=1e-6)
    assert rows.loc[("nst", "df"), "worth_lesions"] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(found["worth"], 2 * found["worth_lesions"], atol=1e-5)
    np.testing.assert_allclose(found["worth_each"], found["worth"] / found["added"])
    assert rows.loc["wgan", "added"].tolist() == [200, 40, 160]
    assert rows.loc["wgan", "real"].tolist() == [2000, 80, 320]
    assert rows.loc[("wgan", "mel"), "low"] <= rows.loc[("wgan", "mel"), "worth"] <= rows.loc[("wgan", "mel"), "high"]


def test_words_say_what_is_shown():
    effects = {**EFFECT, "pggan": 8.0, "wgan": 2**0.3, "dcgan": 2**-1.5, "low": 2**-5}
    found = table(effects, slope=0.12, synthetic=["pggan", "wgan", "dcgan", "low", "nst"], noise=0.003)
    whole = found[found["class"] == "all"].set_index("arm")
    assert whole["words"].to_dict() == {
        "pggan": WORDS["beyond"],
        "wgan": whole.loc["wgan", "words"],
        "dcgan": WORDS["costs"],
        "low": WORDS["costs"],
        "nst": WORDS["none"],
    }
    assert whole.loc["pggan", ["beyond", "worth", "low", "high"]].tolist() == ["more than", 1000, 1000, np.inf]
    assert whole.loc["low", ["beyond", "worth", "low"]].tolist() == ["less than", -1500, -np.inf]
    assert whole.loc["low", "high"] < -1000
    # without an oracle the curve ends at the train fold: more than nothing, and nobody knows how much
    short = table(effects, curve_arms=CURVE[:3], synthetic=["pggan"], slope=0.12).iloc[0]
    assert short[["beyond", "worth", "low", "high"]].tolist() == ["more than", 0, 0, np.inf]
    assert short["words"] == WORDS["beyond"]


def test_degenerate_studies_have_defined_answers():
    warnings.simplefilter("error")
    flat = table(slope=0.0)
    assert set(flat["words"]) == {WORDS["flat"]}
    assert flat[["worth", "low", "high", "worth_each"]].isna().all(axis=None)
    one = table(replicates=1)
    assert set(one["evidence"]) == {"lesions only"}
    assert set(one["words"]) <= {WORDS["single"], WORDS["flat"]}
    two = table(curve_arms=["half", "full"], synthetic=["dcgan"])
    assert two["worth"].iloc[0] == pytest.approx(2000 * (2**-0.5 - 1), rel=0.08)
    assert not len(table(curve_arms=["full"]))
    assert not len(table(curve_arms=[]))
    assert not len(table(synthetic=[]))
    assert tuple(table(synthetic=[]).columns) == COLUMNS
    assert set(table(classes=("nv", "mel"))["class"]) == {"all", "mel"}


def test_a_class_without_test_images_or_lesions_has_no_row():
    answers, counts = study()
    counts.loc[(counts["class"] == "mel") & (counts["arm"] != "full"), ["real", "lesions"]] = 0
    found = exchange_table(
        answers[answers["label"] != "df"], counts, curve_arms=CURVE, synthetic=["nst"], resamples=100
    )
    assert found["class"].tolist() == ["all"]


def test_learning_curve_gives_points_with_intervals_smallest_first():
    answers, counts = study(noise=0.01)
    found = learning_curve(answers, counts, CURVE[::-1], others=["wgan"], resamples=200)
    assert tuple(found.columns) == CURVE_COLUMNS
    assert found["class"].tolist() == ["all"] * 4 + ["df"] * 4 + ["mel"] * 4
    mel = found[found["class"] == "mel"]
    assert mel["arm"].tolist() == CURVE
    assert mel["lesions"].tolist() == [40, 80, 160, 240]
    assert mel["real"].tolist() == [80, 160, 320, 480]
    own = answers[(answers["label"] == "mel") & (answers["arm"] == "half")]
    assert mel["mean"].iloc[1] == pytest.approx((own["predicted"] == "mel").mean())
    assert (found["low"] < found["mean"]).all()
    assert (found["mean"] < found["high"]).all()
    assert (mel["fitted"].diff().dropna() >= 0).all()
    assert not len(learning_curve(answers, counts, []))


def test_sensitivity_speaks_of_the_rarer_of_two_classes():
    answers, counts = study(classes=("nv", "mel"))
    knobs = {"curve_arms": CURVE, "synthetic": ["dcgan"], "resamples": 200}
    found = exchange_table(answers, counts, metric="sensitivity", **knobs)
    recall = (answers[(answers["label"] == "mel") & (answers["arm"] == "dcgan")]["predicted"] == "mel").mean()
    assert found["score"].tolist() == pytest.approx([recall, recall])


def test_sentences_name_numbers_and_say_how_to_get_a_curve():
    found = table()
    words = exchange_sentence(found, curve_arms=CURVE)
    assert words.startswith("200 synthetic images of arm wgan are worth about")
    assert "200 synthetic images of arm nst are worth about 0 real ones (95% interval: " in words
    assert "real_share" in exchange_sentence(found, curve_arms=[])
    assert "nothing to price" in exchange_sentence(found.iloc[:0], curve_arms=CURVE)
    assert "not shown to rise" in exchange_sentence(table(slope=0.0), curve_arms=CURVE)
    assert "one replicate" in exchange_sentence(table(replicates=1, slope=0.2), curve_arms=CURVE)
    cells = exchange_texts(found)["worth in real images"]
    assert cells.str.fullmatch(r"(more than |less than )?\N{MINUS SIGN}?\d+ \[.+\]").all()
    assert (exchange_texts(table(slope=0.0))["in lesions"] == "\N{EN DASH}").all()


def test_bad_input_is_named():
    answers, counts = study()
    knobs = {"synthetic": ["nst"], "resamples": 100}
    with pytest.raises(BadInput, match="'gone' of the exchange rate has no predictions"):
        exchange_table(answers, counts, curve_arms=[*CURVE, "gone"], **knobs)
    with pytest.raises(BadInput, match="'half' has no composition"):
        exchange_table(answers, counts[counts["arm"] != "half"], curve_arms=CURVE, **knobs)
    with pytest.raises(BadInput, match="composition has no column 'lesions'"):
        exchange_table(answers, counts.drop(columns="lesions"), curve_arms=CURVE, **knobs)
    with pytest.raises(BadInput, match="auroc"):
        exchange_table(answers, counts, curve_arms=CURVE, metric="auroc", **knobs)
    apart = answers[(answers["arm"] == "nst") == (answers["replicate"] == 0)]
    with pytest.raises(BadInput, match="No replicate has all"):
        exchange_table(apart, counts, curve_arms=CURVE, **knobs)
