"""The rules against loops in float64 over a network small enough to write out as matrices."""

import numpy as np
import pytest
import torch
from torch import nn

from stda.explain import rules


def as_matrix(layer, shape):
    """The kernel layer as a dense matrix (inputs, outputs): its answer to each unit vector."""
    n = int(np.prod(shape))
    units = torch.eye(n, dtype=torch.float64).view(n, *shape)
    return rules._apply(layer, units, layer.weight).reshape(n, -1).numpy()


def share(contributions, relevance):
    """Brute force: output j gives its relevance to inputs i in proportion to contributions[i, j]."""
    given = np.zeros(contributions.shape[0])
    for j, amount in enumerate(relevance):
        total = contributions[:, j].sum()
        if total > 0:
            for i in range(len(given)):
                given[i] += contributions[i, j] / total * amount
    return given


torch.manual_seed(0)
LAYERS = {
    "dense": (nn.Linear(6, 5), (6,)),
    "conv": (nn.Conv2d(2, 3, 3, padding=1), (2, 4, 4)),
    "strided": (nn.Conv2d(2, 2, 3, padding=1, stride=2), (2, 5, 4)),
    "grouped": (nn.Conv2d(2, 4, 2, groups=2, dilation=2), (2, 4, 4)),
}


@pytest.fixture(params=LAYERS)
def case(request):
    layer, shape = LAYERS[request.param]
    noise = torch.Generator().manual_seed(1)
    layer = layer.double().requires_grad_(False)
    x = torch.rand(3, *shape, generator=noise, dtype=torch.float64) * 2 - 1
    y = torch.rand(layer(x).shape, generator=noise, dtype=torch.float64)
    return layer, x, y, as_matrix(layer, shape)


def check(case, rule, contributions, x=None):
    layer, given, y, _ = case
    x = given if x is None else x
    found = rule(layer, x, y)
    for one, image, relevance in zip(found.flatten(1).numpy(), x.flatten(1).numpy(), y.flatten(1).numpy(), strict=True):
        np.testing.assert_allclose(one, share(contributions(image), relevance), rtol=1e-10, atol=1e-12)
        supported = contributions(image).sum(axis=0) > 0
        np.testing.assert_allclose(one.sum(), relevance[supported].sum(), rtol=1e-9)


def test_z_plus(case):
    check(case, rules.z_plus, lambda x: np.maximum(x[:, None] * case[3], 0))


def test_z_plus_of_nonnegative_inputs(case):
    def rule(layer, x, y):
        return rules.z_plus(layer, x, y, nonnegative=True)

    x = case[1].abs()
    check(case, rule, lambda x: np.maximum(x[:, None] * case[3], 0), x)
    torch.testing.assert_close(rule(case[0], x, case[2]), rules.z_plus(case[0], x, case[2]))


def test_z_bounded_as_published(case):
    weight = case[3]

    def published(x):
        return x[:, None] * weight + np.maximum(weight, 0) - np.minimum(weight, 0)  # low = -1, high = 1

    check(case, lambda *a: rules.z_bounded(*a, low=-1.0, high=1.0), published)


def test_w_square(case):
    check(case, rules.w_square, lambda x: case[3] ** 2)


def test_outputs_without_support_drop_their_relevance():
    layer = nn.Linear(2, 2, bias=True).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, -1.0]]))
    given = rules.z_plus(layer, torch.ones(1, 2), torch.ones(1, 2), nonnegative=True)
    torch.testing.assert_close(given, torch.tensor([[1 / 3, 2 / 3]]))


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, stride=2, padding=1), nn.MaxPool2d((1, 3), stride=1)]
)
def test_max_pool_is_the_gradient(pool):
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    out = pool(x)
    relevance = torch.rand_like(out)
    (wanted,) = torch.autograd.grad(out, x, relevance)
    torch.testing.assert_close(rules.max_pool(pool, x.detach(), relevance), wanted)
