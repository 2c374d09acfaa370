"""The rules against loops in float64 over layers and networks small enough to write out as matrices."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from stda.explain import rules
from stda.explain.composites import Composite, plan, walk
from stda.explain.layers import ADD, CONCATENATE, KERNELS, Parallel, trace
from stda.explain.rules import AlphaBeta, Bounded, ByWeight, Epsilon, alike, squared

RULES = {
    "z": Epsilon(),
    "epsilon": Epsilon(0.25),
    "z+": AlphaBeta(1, 0, bias=False),
    "alpha1beta0": AlphaBeta(1, 0),
    "alpha2beta1": AlphaBeta(2, 1),
    "w2": ByWeight(squared),
    "flat": ByWeight(alike),
    "bounded": Bounded(),
}
LAYERS = {
    "dense": (nn.Linear(6, 5), (6,)),
    "conv": (nn.Conv2d(2, 3, 3, padding=1), (2, 4, 4)),
    "strided": (nn.Conv2d(2, 2, 3, padding=1, stride=2), (2, 5, 4)),
    "grouped": (nn.Conv2d(2, 4, 2, groups=2, dilation=2), (2, 4, 4)),
    "unbiased": (nn.Conv2d(2, 3, (1, 3), stride=(1, 2), padding=(1, 0), bias=False), (2, 3, 6)),
    "average": (nn.AvgPool2d(2), (2, 4, 4)),
    "padded average": (nn.AvgPool2d(3, stride=2, padding=1), (2, 5, 4)),
    "one average": (nn.AdaptiveAvgPool2d(1), (2, 3, 4)),
    "uneven average": (nn.AdaptiveAvgPool2d((2, 3)), (2, 5, 2)),
}


def as_matrix(layer, shape):
    """The linear part of a layer as a matrix (inputs, outputs): its answer to each unit vector."""
    n = int(np.prod(shape))
    units = torch.eye(n, dtype=torch.float64).view(n, *shape)
    with torch.no_grad():
        return (layer(units) - layer(torch.zeros_like(units))).reshape(n, -1).numpy()


def connected(layer, shape):
    """The matrix of a layer whose weights are all one."""
    if not isinstance(layer, KERNELS):
        return as_matrix(layer, shape)
    arguments = {"bias": False, "dtype": torch.float64}
    if isinstance(layer, nn.Conv2d):
        names = ("stride", "padding", "dilation", "groups")
        arguments |= {name: getattr(layer, name) for name in names}
        ones = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, **arguments)
    else:
        ones = nn.Linear(layer.in_features, layer.out_features, **arguments)
    nn.init.ones_(ones.weight)
    return as_matrix(ones, shape)


def brute_force(name, x, weight, ones, bias, relevance):
    """Output j gives its relevance to the inputs i: one number after the other, as the papers write it."""
    given = np.zeros_like(x)
    n_in, n_out = weight.shape
    for j in range(n_out):
        z = [x[i] * weight[i, j] for i in range(n_in)]
        if name in ("z", "epsilon"):
            total = sum(z) + bias[j]
            total += 0.25 * (1 if total >= 0 else -1) * (name == "epsilon")
            halves = [(1, z, total)]
        elif name in ("z+", "alpha1beta0", "alpha2beta1"):
            alpha, beta = (2, 1) if name == "alpha2beta1" else (1, 0)
            b = 0 if name == "z+" else bias[j]
            up, down = [max(v, 0) for v in z], [min(v, 0) for v in z]
            halves = [(alpha, up, sum(up) + max(b, 0)), (-beta, down, sum(down) + min(b, 0))]
        elif name == "bounded":
            boxed = [z[i] + max(weight[i, j], 0) - min(weight[i, j], 0) for i in range(n_in)]
            halves = [(1, boxed, sum(boxed))]
        else:
            share = [weight[i, j] ** 2 if name == "w2" else ones[i, j] for i in range(n_in)]
            halves = [(1, share, sum(share))]
        for factor, share, total in halves:
            for i in range(n_in):
                given[i] += factor * share[i] / total * relevance[j] if total != 0 else 0
    return given


def linear_part(layer, nonnegative):
    if not isinstance(layer, KERNELS):
        return rules.Average(layer, nonnegative=nonnegative)
    bounds = tuple(torch.tensor(end, dtype=torch.float64) for end in (-1, 1))
    return rules.Kernel(layer, nonnegative=nonnegative, bounds=bounds)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", RULES)
def test_rules_are_the_loops(name, kind, nonnegative):
    layer, shape = LAYERS[kind]
    if name == "bounded" and not isinstance(layer, KERNELS):
        return  # the rule of a kernel that reads the image
    noise = torch.Generator().manual_seed(1)
    layer = layer.double().requires_grad_(False)
    for values in layer.parameters():
        values.copy_(torch.randn(values.shape, generator=noise))
    x = torch.rand(3, *shape, generator=noise, dtype=torch.float64) * 2 - 1
    x = x.abs() if nonnegative else x
    out = layer(x)
    relevance = torch.randn(out.shape, generator=noise, dtype=torch.float64)
    weight, ones = as_matrix(layer, shape), connected(layer, shape)
    bias = layer(torch.zeros_like(x))[0].flatten().numpy()
    with torch.no_grad():
        found = RULES[name](linear_part(layer, nonnegative), x, out, relevance)
    assert found.shape == x.shape
    for k in range(len(x)):
        wanted = brute_force(name, x[k].flatten().numpy(), weight, ones, bias, relevance[k].flatten().numpy())
        np.testing.assert_allclose(found[k].flatten().numpy(), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("name", [name for name in RULES if name != "bounded"])
def test_an_addition_is_a_layer_of_ones(name, nonnegative):
    noise = torch.Generator().manual_seed(2)
    branches = torch.randn(2, 3, 4, 2, 2, generator=noise, dtype=torch.float64)
    branches = branches.abs() if nonnegative else branches
    relevance = torch.randn(branches.shape[1:], generator=noise, dtype=torch.float64)
    out = branches.sum(dim=0)
    found = RULES[name](rules.Addition(nonnegative=nonnegative), branches, out, relevance)
    ones = np.ones((2, 1))
    pairs, amounts = branches.flatten(1).T.numpy(), relevance.flatten().numpy()
    for pair, amount, given in zip(pairs, amounts, found.flatten(1).T.numpy(), strict=True):
        wanted = brute_force(name, pair, ones, ones, np.zeros(1), np.array([amount]))
        np.testing.assert_allclose(given, wanted, rtol=1e-9, atol=1e-11)


def brute_walk(layers, x, relevance, name):
    """The relevance of one image's input, layer by layer, all maps as matrices."""
    passed = trace(layers, x)
    for i in range(len(layers) - 1, -1, -1):
        layer, value = layers[i], passed.inputs[i]
        if isinstance(layer, Parallel):
            outputs = [branch(value) for branch in layer.branches]
            if layer.join == ADD:
                pairs = torch.stack(outputs).flatten(1).T.numpy()
                ones = np.ones((len(outputs), 1))
                parts = [
                    brute_force(name, pair, ones, ones, np.zeros(1), np.array([amount]))
                    for pair, amount in zip(pairs, relevance.flatten().numpy(), strict=True)
                ]
                parts = list(torch.tensor(np.array(parts)).T.reshape(len(outputs), *relevance.shape))
            else:
                ends = np.cumsum([0, *(out.shape[1] for out in outputs)])
                parts = [relevance[:, a:b] for a, b in pairwise(ends)]
            ways = zip(layer.branches, parts, strict=True)
            relevance = sum(brute_walk(branch, value, part, name) for branch, part in ways)
        elif isinstance(layer, nn.MaxPool2d):
            with torch.enable_grad():
                value = value.clone().requires_grad_(True)
                (relevance,) = torch.autograd.grad(layer(value), value, relevance)
        elif isinstance(layer, (*KERNELS, nn.AdaptiveAvgPool2d)):
            shape = tuple(value.shape[1:])
            bias = layer(torch.zeros_like(value)).flatten().numpy()
            matrices = as_matrix(layer, shape), connected(layer, shape)
            given = brute_force(name, value.flatten().numpy(), *matrices, bias, relevance.flatten().numpy())
            relevance = torch.tensor(given).view(value.shape)
        else:
            relevance = relevance.reshape(value.shape)
    return relevance


@pytest.mark.parametrize("name", [name for name in RULES if name != "bounded"])
def test_a_whole_network_with_branches(name):
    torch.manual_seed(4)
    fire = Parallel(
        [nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(3, 2, 3, padding=1))], CONCATENATE
    )
    main = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    block = Parallel([main, nn.Sequential()], ADD)
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), fire, block, nn.ReLU(), nn.MaxPool2d(2, stride=1)]
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)]
    network = nn.Sequential(*layers).double().requires_grad_(False).eval()
    x = torch.rand(2, 2, 4, 4, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        passed = trace(network, x)
        start = torch.zeros(2, 3, dtype=torch.float64)
        start[:, 1] = passed.output[:, 1]
        found = walk(plan(network, Composite(RULES[name], RULES[name], RULES[name])), passed, start)
        for k in range(2):
            wanted = brute_walk(network, x[k : k + 1], start[k : k + 1], name)
            torch.testing.assert_close(found[k : k + 1], wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_without_support_drop_their_relevance(name, dtype):
    layer = nn.Linear(2, 3, bias=False).to(dtype).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[1.0, 3.0], [-1.0, -1.0], [0.0, 0.0]]))
    end = torch.ones((), dtype=dtype)
    linear = rules.Kernel(layer, nonnegative=True, bounds=(-end, end))
    x = torch.ones(1, 2, dtype=dtype)
    given = RULES[name](linear, x, layer(x), torch.tensor([[0.0, 0.0, 1e3]], dtype=dtype))
    assert given.any() == (name == "flat")  # no weight leads to the third output, but flat does not look
    nothing = torch.zeros(1, 2, dtype=dtype)
    assert torch.isfinite(RULES[name](linear, nothing, layer(nothing), torch.full((1, 3), 1e3, dtype=dtype))).all()


def test_z_plus_drops_what_only_negative_contributions_have():
    layer = nn.Linear(2, 2).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, -1.0]]))
    given = RULES["z+"](
        rules.Kernel(layer, nonnegative=True), torch.ones(1, 2), layer(torch.ones(1, 2)), torch.ones(1, 2)
    )
    torch.testing.assert_close(given, torch.tensor([[1 / 3, 2 / 3]]))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_shares_do_not_depend_on_the_size_of_weights(scale):
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(6, 5, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)))
    grown = nn.Linear(6, 5, bias=False).requires_grad_(False)
    grown.weight.copy_(layer.weight * scale)
    for name in set(RULES) - {"epsilon", "bounded"}:
        given = [
            RULES[name](rules.Kernel(one, nonnegative=True), x, one(x), torch.ones(4, 5)) for one in (layer, grown)
        ]
        torch.testing.assert_close(*given, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), nn.MaxPool2d((1, 3), stride=1)]
)
def test_max_pool_gives_all_to_the_winner(pool):
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    out = pool(x)
    relevance = torch.rand_like(out)
    (wanted,) = torch.autograd.grad(out, x, relevance)
    torch.testing.assert_close(rules.max_pool(pool, x.detach(), relevance), wanted)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_of_equals_the_first_wins(layout):
    x = torch.zeros(1, 2, 4, 4).contiguous(memory_format=layout)
    given = rules.max_pool(nn.MaxPool2d(2), x, torch.ones(1, 2, 2, 2))
    wanted = torch.zeros(1, 2, 4, 4)
    wanted[:, :, ::2, ::2] = 1
    torch.testing.assert_close(given, wanted)
