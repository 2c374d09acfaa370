import numpy as np
import pytest
import torch
from torch import nn

from stda import BadInput, classify, explain
from stda.explain.layers import layered
from stda.explain.subject import Subject


@pytest.fixture(scope="module")
def model():
    """A VGG8 whose BatchNorm has statistics that are not the neutral ones."""
    torch.manual_seed(0)
    model = classify.build("vgg8", n_classes=4, size=32, width=0.5)
    model.classes = ["a", "b", "c", "d"]
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, 3, 32, 32) * 2 - 1)
        model.net.head[-1].bias.fill_(2.0)  # positive logits, so that every class has a map
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1


def cosine(a, b):
    return torch.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), dim=1)


def test_attribution_leaves_the_model_alone(model, images):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    explain.attribute(model, images, "deep_taylor")
    assert model.training
    model.eval()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_gradient_is_a_finite_difference(model, images):
    double = classify.build("vgg8", n_classes=4, size=32, width=0.5).double().eval()
    double.load_state_dict(model.state_dict())
    x = images[:1].double()
    slope = explain.METHODS["gradient"].run(Subject(double), x, torch.tensor([2]))[0]
    for place in ((0, 5, 7), (2, 16, 16), (1, 31, 0)):
        step = torch.zeros_like(x)
        step[(0, *place)] = 1e-6
        with torch.no_grad():
            difference = (double(x + step) - double(x - step))[0, 2] / 2e-6
        assert difference.item() == pytest.approx(slope[place].item(), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("n_steps", [8, 21])
def test_integrated_gradients_agree_with_captum(model, images, n_steps):
    captum = pytest.importorskip("captum.attr")
    baseline = torch.full_like(images[:1], -0.3)
    ours = explain.attribute(model, images, "integrated_gradients", 1, n_steps=n_steps, baseline=baseline)
    method = captum.IntegratedGradients(model)
    theirs = method.attribute(images, baseline.expand_as(images), 1, n_steps=n_steps, method="gausslegendre")
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-3, atol=1e-6)


def test_integrated_gradients_are_complete(model, images):
    maps = explain.attribute(model, images, "integrated_gradients", 0, n_steps=200)
    with torch.no_grad():
        wanted = (model(images) - model(torch.zeros_like(images)))[:, 0]
    # a ReLU network has kinks on the way, where no quadrature is exact
    torch.testing.assert_close(maps.sum(dim=(1, 2, 3)), wanted, rtol=0.02, atol=0.02)


def zennit_map(model, images, target, *, bounded):
    core, rule = pytest.importorskip("zennit.core"), pytest.importorskip("zennit.rules")
    composites = pytest.importorskip("zennit.composites")
    network = layered(model)
    kernels = [m for m in network if isinstance(m, nn.Conv2d | nn.Linear)]
    names = {id(kernels[-1]): rule.WSquare(zero_params="bias")}
    if bounded:
        names[id(kernels[0])] = rule.ZBox(low=-1.0, high=1.0, zero_params="bias")

    def module_map(ctx, name, module):
        if isinstance(module, nn.ReLU):
            return rule.Pass()
        if isinstance(module, nn.Conv2d | nn.Linear):
            return names.get(id(module), rule.ZPlus(zero_params="bias"))
        return None

    x = images.clone().requires_grad_(True)
    with core.Composite(module_map).context(network) as registered:
        out = registered(x)
        start = torch.zeros_like(out).scatter_(1, target[:, None], out.detach().gather(1, target[:, None]).clamp(min=0))
        (relevance,) = torch.autograd.grad(out, x, start)
    assert composites is not None
    return relevance


@pytest.mark.parametrize("method", ["deep_taylor", "deep_taylor_bounded"])
def test_deep_taylor_agrees_with_zennit(model, images, method):
    target = torch.tensor([0, 1, 2, 3, 0])
    ours = explain.attribute(model, images, method, target)
    theirs = zennit_map(model, images, target, bounded=method.endswith("bounded"))
    assert (cosine(ours, theirs) >= 0.9999).all()
    # zennit adds 1e-6 to every denominator and loses a little relevance with each
    torch.testing.assert_close(ours.sum(dim=(1, 2, 3)), theirs.sum(dim=(1, 2, 3)), rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("method", ["deep_taylor", "deep_taylor_bounded"])
def test_deep_taylor_conserves_the_logit(model, images, method):
    maps = explain.attribute(model, images, method, "c")
    with torch.no_grad():
        logits = model(images)[:, 2]
    assert (logits > 0).all()
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum(dim=(1, 2, 3)), logits, rtol=1e-3, atol=1e-4)


def test_deep_taylor_of_a_tiny_network_by_hand():
    """Two inputs, two hidden neurons, one logit of interest; every number can be followed on paper."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    network[1].weight.data = torch.tensor([[1.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    network[1].bias.data.zero_()
    network[3].weight.data = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    network[3].bias.data.zero_()
    x = torch.tensor([[[[0.5, 0.25]]]], dtype=torch.float64)
    hidden = torch.tensor([0.75, 0.75])
    logit = hidden[0] * 1 + hidden[1] * 2  # 2.25
    first, second = logit * 1 / 5, logit * 4 / 5  # w^2: 1 and 4
    wanted = [first * 0.5 / 0.75 + second * 1.0, first * 0.25 / 0.75]  # z+: the second neuron has one positive input
    found = explain.attribute(network, x, "deep_taylor", 0).flatten()
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-6, atol=0)
    assert not explain.attribute(network, -x, "deep_taylor", 0).any()  # a logit that is not positive has no map


def test_batches_and_targets_change_nothing(model, images):
    for method in explain.METHODS:
        whole = explain.attribute(model, images, method)
        with torch.no_grad():
            chosen = model(images).argmax(dim=1)
        parts = explain.attribute(model, images, method, chosen.numpy(), batch_size=2)
        torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-6)
        assert whole.shape == images.shape
        assert whole.dtype == torch.float32
    labels = [model.classes[i] for i in chosen]
    torch.testing.assert_close(
        explain.attribute(model, images, "gradient", labels), explain.attribute(model, images, "gradient")
    )


def test_gradient_methods_take_any_network(images):
    model = classify.build("mobilenet_v2", n_classes=3, size=32).eval()
    assert np.isfinite(explain.attribute(model, images[:2], "integrated_gradients", n_steps=2).numpy()).all()
    with pytest.raises(BadInput, match="MobileNetV2"):
        explain.attribute(model, images[:2], "deep_taylor")


def test_no_images(model, images):
    assert explain.attribute(model, images[:0], "gradient").shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "saliency"}, "integrated_gradients"),
        ({"knob": 1}, "no knob 'knob'; it has none"),
        ({"target": 4}, "out of range"),
        ({"target": -1}, "out of range"),
        ({"target": "melanoma"}, "not a class"),
        ({"target": [0, 1]}, "2 targets came with 5 images"),
        ({"images": torch.zeros(3, 32, 32)}, "float images"),
        ({"images": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}, "float images"),
        ({"images": torch.full((1, 3, 32, 32), 255.0)}, "as_tensor"),
        ({"images": torch.full((1, 3, 32, 32), float("nan"))}, "finite"),
    ],
)
def test_bad_input_is_a_sentence(model, images, change, words):
    arguments = {"images": images, "method": "gradient", "target": None} | change
    with pytest.raises(BadInput, match=words):
        explain.attribute(model, **arguments)


def test_maps_that_are_not_finite_are_refused(images):
    broken = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    broken[1].weight.data[0, 0] = float("inf")
    with pytest.raises(BadInput, match="not finite"):
        explain.attribute(broken, images, "gradient", 0)
