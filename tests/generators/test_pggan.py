import pytest
import torch
import torch.nn.functional as F
from gan_cases import CPU, TINY, discs, started

from stda import BadInput
from stda.generators import create
from stda.generators.pggan import (
    Phase,
    ProgressiveCritic,
    ProgressiveGenerator,
    at_level,
    channels_per_level,
    schedule,
)


def networks(size=32, n_classes=3):
    torch.manual_seed(0)
    channels = channels_per_level(size, 64, 8)
    generator = ProgressiveGenerator(channels=channels, latent=5, n_classes=n_classes)
    return generator, ProgressiveCritic(channels=channels, n_classes=n_classes)


def set_level(network, level, alpha):
    network.level.fill_(level)
    network.alpha.fill_(alpha)


def test_channels_are_the_paper_s():
    assert channels_per_level(256, 8192, 512) == [512, 512, 512, 512, 256, 128, 64]
    assert channels_per_level(32, 8192, 64) == [64] * 4


@pytest.mark.parametrize("size", [32, 64, 128])
def test_shapes_at_every_level(size):
    generator, critic = networks(size)
    z, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    for level in range(len(generator.blocks) + 1):
        for network in (generator, critic):
            set_level(network, level, 0.5)
        images = generator(z, labels)
        assert images.shape == (4, 3, 4 * 2**level, 4 * 2**level)
        score, logits = critic(images)
        assert score.shape == (4,)
        assert logits.shape == (4, 3)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_alpha_zero_is_the_up_sampled_previous_model(level):
    generator, critic = networks()
    z, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    set_level(generator, level - 1, 1.0)
    set_level(critic, level - 1, 1.0)
    before = generator(z, labels)
    real = torch.randn(4, 3, 4 * 2**level, 4 * 2**level)
    score = critic(F.avg_pool2d(real, 2))
    set_level(generator, level, 0.0)
    set_level(critic, level, 0.0)
    assert torch.equal(generator(z, labels), before.repeat_interleave(2, 2).repeat_interleave(2, 3))
    for now, then in zip(critic(real), score, strict=True):
        assert torch.allclose(now, then, atol=1e-6)


def test_fade_is_linear_and_ends_at_the_new_path():
    generator, _ = networks()
    z, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    images = {}
    for alpha in (0.0, 0.25, 0.999999, 1.0):
        set_level(generator, 2, alpha)
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


def test_schedule_in_images():
    phases = schedule(1000, 4, 0.4)
    assert [(p.level, p.fading) for p in phases] == [
        (0, False),
        (1, True),
        (1, False),
        (2, True),
        (2, False),
        (3, True),
        (3, False),
    ]
    assert [p.first_image for p in phases] == [0, 100, 200, 300, 400, 500, 600]
    assert phases[-1].end_image == 1000
    fade = Phase(1, True, 100, 200)
    assert [fade.alpha(n) for n in (100, 150, 200)] == [0.0, 0.5, 1.0]
    assert Phase(1, False, 100, 200).alpha(150) == 1.0
    assert schedule(10, 1, 0.4) == [Phase(0, False, 0, 10)]


def test_fit_passes_through_the_phases_and_ends_at_full_size():
    gan = create("pggan", compute=CPU, class_weight=2.0, fake_class_weight=0.5, **TINY["pggan"])
    history = gan.fit(discs(size=16), steps=50, seed=0)
    assert history.groupby("resolution")["step"].min().to_dict() == {
        4: 1,
        8: 9,
        16: 24,
    }  # after 30 and 90 of 200 images
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


def test_optimisers_are_reset_at_each_resolution():
    gan = create("pggan", compute=CPU, **TINY["pggan"])
    train = discs(size=8)
    training = started(gan, train, steps=30)
    seen = {}
    for training.step in range(1, 31):
        gan.advance(training)
        seen.setdefault(id(training.optimizers["critic"]), []).append(int(training.networks["critic"].level))
    assert [sorted(set(levels)) for levels in seen.values()] == [[0], [1]]


def test_bad_last_share():
    with pytest.raises(BadInput, match=r"last_share is 1\.0; it must be below 1"):
        create("pggan", last_share=1.0)


def test_a_run_too_short_for_all_phases_still_gives_images_of_the_full_size():
    gan = create("pggan", compute=CPU, **TINY["pggan"])
    gan.fit(discs(size=32), steps=2, seed=0)
    assert gan.generate(["dark"], seed=0).images.shape == (1, 32, 32, 3)
