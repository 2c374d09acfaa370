"""LRP and deep Taylor over whole networks: against zennit, and against what they promise to conserve."""

from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import nn

from stda import BadInput, classify, explain
from stda.explain.layers import layered, trace
from stda.explain.subject import Subject


def cosine(a, b):
    return torch.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), dim=1)


KERNELS = (nn.Conv2d, nn.Linear)
SUMMING = ["lrp_w2", "lrp_flat", "lrp_z_plus", "deep_taylor", "deep_taylor_bounded"]
DEEP_TAYLOR = ["deep_taylor", "deep_taylor_bounded"]
LRP = [name for name in explain.METHODS if name.startswith("lrp_")]


def over_inputs(part):
    """A zennit rule for averages and sums: shares in proportion to a part of the inputs."""
    core = pytest.importorskip("zennit.core")
    return core.BasicHook(
        input_modifiers=[part],
        param_modifiers=[core.ParamMod(lambda values, name: values, param_keys=[])],
        output_modifiers=[lambda out: out],
        gradient_mapper=lambda slope, outputs: [slope / core.stabilize(outputs[0])],
        reducer=lambda inputs, slopes: inputs[0] * slopes[0],
    )


def zennit_rules(method):
    """What zennit gives to (convolutions, dense layers, averages and sums, the first layer, the last layer)."""
    rule = pytest.importorskip("zennit.rules")
    above = over_inputs(lambda x: x.clamp(min=0))
    a, b = rule.AlphaBeta(1, 0), rule.AlphaBeta(2, 1)
    plus, square, flat = (kind(zero_params="bias") for kind in (rule.ZPlus, rule.WSquare, rule.Flat))
    return {
        "lrp_z": (rule.Epsilon(1e-12), rule.Epsilon(1e-12), rule.Norm(1e-12), None, None),
        "lrp_epsilon": (rule.Epsilon(1e-6), rule.Epsilon(1e-6), rule.Norm(1e-6), None, None),
        "lrp_w2": (square, square, rule.Flat(), None, None),
        "lrp_flat": (flat, flat, rule.Flat(), None, None),
        "lrp_alpha1beta0": (a, a, above, None, None),
        "lrp_alpha2beta1": (b, b, above, None, None),
        "lrp_z_plus": (plus, plus, above, None, None),
        "lrp_preset_a": (a, rule.Epsilon(0.1), above, None, None),
        "lrp_preset_b": (b, rule.Epsilon(0.1), above, None, None),
        "lrp_preset_a_flat": (a, rule.Epsilon(0.1), above, flat, None),
        "lrp_preset_b_flat": (b, rule.Epsilon(0.1), above, flat, None),
        "deep_taylor": (plus, plus, above, None, square),
        "deep_taylor_bounded": (plus, plus, above, rule.ZBox(low=-1.0, high=1.0, zero_params="bias"), square),
    }[method]


def zennit_map(network, images, target, method, canonizers=()):
    """The relevance by zennit, its composite registered by the kinds of layers."""
    core, types = pytest.importorskip("zennit.core"), pytest.importorskip("zennit.types")
    rule = pytest.importorskip("zennit.rules")
    kernels = [module for module in network.modules() if isinstance(module, KERNELS)]
    conv, dense, average, first, last = zennit_rules(method)
    own = {id(kernels[0]): first}
    if isinstance(kernels[-1], nn.Linear):  # a convolution has a ReLU behind it (SqueezeNet)
        own[id(kernels[-1])] = last

    def module_map(ctx, name, module):
        if isinstance(module, KERNELS):
            return own.get(id(module)) or (conv if isinstance(module, nn.Conv2d) else dense)
        if isinstance(module, types.AvgPool) or type(module).__name__ == "Sum":
            return average
        return rule.Pass() if isinstance(module, nn.ReLU) else None

    x = images.clone().requires_grad_(True)
    with core.Composite(module_map, canonizers=list(canonizers)).context(network) as registered:
        out = registered(x)
        start = out.detach().gather(1, target[:, None])
        start = start.clamp(min=0) if "taylor" in method else start
        return torch.autograd.grad(out, x, torch.zeros_like(out).scatter_(1, target[:, None], start))[0]


def lively(name, size):
    """A network in float64 whose BatchNorm is not neutral, and which tells images apart."""
    torch.manual_seed(2)
    model = classify.build(name, n_classes=3, size=size).double()
    for module in model.modules():
        if isinstance(module, KERNELS):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.1, 0.1)
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model.eval()


@cache
def network(name):
    """A model and two images."""
    x = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2 - 1
    return lively(name, 48), x


CASES = [(name, method) for name in ("vgg8", "squeezenet1_0") for method in [*LRP, *DEEP_TAYLOR]]
CASES += [("resnet18", method) for method in ("lrp_epsilon", "lrp_w2", "lrp_alpha2beta1", "lrp_z_plus")]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_maps_agree_with_zennit(name, method):
    model, x = network(name)
    with torch.no_grad():
        target = model(x).argmax(dim=1)
    ours = explain.METHODS[method].run(Subject(model), x, target)
    if name == "resnet18":
        canonizers = pytest.importorskip("zennit.torchvision").ResNetCanonizer()
        theirs = zennit_map(deepcopy(model.net), x, target, method, [canonizers])
    else:
        theirs = zennit_map(layered(model), x, target, method)
    assert (cosine(ours, theirs) >= 0.9999).all()
    # zennit adds 1e-6 to every denominator and loses a little relevance with each
    torch.testing.assert_close(ours.sum(dim=(1, 2, 3)), theirs.sum(dim=(1, 2, 3)), rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("method", ["deep_taylor", "deep_taylor_bounded", "lrp_z_plus", "lrp_alpha2beta1"])
def test_float32_agrees_with_zennit(model, images, method):
    target = torch.tensor([0, 1, 2, 3, 0])
    ours = explain.attribute(model, images, method, target)
    assert (cosine(ours, zennit_map(layered(model), images, target, method)) >= 0.9999).all()


@pytest.mark.parametrize("method", SUMMING)
@pytest.mark.parametrize("name", ["vgg8", "squeezenet1_0", "resnet18"])
def test_relevance_sums_to_the_logit_where_that_is_promised(name, method):
    model, x = network(name)
    if Subject(model).obstacle(explain.METHODS[method]):
        return  # deep Taylor of a residual network
    with torch.no_grad():
        logits = model(x)
    for target in range(3):
        maps = explain.METHODS[method].run(Subject(model), x, torch.full((2,), target))
        wanted = logits[:, target].clamp(min=0) if "taylor" in method else logits[:, target]
        torch.testing.assert_close(maps.sum(dim=(1, 2, 3)), wanted, rtol=1e-6, atol=1e-9)
        assert (maps >= 0).all() or explain.METHODS[method].signed


@pytest.mark.parametrize("name", ["vgg8", "resnet18"])
def test_the_relevance_of_every_layer_can_be_seen(name):
    model, x = network(name)
    subject = Subject(model)
    subject.seen = []
    target = torch.tensor([0, 1])
    maps = explain.METHODS["lrp_flat"].run(subject, x, target)
    with torch.no_grad():
        logits = model(x).gather(1, target[:, None])[:, 0]
        inputs = trace(subject.layers, x).inputs
    assert [part.shape for part in subject.seen[1:]] == [given.shape for given in reversed(inputs)]
    for part in subject.seen:
        torch.testing.assert_close(part.flatten(1).sum(dim=1), logits, rtol=1e-6, atol=1e-9)
    assert torch.equal(subject.seen[-1], maps)


def test_the_promise_is_made_by_these_alone():
    promising = {name for name, method in explain.METHODS.items() if method.conserves == "logit"}
    assert promising & {*LRP, *DEEP_TAYLOR} == set(SUMMING)


def test_biases_keep_what_lrp_z_does_not_hand_on():
    """Without biases the z rule conserves too, and is input times gradient."""
    model, x = network("vgg8")
    plain = layered(model)
    for layer in plain:
        if isinstance(layer, KERNELS):
            layer.bias.zero_()
    target = torch.tensor([0, 2])
    with torch.no_grad():
        logits = plain(x).gather(1, target[:, None])[:, 0]
    maps = explain.METHODS["lrp_z"].run(Subject(plain), x, target)
    torch.testing.assert_close(maps.sum(dim=(1, 2, 3)), logits, rtol=1e-6, atol=1e-9)
    slope = explain.METHODS["gradient"].run(Subject(plain), x, target)
    torch.testing.assert_close(maps, slope * x, rtol=1e-5, atol=1e-9)
    assert not torch.allclose(explain.METHODS["lrp_z"].run(Subject(model), x, target).sum(dim=(1, 2, 3)), logits)


@pytest.mark.parametrize("method", ["deep_taylor", "deep_taylor_bounded", "lrp_alpha1beta0", "lrp_flat"])
def test_bf16_is_close(model, images, method):
    exact = explain.attribute(model, images, method, 1, dtype=torch.float64)
    assert (cosine(explain.attribute(model, images, method, 1), exact) >= 0.99999).all()
    assert (cosine(explain.attribute(model, images, method, 1, dtype=torch.bfloat16), exact) >= 0.99).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [*LRP, *DEEP_TAYLOR])
def test_dead_networks_have_finite_maps(method, dtype):
    """All weights zero, or every hidden neuron dead: nothing is handed on, or all of it equally, and nothing is NaN."""
    noise = torch.Generator().manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)]
    x = torch.rand(2, 3, 8, 8, generator=noise) * 2 - 1
    for dead in ("hidden", "all", "image"):
        network = nn.Sequential(*layers).requires_grad_(False)
        for values in network.parameters():
            values.copy_(torch.rand(values.shape, generator=noise) * (dead != "all"))
        network[0].bias.fill_(-100 if dead == "hidden" else 0)
        given = torch.zeros_like(x) if dead == "image" else x
        maps = explain.attribute(network, given, method, 0, dtype=dtype)
        assert torch.isfinite(maps).all()
        if dead == "all" or method in ("lrp_z", "lrp_epsilon", "lrp_z_plus"):
            assert not maps.any()


def test_deep_taylor_refuses_a_residual_network():
    model, x = network("resnet18")
    why = explain.obstacles(model)
    assert [name for name in (*LRP, *DEEP_TAYLOR) if why[name]] == DEEP_TAYLOR
    with pytest.raises(BadInput, match="residual block adds two branches"):
        explain.attribute(model, x.float(), "deep_taylor")


def test_epsilon_is_a_knob(model, images):
    small, large = (explain.attribute(model, images, "lrp_epsilon", 0, epsilon=value) for value in (1e-6, 10.0))
    assert (large.abs().sum(dim=(1, 2, 3)) < small.abs().sum(dim=(1, 2, 3))).all()
    with pytest.raises(BadInput, match="it has epsilon"):
        explain.attribute(model, images, "lrp_preset_a", 0, alpha=2)
    with pytest.raises(BadInput, match="zero or more"):
        explain.attribute(model, images, "lrp_epsilon", 0, epsilon=-1e-6)


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
