import warnings

import numpy as np
import pandas as pd
import pytest

from stda import BadInput
from stda.measure.sweep import (
    SATURATION_COLUMNS,
    SWEEP_COLUMNS,
    WORDS,
    arm_settings,
    curve_arms,
    same_recipe,
    saturation,
    saturation_sentence,
    sweep_table,
)

SETTINGS = pd.DataFrame(
    [
        ("plain", "none", 0.0, "none", 0.50),
        ("augmented-1", "augmented", 100.0, "none", 0.62),
        ("augmented-4", "augmented", 400.0, "none", 0.75),
        ("augmented-16", "augmented", 1600.0, "none", 0.75),
        ("classic", "none", 0.0, "classic", 0.78),
        ("wgan-1", "wgan", 100.0, "classic", 0.80),
        ("wgan-2", "wgan", 200.0, "classic", 0.84),
        ("wgan-4", "wgan", 400.0, "classic", 0.89),
        ("dcgan-1", "dcgan", 100.0, "classic", 0.70),
    ],
    columns=["arm", "synthetic", "amount", "augment", "skill"],
)
SKILL = SETTINGS.set_index("arm")["skill"]
SETTINGS = SETTINGS.drop(columns="skill")


def predictions(skill=SKILL, replicates=4, n=100, noise=0.002):
    rng = np.random.default_rng(0)
    labels = np.repeat(["benign", "malignant"], n)
    parts = []
    for r in range(replicates):
        for arm, right in skill.items():
            for split in ("val", "test"):
                correct = np.tile(np.arange(n), 2) < round(n * (right + noise * rng.normal()))
                part = pd.DataFrame({"label": labels})
                part["predicted"] = np.where(correct, labels, np.roll(labels, n))
                part["image_id"] = part["group"] = [f"{split}{i}" for i in range(2 * n)]
                parts.append(part.assign(replicate=r, arm=arm, split=split))
    return pd.concat(parts, ignore_index=True)


def test_families_begin_at_nothing_added_and_end_at_the_limit_on_the_fly():
    metrics = ["sensitivity", "specificity"]
    found = sweep_table(predictions(), SETTINGS, metrics=metrics, resamples=100)
    assert tuple(found.columns) == SWEEP_COLUMNS
    rows = found[found["metric"] == "sensitivity"]
    members = {family: list(zip(g["arm"], g["amount"], strict=True)) for family, g in rows.groupby("family")}
    assert members == {
        "classic augmentation": [
            *[("plain", 0), ("augmented-1", 100), ("augmented-4", 400), ("augmented-16", 1600)],
            ("classic", np.inf),
        ],
        "wgan": [("classic", 0), ("wgan-1", 100), ("wgan-2", 200), ("wgan-4", 400)],
        "dcgan": [("classic", 0), ("dcgan-1", 100)],
    }
    np.testing.assert_allclose(rows["mean"], SKILL[rows["arm"]], atol=0.01)
    assert (found["low"] < found["mean"]).all()
    assert (found["mean"] < found["high"]).all()
    assert set(found["replicates"]) == {4}


def test_one_generator_in_two_recipes_is_two_families():
    twice = pd.concat([SETTINGS, pd.DataFrame([("wgan-mixup", "wgan", 100.0, "mixup")], columns=SETTINGS.columns)])
    skill = pd.concat([SKILL, pd.Series({"wgan-mixup": 0.7})])
    found = sweep_table(predictions(skill), twice.reset_index(drop=True), resamples=100)
    named = found.drop_duplicates("family")["family"].tolist()
    assert named == ["classic augmentation", "wgan (augment classic)", "wgan (augment mixup)", "dcgan"]
    assert found.loc[found["family"] == "wgan (augment mixup)", "arm"].tolist() == ["wgan-mixup"]


def test_a_knob_of_added_images_does_not_part_a_family_from_its_beginning():
    labelled = SETTINGS.assign(labels=np.where(SETTINGS["synthetic"] == "wgan", "pseudo", ""))
    found = sweep_table(predictions(), labelled, resamples=100)
    assert found.loc[found["family"] == "wgan", "arm"].tolist() == ["classic", "wgan-1", "wgan-2", "wgan-4"]


def test_saturation_is_the_smallest_amount_that_is_not_told_from_the_best():
    found = saturation(predictions(), SETTINGS, resamples=200)
    assert tuple(found.columns) == SATURATION_COLUMNS
    rows = found.set_index("family")
    classic = rows.loc["classic augmentation"]
    assert classic[["amount", "arm", "words"]].tolist() == [400, "augmented-4", WORDS["flat"]]
    assert rows.loc["wgan", ["amount", "largest", "words"]].tolist() == [400, 400, WORDS["rising"]]
    assert rows.loc["dcgan", "words"] == WORDS["few"]
    words = saturation_sentence(found)
    assert "classic augmentation, balanced accuracy on validation is saturated at 400 added images" in words
    assert "With wgan, balanced accuracy on validation still rises at the largest amount, 400" in words
    assert "dcgan" not in words


def test_saturation_of_sensitivity_speaks_of_the_rarer_class():
    answers = predictions()
    knobs = {"metric": "sensitivity", "resamples": 100}
    fewer = answers[~((answers["label"] == "malignant") & answers["image_id"].str.endswith("9"))]
    named = saturation(fewer, SETTINGS, positive="malignant", **knobs)
    pd.testing.assert_frame_equal(saturation(fewer, SETTINGS, **knobs), named)


def test_saturation_looks_at_validation_only():
    answers = predictions()
    ruined = answers.assign(predicted=np.where(answers["split"] == "test", "benign", answers["predicted"]))
    knobs = {"resamples": 100}
    pd.testing.assert_frame_equal(saturation(answers, SETTINGS, **knobs), saturation(ruined, SETTINGS, **knobs))


def test_degenerate_sweeps_have_defined_answers():
    warnings.simplefilter("error")
    level = saturation(predictions(SKILL * 0 + 0.7, noise=0), SETTINGS, resamples=100).set_index("family")
    assert level.loc["wgan", ["amount", "arm", "words"]].tolist() == [0, "classic", WORDS["flat"]]
    assert "no added image" in saturation_sentence(level.reset_index())
    one = saturation(predictions(replicates=1), SETTINGS, resamples=100).set_index("family")
    assert one.loc["wgan", "words"] == WORDS["single"]
    assert "does not decide" in saturation_sentence(one.reset_index())
    none = SETTINGS[SETTINGS["synthetic"] == "none"]
    assert not len(sweep_table(predictions(), none))
    assert "No sweep was run" in saturation_sentence(saturation(predictions(), none))
    with pytest.raises(BadInput, match="'wgan-4' of the sweep has no predictions"):
        sweep_table(predictions(SKILL.drop("wgan-4")), SETTINGS)


def test_only_arms_of_the_curve_s_recipe_are_valued_by_it():
    rows = [
        ("balanced", "none", "classic", "balanced", "mix", "1.0"),
        ("half", "none", "classic", "balanced", "mix", "0.5"),
        ("wgan", "wgan", "classic", "balanced", "mix", "1.0"),
        ("wgan-pretrain", "wgan", "classic", "balanced", "pretrain", "1.0"),
        ("wgan-as-published", "wgan", "none", "shuffle", "mix", "1.0"),
    ]
    columns = ["arm", "synthetic", "augment", "sampler", "protocol", "real_share"]
    settings = pd.DataFrame(rows, columns=columns).assign(amount=0.0)
    synthetic = ["wgan-as-published", "wgan-pretrain", "wgan"]
    assert same_recipe(settings, ["balanced", "half"], synthetic) == ["wgan-pretrain", "wgan"]
    assert same_recipe(settings, [], synthetic) == []
    assert same_recipe(settings.drop(columns=["augment", "sampler"]), ["half"], synthetic) == synthetic


def manifest(arm, *, options=(), **knobs):
    parameters = {"study": "s", "seed": 0, "arm": arm, "synthetic": "none", "augment": "classic", "steps": 9, **knobs}
    return {"stage": "classification", "arm": arm, "parameters": {**parameters, "options": dict(options)}}


def test_settings_come_from_manifests_and_the_curve_from_settings():
    manifests = [
        {"stage": "data", "arm": "", "parameters": {}},
        manifest("full"),
        manifest("mixup", augment="mixup"),
        manifest("half", options={"real_share": 0.5}),
        manifest("quarter", options={"real_share": 0.25}),
        manifest("half-mixup", augment="mixup", options={"real_share": 0.5}),
        manifest("oracle", synthetic="oracle", ratio=1.0),
        manifest("wgan", synthetic="wgan", ratio=2.0),
        manifest("wgan", synthetic="wgan", ratio=2.0),
    ]
    rows = [(r, arm, 60.0 + 2 * r) for r in range(2) for arm in ("wgan", "oracle")]
    composition = pd.DataFrame(rows, columns=["replicate", "arm", "added"])
    settings = arm_settings(manifests, composition)
    assert settings.columns.tolist() == ["arm", "synthetic", "amount", "augment", "real_share"]
    assert settings["arm"].tolist() == ["full", "mixup", "half", "quarter", "half-mixup", "oracle", "wgan"]
    assert settings.set_index("arm").loc["wgan"].tolist() == ["wgan", 61.0, "classic", ""]
    kinds = dict.fromkeys(["full", "mixup"], "real") | dict.fromkeys(["half", "quarter", "half-mixup"], "subset")
    kinds |= {"oracle": "oracle", "wgan": "synthetic"}
    assert curve_arms(settings, kinds) == ["full", "half", "quarter", "oracle"]
    assert curve_arms(settings[settings["arm"] != "full"], kinds) == []
    assert curve_arms(settings, {**kinds, "half": "real", "quarter": "real", "half-mixup": "real"}) == []
    with pytest.raises(BadInput, match="trained arm"):
        arm_settings(manifests[:1], composition)
