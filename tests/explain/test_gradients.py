"""Gradient methods against finite differences, plain loops, hand calculation and captum."""

import warnings

import pytest
import torch
from lively import enliven
from torch import nn

from stda import BadInput, classify, explain
from stda.explain import gradients
from stda.explain.subject import ANY, LAYERS, Subject

OURS = gradients.METHODS
NETWORKS = {"vgg8": 32, "vgg11_bn": 32, "vgg16_bn": 32, "alexnet": 64, "squeezenet1_0": 64, "resnet18": 64}


def lively(name, size):
    """A network of the study in float64 with random weights; dense layers of the large ones are narrow, for speed."""
    with torch.device("meta"):
        model = classify.build(name, n_classes=3, size=size)
        if name in ("vgg11_bn", "vgg16_bn", "alexnet"):
            n_in = next(m for m in model.net.classifier if isinstance(m, nn.Linear)).in_features
            model.net.classifier = nn.Sequential(nn.Linear(n_in, 16), nn.ReLU(inplace=True), nn.Linear(16, 3))
    torch.manual_seed(1)
    model = model.to_empty(device="cpu").double().eval()
    enliven(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.1, 0.1)
    return model


def pictures(n, size):
    return torch.rand(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 - 1


def slope(model, x, target):
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)[0]


@pytest.fixture(scope="module")
def small():
    """A small network with everything that is reordered: convolution, ReLU, pooling, pooling to a larger grid."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU()]
    head = [nn.MaxPool2d(2), nn.AdaptiveAvgPool2d((5, 4)), nn.Flatten(), nn.Linear(160, 7), nn.ReLU(), nn.Linear(7, 4)]
    return nn.Sequential(*layers, *head).double()


@pytest.fixture(scope="module")
def x():
    return pictures(5, 12)


TARGET = torch.tensor([0, 1, 2, 3, 0])


def test_gradient_is_a_finite_difference():
    model = lively("vgg8", 32)
    x = pictures(1, 32)
    found = OURS["gradient"].run(Subject(model), x, torch.tensor([2]))[0]
    for place in ((0, 5, 7), (2, 16, 16), (1, 31, 0)):
        step = torch.zeros_like(x)
        step[(0, *place)] = 1e-6
        with torch.no_grad():
            difference = (model(x + step) - model(x - step))[0, 2] / 2e-6
        assert difference.item() == pytest.approx(found[place].item(), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_study(name):
    size = NETWORKS[name]
    model, x, target = lively(name, size), pictures(2, size), torch.tensor([0, 1])
    subject = Subject(model)
    few = {"integrated_gradients": {"n_steps": 2}, "smoothgrad": {"n_samples": 2}}
    maps = {method: OURS[method].run(subject, x, target, **few.get(method, {})) for method in OURS}
    torch.testing.assert_close(maps["gradient"], slope(model, x, target), rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(maps["input_x_gradient"], x * maps["gradient"])
    assert gradients.completeness_error(model, x, maps["deeplift"], target).max() < 1e-10
    for method, values in maps.items():
        assert values.shape == x.shape
        assert torch.isfinite(values).all()
        assert values.abs().max() > 0, method


def test_input_and_random_do_not_look_at_the_network(small, x):
    assert torch.equal(OURS["input"].run(Subject(small), x, TARGET), x)
    drawn = OURS["random"].run(Subject(small, seed=4), x, TARGET)
    assert torch.equal(drawn, OURS["random"].run(Subject(small, seed=4), x, 0 * TARGET))
    assert not torch.equal(drawn, OURS["random"].run(Subject(small, seed=5), x, TARGET))


def test_the_input_scale_of_a_pretrained_network_has_a_part_in_the_gradient(x):
    model = lively("vgg8", 12)
    model.provenance["normalisation"] = "imagenet"
    model.register_buffer("gain", torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64).view(1, 3, 1, 1))
    model.register_buffer("bias", torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).view(1, 3, 1, 1))
    for method in ("gradient", "smoothgrad"):
        knobs = {"noise": 0.0, "n_samples": 2} if method == "smoothgrad" else {}
        found = OURS[method].run(Subject(model), x[:2], torch.tensor([0, 1]), **knobs)
        torch.testing.assert_close(found, slope(model, x[:2], torch.tensor([0, 1])))


def tiny():
    """Three hidden neurons: one active, one not, one active that speaks against the class."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)).double()
    network[1].weight.data = torch.tensor([[1.0, 1.0], [1.0, -3.0], [1.0, 2.0]], dtype=torch.float64)
    network[3].weight.data = torch.tensor([[2.0, 3.0, -1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    return network


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("gradient", [1.0, 0.0]),  # 2 (1, 1) - 1 (1, 2): what is active
        ("guided_backprop", [2.0, 2.0]),  # 2 (1, 1): what is active and speaks for the class
        ("deconvnet", [5.0, -7.0]),  # 2 (1, 1) + 3 (1, -3): what speaks for the class, active or not
    ],
)
def test_what_a_relu_lets_back_by_hand(method, wanted):
    x = torch.tensor([[[[0.5, 0.25]]]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explain.attribute(tiny(), x, method, 0)
    assert found.flatten().tolist() == wanted


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
def test_no_hook_stays(small, x, method):
    subject = Subject(small)
    before = OURS["gradient"].run(subject, x, TARGET)
    OURS[method].run(subject, x, TARGET)
    hooks = [(m._backward_hooks, m._forward_hooks, m._forward_pre_hooks) for m in subject.layers.modules()]
    assert not any(kind for kinds in hooks for kind in kinds)
    assert torch.equal(before, OURS["gradient"].run(subject, x, TARGET))


@pytest.mark.parametrize("n_steps", [1, 8, 21])
@pytest.mark.parametrize("shape", [(), (3, 1, 1), (1, 3, 12, 12)])
def test_integrated_gradients_agree_with_captum(small, x, n_steps, shape):
    captum = pytest.importorskip("captum.attr")
    baseline = torch.rand(shape, generator=torch.Generator().manual_seed(0)).double() - 0.5
    ours = OURS["integrated_gradients"].run(Subject(small), x, TARGET, n_steps=n_steps, baseline=baseline)
    whole = baseline.expand_as(x)
    theirs = captum.IntegratedGradients(small).attribute(x, whole, TARGET, n_steps=n_steps, method="gausslegendre")
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_integrated_gradients_become_complete(small, x):
    errors = []
    for n_steps in (2, 16, 400):
        maps = OURS["integrated_gradients"].run(Subject(small), x, TARGET, n_steps=n_steps)
        errors.append(gradients.completeness_error(small, x, maps, TARGET).max().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3  # a ReLU network has kinks on the way, where no quadrature is exact


def test_completeness_error_by_hand(small, x):
    with torch.no_grad():
        gap = (small(x) - small(torch.full_like(x[:1], 0.2))).gather(1, TARGET[:, None])[:, 0]
    maps = torch.zeros_like(x)
    maps[:, 0, 3, 3] = gap + torch.tensor([0.0, 0.5, -0.5, 1.0, 2.0])
    absolute = gradients.completeness_error(small, x, maps.numpy(), TARGET, 0.2, batch_size=2)
    torch.testing.assert_close(absolute, torch.tensor([0, 0.5, 0.5, 1.0, 2.0]).double(), rtol=1e-9, atol=1e-12)
    relative = gradients.completeness_error(small, x, maps, TARGET, 0.2, relative=True)
    torch.testing.assert_close(relative, absolute / gap.abs(), rtol=1e-9, atol=1e-12)
    baseline = torch.full_like(x, 0.2)
    assert gradients.completeness_error(small, baseline, 0 * x, TARGET, 0.2, relative=True).tolist() == [0.0] * 5
    assert gradients.completeness_error(small, baseline, 0 * x + 1, TARGET, 0.2, relative=True).isinf().all()


def test_smoothgrad_is_a_mean_over_noisy_copies(small, x):
    found = OURS["smoothgrad"].run(Subject(small, seed=2), x, TARGET, n_samples=7, noise=0.15)
    noise = Subject(small, seed=2).normal((5 * 7, 3, 12, 12)).view(5, 7, 3, 12, 12)
    for i in range(5):
        slopes = [slope(small, x[i : i + 1] + 0.3 * noise[i, k], TARGET[i : i + 1]) for k in range(7)]
        torch.testing.assert_close(found[i : i + 1], torch.stack(slopes).mean(dim=0))


def test_smoothgrad_is_what_captum_expects():
    captum = pytest.importorskip("captum.attr")
    x, target, n = torch.tensor([[[[0.1, 0.05]]]], dtype=torch.float64), torch.tensor([0]), 4000
    ours = OURS["smoothgrad"].run(Subject(tiny()), x, target, n_samples=n, noise=0.1)
    torch.manual_seed(0)
    tunnel = captum.NoiseTunnel(captum.Saliency(tiny()))
    theirs = tunnel.attribute(x, nt_samples=n, stdevs=0.2, target=target, abs=False)
    assert (ours - OURS["gradient"].run(Subject(tiny()), x, target)).abs().min() > 0.3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.3)  # four standard errors: slopes vary by up to 9


def test_deeplift_of_a_tiny_network_by_hand():
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    network[1].weight.data = torch.tensor([[1.0, -2.0], [1.0, 1.0]], dtype=torch.float64)
    network[1].bias.data = torch.tensor([0.5, 0.0], dtype=torch.float64)
    network[3].weight.data = torch.tensor([[2.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    x, baseline = torch.tensor([[[[1.0, 0.5]]]]).double(), torch.tensor([[[[-1.0, 0.0]]]]).double()
    # hidden: 0.5 and 1.5, at the baseline -0.5 and -1; slopes 0.5 / 1 and 1.5 / 2.5
    multipliers = [2 * 0.5 * 1 + 1 * 0.6 * 1, 2 * 0.5 * -2 + 1 * 0.6 * 1]
    found = explain.attribute(network, x, "deeplift", 0, baseline=baseline).flatten()
    torch.testing.assert_close(found, torch.tensor([2.0 * multipliers[0], 0.5 * multipliers[1]]))
    assert found.sum().item() == pytest.approx(2.5)  # the logit is 2.5, at the baseline 0


def test_deeplift_of_overlapping_windows_by_hand():
    """Windows (0.5, 0.2) beside (0, 0.4), and (0.2, -0.1) beside (0.4, 0.1): the larger winner gets the difference."""
    network = nn.Sequential(nn.MaxPool2d((1, 2), stride=1), nn.Flatten(), nn.Linear(2, 2, bias=False)).double()
    network[2].weight.data = torch.tensor([[1.0, 10.0], [0.0, 0.0]], dtype=torch.float64)
    x, baseline = torch.tensor([[[[0.5, 0.2, -0.1]]]]).double(), torch.tensor([[[[0.0, 0.4, 0.1]]]]).double()
    found = explain.attribute(network, x, "deeplift", 0, baseline=baseline).flatten()
    torch.testing.assert_close(found, torch.tensor([1 * (0.5 - 0.4), 10 * (0.2 - 0.4), 0.0]))


def test_deeplift_agrees_with_captum(x):
    """Without max-pooling, where captum's maps do not sum to the difference."""
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(32, 7), nn.ReLU(), nn.Linear(7, 4)).double()
    baseline = torch.rand(1, 3, 1, 1, generator=torch.Generator().manual_seed(0)).double() - 0.5
    ours = OURS["deeplift"].run(Subject(model), x, TARGET, baseline=baseline)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = captum.DeepLift(model).attribute(x, baseline.expand_as(x), TARGET)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)])
def test_deeplift_sums_to_the_difference_through_any_pooling(x, pool):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(4)).double()
    model(x)
    maps = OURS["deeplift"].run(Subject(model), x, TARGET, baseline=0.1)
    assert gradients.completeness_error(model, x, maps, TARGET, 0.1).max() < 1e-12


def test_deeplift_where_nothing_differs_is_the_gradient_times_nothing(small, x):
    same = OURS["deeplift"].run(Subject(small), x[:1], TARGET[:1], baseline=x[:1])
    assert not same.any()


@pytest.mark.parametrize("method", OURS)
def test_batches_change_nothing(small, x, method, monkeypatch):
    whole = OURS[method].run(Subject(small), x, TARGET)
    monkeypatch.setattr(gradients, "POINTS", 3)
    monkeypatch.setattr(gradients, "PIXELS", 1)
    subject = Subject(small)
    parts = [OURS[method].run(subject, x[rows], TARGET[rows]) for rows in (slice(0, 4), slice(4, 5))]
    torch.testing.assert_close(whole, torch.cat(parts))
    assert not any(values.requires_grad for values in (whole, x))


def test_networks_that_are_no_layers():
    model = classify.build("mobilenet_v2", n_classes=3, size=32).eval()
    x, target = pictures(2, 32).float(), torch.tensor([0, 2])
    torch.testing.assert_close(OURS["gradient"].run(Subject(model), x, target), slope(model, x, target))
    for name, method in OURS.items():
        if method.network == ANY:
            assert torch.isfinite(explain.attribute(model, x, name, target)).all()
        else:
            assert method.network == LAYERS
            with pytest.raises(BadInput, match="gradient method"):
                explain.attribute(model, x, name, target)


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients", "smoothgrad", "deeplift"])
def test_bf16_is_coarser_but_the_same(small, x, method):
    fine, coarse = (explain.attribute(small, x, method, dtype=dtype) for dtype in (None, torch.bfloat16))
    assert torch.cosine_similarity(fine.flatten(1), coarse.flatten(1)).min() > 0.9


@pytest.mark.parametrize(
    ("method", "knobs", "words"),
    [
        ("integrated_gradients", {"n_steps": 0}, "n_steps is 0"),
        ("integrated_gradients", {"n_steps": 2.5}, "whole number"),
        ("integrated_gradients", {"baseline": torch.zeros(3, 6, 6)}, r"\(3, 6, 6\).*does not fit"),
        ("integrated_gradients", {"baseline": torch.zeros(5, 3, 12, 12)}, "for all images"),
        ("integrated_gradients", {"baseline": float("nan")}, "finite"),
        ("integrated_gradients", {"baseline": "grey"}, "grey"),
        ("deeplift", {"baseline": torch.full((3, 1, 1), float("inf"))}, "finite"),
        ("smoothgrad", {"n_samples": 0}, "n_samples is 0"),
        ("smoothgrad", {"noise": -0.1}, "noise is -0.1"),
        ("smoothgrad", {"noise": float("nan")}, "noise is nan"),
    ],
)
def test_bad_knobs_are_sentences(small, x, method, knobs, words):
    with pytest.raises(BadInput, match=words):
        explain.attribute(small, x, method, 0, **knobs)
