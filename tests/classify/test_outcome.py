import json

import numpy as np
import pandas as pd
import pytest
import torch

from stda import BadInput, classify
from stda.compute import Compute
from stda.images import ImageSet

CPU = Compute(torch.device("cpu"), "float32", 1)


@pytest.fixture
def images():
    labels = ["a"] * 6 + ["b"] * 3 + ["c"]
    table = pd.DataFrame({"image_id": [f"i{n}" for n in range(10)], "label": labels, "split": "test"})
    table["group"] = [f"g{n // 2}" for n in range(10)]
    return ImageSet(np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8), table)


@pytest.fixture
def model():
    model = classify.build("vgg8", n_classes=3, size=16, width=0.25, batch_norm=False)
    model.classes = ["a", "b", "c"]
    return model.eval()


def test_prediction_table(images):
    probabilities = np.tile(np.float32([0.2, 0.7, 0.1]), (10, 1))
    table = classify.prediction_table(images, probabilities, ["a", "b", "c"])
    assert list(table) == ["image_id", "group", "split", "label", "predicted", "p_a", "p_b", "p_c"]
    assert set(table["predicted"]) == {"b"}
    assert table["label"].tolist() == images.labels.tolist()
    assert table["p_b"].iloc[0] == np.float32(0.7)
    with pytest.raises(BadInput, match="probabilities"):
        classify.prediction_table(images, probabilities[:9], ["a", "b", "c"])


def test_a_saved_model_predicts_the_same(model, images, tmp_path):
    classify.save_model(model, tmp_path)
    state = torch.get_rng_state()
    loaded = classify.load_model(tmp_path, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.settings == model.settings
    assert loaded.classes == ["a", "b", "c"]
    assert not loaded.training
    np.testing.assert_allclose(classify.predict(loaded, images, CPU), classify.predict(model, images, CPU), atol=1e-6)


def test_pretrained_input_scale_survives_saving(images, tmp_path):
    model = classify.build("squeezenet1_0", n_classes=3, size=32)
    model = classify.Classifier(model.net, **model.settings, provenance={"weights": "file", "normalisation": "half"})
    x = torch.rand(1, 3, 32, 32)
    classify.save_model(model.eval(), tmp_path)
    torch.testing.assert_close(classify.load_model(tmp_path)(x), model(x), rtol=1e-4, atol=1e-5)


def test_missing_and_damaged_models_are_sentences(model, tmp_path):
    with pytest.raises(BadInput, match="06_classification"):
        classify.load_model(tmp_path)
    classify.save_model(model, tmp_path)
    facts = json.loads((tmp_path / "model.json").read_text())
    damages = ["{", json.dumps(facts | {"n_classes": 4}), json.dumps({k: v for k, v in facts.items() if k != "name"})]
    for text in damages:
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(BadInput, match="damaged"):
            classify.load_model(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(facts))
    (tmp_path / "model.safetensors").write_bytes(b"0" * 20)
    with pytest.raises(BadInput, match="damaged"):
        classify.load_model(tmp_path)


def test_best_arms():
    rows = [
        ("none", "none", "real", 0.5),
        ("oversample", "oversample", "placebo", 0.62),
        ("balanced", "none", "real", 0.6),
        ("gan", "wgan", "synthetic", 0.4),
        ("oracle", "oracle", "oracle", 0.9),
        ("wrong", "wgan", "placebo", 0.8),
        ("half", "none", "subset", 0.7),
    ]
    trained = pd.DataFrame(rows, columns=["arm", "synthetic", "kind", "val_balanced_accuracy"])
    assert classify.best_arms(trained)["arm"].tolist() == ["oversample", "gan"]
    controls = pd.concat(
        [trained, trained[:1].assign(arm="self", synthetic="self-training", val_balanced_accuracy=0.9)]
    )
    assert classify.best_arms(controls.reset_index(drop=True))["arm"].tolist() == ["self", "gan"]
    assert classify.best_arms(trained[:1])["arm"].tolist() == ["none"]
    with pytest.raises(BadInput, match="run 06"):
        classify.best_arms(trained[:0])
    with pytest.raises(BadInput, match="synthetic"):
        classify.best_arms(trained.drop(columns="synthetic"))


def test_even_rows_take_turns(images):
    assert classify.even_rows(images, 4).tolist() == [0, 6, 9, 1]
    assert sorted(classify.even_rows(images, 99).tolist()) == list(range(10))
    drawn = classify.even_rows(images, 7, seed=1)
    assert pd.Series(images.labels[drawn]).value_counts().to_dict() == {"a": 3, "b": 3, "c": 1}
    sample = classify.even_sample(images, 7, seed=1)
    assert sorted(sample.table["image_id"]) == sorted(images.table["image_id"].iloc[drawn])
    assert sample.labels.tolist() == sorted(sample.labels)


def test_repeats_are_test_predictions_below_each_other(images):
    classes, random = ["a", "b", "c"], np.random.default_rng(0)
    val = ImageSet(images.images, images.table.assign(split="val"))
    runs = [
        pd.concat(
            [classify.prediction_table(fold, random.dirichlet(np.ones(3), 10), classes) for fold in (val, images)]
        )
        for _ in range(3)
    ]
    table = classify.repeat_table(runs)
    assert list(table) == ["repeat", "image_id", "label", "predicted", "p_a", "p_b", "p_c"]
    assert table["repeat"].tolist() == np.repeat([0, 1, 2], 10).tolist()
    for number, part in table.groupby("repeat"):
        assert part["p_b"].tolist() == runs[number]["p_b"].iloc[10:].tolist()
    with pytest.raises(BadInput, match="same test fold"):
        classify.repeat_table([runs[0], runs[1].iloc[:-1]])
