"""The losses of style transfer against brute force in float64, and their gradients."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from stda import BadInput
from stda.generators.style import losses as L


def brute_gram(shallow, deep, weights):
    """Weighted mean over positions of products of channels; (C, h, w), (K, h, w), (h, w)."""
    sums = np.zeros((len(shallow), len(deep)))
    for y in range(weights.shape[0]):
        for x in range(weights.shape[1]):
            for i in range(len(shallow)):
                for j in range(len(deep)):
                    sums[i, j] += weights[y, x] * shallow[i, y, x] * deep[j, y, x]
    return sums / weights.sum()


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(2, 5, 4, 6))


@pytest.mark.parametrize("shift", [0.0, 0.7])
@pytest.mark.parametrize("weighted", ["none", "shared", "each"])
def test_gram_against_brute_force(features, weighted, shift):
    n = {"none": 1, "shared": 1, "each": 2}[weighted]
    weights = np.random.default_rng(1).random((n, 1, 4, 6)).round(1)
    given = None if weighted == "none" else torch.tensor(weights)
    found = L.gram(torch.tensor(features), given, shift)
    for i in range(2):
        w = np.ones((4, 6)) if weighted == "none" else weights[i % n, 0]
        np.testing.assert_allclose(found[i], brute_gram(features[i] - shift, features[i] - shift, w), rtol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_gram_gradient(weighted, shift):
    torch.manual_seed(0)
    features = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(1, 1, 2, 4, dtype=torch.float64) if weighted else None
    factors = torch.randn(3, 3, dtype=torch.float64)  # not symmetric: the gradient must not assume it
    assert torch.autograd.gradcheck(lambda f: (L.gram(f, weights, shift) * factors).sum(), features)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_gram_of_bf16_features_has_float32_sums(shift):
    torch.manual_seed(0)
    features = (torch.rand(2, 32, 40, 40) * 100).bfloat16().contiguous(memory_format=torch.channels_last)
    before = torch.backends.mkldnn.matmul.fp32_precision
    found = L.gram(features, shift=shift)
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # a setting of the whole process, put back
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), L.gram(features.double(), shift=shift), rtol=2e-5, atol=0)
    weights = torch.rand(2, 1, 40, 40)
    wide = L.gram(features.double(), weights.double(), shift)
    torch.testing.assert_close(L.gram(features, weights, shift).double(), wide, rtol=2e-5, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_gram_is_of_the_enlarged_deeper_layer(features, weighted):
    deep = np.random.default_rng(2).normal(size=(2, 3, 2, 3))
    weights = np.random.default_rng(1).random((2, 1, 4, 6))
    found = L.cross_gram(*map(torch.tensor, (features, deep)), torch.tensor(weights) if weighted else None, (0.5, 0.25))
    large = functional.interpolate(torch.tensor(deep), size=(4, 6), mode="nearest").numpy()
    for i in range(2):
        w = weights[i, 0] if weighted else np.ones((4, 6))
        np.testing.assert_allclose(found[i], brute_gram(features[i] - 0.5, large[i] - 0.25, w), rtol=1e-10)
    same = L.cross_gram(torch.tensor(features), torch.tensor(features))
    torch.testing.assert_close(same, L.gram(torch.tensor(features)))


def test_cross_gram_gradient(features):
    parts = [torch.tensor(part, requires_grad=True) for part in (features[..., :2, :4], features[..., :1, :2])]
    weights = torch.rand(1, 1, 2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: L.cross_gram(a, b, weights, (0.5, 0.25)), parts)


def test_style_loss_is_equation_4_of_gatys(features):
    found, target = features
    grams = [np.einsum("ihw,jhw->ij", f, f) for f in (found, target)]  # sums, not means
    expected = ((grams[0] - grams[1]) ** 2).sum() / (4 * 5**2 * 24**2)
    given = [L.gram(torch.tensor(f)[None]) for f in (found, target)]
    np.testing.assert_allclose(L.style_loss(*given), [expected], rtol=1e-12)


@pytest.mark.parametrize(
    ("scaling", "factor"), [("none", 1), ("sqrt", 1 / (2 * 5**0.5 * 24**0.5)), ("size", 1 / (5 * 24))]
)
def test_content_loss_scalings(features, scaling, factor):
    target = torch.zeros(1, 5, 4, 6, dtype=torch.float64)
    expected = factor * (features**2).reshape(2, -1).sum(axis=1)
    np.testing.assert_allclose(L.content_loss(torch.tensor(features), target, scaling), expected, rtol=1e-12)
    assert L.content_loss(torch.tensor(features).bfloat16(), target.bfloat16(), scaling).dtype == torch.float32
    with pytest.raises(BadInput, match="content_scaling is 'half'; it must be one of none, sqrt, size"):
        L.content_loss(target, target, "half")


def test_total_variation_against_brute_force():
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 3, 4, 5))
    expected = np.zeros(2)
    for b, c, y, x in np.ndindex(2, 3, 3, 4):
        dx, dy = (pixels[b, c, y, x + 1] - pixels[b, c, y, x], pixels[b, c, y + 1, x] - pixels[b, c, y, x])
        expected[b] += (dx**2 + dy**2) ** 1.25
    np.testing.assert_allclose(L.total_variation(torch.tensor(pixels)), expected, rtol=1e-12)
    flat = torch.full((1, 3, 4, 4), 7.0, requires_grad=True)
    L.total_variation(flat).sum().backward()
    assert torch.equal(flat.grad, torch.zeros_like(flat))  # not NaN where nothing varies
