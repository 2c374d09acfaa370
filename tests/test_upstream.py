import numpy as np
import pytest
import torch

from stda import BadInput, compute, data, encoders, generators, measure, runs, upstream
from stda.images import ImageSet
from stda.runs import Job
from stda.study import Study


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A finished data stage of a small phantom, and its images."""
    monkeypatch.setenv("STDA_RUNS", str(tmp_path))
    values = {**runs.parameters(Study(), Job("data", 0)), "n_images": 100, "image_size": 16}

    def make(judge=None, **change):
        run = runs.begin("data", {**values, **change})
        images = data.load("phantom", size=16, n_images=100)
        folds = data.split(images.table, val_fraction=0.2, test_fraction=0.3, seed=0)
        images = ImageSet(images.images, images.table.assign(split=folds))
        images.save(run.dir)
        machine = compute.setup("float32")
        network = encoders.train_in_domain(images.select(split="train"), steps=2, seed=0, compute=machine)
        encoders.save_in_domain(network, run.folder("in_domain"))
        return run.finish(headline="x", judge={**network.provenance, **(judge or {})}), images, network

    return make


def test_the_encoder_that_the_data_stage_chose(folder):
    where, _, network = folder()
    found = upstream.study_encoder(where)
    assert found.provenance["sha256"] == network.provenance["sha256"]


def test_missing_weights_are_an_error_with_the_remedy(folder, tmp_path):
    where, _, _ = folder(encoder="squeezenet1_0", encoder_weights=str(tmp_path / "nowhere.pth"))
    with pytest.raises(BadInput, match=r"nowhere\.pth"):
        upstream.study_encoder(where)


def test_the_judge_of_fidelity_is_the_one_that_the_data_stage_settled(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    where, _, network = folder()
    assert upstream.judge_encoder(where).provenance == network.provenance
    where, _, _ = folder(judge={"sha256": "0" * 64})
    with pytest.raises(BadInput, match=r"weights of in-domain are not those of the data stage .*restore the file"):
        upstream.judge_encoder(where)
    where, _, _ = folder(judge={"name": "inception"})  # settled where the weights were cached; here they are not
    with pytest.raises(BadInput, match="No Inception weights of FID"):
        upstream.judge_encoder(where)
    manifest = runs.read_manifest(where)
    del manifest["facts"]["judge"]
    runs.write_json(where / "manifest.json", manifest)
    with pytest.raises(BadInput, match=r"does not say which network judges: run notebooks/01_data\.ipynb again"):
        upstream.judge_encoder(where)


def test_the_judge_of_training_knows_real_from_noise(folder):
    where, images, network = folder()
    judge = upstream.training_judge(where, compute.setup("float32"))
    real, other = images.select(np.arange(0, 40)), images.select(np.arange(40, 80))
    random = np.random.default_rng(0)
    noise = ImageSet(random.integers(0, 256, other.images.shape, dtype=np.uint8), other.table)
    assert judge(real, noise)["kid"] > judge(real, other)["kid"]
    # the same number as the measure gives on the features of the in-domain network
    x, y = (encoders.encode(network, part.images, compute=compute.setup("float32")) for part in (real, other))
    scale = np.sqrt((x.astype(float) ** 2).mean())
    assert judge(real, other)["kid"] == pytest.approx(measure.kid(x / scale, y / scale)["kid"])
    assert np.isnan(list(judge(real.select(np.arange(9)), other).values())).all()


def test_the_judge_of_training_knows_copies(folder):
    where, images, _ = folder()
    judge, train = upstream.training_judge(where, compute.setup("float32")), images.select(split="train")
    val, test = images.select(split="val"), images.select(split="test")
    turned = ImageSet(np.ascontiguousarray(train.images[:20, ::-1]), train.table.iloc[:20])
    mixed = ImageSet.concat(turned.select(np.arange(10)), test.select(np.arange(10)))
    assert judge(val, turned)["near_copies"] == 1
    assert judge(val, turned)["authenticity"] == 0
    assert judge(val, test)["near_copies"] < 0.15
    assert judge(val, test)["authenticity"] > 0.5
    assert judge(val, mixed)["near_copies"] == pytest.approx(0.5, abs=0.1)
    # the same numbers as the measure gives on the whole folds
    sets = {"train": train, "val": val, "pool": mixed}
    table = measure.copying_table(measure.CopySearch(sets, reference="train", held_out="val")).set_index("set")
    found = judge(val, mixed)
    assert found["near_copies"] == table.loc["pool", "rate"]
    assert found["authenticity"] == table.loc["pool", "authenticity"]


def test_the_judge_is_known_by_its_network_and_its_training_images(folder, monkeypatch):
    where, _, network = folder()
    one = upstream.training_judge(where, compute.setup("float32")).identity
    assert one == upstream.training_judge(where, compute.setup("float32")).identity
    assert network.provenance["sha256"] in one
    facts = runs.read_manifest(where)
    facts["outputs"]["images.npy"] = "other"
    monkeypatch.setattr(upstream, "read_manifest", lambda folder: facts)
    assert upstream.training_judge(where, compute.setup("float32")).identity != one


def test_pictures_are_those_of_the_set_at_another_size(folder):
    where, images, _ = folder()
    ids = images.table["image_id"].tolist()[:3]
    np.testing.assert_array_equal(upstream.picture_reader(where, size=16)(ids), images.images[:3])
    assert upstream.picture_reader(where, size=48)(ids).shape == (3, 48, 48, 3)


def test_masks_and_aspect_of_the_data_stage(folder):
    where, images, _ = folder()
    ids = images.table["image_id"].tolist()[:3]
    masks = upstream.mask_reader(where, size=24)(ids)
    assert masks.shape == (3, 24, 24)
    own = upstream.lesion_masks(where, images.select([2, 0]))
    np.testing.assert_array_equal(own, upstream.mask_reader(where, size=images.size)([ids[2], ids[0]]))
    keep = upstream.picture_reader(where, size=24, aspect="keep")(ids)
    np.testing.assert_array_equal(np.stack(keep), upstream.picture_reader(where, size=24)(ids))


def test_open_a_fitted_generator(folder, tmp_path):
    machine = compute.setup("float32")
    replicate = tmp_path / "quick" / "r0"
    with pytest.raises(BadInput, match=r"Run notebooks/01_data\.ipynb first, or 'stda job quick r0/data'"):
        upstream.open_generator(replicate, "wgan", machine)
    where, images, _ = folder()
    assert where == replicate / "data"
    train = images.select(split="train")
    assert upstream.train_table(replicate)["image_id"].tolist() == train.table["image_id"].tolist()
    with pytest.raises(BadInput, match=r"Run notebooks/04_wgan\.ipynb first, or 'stda job quick r0/wgan'"):
        upstream.open_generator(replicate, "wgan", machine)
    run = runs.begin("wgan", runs.parameters(Study(), Job("wgan", 0)))
    generator = generators.create("wgan", width=4, latent=9, batch_size=4, n_critic=1, compute=machine)
    generator.fit(train, steps=1, seed=0)
    generator.save(run.dir)
    run.finish(headline="x")
    for size in (0, 16):
        opened = upstream.open_generator(replicate, "wgan", machine, size=size)
        assert (opened.generate(["MEL"], seed=0).images == generator.generate(["MEL"], seed=0).images).all()
    with pytest.raises(BadInput, match="fitted at 16 px and makes no images of 32 px"):
        upstream.open_generator(replicate, "wgan", machine, size=32)
