"""The style transfer engine: its losses against plain float64 NumPy, batches, masks, regions, what it refuses."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import get_model

from stda import BadInput
from stda import encoders as E
from stda.compute import Compute
from stda.generators.style.engine import FEATURE_RMS, Engine, Recipe, style_terms
from stda.generators.style.trunk import Trunk, convolution_layers

FLOAT32 = Compute(torch.device("cpu"), "float32", 1)
BF16 = Compute(torch.device("cpu"), "bf16", 1)
RANDOM = {"name": "", "source": "random, for tests", "sha256": "0" * 64, "normalisation": "half"}
LAYERS = ("conv1_1", "conv2_1", "conv3_1")


def make_encoder(dtype=torch.float64):
    torch.manual_seed(0)
    trunk, head = E.in_domain_network(2)
    return E.InDomain(E.merge_batch_norm(trunk.eval()), head, ["a", "b"], 16, RANDOM).to(dtype)


def pictures(n=2, height=16, width=16, seed=1):
    """Smooth random pictures, uint8."""
    small = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 255
    large = functional.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 255)
    return large.permute(0, 2, 3, 1).numpy().astype(np.uint8)


def make_engine(dtype=torch.float64, compute=FLOAT32, **knobs):
    recipe = Recipe(**{"style_layers": LAYERS, "content_layer": "conv3_2", **knobs})
    engine = Engine(make_encoder(dtype), recipe, compute)
    engine.calibrate(pictures(4, seed=9))
    return engine


def batch(engine, found, dtype=torch.float64):
    return torch.cat([engine.tensor(picture) for picture in found]).to(dtype)


def scaled_features(engine, picture):
    """The features of a picture at every layer, of one RMS, float64 (C, h, w)."""
    found = make_encoder().layers(engine.tensor(picture).double(), engine.scales)
    return {layer: engine.scales[layer] * features[0].numpy() for layer, features in found.items()}


def plain_style_loss(found, wanted, where=None, wanted_where=None, shift=0.0):
    """Equation 4 of Gatys et al. between features (C, h, w), masked by maps that the layers' sizes divide."""
    grams = []
    for features, mask in ((found, where), (wanted, wanted_where)):
        flat = features.reshape(len(features), -1) - shift
        weights = np.ones(features.shape[1:])
        if mask is not None:
            cell = mask.shape[0] // features.shape[1]
            weights = mask.reshape(features.shape[1], cell, features.shape[2], cell).mean(axis=(1, 3))
        grams.append((flat * weights.ravel()) @ flat.T / weights.sum())
    return ((grams[0] - grams[1]) ** 2).sum() / (4 * len(found) ** 2)


def test_losses_are_gatys_on_features_of_one_scale():
    engine = make_engine(style_scale=2.0, style_weight=3.0)
    x, content, style = pictures(3)
    found = engine.losses(batch(engine, [x]), [engine.target(("c", content), [("s", style, 0.5)])])
    by_layer = [scaled_features(engine, picture) for picture in (x, content, style)]
    expected = np.mean([plain_style_loss(by_layer[0][layer], by_layer[2][layer]) for layer in LAYERS])
    np.testing.assert_allclose(found["style"], [2 * 3 * 0.5 * expected], rtol=1e-9)
    expected = 0.025 * ((by_layer[0]["conv3_2"] - by_layer[1]["conv3_2"]) ** 2).sum()
    np.testing.assert_allclose(found["content"], [expected], rtol=1e-9)
    steps = np.diff(x.astype(float), axis=0)[:, :-1] ** 2 + np.diff(x.astype(float), axis=1)[:-1] ** 2
    np.testing.assert_allclose(found["tv"], [8.5e-5 * (steps**1.25).sum()], rtol=1e-5)


def test_several_styles_add_up():
    engine = make_engine()
    x, content, *styles = pictures(5)
    weights = (0.7, 0.3, 2.0)
    named = [(str(i), style, weight) for i, (style, weight) in enumerate(zip(styles, weights, strict=True))]
    together = engine.losses(batch(engine, [x]), [engine.target(("c", content), named)])["style"]
    alone = [engine.losses(batch(engine, [x]), [engine.target(("c", content), [style])])["style"] for style in named]
    torch.testing.assert_close(together, sum(alone), rtol=1e-10, atol=0)


def test_improved_variant_shifts_grams_and_halves_weights():
    engine = make_engine(variant="improved")
    x, content, style = pictures(3)
    found = engine.losses(batch(engine, [x]), [engine.target(("c", content), [("s", style, 1.0)])])["style"]
    by_layer = [scaled_features(engine, picture) for picture in (x, style)]
    parts = [plain_style_loss(by_layer[0][layer], by_layer[1][layer], shift=1.0) for layer in LAYERS]
    np.testing.assert_allclose(found, [np.dot(parts, [4, 2, 1]) / 7], rtol=1e-9)
    # all convolutions unless told otherwise
    assert Engine(make_encoder(), Recipe(variant="improved"), FLOAT32).style_layers == tuple(
        E.in_domain.IN_DOMAIN_CHANNELS
    )


def test_adjacent_chaining_compares_grams_between_layers():
    engine = make_engine(variant="improved", chaining="adjacent")
    x, content, style = pictures(3)
    found = engine.losses(batch(engine, [x]), [engine.target(("c", content), [("s", style, 1.0)])])["style"]
    by_layer = [scaled_features(engine, picture) for picture in (x, style)]
    parts = []
    for shallow, deep in pairwise(LAYERS):
        grams = []
        for features in by_layer:
            large = features[deep].repeat(2, axis=1).repeat(2, axis=2)
            grams.append(np.einsum("ihw,jhw->ij", features[shallow] - 1, large - 1) / large[0].size)
        parts.append(((grams[0] - grams[1]) ** 2).mean() / 4)
    np.testing.assert_allclose(found, [np.dot(parts, [2, 1]) / 3], rtol=1e-9)


def test_chaining_of_the_tool_keeps_its_proportions_of_layers():
    engine = make_engine(variant="improved", chaining="tool")
    x, content, style = pictures(3)
    found = engine.losses(batch(engine, [x]), [engine.target(("c", content), [("s", style, 1.0)])])["style"]
    raw = [make_encoder().layers(engine.tensor(picture).double(), LAYERS) for picture in (x, style)]
    rms = [FEATURE_RMS / engine.scales[layer] for layer in LAYERS]
    common = FEATURE_RMS / np.sqrt(np.mean(np.square(rms)))  # one factor: layers stay as strong as the encoder has them
    losses = []
    for layer in LAYERS:
        flat = [common * features[layer][0].flatten(1).numpy() - 1 for features in raw]
        losses.append(((flat[0] @ flat[0].T - flat[1] @ flat[1].T) ** 2).sum() / (4 * 3**2 * (16 * 16) ** 2))
    np.testing.assert_allclose(found, [(losses[0] - losses[1]) / 2 + losses[1] - losses[2]], rtol=1e-8)


def test_chaining_of_the_tool_subtracts_the_next_layer():
    layers, losses = ("a", "b", "c", "d"), np.array([3.0, 5.0, 7.0, 11.0])
    # the tool: sum over layers but the last of 2^-(how many pairs follow) times loss minus next loss
    expected = sum(2.0 ** -(2 - i) * (losses[i] - losses[i + 1]) for i in range(3))
    terms = style_terms(layers, "improved", "tool")
    assert [(a, b) for a, b, _ in terms] == [(layer, layer) for layer in layers]
    assert np.dot([w for _, _, w in terms], losses) == pytest.approx(expected)
    for chaining in ("tool", "adjacent"):
        with pytest.raises(BadInput, match="there is only \\['a'\\]"):
            style_terms(("a",), "improved", chaining)


def test_masks_choose_where_style_is_given_and_taken():
    engine = make_engine()
    x, content, style = pictures(3)
    masks = np.zeros((2, 16, 16), np.uint8)
    masks[0, 2:11, 3:14], masks[1, :7, 5:] = 255, 255
    target = engine.target(("c", content), [("s", style, 1.0)], content_mask=masks[0], style_masks=[masks[1]])
    found = engine.losses(batch(engine, [x]), [target])["style"]
    by_layer = [scaled_features(engine, picture) for picture in (x, style)]
    expected = np.mean([plain_style_loss(*(f[layer] for f in by_layer), *(masks / 255)) for layer in LAYERS])
    np.testing.assert_allclose(found, [expected], rtol=1e-9)
    white = np.ones((16, 16), bool)
    plain = engine.target(("c", content), [("s", style, 1.0)])
    same = engine.target(("c", content), [("s", style, 1.0)], content_mask=white, style_masks=[white])
    assert torch.equal(*(engine.losses(batch(engine, [x]), [t])["style"] for t in (plain, same)))


def test_regions_are_compared_one_by_one():
    engine = make_engine()
    x, content, style = pictures(3)
    labels = np.zeros((2, 16, 16), int)
    labels[0, :, 8:], labels[1, 8:] = 7, 7
    labels[1, :2] = 3  # a region that the content lacks is not asked for
    parts = {"content_regions": labels[0], "style_regions": [labels[1]]}
    found = engine.losses(batch(engine, [x]), [engine.target(("c", content), [("s", style, 1.0)], **parts)])["style"]
    by_layer = [scaled_features(engine, picture) for picture in (x, style)]
    expected = 0
    for label in (0, 7):
        maps = [(found == label).astype(float) for found in labels]
        expected += np.mean([plain_style_loss(*(f[layer] for f in by_layer), *maps) for layer in LAYERS])
    np.testing.assert_allclose(found, [expected], rtol=1e-9)
    mask = labels[0] == 7  # under a mask only the regions inside it count
    target = engine.target(("c", content), [("s", style, 1.0)], content_mask=mask, **parts)
    masked = engine.target(("c", content), [("s", style, 1.0)], content_mask=mask, style_masks=[labels[1] == 7])
    torch.testing.assert_close(*(engine.losses(batch(engine, [x]), [t])["style"] for t in (target, masked)))


def mixed_targets(engine):
    """Targets of every kind: plain, two styles, masked, with three and with two regions."""
    found = pictures(6)
    mask, stripes = np.zeros((16, 16), bool), np.arange(16)[:, None] // 6 * np.ones((1, 16), int)
    mask[3:12, 4:9] = True
    one = [("s", found[5], 1.0)]
    return found[:5], [
        engine.target(("0", found[0]), one),
        engine.target(("1", found[1]), [*one, ("0", found[0], 0.4)]),
        engine.target(("2", found[2]), one, content_mask=mask, style_masks=[~mask]),
        engine.target(("3", found[3]), one, content_regions=stripes, style_regions=[stripes.T]),
        engine.target(("4", found[4]), one, content_regions=stripes % 2, style_regions=[stripes]),
    ]


@pytest.mark.parametrize("knobs", [{}, {"variant": "improved", "chaining": "adjacent", "padding": "reflect"}])
def test_a_batch_gives_what_each_picture_gives_alone(knobs):
    engine = make_engine(**knobs)
    found, targets = mixed_targets(engine)
    x = (batch(engine, found) * 0.9).requires_grad_()
    together = engine.losses(x, targets)
    sum(together.values()).sum().backward()
    for i, target in enumerate(targets):
        single = x[i : i + 1].detach().clone().requires_grad_()
        alone = engine.losses(single, [target])
        sum(alone.values()).sum().backward()
        for part, value in alone.items():
            torch.testing.assert_close(together[part][i : i + 1], value, rtol=1e-10, atol=0)
        torch.testing.assert_close(
            x.grad[i : i + 1], single.grad, rtol=1e-8, atol=1e-8 * single.grad.abs().max().item()
        )


@pytest.mark.parametrize("knobs", [{}, {"variant": "improved", "chaining": "adjacent", "pooling": "average"}])
def test_gradient_by_finite_differences(knobs):
    engine = make_engine(**knobs)
    found, targets = mixed_targets(engine)

    def total(x):
        return sum(engine.losses(x, targets).values()).sum()

    x = (batch(engine, found) * 0.9).requires_grad_()
    total(x).backward()
    torch.manual_seed(1)
    for _ in range(3):
        direction = torch.randn_like(x)
        with torch.no_grad():
            slope = (total(x + 1e-6 * direction) - total(x - 1e-6 * direction)) / 2e-6
        torch.testing.assert_close((x.grad * direction).sum(), slope, rtol=1e-5, atol=0)
    assert all(parameter.grad is None for parameter in engine.trunk.parameters())


def test_half_size_targets_are_those_of_the_smaller_picture():
    engine = make_engine()
    content, style = pictures(1, 32, 24)[0], pictures(1, 16, 48, seed=3)[0]
    target = engine.target(("c", content), [("s", style, 1.0)], size=(16, 12))
    x = engine.tensor(content, (16, 12))
    assert x.shape == (1, 3, 16, 12)
    expected = functional.interpolate(engine.tensor(content), size=(16, 12), mode="bilinear", antialias=True)
    assert torch.equal(x, expected)
    assert engine.losses(x, [target])["content"].item() == 0
    half = engine.tensor(style, (8, 24))
    assert engine.losses(half, [with_content_of(engine, target, half)])["style"].item() == pytest.approx(0, abs=1e-6)


def with_content_of(engine, target, x):
    """The target with the content features of x, so that pictures of another shape can be compared with its style."""
    return type(target)(engine.trunk(x)["conv3_2"], target.grams, target.weight, target.spread, target.regions)


def test_calibration_brings_features_to_one_rms():
    engine = make_engine(torch.float32)
    features = engine.trunk(torch.cat([engine.tensor(picture) for picture in pictures(4, seed=9)]))
    for layer, scale in engine.scales.items():
        assert (features[layer] * scale).square().mean().sqrt().item() == pytest.approx(FEATURE_RMS, rel=1e-4)
    engine.trunk.chain[0][0].weight.data.zero_()
    engine.trunk.chain[0][0].bias.data.zero_()
    with pytest.raises(BadInput, match=r"Layers \['conv1_1'.*are zero"):
        engine.calibrate(pictures(1) * 0)
    with pytest.raises(BadInput, match="give at least one"):
        engine.calibrate([])


def test_targets_are_made_once_and_the_oldest_forgotten(monkeypatch):
    engine = make_engine()
    content, *styles = pictures(4)
    calls = []
    forward = engine.trunk.forward
    monkeypatch.setattr(engine.trunk, "forward", lambda x: calls.append(1) or forward(x))

    def ask(*names):
        before = len(calls)
        for name in names:
            engine.target(("c", content), [(name, styles["xyz".index(name)], 1.0)])
        return len(calls) - before

    assert ask("x", "x", "y", "x") == 3  # the content and two styles
    engine.cache.limit = engine.cache.held
    assert ask("z", "x") == 1  # drops y, unused for longest
    assert ask("y") == 1
    assert engine.cache.held <= engine.cache.limit
    mask = np.eye(16, dtype=bool)
    before = len(calls)
    for style_masks in ([mask], [~mask], [mask]):  # a mask is part of the key
        engine.target(("c", content), [("y", styles[1], 1.0)], style_masks=style_masks)
    assert len(calls) - before >= 2


@pytest.mark.parametrize("knobs", [{}, {"variant": "improved"}])
def test_bf16_losses_and_gradients_are_near_float32(knobs):
    start, content, style = pictures(3, 32, 32)
    found = []
    for compute in (FLOAT32, BF16):
        engine = make_engine(torch.float32, compute, **knobs)
        x = engine.tensor(start).requires_grad_()
        parts = engine.losses(x, [engine.target(("c", content), [("s", style, 1.0)])])
        sum(parts.values()).sum().backward()
        assert all(value.dtype == torch.float32 for value in parts.values())
        found.append((torch.cat(list(parts.values())), x.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0.02, atol=0)
    assert functional.cosine_similarity(found[0][1].flatten(), found[1][1].flatten(), dim=0) > 0.97
    assert engine.trunk.chain[0][0].weight.dtype == torch.bfloat16
    assert engine.trunk.chain[0][0].weight.is_contiguous(memory_format=torch.channels_last)


def test_trunk_is_cut_and_leaves_the_encoder_alone():
    encoder = make_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    trunk = Trunk(encoder, ("conv2_1", "conv1_1"), BF16, pooling="average", padding="reflect")
    assert len(trunk.chain) == 3
    assert list(trunk(torch.zeros(1, 3, 16, 16))) == ["conv1_1", "conv2_1"]
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in before.items())
    assert isinstance(encoder.trunk[1], nn.MaxPool2d)
    assert encoder.trunk[0][0].padding_mode == "zeros"


def test_pooling_and_padding_as_written_out():
    encoder = make_encoder()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    first, second = encoder.trunk[0][0], encoder.trunk[2][0]
    inner = functional.conv2d(functional.pad(x, (1,) * 4, mode="reflect"), first.weight, first.bias).relu()
    pooled = inner.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    outer = functional.conv2d(functional.pad(pooled, (1,) * 4, mode="reflect"), second.weight, second.bias).relu()
    found = Trunk(encoder, ("conv1_1", "conv2_1"), FLOAT32, pooling="average", padding="reflect")(x)
    torch.testing.assert_close(found["conv1_1"], inner)
    torch.testing.assert_close(found["conv2_1"], outer)
    flat = Trunk(encoder, ("conv2_1",), FLOAT32, padding="reflect")(torch.zeros_like(x))["conv2_1"]
    torch.testing.assert_close(flat, flat[..., :1, :1].expand_as(flat))  # no frame on a picture of one colour


@pytest.mark.parametrize("name", ["vgg19", "squeezenet1_0", "mobilenet_v2"])
def test_networks_of_torchvision(name):
    torch.manual_seed(0)
    with torch.device("meta"):
        trunk = get_model(name, weights=None).features
    encoder = E.Encoder(name, trunk, E.layer_ends(name, trunk), RANDOM, 128)
    layers = convolution_layers(encoder)
    assert set(E.LAYERS[name][0]) <= set(layers)
    assert not any(isinstance(trunk[encoder.layer_ends[layer]], nn.MaxPool2d) for layer in layers)
    if name == "vgg19":
        expected = {1: 2, 2: 2, 3: 4, 4: 4, 5: 4}
        assert layers == tuple(f"conv{block}_{i + 1}" for block, n in expected.items() for i in range(n))
    if name == "squeezenet1_0":  # branches inside its blocks are averaged and padded too
        encoder.trunk.to_empty(device="cpu")
        for parameter in encoder.trunk.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)
        chain = Trunk(encoder, ("4",), BF16, pooling="average", padding="reflect").chain
        assert chain[3].expand3x3.padding_mode == "reflect"
        assert chain[3].squeeze.padding_mode == "zeros"
        assert isinstance(chain[2], nn.AvgPool2d)


BLACK, SMALL = np.zeros((16, 16), np.uint8), np.ones((8, 16), np.uint8)
STRIPES = np.arange(16)[:, None] // 8 * np.ones((1, 16), int)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"styles": []}, "needs at least one style"),
        ({"weights": [-1.0]}, "none may be negative"),
        ({"weights": [0.0]}, "one must be positive"),
        ({"style_masks": []}, "1 styles but 0 masks"),
        ({"style_masks": [BLACK + 1, BLACK + 1]}, "1 styles but 2 masks"),
        ({"style_masks": [BLACK]}, "The mask of s is all black"),
        ({"content_mask": BLACK}, "The mask of c is all black"),
        ({"content_mask": SMALL}, "The mask of c is 8x16, its picture 16x16"),
        ({"style_masks": [SMALL]}, "The mask of s is 8x16"),
        ({"content_regions": STRIPES}, "give all of them or none"),
        ({"content_regions": SMALL, "style_regions": [STRIPES]}, "The label map of c is 8x16"),
        ({"content_regions": STRIPES, "style_regions": [SMALL]}, "The label map of s is 8x16"),
        (
            {"content_regions": STRIPES, "style_regions": [STRIPES * 0]},
            "has regions \\[1\\] but the label map of style s",
        ),
    ],
)
def test_bad_targets_are_one_sentence(parts, sentence):
    engine = make_engine()
    content, style = pictures()
    styles = [("s", style, weight) for weight in parts.pop("weights", [1.0])]
    styles = parts.pop("styles", styles)
    with pytest.raises(BadInput, match=sentence):
        engine.target(("c", content), styles, **parts)


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"variant": "best"}, "variant is 'best'; it must be one of gatys, improved"),
        ({"chaining": "loose"}, "chaining is 'loose'"),
        ({"chaining": "tool"}, "belongs to variant 'improved'"),
        ({"content_scaling": "half"}, "content_scaling is 'half'"),
        ({"pooling": "min"}, "pooling is 'min'"),
        ({"padding": "wrap"}, "padding is 'wrap'"),
        ({"tv_weight": -1.0}, "none may be < 0"),
        ({"style_layers": ("conv9_1",)}, "in-domain has no layer \\['conv9_1'\\]; it has conv1_1"),
        ({"content_layer": "conv9_1"}, "in-domain has no layer \\['conv9_1'\\]"),
    ],
)
def test_bad_recipes_are_one_sentence(knobs, sentence):
    with pytest.raises(BadInput, match=sentence):
        Engine(make_encoder(), Recipe(**knobs), FLOAT32)


def test_pictures_too_small_and_engines_without_scale():
    engine = make_engine(padding="reflect")
    with pytest.raises(BadInput, match="4 x 4 px is too small for layer conv3_2 of in-domain"):
        engine.target(("c", pictures(1)[0][:4, :4]), [("s", pictures(1)[0], 1.0)])
    fresh = Engine(make_encoder(), Recipe(), FLOAT32)
    with pytest.raises(BadInput, match="call calibrate"):
        fresh.target(("c", pictures(1)[0]), [("s", pictures(1)[0], 1.0)])


def test_losses_keep_their_balance_at_a_smaller_size():
    smooth = np.kron(np.random.default_rng(3).integers(60, 200, (3, 3, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    engine = make_engine()
    whole = engine.target(("smooth", smooth), [("style", smooth[::-1].copy(), 1.0)])
    half = engine.target(("smooth", smooth), [("style", smooth[::-1].copy(), 1.0)], size=(24, 24))
    assert (whole.shrunk, half.shrunk) == (1.0, 4.0)
    other = 255 - smooth
    large = engine.losses(engine.tensor(other), [whole])
    small = engine.losses(engine.tensor(other, (24, 24)), [half])
    assert small["content"].item() == pytest.approx(large["content"].item(), rel=0.35)  # without: a quarter
