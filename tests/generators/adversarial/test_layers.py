import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stda import BadInput
from stda.generators.adversarial import layers


@pytest.mark.parametrize("size", [2, 4, 8])
def test_conv_pool_and_up_conv_equal_their_two_steps(size):
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    weight, bias = torch.randn(5, 3, 3, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    slow = F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2)
    assert torch.allclose(layers.conv_pool(x, weight, bias), slow, atol=1e-12)
    slow = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
    assert torch.allclose(layers.up_conv(x, weight, bias), slow, atol=1e-12)


def test_resampling_convolutions_have_second_derivatives():
    # a gradient penalty goes through conv_pool twice
    torch.manual_seed(0)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    for layer in (layers.conv_pool, layers.up_conv):
        assert torch.autograd.gradcheck(layer, (x, weight))
        assert torch.autograd.gradgradcheck(layer, (x, weight))


def test_pixel_norm_gives_unit_rms_over_channels():
    for shape in ((3, 7, 4, 4), (3, 7)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 37
        y = layers.PixelNorm()(x)
        assert torch.allclose(y.square().mean(dim=1).sqrt(), torch.ones(shape[:1] + shape[2:]), atol=1e-5)
        assert torch.allclose(y / y[:, :1], x / x[:, :1], rtol=1e-4)  # the direction stays


def test_minibatch_stddev_of_a_known_input():
    # group of 4 with values 0, 0, 2, 2 in one channel (deviation 1) and equal values in the other (deviation 0)
    first = torch.tensor([0.0, 0.0, 2.0, 2.0]).view(4, 1, 1, 1).expand(4, 1, 3, 3)
    known = torch.cat([first, torch.full((4, 1, 3, 3), 5.0)], dim=1)
    equal = torch.ones(4, 2, 3, 3)
    y = layers.MinibatchStddev(4)(torch.cat([known, equal]))
    assert y.shape == (8, 3, 3, 3)
    assert torch.equal(y[:, :2], torch.cat([known, equal]))
    assert torch.allclose(y[:4, 2], torch.full((4, 3, 3), 0.5), atol=1e-4)
    assert torch.allclose(y[4:, 2], torch.zeros(4, 3, 3), atol=2e-4)


def test_minibatch_stddev_against_numpy_and_its_gradient_at_equal_images():
    x = torch.randn(12, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    y = layers.MinibatchStddev(4)(x)[:, 5, 0, 0].numpy()
    expected = [np.sqrt(x.numpy()[k : k + 4].var(axis=0) + 1e-8).mean() for k in (0, 4, 8)]
    assert np.allclose(y, np.repeat(expected, 4), atol=1e-6)
    # a batch that the group does not divide is one group
    whole = layers.MinibatchStddev(4)(x[:6])[:, 5, 0, 0].numpy()
    assert np.allclose(whole, np.sqrt(x.numpy()[:6].var(axis=0) + 1e-8).mean(), atol=1e-6)
    same = torch.ones(4, 2, 2, 2, requires_grad=True)
    layers.MinibatchStddev(4)(same).sum().backward()
    assert torch.isfinite(same.grad).all()


@pytest.mark.parametrize("make", [lambda: layers.EqualConv(8, 32, 3), lambda: layers.EqualLinear(72, 512)])
def test_equalised_layers_have_unit_weights_scaled_when_used(make):
    torch.manual_seed(0)
    layer = make()
    fan_in = layer.weight[0].numel()
    assert layer.weight.std().item() == pytest.approx(1, abs=0.05)
    assert layer.scale == pytest.approx(math.sqrt(2 / fan_in))
    x = torch.randn(64, 8, 6, 6) if layer.weight.ndim == 4 else torch.randn(4096, 72)
    y = layer(x)
    inner = y[..., 1:-1, 1:-1] if y.ndim == 4 else y
    assert inner.square().mean().item() == pytest.approx(2, rel=0.1)  # He gain: half is lost in the ReLU that follows
    plain = F.conv2d(x, layer.weight * layer.scale, padding=1) if y.ndim == 4 else x @ (layer.weight * layer.scale).T
    assert torch.allclose(y, plain, atol=1e-5)


def test_sizes_are_powers_of_two():
    assert [layers.n_doublings(size, who="x", largest=128) for size in (8, 16, 32, 64, 128)] == [1, 2, 3, 4, 5]
    for size in (0, 4, 30, 48, 256):
        with pytest.raises(BadInput, match=f"x cannot make images of {size} px"):
            layers.n_doublings(size, who="x", largest=128)
