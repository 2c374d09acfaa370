"""Every network of the study, taken apart into layers, must still compute what it computed."""

import pytest
import torch
from lively import enliven
from torch import nn

from stda import BadInput, classify
from stda.explain.layers import CONCATENATE, KERNELS, Parallel, has_addition, layered, trace
from stda.explain.subject import Subject

NAMES = ("vgg8", "vgg11_bn", "vgg16_bn", "alexnet", "squeezenet1_0", "resnet18")


def lively(name, size=64):
    """A network in float64 whose BatchNorm has statistics and weights that are not the neutral ones."""
    torch.manual_seed(1)
    model = classify.build(name, n_classes=3, size=size).double().eval()
    return enliven(model)


@pytest.mark.parametrize("name", NAMES)
def test_layers_compute_what_the_network_computes(name):
    model = lively(name)
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 2 - 1
    layers = layered(model)
    with torch.no_grad():
        torch.testing.assert_close(layers(x), model(x), rtol=1e-9, atol=1e-9)
        kept = trace(layers, x)
    torch.testing.assert_close(kept.output, layers(x), rtol=0, atol=0)
    assert len(kept.inputs) == len(layers)
    assert not any(isinstance(m, nn.BatchNorm2d | nn.Dropout) for m in layers.modules())
    assert not any(p.requires_grad for p in layers.parameters())
    assert has_addition(layers) == (name == "resnet18")


def test_branches_are_traced_too():
    layers = layered(lively("squeezenet1_0"))
    at = next(i for i, layer in enumerate(layers) if isinstance(layer, Parallel))
    assert layers[at].join == CONCATENATE
    kept = trace(layers, torch.rand(1, 3, 64, 64, dtype=torch.float64))
    outputs = [branch.output for branch in kept.inner[at]]
    assert torch.equal(torch.cat(outputs, dim=1), kept.inputs[at + 1])
    assert all(isinstance(branch[0], KERNELS) for branch in layers[at].branches)


def test_the_input_scale_of_a_pretrained_network_is_a_layer():
    model = lively("alexnet")
    model.provenance["normalisation"] = "imagenet"
    model.register_buffer("gain", torch.tensor([2.0, 2.1, 2.2], dtype=torch.float64).view(1, 3, 1, 1))
    model.register_buffer("bias", torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).view(1, 3, 1, 1))
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(layered(model)(x), model(x), rtol=1e-9, atol=1e-9)


def test_the_model_is_left_alone():
    model = lively("resnet18")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in layered(model).parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_softmax_is_taken_away():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
    assert len(layered(nn.Sequential(plain, nn.Softmax(dim=1)))) == len(layered(plain)) == 4


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3)), "BatchNorm"),
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding="same")), "zero padding"),
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")), "zero padding"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Sigmoid()), "Sigmoid"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Softmax(1), nn.Linear(3, 3)), "softmax inside"),
    ],
)
def test_a_layer_without_a_rule_is_named(model, words):
    with pytest.raises(BadInput, match=words):
        layered(model)


def test_noise_does_not_depend_on_batches():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    whole = Subject(model, seed=3).normal((4, 3, 2, 2))
    parts = Subject(model, seed=3)
    assert torch.equal(whole, torch.cat([parts.normal((1, 3, 2, 2)), parts.normal((3, 3, 2, 2))]))
