import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from gan_cases import CPU, TINY, discs, started
from torch import nn

from stda import BadInput, generators, upstream
from stda.generators import create
from stda.generators.adversarial.rejection import opinions
from stda.generators.dcgan import DCDiscriminator, DCGenerator
from stda.generators.pairs import image_seed
from stda.images import ImageSet


class Planted:
    """Stands in for the in-domain classifier: sees a light lesion where the pixels sum to a multiple of n."""

    classes, size = ("dark", "light"), 8
    provenance = {"name": "planted", "sha256": "abcdef0123456789"}  # noqa: RUF012

    def __init__(self, n):
        self.n, self.classes = n, list(self.classes)

    def classify(self, images, compute):
        """The likelihoods differ among images that are seen as the same class."""
        assert len(images) == 64  # always batches of one size
        sums = images.images.astype(int).sum(axis=(1, 2, 3))
        light = np.where(sums % self.n == 0, 0.6, 0.1) + sums % 97 / 1000
        return np.stack([1 - light, light], axis=1).astype(np.float32)


ALWAYS, SOMETIMES, NEVER = 1, 7, 10**9


def unconditional(n=SOMETIMES, *, steps=2, **knobs):
    gan = create("dcgan", compute=CPU, mode="unconditional", labeller=Planted(n), **(TINY["dcgan"] | knobs))
    gan.fit(discs(), steps=steps, seed=0)
    return gan


@pytest.mark.parametrize("size", [32, 64, 128])
def test_shapes_and_the_paper_s_layers(size):
    torch.manual_seed(0)
    generator = DCGenerator(size=size, width=4, latent=10, n_labels=0)
    discriminator = DCDiscriminator(size=size, width=4, n_labels=0)
    images = generator(torch.randn(2, 10), torch.tensor([0, 0]))
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    logits, class_logits = discriminator(images, torch.tensor([0, 0]))
    assert logits.shape == (2,)
    assert class_logits.shape == (2, 0)
    n_layers = {32: 4, 64: 5, 128: 6}[size]  # 64 px is the paper's; 32 px has one layer less
    kinds = (nn.ConvTranspose2d, nn.Conv2d)
    for network, kind in zip((generator, discriminator), kinds, strict=True):
        layers = [m for m in network.modules() if isinstance(m, kind)]
        assert len(layers) == n_layers
        assert all(layer.kernel_size == (4, 4) for layer in layers)
        assert layers[1].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in discriminator.modules()) == n_layers - 2  # not first, not last
    assert not isinstance(discriminator.layers[1], nn.BatchNorm2d)


def differs_by_label(network, one):
    inputs = one.expand(2, *one.shape[1:])
    found = network(inputs, torch.tensor([0, 1]))
    found = found[0] if isinstance(found, tuple) else found
    return not torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("mode", "generator_is_told", "discriminator_is_told", "n_class_logits"),
    [("unconditional", False, False, 0), ("conditional", True, True, 0), ("acgan", True, False, 2)],
)
def test_what_the_networks_are_told(mode, generator_is_told, discriminator_is_told, n_class_logits):
    torch.manual_seed(0)
    gan = create("dcgan", compute=CPU, mode=mode, **TINY["dcgan"])
    gan.size = 32
    assert differs_by_label(gan.make_generator(2).eval(), torch.randn(1, 6)) == generator_is_told
    critic, image = gan.make_critic(2).eval(), torch.randn(1, 3, 32, 32)
    assert differs_by_label(critic, image) == discriminator_is_told
    assert critic(image, torch.tensor([0]))[1].shape == (1, n_class_logits)


def test_bad_knobs_are_one_sentence():
    for mode in ("both", "per_class"):
        with pytest.raises(BadInput, match=f"mode is '{mode}'; it must be one of per-class, unconditional, cond"):
            create("dcgan", mode=mode)
    for knob, value, words in (
        ("label_smoothing", 0.5, "must be below 0.5"),
        ("label_smoothing", -0.1, "must be 0 or more"),
        ("critic_rate", 0, "must be positive"),
        ("max_tries", 0, "must be positive"),
    ):
        with pytest.raises(BadInput, match=f"{knob} is {value}; it {words}"):
            create("dcgan", **{knob: value})


def plain_step(gan, training):
    """Take the step as the papers write it, in probabilities, with a plain optimiser; return the losses."""
    generator, critic = training.networks["generator"], training.networks["critic"]
    real, real_labels = training.batches.draw(gan.batch_size)
    z = torch.randn(gan.batch_size, gan.latent, generator=training.noise)
    labels = training.batches.fake_labels(gan.batch_size, "uniform")
    rates = {"generator": gan.learning_rate, "critic": gan.learning_rate * gan.critic_rate}
    optimizers = {
        name: torch.optim.Adam(training.networks[name].parameters(), rate, betas=(gan.beta1, 0.999), fused=False)
        for name, rate in rates.items()
    }

    def judged(images, target, labels):
        score, class_logits = critic(images, labels)
        loss = F.binary_cross_entropy(score.sigmoid(), torch.full_like(score, target))
        if class_logits.shape[1]:
            loss = loss - gan.class_weight * class_logits.softmax(dim=1).log()[torch.arange(len(labels)), labels].mean()
        return loss

    fake = generator(z, labels)
    losses = {"d_loss": judged(real, 1 - gan.label_smoothing, real_labels) + judged(fake.detach(), 0.0, labels)}
    optimizers["critic"].zero_grad()
    losses["d_loss"].backward()
    optimizers["critic"].step()
    losses["g_loss"] = judged(fake, 1.0, labels)
    optimizers["generator"].zero_grad()
    losses["g_loss"].backward()
    optimizers["generator"].step()
    return losses


@pytest.mark.parametrize(
    "knobs",
    [
        {"mode": "conditional"},
        {"mode": "conditional", "label_smoothing": 0.1, "critic_rate": 0.25},
        {"mode": "conditional", "spectral_norm": True},
        {"mode": "acgan"},
        {"mode": "acgan", "class_weight": 2.5, "label_smoothing": 0.2, "spectral_norm": True},
    ],
    ids=lambda knobs: "-".join(map(str, knobs.values())),
)
def test_a_step_is_the_plain_computation(knobs):
    gan = create("dcgan", compute=CPU, **TINY["dcgan"] | {"batch_size": 8} | knobs)
    ours, plain = (started(gan, discs(), steps=1, seed=5) for _ in range(2))
    record, expected = gan.advance(ours), plain_step(gan, plain)
    for name, loss in expected.items():
        assert record[name] == pytest.approx(loss.item(), rel=1e-5), name
    for name in ("generator", "critic"):
        before = started(gan, discs(), steps=1, seed=5).networks[name].state_dict()
        others = plain.networks[name].state_dict()
        for key, value in ours.networks[name].state_dict().items():
            assert torch.allclose(value.float(), others[key].float(), atol=2e-6), key
        assert not all(torch.equal(value, before[key]) for key, value in others.items())


def test_records_hold_what_the_discriminator_gets_right():
    gan = create("dcgan", compute=CPU, mode="acgan", **TINY["dcgan"] | {"batch_size": 32})
    training = started(gan, discs(), steps=1)
    critic = training.networks["critic"]
    with torch.no_grad():  # bias only: a discriminator that takes everything for real
        for parameter in critic.parameters():
            parameter.zero_()
        critic.layers[-1].bias[0] = 3.0
    record = gan.advance(training)
    assert (record["d_accuracy_real"], record["d_accuracy_fake"]) == (1.0, 0.0)
    assert record["d_real"] == pytest.approx(1 / (1 + np.exp(-3)), rel=1e-5)
    assert record["d_fake"] == pytest.approx(record["d_real"])
    assert record["d_class_loss"] == record["d_class_loss_fake"] == pytest.approx(np.log(2), rel=1e-5)


def test_spectral_norm_bounds_every_layer_and_takes_the_place_of_batch_norm():
    gan = create("dcgan", compute=CPU, mode="conditional", spectral_norm=True, **TINY["dcgan"])
    training = started(gan, discs(size=16), steps=20)
    for training.step in range(1, 21):
        gan.advance(training)
    critic = training.networks["critic"]
    layers = [module for module in critic.modules() if isinstance(module, nn.Conv2d)]
    assert len(layers) == 3
    assert not any(isinstance(module, nn.BatchNorm2d) for module in critic.modules())
    for layer in layers:
        largest = np.linalg.svd(layer.weight.detach().flatten(1).double().numpy(), compute_uv=False)[0]
        assert largest == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_an_opinion_does_not_change_the_discriminator(spectral_norm):
    gan = create("dcgan", compute=CPU, mode="conditional", spectral_norm=spectral_norm, **TINY["dcgan"])
    training = started(gan, discs(), steps=1)
    before = copy.deepcopy(training.networks["critic"].state_dict())
    found = gan.opinion(training, torch.randn(5, 3, 8, 8), torch.zeros(5, dtype=torch.long))
    assert found.shape == (5,)
    assert ((found > 0) & (found < 1)).all()
    assert all(torch.equal(value, before[key]) for key, value in training.networks["critic"].state_dict().items())


def test_one_model_per_class_shares_the_steps_and_sees_only_its_class():
    records = []
    train = discs(counts={"dark": 6, "light": 4, "none": 2})
    gan = create("dcgan", compute=CPU, **TINY["dcgan"])
    history = gan.fit(train, steps=8, seed=0, callback=records.append)
    assert history.groupby("model")["step"].count().to_dict() == {"dark": 2, "light": 3, "none": 3}
    assert [r["step"] for r in records] == list(range(1, 9))
    assert set(gan.models) == {"dark", "light", "none"}
    assert set(gan.split_by_model(train)["light"].labels) == {"light"}
    with pytest.raises(BadInput, match="steps is 2; dcgan trains 3 models"):
        gan.fit(train, steps=2, seed=0)
    for mode in ("conditional", "acgan"):
        together = create("dcgan", compute=CPU, mode=mode, **TINY["dcgan"])
        assert set(together.fit(train, steps=3, seed=0)["model"]) == {"(all)"}
        assert together.generate(["none", "dark"], seed=0).labels.tolist() == ["none", "dark"]


def test_a_class_of_one_image_is_learnt():
    train = discs(counts={"dark": 1, "light": 1}, size=8)
    gan = create("dcgan", compute=CPU, width=8, latent=4, batch_size=8, learning_rate=2e-3)
    gan.fit(train, steps=300, seed=0)
    made = gan.generate(["dark"] * 8 + ["light"] * 8, seed=1).images.astype(float)
    centre = made[:, 3:5, 3:5].mean(axis=(1, 2, 3))
    assert np.abs(centre[:8] - 40).mean() < 40
    assert np.abs(centre[8:] - 200).mean() < 40


def test_acgan_learns_which_class_is_which():
    gan = create("dcgan", compute=CPU, mode="acgan", width=8, latent=4, batch_size=16, learning_rate=2e-3)
    gan.fit(discs(), steps=200, seed=0)
    made = gan.generate(["dark"] * 8 + ["light"] * 8, seed=1).images.astype(float)
    centre = made[:, 3:5, 3:5].mean(axis=(1, 2, 3))
    assert centre[:8].max() < centre[8:].min()


# ------------------------------------------------------------------------------------------------ unconditional


def every_candidate(gan, seed):
    """Return what a row may become, one image at a time: seeds, pixels, probabilities of "light"."""
    seeds = [image_seed(seed, k) for k in range(gan.max_tries)]
    pixels = np.concatenate([gan.images_for(["dark"], [s]) for s in seeds])
    return seeds, pixels, np.array([opinions(gan.labeller, p[None], CPU)[0, 1] for p in pixels])


@pytest.mark.parametrize("n", [ALWAYS, SOMETIMES, NEVER])
def test_candidates_are_drawn_until_one_is_seen_as_the_asked_class(n):
    gan = unconditional(n, max_tries=9)
    asked = ["light", "dark"] * 6
    made = gan.generate(asked, seed=3)
    planned = gan.make(made.table.assign(label=asked, image_seed=[image_seed(1, i) for i in range(12)]))
    for row, pixels in zip(planned.table.itertuples(), planned.images, strict=True):
        wanted = row.asked_label == "light"
        seeds, candidates, light = every_candidate(gan, image_seed(1, row.Index))
        hits = np.flatnonzero((light > 0.5) == wanted)
        k = hits[0] if len(hits) else (light if wanted else -light).argmax()
        assert row.tries == (k + 1 if len(hits) else 9)
        assert row.image_seed == seeds[k]
        np.testing.assert_array_equal(pixels, candidates[k])
        assert row.label == row.pseudo_label == ("light" if light[k] > 0.5 else "dark")
        assert row.label_confidence == pytest.approx(max(light[k], 1 - light[k]), abs=1e-6)
        assert row.p_light == pytest.approx(light[k], abs=1e-6)
    assert made.table["asked_label"].tolist() == asked
    if n == NEVER:
        assert set(made.labels) == {"dark"}
        assert made.table.groupby("asked_label")["tries"].unique().map(list).to_dict() == {"dark": [1], "light": [9]}
    if n == ALWAYS:
        assert (made.table["tries"].to_numpy() == np.where(np.array(asked) == "light", 1, 9)).all()


def test_a_row_depends_on_no_other_row():
    gan = unconditional(max_tries=20)
    shares = {"dark": 0.5, "light": 0.5}
    whole = gan.make(gan.plan(0, 70, shares=shares, seed=4))
    assert whole.table["tries"].nunique() > 3
    for rows in ([69], [0, 5, 6]):
        part = gan.make(gan.plan(0, 70, shares=shares, seed=4).iloc[rows].reset_index(drop=True))
        np.testing.assert_array_equal(part.images, whole.images[rows])
        pd.testing.assert_frame_equal(part.table, whole.table.iloc[rows].reset_index(drop=True))


def test_an_image_is_made_again_from_its_row_after_it_was_saved(tmp_path):
    gan = unconditional()
    made = gan.generate(["light", "dark", "light"] * 3, seed=2)
    gan.save(tmp_path)
    made.save(tmp_path)
    opened = generators.load(tmp_path, compute=CPU, labeller=Planted(SOMETIMES))
    table = ImageSet.load(tmp_path).table
    np.testing.assert_array_equal(opened.regenerate(table.iloc[[4, 2]]), made.images[[4, 2]])
    np.testing.assert_array_equal(opened.generate(["light", "dark", "light"] * 3, seed=2).images, made.images)
    other = Planted(SOMETIMES)
    other.provenance = {"name": "planted", "sha256": "0123456789abcdef"}
    for labeller, given in ((None, "none"), (other, "01234567")):
        with pytest.raises(BadInput, match=f"went by the labeller abcdef01, but was given {given}: pass that"):
            generators.load(tmp_path, compute=CPU, labeller=labeller)


def test_unconditional_needs_a_labeller_of_the_same_fold_and_walks_nowhere():
    gan = create("dcgan", compute=CPU, mode="unconditional", **TINY["dcgan"])
    with pytest.raises(BadInput, match="needs a classifier that says what an image shows: pass labeller"):
        gan.fit(discs(), steps=1, seed=0)
    with pytest.raises(
        BadInput, match=r"knows \['dark', 'light'\] at 8 px, the train fold has \['dark', 'light'\] at 16"
    ):
        create("dcgan", mode="unconditional", labeller=Planted(1)).fit(discs(size=16), steps=1, seed=0)
    gan = unconditional()
    with pytest.raises(BadInput, match="knows no classes, so there is no way from one to another"):
        gan.class_walk("dark", "light", seed=0)
    with pytest.raises(BadInput, match=r"knows no class \['red'\]"):
        gan.generate(["red"], seed=0)
    assert len(gan.generate([], seed=0)) == 0
    assert gan.interpolate("dark", seeds=(1, 2), n=3).shape == (3, 8, 8, 3)


def test_sample_grids_have_a_row_per_class_that_is_told():
    for mode, rows in (("unconditional", 1), ("conditional", 2), ("acgan", 2)):
        grids = []
        gan = create("dcgan", compute=CPU, mode=mode, labeller=Planted(1), grid_every=2, **TINY["dcgan"])
        gan.fit(discs(), steps=2, seed=0, callback=lambda record, grids=grids: grids.append(record.get("grid")))
        assert grids[-1].shape == (8 * rows, 8 * 8, 3)


class Stopped(Exception):
    pass


def test_a_broken_off_acgan_goes_on_bit_for_bit(tmp_path):
    def fit(folder, stop_after=None):
        def callback(record):
            if record["step"] == stop_after:
                raise Stopped

        knobs = {"mode": "acgan", "spectral_norm": True, "label_smoothing": 0.1, "critic_rate": 0.5}
        gan = create("dcgan", compute=CPU, checkpoint_every=3, **TINY["dcgan"] | knobs)
        gan.fit(discs(), steps=10, seed=1, checkpoints=folder, callback=callback)
        return gan.models["(all)"].state_dict()

    whole = fit(tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(tmp_path / "broken", stop_after=8)
    assert all(torch.equal(value, whole[key]) for key, value in fit(tmp_path / "broken").items())


def test_the_labeller_is_handed_in_where_a_generator_is_opened(tmp_path, monkeypatch):
    (tmp_path / "dcgan").mkdir()
    monkeypatch.setattr(upstream, "finished_stage", lambda folder, stage: {})
    folders = []

    def load_in_domain(folder):
        folders.append(folder)
        return Planted(SOMETIMES)

    monkeypatch.setattr(upstream.encoders, "load_in_domain", load_in_domain)
    gan = unconditional()
    gan.save(tmp_path / "dcgan")
    opened = upstream.open_generator(tmp_path, "dcgan", CPU)
    assert folders == [tmp_path / "data" / "in_domain"]
    np.testing.assert_array_equal(opened.generate(["light"], seed=1).images, gan.generate(["light"], seed=1).images)
    alone = create("dcgan", compute=CPU, mode="conditional", labeller=Planted(1), **TINY["dcgan"])
    alone.fit(discs(), steps=1, seed=0)
    alone.save(tmp_path / "dcgan")
    assert upstream.open_generator(tmp_path, "dcgan", CPU).labeller is None
