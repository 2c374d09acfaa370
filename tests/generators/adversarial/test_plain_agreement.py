"""One float32 step of every GAN against the plain loop of the benchmark: the same losses and the same gradients."""

import sys
from pathlib import Path

import pytest
from gan_cases import CPU, discs

from stda.generators import create

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
from gan_plain import gaps

SMALL = {
    "dcgan": {"mode": "per-class", "width": 4, "latent": 6, "batch_size": 8},
    "wgan": {"width": 4, "latent": 8, "batch_size": 8, "n_critic": 1},
    "pggan": {"max_channels": 8, "latent": 6, "batch_size": 8},
}


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("name", SMALL)
def test_a_step_is_the_plain_loops(name, size):
    gan = create(name, compute=CPU, **SMALL[name])
    found = gaps(gan, discs(size=size, counts={"dark": 9, "grey": 4, "light": 5}))
    assert set(found) == {"d_loss", "g_loss", "critic", "generator"}
    assert max(found.values()) < 1e-4, found
