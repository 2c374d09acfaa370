"""The style transfer engine: losses against brute force and finite differences in float64, the optimisation."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from stda import BadInput
from stda import encoders as E
from stda.compute import Compute
from stda.generators import gatys

FLOAT32 = Compute(torch.device("cpu"), "float32", 1)
PROVENANCE = {"name": "in-domain", "source": "random, for tests", "sha256": "0" * 64, "normalisation": "half"}


def make_engine(dtype=torch.float32, compute=FLOAT32, **weights):
    torch.manual_seed(0)
    trunk, head = E.in_domain_network(2)
    encoder = E.InDomain(E.merge_batch_norm(trunk.eval()), head, ["a", "b"], 16, PROVENANCE).to(dtype)
    batches = [torch.rand(2, 3, 16, 16).to(dtype) * 2 - 1]
    layers = ("conv1_1", "conv3_1")
    scales = gatys.layer_scales(encoder, (*layers, "conv2_1"), batches)
    knobs = {"content_weight": 0.025, "style_weight": 1.0, "tv_weight": 8.5e-5, **weights}
    return gatys.Engine(encoder, scales, layers, "conv2_1", compute, **knobs)


def pictures(n=2, size=16):
    """Smooth random pictures, uint8."""
    random = np.random.default_rng(1)
    small = torch.tensor(random.integers(0, 256, (n, 3, 4, 4)), dtype=torch.float32)
    large = torch.nn.functional.interpolate(small, size=(size, size), mode="bicubic").clamp(0, 255)
    return large.permute(0, 2, 3, 1).numpy().astype(np.uint8)


def brute_gram(features):
    channels, height, width = features.shape
    sums = np.zeros((channels, channels))
    for i in range(channels):
        for j in range(channels):
            for y in range(height):
                for x in range(width):
                    sums[i, j] += features[i, y, x] * features[j, y, x]
    return sums


def test_gram_and_style_loss_against_brute_force():
    random = np.random.default_rng(0)
    found, target = random.normal(size=(2, 5, 4, 3))
    as_tensor = [torch.tensor(f)[None] for f in (found, target)]
    np.testing.assert_allclose(gatys.gram(as_tensor[0]) * 12, brute_gram(found), rtol=1e-12)
    # Gatys et al. 2015, equation 4: sums, not means, over 4 N^2 M^2
    expected = ((brute_gram(found) - brute_gram(target)) ** 2).sum() / (4 * 5**2 * 12**2)
    np.testing.assert_allclose(gatys.style_loss(*map(gatys.gram, as_tensor)), expected, rtol=1e-12)
    np.testing.assert_allclose(gatys.content_loss(*as_tensor), ((found - target) ** 2).sum(), rtol=1e-12)
    assert gatys.gram(as_tensor[0].bfloat16()).dtype == torch.float32


def test_total_variation_against_brute_force():
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 4, 5))
    expected = 0.0
    for c in range(3):
        for y in range(3):
            for x in range(4):
                dx = pixels[c, y, x + 1] - pixels[c, y, x]
                dy = pixels[c, y + 1, x] - pixels[c, y, x]
                expected += (dx**2 + dy**2) ** 1.25
    np.testing.assert_allclose(gatys.total_variation(torch.tensor(pixels)[None]), expected, rtol=1e-12)


def test_gram_gradient():
    features = torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 3, dtype=torch.float64)  # not symmetric: the gradient must not assume it
    assert torch.autograd.gradcheck(lambda f: (gatys.gram(f) * weights).sum(), features)


def test_total_loss_gradient_by_finite_differences():
    engine = make_engine(torch.float64)
    content, style = (engine.tensor(p).double() for p in pictures())
    target = engine.features(content)["conv2_1"]
    styles = [(0.7, engine.grams(engine.features(style))), (0.3, engine.grams(engine.features(content)))]
    draw = gatys.frequency_basis(content)

    def total(coefficients):
        return sum(engine.losses(content + draw(coefficients), target, styles).values())

    torch.manual_seed(1)
    point = torch.randn_like(content).mul(1e-3).requires_grad_()
    total(point).backward()
    for _ in range(3):
        direction = torch.randn_like(content)
        step = 1e-7 * direction
        with torch.no_grad():
            slope = (total(point + step) - total(point - step)) / 2e-7
        torch.testing.assert_close((point.grad * direction).sum(), slope, rtol=1e-5, atol=0)
    assert all(p.grad is None for p in engine.encoder.parameters())


def test_losses_are_gatys_on_features_of_one_scale():
    engine = make_engine(torch.float64)
    x, content, style = (engine.tensor(p).double() for p in pictures(3))
    found = engine.losses(x, engine.features(content)["conv2_1"], [(1.0, engine.grams(engine.features(style)))])

    def scaled(picture):
        raw = engine.encoder.layers(picture, engine.scales)
        return {layer: engine.scales[layer] * raw[layer][0].detach().numpy() for layer in raw}

    def grams(picture, layer):
        flat = scaled(picture)[layer].reshape(scaled(picture)[layer].shape[0], -1)
        return flat @ flat.T, flat.shape

    style_expected = 0
    for layer in engine.style_layers:
        (g, (channels, positions)), (a, _) = grams(x, layer), grams(style, layer)
        style_expected += ((g - a) ** 2).sum() / (4 * channels**2 * positions**2) / 2
    content_expected = 0.025 * ((scaled(x)["conv2_1"] - scaled(content)["conv2_1"]) ** 2).sum()
    np.testing.assert_allclose(found["style"].detach(), style_expected, rtol=1e-10)
    np.testing.assert_allclose(found["content"].detach(), content_expected, rtol=1e-10)
    np.testing.assert_allclose(found["tv"], 8.5e-5 * gatys.total_variation(x * 127.5), rtol=1e-12)


def test_layer_scales_bring_features_to_one_rms():
    engine = make_engine()
    torch.manual_seed(0)
    E.in_domain_network(2)  # draws what make_engine drew before its batch
    features = engine.features(torch.rand(2, 3, 16, 16) * 2 - 1)
    for layer, scale in engine.scales.items():
        assert (features[layer] * scale).square().mean().sqrt().item() == pytest.approx(gatys.FEATURE_RMS, rel=1e-4)
    with torch.no_grad():
        engine.encoder.trunk.conv1_1[0].weight.zero_()
        engine.encoder.trunk.conv1_1[0].bias.zero_()
    with pytest.raises(BadInput, match="are zero"):
        gatys.layer_scales(engine.encoder, ["conv1_1"], [torch.zeros(1, 3, 16, 16)])


def test_frequency_basis_is_a_weighted_cosine_transform():
    from scipy.fft import dctn

    np.testing.assert_allclose(gatys.cosine_matrix(7) @ gatys.cosine_matrix(7).T, np.eye(7), atol=1e-12)
    coefficients = torch.randn(1, 3, 6, 8, dtype=torch.float64)
    change = gatys.frequency_basis(torch.zeros_like(coefficients))(coefficients)
    weights = dctn(change.numpy(), axes=(2, 3), norm="ortho") / coefficients.numpy()
    assert (weights > 0).all()
    assert np.allclose(weights, weights[:, :1])
    ratio = weights[0, 0, 0, 4] / weights[0, 0, 0, 2]  # twice the frequency
    assert ratio == pytest.approx(0.5**gatys.SMOOTHNESS)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_minimise_lowers_the_loss_and_repeats(precision):
    engine = make_engine(compute=Compute(torch.device("cpu"), precision, 1))
    content, style = pictures(2, size=24)
    target, styles = engine.content_target("c", content), [(1.0, engine.style_target("s", style))]
    with torch.no_grad():
        first = sum(engine.losses(engine.tensor(content), target, styles).values()).item()
    records = []
    x, best = engine.minimise(engine.tensor(content), target, styles, iterations=3, callback=records.append)
    assert best["total"] < 0.5 * first
    assert [r["iteration"] for r in records] == [1, 2, 3]
    totals = [first] + [r["total"] for r in records]
    assert all(later <= earlier for earlier, later in pairwise(totals))
    # a line search may finish beyond the 20th evaluation, never far beyond
    assert records[0]["evaluations"] <= gatys.EVALUATIONS + 5
    assert x.abs().max() <= 1
    again, _ = engine.minimise(engine.tensor(content), target, styles, iterations=3)
    assert torch.equal(x, again)


def test_targets_are_computed_once_and_forgotten_in_turn(monkeypatch):
    engine = make_engine()
    picture = pictures(1)[0]
    calls = []
    original = engine.features
    monkeypatch.setattr(engine, "features", lambda x: calls.append(1) or original(x))
    monkeypatch.setattr(gatys, "CACHE_SIZE", 2)
    for name in ("a", "a", "b", "a", "c", "a", "b"):  # c pushes b out, not a
        engine.style_target(name, picture)
    assert len(calls) == 4
    assert len(engine.cache) == 2


def test_start_images():
    content = torch.rand(1, 3, 4, 4) * 2 - 1
    assert torch.equal(gatys.start_image("content", content, 0), content)
    grey = gatys.start_image("grey", content, 0)
    assert torch.equal(grey[:, 0], grey[:, 2])
    noise = [gatys.start_image("noise", content, seed) for seed in (1, 1, 2)]
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
    with pytest.raises(BadInput, match="start is 'black'"):
        gatys.start_image("black", content, 0)


def test_a_loss_that_is_no_number_stops():
    engine = make_engine(style_weight=float("nan"))
    content, style = pictures()
    with pytest.raises(gatys.NonFiniteLoss, match="nan at evaluation 1"):
        engine.minimise(
            engine.tensor(content),
            engine.content_target("c", content),
            [(1.0, engine.style_target("s", style))],
            iterations=1,
        )
