"""Which rule each layer gets, and what is known of its input."""

import pytest
import torch
from torch import nn

from stda import classify, explain
from stda.explain.composites import Composite, plan
from stda.explain.layers import ADD, CONCATENATE, Parallel, Scale, layered
from stda.explain.rules import AlphaBeta, Bounded, ByWeight, Epsilon, squared

CONV, DENSE, MIXING, FIRST, LAST = AlphaBeta(2, 1), Epsilon(), Epsilon(1.0), Bounded(), ByWeight(squared)
ALL = Composite(CONV, DENSE, MIXING, first=FIRST, open_ended=LAST)


def test_the_rule_of_a_place_goes_before_that_of_a_kind():
    layers = [nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.MaxPool2d(2), nn.ReLU(), nn.AvgPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)]
    steps = plan(nn.Sequential(*layers), ALL)
    assert [step.rule for step in steps] == [FIRST, None, CONV, None, None, MIXING, None, DENSE, None, LAST]
    plain = plan(nn.Sequential(*layers), Composite(CONV, DENSE, MIXING))
    assert [step.rule for step in plain if step.rule] == [CONV, CONV, MIXING, DENSE, DENSE]


def test_branches_read_what_reaches_them_and_meet_the_relu_behind_them():
    main = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    block = Parallel([main, nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential()], ADD)
    fire = Parallel([nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), nn.Sequential()], CONCATENATE)
    steps = plan(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), block, nn.ReLU(), fire, nn.Conv2d(5, 2, 1)), ALL)
    assert steps[2].rule == MIXING
    assert not steps[2].linear.nonnegative
    assert [[step.rule for step in branch] for branch in steps[2].branches] == [[CONV, None, CONV], [CONV], []]
    assert [branch[0].linear.nonnegative for branch in steps[2].branches[:2]] == [True, True]
    assert steps[4].rule is None
    assert steps[5].linear.nonnegative  # both of the fire module's outputs come from a ReLU
    assert steps[5].rule == LAST


@pytest.mark.parametrize("name", ["vgg8", "alexnet", "squeezenet1_0", "resnet18"])
def test_inputs_said_to_be_nonnegative_are(name):
    torch.manual_seed(0)
    layers = layered(classify.build(name, n_classes=3, size=64).eval())
    seen = []

    def note(layer, given):
        seen.append((layer, bool((given[0] >= 0).all())))

    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_pre_hook(note)
    with torch.no_grad():
        layers(torch.rand(2, 3, 64, 64) * 2 - 1)

    def kernels(steps):
        for step in steps:
            yield from (inner for branch in step.branches for inner in kernels(branch))
            if isinstance(step.layer, nn.Conv2d | nn.Linear):
                yield step

    said = {id(step.layer): step.linear.nonnegative for step in kernels(plan(layers, ALL))}
    assert said == {id(layer): nonnegative for layer, nonnegative in seen}
    assert list(said.values()).count(False) == 1  # the layer that reads the image


def test_bounds_are_those_of_the_scaled_image():
    gain, bias = (torch.tensor(values).view(1, 3, 1, 1) for values in ([2.0, -1.0, 0.5], [0.5, 0.0, 1.0]))
    steps = plan(nn.Sequential(Scale(gain, bias), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1)), ALL)
    low, high = steps[1].linear.bounds
    assert low.flatten().tolist() == [-1.5, -1.0, 0.5]
    assert high.flatten().tolist() == [2.5, 1.0, 1.5]
    assert steps[3].linear.bounds is None


def test_a_scaled_image_is_explained_as_the_scaled_layer_would_be():
    """Scaling first, or having the scale in the weights: the bounded rule sees the same contributions."""
    torch.manual_seed(1)
    gain, bias = (torch.tensor(values).view(1, 3, 1, 1) for values in ([2.0, 1.0, 0.5], [0.5, 0.0, 1.0]))
    dense = nn.Linear(12, 4)
    merged = nn.Linear(12, 4)
    wide = gain.expand(1, 3, 2, 2).flatten(), bias.expand(1, 3, 2, 2).flatten()
    merged.weight.data = dense.weight * wide[0]
    merged.bias.data = dense.bias + dense.weight @ wide[1]
    rest = nn.ReLU(), nn.Linear(4, 2)
    scaled = nn.Sequential(Scale(gain, bias), nn.Flatten(), dense, *rest)
    x = torch.rand(5, 3, 2, 2) * 2 - 1
    maps = [
        explain.attribute(model, x, "deep_taylor_bounded")
        for model in (scaled, nn.Sequential(nn.Flatten(), merged, *rest))
    ]
    torch.testing.assert_close(*maps, rtol=1e-4, atol=1e-6)
    assert maps[0].any()
