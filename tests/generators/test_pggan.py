import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from gan_cases import CPU, TINY, discs, started
from torch import nn

from stda import BadInput
from stda.generators import create
from stda.generators.adversarial.augment import diff_augment
from stda.generators.pggan import (
    ProgressiveCritic,
    ProgressiveGenerator,
    at_level,
    channels_per_level,
    schedule,
    set_growth,
)

# level and whether it is faded in, up to 32 px
ORDER = [(0, False), (1, True), (1, False), (2, True), (2, False), (3, True), (3, False)]


def networks(size=32, n_classes=3):
    torch.manual_seed(0)
    channels = channels_per_level(size, 64, 8)
    generator = ProgressiveGenerator(channels=channels, latent=5, n_classes=n_classes)
    return generator, ProgressiveCritic(channels=channels, n_classes=n_classes)


def test_channels_are_the_paper_s():
    assert channels_per_level(256, 8192, 512) == [512, 512, 512, 512, 256, 128, 64]
    assert channels_per_level(32, 8192, 64) == [64] * 4


@pytest.mark.parametrize("size", [32, 64, 128])
def test_shapes_at_every_level(size):
    generator, critic = networks(size)
    z, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    for level in range(len(generator.blocks) + 1):
        for network in (generator, critic):
            set_growth(network, level, 0.5)
        images = generator(z, labels)
        assert images.shape == (4, 3, 4 * 2**level, 4 * 2**level)
        score, logits = critic(images)
        assert score.shape == (4,)
        assert logits.shape == (4, 3)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_alpha_zero_is_the_up_sampled_previous_model(level):
    generator, critic = networks()
    z, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    set_growth(generator, level - 1, 1.0)
    set_growth(critic, level - 1, 1.0)
    before = generator(z, labels)
    real = torch.randn(4, 3, 4 * 2**level, 4 * 2**level)
    score = critic(F.avg_pool2d(real, 2))
    set_growth(generator, level, 0.0)
    set_growth(critic, level, 0.0)
    assert torch.equal(generator(z, labels), before.repeat_interleave(2, 2).repeat_interleave(2, 3))
    for now, then in zip(critic(real), score, strict=True):
        assert torch.allclose(now, then, atol=1e-6)


def test_fade_is_linear_and_ends_at_the_new_path():
    generator, _ = networks()
    z, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    images = {}
    for alpha in (0.0, 0.25, 0.999999, 1.0):
        set_growth(generator, 2, alpha)
        images[alpha] = generator(z, labels)
    assert torch.allclose(images[0.25], 0.75 * images[0.0] + 0.25 * images[1.0], atol=1e-5)
    assert torch.allclose(images[0.999999], images[1.0], atol=1e-4)


def test_real_images_are_cross_faded_alike():
    real = torch.randn(2, 3, 16, 16)
    assert torch.equal(at_level(real, 2, 3, 1.0), real)
    pooled = F.avg_pool2d(real, 2)
    assert torch.allclose(at_level(real, 1, 3, 1.0), pooled)
    low = F.interpolate(F.avg_pool2d(pooled, 2), scale_factor=2)
    assert torch.allclose(at_level(real, 1, 3, 0.25), 0.25 * pooled + 0.75 * low, atol=1e-6)


class Fixed(nn.Module):
    """Give one picture, whatever comes in."""

    def __init__(self, image):
        super().__init__()
        self.image = image

    def forward(self, x):
        return self.image


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_fakes_fade_as_real_images_do(alpha):
    # a generator that draws a real picture at 16 px, and the same picture pooled at 8 px, draws what the critic is
    # shown of the real one
    generator, _ = networks(16)
    real = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    generator.to_rgb[2], generator.to_rgb[1] = Fixed(real), Fixed(F.avg_pool2d(real, 2))
    set_growth(generator, 2, alpha)
    fake = generator(torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
    assert torch.allclose(fake, at_level(real, 2, 3, alpha), atol=1e-6)


def test_real_and_fake_share_no_group_in_one_pass_augmented_or_not():
    _, critic = networks(16)
    noise = torch.Generator().manual_seed(0)
    real, fake = torch.randn(8, 3, 16, 16, generator=noise), torch.full((8, 3, 16, 16), 0.3)
    both = torch.cat([real, fake])
    for images in (both, diff_augment(both, ("color", "cutout"), noise=noise)):
        score, logits = critic(images)
        alone = [critic(half) for half in images.chunk(2)]
        assert torch.allclose(score, torch.cat([one[0] for one in alone]), atol=1e-6)
        assert torch.allclose(logits, torch.cat([one[1] for one in alone]), atol=1e-6)


def test_even_phases_are_counted_in_images():
    phases = schedule(1000, [4] * 4, phase_images=0, last_share=0.4)
    assert [(p.level, p.fading) for p in phases] == ORDER
    assert [p.resolution for p in phases] == [4, 8, 8, 16, 16, 32, 32]
    assert [p.first_step for p in phases] == [0, 100, 200, 300, 400, 500, 600]
    assert [p.images(1000) for p in phases] == [400] * 6 + [1600]
    fade = phases[1]
    assert [fade.alpha(step) for step in (100, 150, 199)] == [0.0, 0.5, 0.99]
    assert [fade.images(step) for step in (0, 100, 150, 200, 900)] == [0, 0, 200, 400, 400]
    assert phases[2].alpha(200) == 1.0


def test_phases_of_one_length_take_more_steps_where_batches_are_small():
    per_step = [32, 16, 8, 4]
    phases = schedule(1000, per_step, phase_images=0, last_share=0.4)
    assert phases[-1].end_step == 1000
    images = [p.images(1000) for p in phases]
    assert images[:6] == pytest.approx([images[0]] * 6, abs=32)  # to a step
    assert images[-1] == pytest.approx(0.4 * sum(images), rel=0.01)
    # the paper's way: so many images each, the last goes on
    phases = schedule(1000, per_step, phase_images=800, last_share=0.4)
    assert [p.end_step - p.first_step for p in phases] == [25, 50, 50, 100, 100, 200, 475]
    assert [p.images(1000) for p in phases[:-1]] == [800] * 6
    # a phase ends with a whole step
    assert [p.images(100) for p in schedule(100, [12, 8], phase_images=20, last_share=0.4)] == [24, 24, 760]


@pytest.mark.parametrize("steps", range(1, 16))
def test_a_short_run_skips_phases_but_not_the_last(steps):
    phases = schedule(steps, [16, 8, 4], phase_images=0, last_share=0.01)
    assert [p.first_step for p in phases[1:]] == [p.end_step for p in phases[:-1]]
    assert phases[0].first_step == 0
    assert phases[-1].first_step < phases[-1].end_step == steps


def test_phases_that_need_more_steps_than_there_are():
    assert schedule(201, [4, 4], phase_images=400, last_share=0.4)[-1].images(201) == 4
    with pytest.raises(BadInput, match="phase_images is 400, which takes 200 steps before the last phase, but steps"):
        schedule(200, [4, 4], phase_images=400, last_share=0.4)


def test_fit_passes_through_the_phases_and_ends_at_full_size():
    gan = create("pggan", compute=CPU, class_weight=2.0, fake_class_weight=0.5, **TINY["pggan"])
    history = gan.fit(discs(size=16), steps=40, seed=0)
    assert history.groupby("resolution")["step"].min().to_dict() == {4: 1, 8: 7, 16: 19}  # 24, 48 and 88 images
    assert history["images"].tolist() == list(range(4, 161, 4))
    fading = history[history.alpha < 1]
    assert set(fading.resolution) == {8, 16}
    assert fading.groupby("resolution")["alpha"].is_monotonic_increasing.all()
    parts = (
        10 * history.penalty
        - history.wasserstein
        + 2 * history.d_class_loss
        + 0.5 * history.d_class_loss_fake
        + 1e-3 * history.d_real**2
    )
    assert history.d_loss.to_numpy() == pytest.approx(parts.to_numpy(), abs=2e-2)
    assert int(gan.models["(all)"].level) == 2
    assert float(gan.models["(all)"].alpha) == 1.0


def test_batches_follow_the_resolution():
    knobs = TINY["pggan"] | {"batch_sizes": [16, 8, 4], "n_critic": 2, "phase_images": 48}
    gan, seen = create("pggan", compute=CPU, **knobs), []
    draw = gan.reals
    gan.reals = lambda training, n: seen.append(n) or draw(training, n)
    history = gan.fit(discs(size=16), steps=20, seed=0)
    # 48 images are 2, 3 and 6 steps of two critic updates each
    assert history["resolution"].tolist() == [4] * 2 + [8] * 6 + [16] * 12
    assert history["alpha"].tolist() == pytest.approx([1, 1, 0, 1 / 3, 2 / 3, 1, 1, 1, *np.arange(6) / 6, *[1] * 6])
    assert seen == [16] * 4 + [8] * 12 + [4] * 24
    assert history["images"].tolist() == np.cumsum(seen)[1::2].tolist()


def test_bad_batch_sizes():
    with pytest.raises(BadInput, match=r"batch_size is 6; make each size a multiple of 4"):
        create("pggan", batch_size=6)
    with pytest.raises(BadInput, match=r"batch_sizes is \[8, 0\]; make each size a multiple of 4"):
        create("pggan", batch_sizes=[8, 0])
    gan = create("pggan", compute=CPU, batch_sizes=[8, 4], **TINY["pggan"])
    with pytest.raises(BadInput, match="batch_sizes has 2 entries; images of 16 px take 3, for 4 px and each doubling"):
        gan.fit(discs(size=16), steps=9, seed=0)


def test_optimisers_are_reset_at_each_resolution():
    gan = create("pggan", compute=CPU, **TINY["pggan"])
    train = discs(size=8)
    training = started(gan, train, steps=30)
    seen = {}
    for training.step in range(1, 31):
        gan.advance(training)
        seen.setdefault(id(training.optimizers["critic"]), []).append(int(training.networks["critic"].level))
    assert [sorted(set(levels)) for levels in seen.values()] == [[0], [1]]


def used(training):
    """Return the weights that a step at the present level and alpha must not move, and those it must."""
    networks = {name: training.networks[name] for name in ("generator", "critic")}
    level, alpha = int(networks["critic"].level), float(networks["critic"].alpha)
    idle, busy = {}, {}
    for name, network in networks.items():
        for key, value in network.named_parameters():
            part, _, rest = key.partition(".")
            number = int(rest.partition(".")[0]) if part in ("blocks", "to_rgb", "from_rgb") else -1
            image_layer = part in ("to_rgb", "from_rgb")
            active = number in ((level, level - 1) if alpha < 1 else (level,)) if image_layer else number < level
            (busy if active else idle)[f"{name}.{key}"] = value.detach().clone()
    return idle, busy


def test_weights_of_levels_that_are_not_in_use_are_left_alone():
    gan = create("pggan", compute=CPU, phase_images=8, **TINY["pggan"])
    training = started(gan, discs(size=16), steps=10)
    for training.step in range(1, 11):
        phase = next(p for p in gan.phases(10) if training.step - 1 < p.end_step)
        gan.enter(training, phase.level, phase.alpha(training.step - 1))
        idle, busy = used(training)
        gan.advance(training)
        now = {f"{n}.{k}": v for n, net in training.networks.items() for k, v in net.named_parameters()}
        assert all(torch.equal(now[key], value) for key, value in idle.items())
        if phase.alpha(training.step - 1) > 0:  # at alpha 0 the new path gets no gradient yet
            moved = [not torch.equal(now[key], value) for key, value in busy.items() if key.endswith("weight")]
            assert np.mean(moved) > 0.9
    assert not any("from_rgb.2" in key or "blocks.1" in key for key in idle)  # the end was reached


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop_after", [5, 13])
def test_a_fit_broken_off_in_a_fade_goes_on_bit_for_bit(stop_after, tmp_path):
    knobs = TINY["pggan"] | {"batch_sizes": [16, 8, 4], "checkpoint_every": 3, "grid_every": 5, "augment": "adaptive"}
    train = discs(size=16)

    def fit(folder, stop_after=0):
        gan, records = create("pggan", compute=CPU, **knobs), []

        def callback(record):
            records.append(record)
            if record["step"] == stop_after:
                raise Killed

        return gan, gan.fit(train, steps=40, seed=3, callback=callback, checkpoints=folder), records

    whole, history, _ = fit(None)
    assert 0 < history["alpha"][stop_after - 1] < 1
    with pytest.raises(Killed):
        fit(tmp_path, stop_after)
    resumed, again, records = fit(tmp_path)
    assert next(r["step"] for r in records if "alpha" in r) == (stop_after - 1) // 3 * 3 + 1
    pd.testing.assert_frame_equal(history, again, check_exact=True)
    state = resumed.models["(all)"].state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.models["(all)"].state_dict().items())


def test_256_px():
    gan = create("pggan", compute=CPU, channel_base=256, phase_images=4, grid_every=0, **TINY["pggan"])
    assert channels_per_level(256, 256, 4) == [4, 4, 4, 4, 4, 4, 2]
    train = discs(size=256, counts={"dark": 2, "light": 2})
    history = gan.fit(train, steps=14, seed=0)  # a step in each phase, and two in the last
    assert history["resolution"].tolist() == [4, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128, 256, 256, 256]
    assert history["alpha"].tolist() == [1, *[0, 1] * 6, 1]
    assert gan.generate(["light"], seed=0).images.shape == (1, 256, 256, 3)


def test_bad_last_share():
    with pytest.raises(BadInput, match=r"last_share is 1\.0; it must be below 1"):
        create("pggan", last_share=1.0)


def test_a_run_too_short_for_all_phases_still_gives_images_of_the_full_size():
    gan = create("pggan", compute=CPU, **TINY["pggan"])
    gan.fit(discs(size=32), steps=2, seed=0)
    assert gan.generate(["dark"], seed=0).images.shape == (1, 32, 32, 3)
