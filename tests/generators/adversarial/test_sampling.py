import numpy as np
import pytest
import torch
from gan_cases import CPU, TINY, discs
from scipy import stats

import stda.generators as generators
from stda import BadInput
from stda.generators.adversarial.sampling import great_circle, latents, truncate


@pytest.fixture(scope="module")
def fitted():
    made = {}
    for name in TINY:
        made[name] = generators.create(name, compute=CPU, **TINY[name])
        made[name].fit(discs(size=16), steps=4, seed=0)
    return made


def test_one_latent_per_seed():
    z = latents([5, 6, 5], 7)
    assert z.shape == (3, 7)
    assert z.dtype == torch.float32
    assert torch.equal(z[0], z[2])
    assert not torch.equal(z[0], z[1])
    assert latents([], 7).shape == (0, 7)


@pytest.mark.parametrize("limit", [0.5, 1.0, 2.5])
def test_truncation_gives_the_truncated_normal_distribution(limit):
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    cut = truncate(z, limit)
    assert cut.abs().max() <= limit
    assert stats.kstest(cut.numpy(), stats.truncnorm(-limit, limit).cdf).pvalue > 0.01
    exact = stats.truncnorm(-limit, limit).ppf(stats.norm.cdf(z.double().numpy()))
    assert np.allclose(cut.numpy(), exact, atol=1e-6)
    assert torch.equal(z.argsort(), cut.argsort())


def test_a_far_limit_changes_nothing_and_extremes_stay_finite():
    z = torch.tensor([-9.0, -1.0, 0.0, 2.0, 9.0])
    assert torch.allclose(truncate(z, 10.0)[1:4], z[1:4], atol=1e-5)
    assert torch.isfinite(truncate(z, 10.0)).all()
    assert torch.isfinite(truncate(z, 0.3)).all()


def test_great_circle_goes_from_end_to_end_at_even_angles():
    start, end = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    way = great_circle(start, end, 5)
    assert torch.allclose(way[[0, -1]], torch.stack([start, end]), atol=1e-6)
    assert torch.allclose(way.norm(dim=1), torch.tensor([3.0, 2.5, 2.0, 1.5, 1.0]))
    angles = torch.atan2(way[:, 1], way[:, 0]).diff()
    assert torch.allclose(angles, torch.full((4,), torch.pi / 8), atol=1e-6)
    assert torch.allclose(great_circle(start, 2 * start, 3), torch.tensor([[3.0, 0, 0], [4.5, 0, 0], [6.0, 0, 0]]))


@pytest.mark.parametrize("name", list(TINY))
def test_interpolation_ends_at_the_two_images(name, fitted):
    gan, seeds = fitted[name], (11, 12)
    strip = gan.interpolate("light", seeds=seeds, n=6)
    assert strip.shape == (6, 16, 16, 3)
    ends = gan.images_for(["light", "light"], seeds)
    assert np.abs(strip[[0, -1]].astype(int) - ends).max() <= 1
    steps = np.abs(np.diff(strip.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert steps.max() < np.abs(ends[0].astype(int) - ends[1]).mean()  # no step is as large as the whole way


@pytest.mark.parametrize("name", ["wgan", "pggan"])
def test_a_class_walk_keeps_the_latent(name, fitted):
    gan = fitted[name]
    walk = gan.class_walk("dark", "light", seed=5, n=4)
    ends = gan.images_for(["dark", "light"], [5, 5])
    assert np.abs(walk[[0, -1]].astype(int) - ends).max() <= 1
    assert not np.array_equal(walk[1], walk[0])


def test_there_is_no_way_between_two_models(fitted):
    with pytest.raises(BadInput, match="has a model per class, so no way leads from 'dark' to 'light'"):
        fitted["dcgan"].class_walk("dark", "light", seed=0)
    with pytest.raises(BadInput, match=r"knows no class \['red'\]"):
        fitted["wgan"].class_walk("dark", "red", seed=0)


@pytest.mark.parametrize("name", list(TINY))
def test_truncation_is_a_knob_or_asked_for(name, fitted, tmp_path):
    gan, labels, seeds = fitted[name], ["dark"] * 5, range(5)
    plain = gan.images_for(labels, seeds)
    near = gan.images_for(labels, seeds, truncation=0.01)
    assert np.abs(np.diff(near.astype(int), axis=0)).max() <= np.abs(np.diff(plain.astype(int), axis=0)).max()
    assert not np.array_equal(near, plain)
    gan.save(tmp_path)
    opened = generators.load(tmp_path, compute=CPU)
    opened.truncation = 0.01
    opened.save(tmp_path)
    again = generators.load(tmp_path, compute=CPU)
    assert np.array_equal(again.images_for(labels, seeds), near)
    made = again.generate(labels, seed=3)
    assert np.array_equal(again.regenerate(made.table.iloc[[2]]), made.images[[2]])
