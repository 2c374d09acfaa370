import numpy as np
import pandas as pd
import pytest
import torch
from gan_cases import CPU, TINY, discs

import stda.generators as generators
from stda import BadInput
from stda.compute import Compute
from stda.generators.adversarial.training import TrainingDiverged
from stda.generators.base import image_seeds, read_settings, synthetic_labels, synthetic_table, write_settings
from stda.images import COLUMNS, ImageSet


def fitted(name, *, train=None, steps=4, seed=3, **knobs):
    generator = generators.create(name, compute=CPU, **(TINY[name] | knobs))
    history = generator.fit(train or discs(), steps=steps, seed=seed)
    return generator, history


def test_image_seeds_are_a_prefix_and_differ_by_seed():
    assert image_seeds(7, 5) == image_seeds(7, 50)[:5]
    assert len(set(image_seeds(7, 1000)) | set(image_seeds(8, 1000))) == 2000
    assert all(0 <= seed < 2**53 for seed in image_seeds(7, 100))


def test_synthetic_labels_help_every_class_but_the_largest():
    train = discs(counts={"b": 3, "c": 7, "a": 5})
    assert synthetic_labels(train, 1.0) == ["a"] * 5 + ["b"] * 3
    assert synthetic_labels(train, 0.5) == ["a"] * 2 + ["b"] * 2  # round(2.5) is 2, round(1.5) is 2
    largest = train.counts().index[0]
    assert synthetic_labels(train, 1.0, all_classes=True).count(largest) == train.counts().iloc[0]
    with pytest.raises(BadInput, match=r"ratio 0\.01 makes no image of a, b: raise it"):
        synthetic_labels(train, 0.01)
    with pytest.raises(BadInput, match="one class only and no rarer one to help: set all_classes"):
        synthetic_labels(train.select(label="a"), 1.0)
    for ratio in (0, -1, float("nan")):
        with pytest.raises(BadInput, match="must be positive"):
            synthetic_labels(train, ratio)


def test_synthetic_table_has_every_column_and_survives_csv(tmp_path):
    table = synthetic_table("wgan", ["x", "y"], image_seeds(1, 2), label_confidence=[0.5, 0.25])
    images = ImageSet(np.zeros((2, 4, 4, 3), np.uint8), table)
    images.save(tmp_path)
    read = ImageSet.load(tmp_path).table
    assert list(read.columns) == [*COLUMNS, "image_seed"]
    assert read["image_seed"].tolist() == image_seeds(1, 2)
    assert read["image_id"].tolist() == ["wgan-000000", "wgan-000001"] == read["group"].tolist()
    assert read["label_confidence"].tolist() == [0.5, 0.25]
    assert len(synthetic_table("wgan", [], [])) == 0


def test_unknown_generator_and_missing_or_damaged_folder(tmp_path):
    with pytest.raises(BadInput, match="'gam'; it must be one of nst, dcgan"):
        generators.create("gam")
    with pytest.raises(BadInput, match="holds no generator"):
        generators.load(tmp_path)
    write_settings(tmp_path, "dcgan", knobs={}, classes=["a"], size=8, models=["a"])
    assert read_settings(tmp_path)["generator"] == "dcgan"
    with pytest.raises(BadInput, match=r"has no model.safetensors"):
        generators.load(tmp_path, compute=CPU)
    (tmp_path / "generator.json").write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        generators.load(tmp_path)


@pytest.mark.parametrize("name", list(TINY))
def test_fit_generate_save_load_regenerate(name, tmp_path):
    generator, history = fitted(name, train=discs(size=16))
    assert history["step"].tolist() == [1, 2, 3, 4]
    needed = {"model", "g_loss", "d_loss", "g_gradient", "d_gradient", "d_real", "d_fake"}
    assert needed <= set(history.columns)
    assert np.isfinite(history.select_dtypes("number").to_numpy()).all()

    labels = ["light", "dark"] * 40  # more than one batch
    made = generator.generate(labels, seed=11)
    assert made.images.shape == (80, 16, 16, 3)
    assert made.labels.tolist() == labels
    assert set(made.table["split"]) == {"synthetic"}
    assert set(made.table["generator"]) == {name}

    # one row alone, some rows in another order, and a longer order all give the same bits
    assert np.array_equal(generator.regenerate(made.table.iloc[[70]]), made.images[[70]])
    some = [79, 3, 64]
    assert np.array_equal(generator.regenerate(made.table.iloc[some]), made.images[some])
    assert np.array_equal(generator.generate([*labels, "dark"], seed=11).images[:80], made.images)
    assert not np.array_equal(generator.generate(labels, seed=12).images, made.images)

    generator.save(tmp_path)
    opened = generators.load(tmp_path, compute=CPU)
    assert type(opened) is type(generator)
    assert opened.knobs() == generator.knobs()
    assert np.array_equal(opened.generate(labels, seed=11).images, made.images)
    assert not list(tmp_path.glob("*.pt"))
    assert not list(tmp_path.glob("*.pkl"))


@pytest.mark.parametrize("name", list(TINY))
def test_a_seed_fixes_the_weights_and_leaves_the_process_alone(name):
    before = torch.random.get_rng_state()
    (one, history), (two, again) = fitted(name), fitted(name)
    assert torch.equal(before, torch.random.get_rng_state())
    pd.testing.assert_frame_equal(history, again, check_exact=True)
    other, _ = fitted(name, seed=4)
    for key, network in one.models.items():
        weights = network.state_dict()
        assert all(torch.equal(value, weights[k]) for k, value in two.models[key].state_dict().items())
        assert not all(torch.equal(value, weights[k]) for k, value in other.models[key].state_dict().items())


@pytest.mark.parametrize("name", list(TINY))
def test_only_the_train_fold_is_fitted(name):
    for split in ("", "val", "test", "synthetic"):
        with pytest.raises(BadInput, match="train fold only"):
            fitted(name, train=discs(split=split))


@pytest.mark.parametrize("name", list(TINY))
def test_bad_use_is_one_sentence(name):
    generator = generators.create(name, compute=CPU, **TINY[name])
    with pytest.raises(BadInput, match="not been fitted"):
        generator.generate(["dark"], seed=0)
    with pytest.raises(BadInput, match="nothing to save"):
        generator.save("nowhere")
    with pytest.raises(BadInput, match="at least"):
        generator.fit(discs(), steps=0, seed=0)
    with pytest.raises(BadInput, match="power of 2"):
        generator.fit(discs(size=12), steps=2, seed=0)
    with pytest.raises(BadInput, match="sampling is 'fair'; it must be one of balanced, empirical"):
        generators.create(name, sampling="fair")
    for knob in ("batch_size", "learning_rate", "latent"):
        with pytest.raises(BadInput, match=f"{knob} is -1; it must be positive"):
            generators.create(name, **{knob: -1})
    with pytest.raises(BadInput, match="grid_every is -5; it must be 0 or more"):
        generators.create(name, grid_every=-5)
    generator.fit(discs(), steps=2, seed=0)
    with pytest.raises(BadInput, match=r"knows no class \['red'\]"):
        generator.generate(["dark", "red"], seed=0)
    assert len(generator.generate([], seed=0)) == 0


@pytest.mark.parametrize("name", list(TINY))
def test_callback_gets_every_step_and_grids_of_fixed_latents(name):
    records = []
    generator = generators.create(name, compute=CPU, grid_every=2, **TINY[name])
    generator.fit(discs(), steps=6, seed=0, callback=records.append)
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert {r["steps"] for r in records} == {6}
    grids = [r["grid"] for r in records if "grid" in r]
    assert len(grids) >= 3
    n_rows = 1 if len(generator.models) > 1 else 2
    assert all(g.dtype == np.uint8 and g.shape == (8 * n_rows, 8 * 8, 3) for g in grids)
    # the last grid shows the finished generator
    last = generator.images_for(["light"] * 8, image_seeds(0, 8))
    assert np.array_equal(grids[-1][-8:], np.concatenate(last, axis=1))


@pytest.mark.parametrize("name", list(TINY))
def test_watching_does_not_change_the_result(name):
    watched = generators.create(name, compute=CPU, grid_every=1, **TINY[name])
    watched.fit(discs(), steps=4, seed=3, callback=lambda record: None)
    alone, _ = fitted(name)
    for key, network in alone.models.items():
        weights = watched.models[key].state_dict()
        assert all(torch.equal(value, weights[k]) for k, value in network.state_dict().items())


@pytest.mark.parametrize("name", list(TINY))
def test_non_finite_loss_stops_with_step_and_remedy(name):
    with pytest.raises(TrainingDiverged, match=r"at step \d+ of 60; lower learning_rate"):
        fitted(name, steps=60, learning_rate=1e30)


@pytest.mark.parametrize("name", list(TINY))
def test_bf16_trains_float32_weights(name):
    machine = Compute(torch.device("cpu"), "bf16", 1)
    generator = generators.create(name, compute=machine, **TINY[name])
    history = generator.fit(discs(), steps=6, seed=3)
    assert np.isfinite(history.select_dtypes("number").to_numpy()).all()
    kinds = {v.dtype for network in generator.models.values() for v in network.state_dict().values()}
    assert kinds <= {torch.float32, torch.int64}
    exact = fitted(name, steps=6)[1]
    assert history["d_loss"].iloc[0] == pytest.approx(exact["d_loss"].iloc[0], rel=0.02)


@pytest.mark.parametrize("name", list(TINY))
def test_planned_rows_are_made_alone_or_together(name, tmp_path):
    generator, _ = fitted(name, train=discs(size=16))
    shares = {"dark": 0.75, "light": 0.25}
    plan = generator.plan(0, 40, shares=shares, seed=5)
    assert plan["label"].value_counts().to_dict() == {"dark": 30, "light": 10}
    assert plan["image_seed"].is_unique
    pd.testing.assert_frame_equal(generator.plan(13, 30, shares=shares, seed=5), plan[13:30].reset_index(drop=True))
    assert not generator.plan(0, 40, shares=shares, seed=6)["image_seed"].isin(plan["image_seed"]).any()
    made = generator.make(plan)
    made.save(tmp_path)
    read = ImageSet.load(tmp_path).table
    some = [39, 7]
    assert np.array_equal(generator.make(plan.iloc[some].reset_index(drop=True)).images, made.images[some])
    assert np.array_equal(generator.regenerate(read.iloc[some]), made.images[some])
