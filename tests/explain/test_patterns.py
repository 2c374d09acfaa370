import warnings
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional

from stda import BadInput, classify, explain
from stda.explain.layers import CONCATENATE, KERNELS, Parallel, Scale, layered, trace
from stda.explain.patterns import ESTIMATORS
from stda.explain.subject import Subject
from stda.images import ImageSet


def image_set(pixels, split="train"):
    names = [f"i{i}" for i in range(len(pixels))]
    return ImageSet(np.asarray(pixels, dtype=np.uint8), pd.DataFrame({"image_id": names, "label": "a", "split": split}))


@pytest.fixture(scope="module")
def train():
    return image_set(np.random.default_rng(0).integers(0, 256, (7, 12, 12, 3)))


@pytest.fixture(scope="module")
def model():
    """Every kind of layer: input scale, stride, dilation, groups, branches, both poolings, dense layers; float64."""
    torch.manual_seed(0)
    small = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU())
    large = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.ReLU())
    scale = Scale(torch.tensor([2.0, 1.5, 3.0]).view(1, 3, 1, 1), torch.tensor([0.1, -0.2, 0.3]).view(1, 3, 1, 1))
    return nn.Sequential(
        scale,
        nn.Conv2d(3, 6, 3, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Parallel([small, large], CONCATENATE),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(9, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    ).double()


def brute_force(layer, x, rectified, estimator):
    """The patterns of one layer: all patches side by side, one neuron after the other."""
    if isinstance(layer, nn.Linear):
        patches = x[:, None].numpy()  # (groups, samples, inputs) after the next lines
        patches = np.moveaxis(patches, 1, 0)
        groups = 1
    else:
        columns = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        groups = layer.groups
        columns = columns.reshape(len(x), groups, -1, columns.shape[-1])
        patches = columns.permute(1, 0, 3, 2).flatten(1, 2).numpy()
    weight, bias = layer.weight.detach().flatten(1).numpy(), layer.bias.detach().numpy()
    found = np.zeros_like(weight)
    for k in range(len(weight)):
        inputs = patches[k * groups // len(weight)]
        output = inputs @ weight[k] + bias[k]
        if rectified and estimator == "relu_positive":
            inputs, output = inputs[output > 0], output[output > 0]
        if len(output) > 1:
            found[k] = np.cov(inputs.T, output, ddof=0)[:-1, -1] / output.var()
    return torch.tensor(found).view_as(layer.weight)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("batch_size", [3, 100])
def test_patterns_equal_one_patch_after_the_other(model, train, estimator, batch_size):
    patterns = explain.fit_patterns(model, train, estimator=estimator, batch_size=batch_size)
    layers = layered(model)
    passed = trace(layers, train.as_tensor().double())
    given = {name: layer for name, layer in layers.named_modules() if isinstance(layer, KERNELS)}
    inputs = {str(i): value for i, value in enumerate(passed.inputs)}
    inputs |= {f"6.branches.{b}.0": inner.inputs[0] for b, inner in enumerate(passed.inner[6])}
    assert set(patterns.kernels) == set(given) == {"1", "3", "6.branches.0.0", "6.branches.1.0", "9", "11"}
    for name, layer in given.items():
        wanted = brute_force(layer, inputs[name], name != "11", estimator)
        torch.testing.assert_close(patterns.kernels[name], wanted, rtol=1e-9, atol=1e-11, msg=name)
        alive = wanted.flatten(1).any(1)
        ones = (layer.weight * patterns.kernels[name]).flatten(1).sum(1)[alive]
        torch.testing.assert_close(ones, torch.ones_like(ones), rtol=1e-9, atol=1e-9)
    assert patterns.estimator == estimator
    assert patterns.n_images == 7


def test_single_precision_gives_what_double_gives(model, train):
    single = deepcopy(model).float()
    coarse, exact = explain.fit_patterns(single, train, batch_size=2), explain.fit_patterns(model, train)
    for name, pattern in exact.kernels.items():
        assert coarse.kernels[name].dtype == torch.float32
        torch.testing.assert_close(coarse.kernels[name].double(), pattern, rtol=1e-3, atol=1e-5 * pattern.abs().max())


def test_the_pattern_finds_the_signal_and_the_weights_do_not():
    """The example of the paper: x = s a + d; the class is in s, and the weights must cancel the distractor d."""
    random = np.random.default_rng(1)
    signal, noise = random.normal(size=(2, 4000))
    a, b = np.array([1.0, 0.0, 0.5]), np.array([1.0, 1.0, 0.0])
    pixels = 127.5 + 18 * (signal[:, None] * a + noise[:, None] * b)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 1, bias=False)).double()
    weights = torch.tensor([[0.5, -0.5, 1.0]], dtype=torch.float64)  # w . a = 1, w . b = 0: reads s without d
    network[1].weight.data = weights
    images = image_set(pixels.round().clip(0, 255).reshape(-1, 1, 1, 3))
    found = explain.fit_patterns(network, images).kernels["1"][0]
    np.testing.assert_allclose(found, a, atol=0.05)
    assert torch.cosine_similarity(weights[0], torch.tensor(a), dim=0) < 0.75
    x = images.as_tensor()[:5].double()
    kwargs = {"patterns": explain.fit_patterns(network, images), "dtype": torch.float64}
    logits = network(x).detach()
    net = explain.attribute(network, x, "pattern_net", 0, **kwargs).double().flatten(1)
    torch.testing.assert_close(net, logits * found, rtol=1e-6, atol=1e-7)
    shares = explain.attribute(network, x, "pattern_attribution", 0, **kwargs).double().flatten(1)
    torch.testing.assert_close(shares, logits * found * weights[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["pattern_net", "pattern_attribution"])
def test_maps_are_gradients_with_other_weights(model, train, method):
    """Brute force: a network that computes as the model does and whose gradients pass through the patterns."""
    patterns = explain.fit_patterns(model, train, estimator="relu_positive")
    layers = layered(deepcopy(model))

    class Swapped(nn.Module):
        def __init__(self, layer, weight):
            super().__init__()
            self.layer, self.weight = layer, weight

        def forward(self, x):
            sent = torch.func.functional_call(self.layer, {"weight": self.weight}, (x,))
            return self.layer(x).detach() + sent - sent.detach()

    def swapped(name, layer):
        if isinstance(layer, Parallel):
            layer.branches[0][0] = swapped(f"{name}.branches.0.0", layer.branches[0][0])
            layer.branches[1][0] = swapped(f"{name}.branches.1.0", layer.branches[1][0])
        elif isinstance(layer, KERNELS):
            pattern = patterns.kernels[name]
            return Swapped(layer, pattern if method == "pattern_net" else pattern * layer.weight)
        elif isinstance(layer, Scale):
            return nn.Identity()
        return layer

    scale = layers[0]
    network = nn.Sequential(*[swapped(str(i), layer) for i, layer in enumerate(layers)])
    x, target = train.as_tensor().double(), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    scaled = scale(x).requires_grad_(True)
    chosen = network(scaled).gather(1, target[:, None])
    torch.testing.assert_close(chosen, model(x).gather(1, target[:, None]))
    (wanted,) = torch.autograd.grad(chosen, scaled, chosen.detach())
    wanted = wanted / scale.gain if method == "pattern_net" else wanted
    found = explain.METHODS[method].run(Subject(model), x, target, patterns=patterns)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12 * wanted.abs().max())


def test_an_input_scale_is_a_neuron_with_one_input(train):
    """PatternNet is in the units of the input: the pattern of g x + b by the estimator itself is 1 / g."""
    gain, bias = torch.tensor([2.0, 0.5, 4.0]), torch.tensor([0.1, 0.2, 0.3])
    as_scale = nn.Sequential(Scale(gain.view(1, 3, 1, 1), bias.view(1, 3, 1, 1)), nn.Flatten(), nn.Linear(432, 2))
    as_kernel = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), *as_scale[1:]).double()
    as_scale = as_scale.double()
    as_kernel[0].weight.data, as_kernel[0].bias.data = gain.double().view(3, 1, 1, 1), bias.double()
    for method in ("pattern_net", "pattern_attribution"):
        maps = [
            explain.attribute(network, train.as_tensor(), method, 1, patterns=explain.fit_patterns(network, train))
            for network in (as_scale, as_kernel)
        ]
        torch.testing.assert_close(*maps, rtol=1e-5, atol=1e-6 * maps[0].abs().max().item())


def test_neurons_that_do_not_vary_have_no_pattern(model):
    dead = layered(deepcopy(model))
    dead[9].bias[2], dead[9].weight[5] = -100.0, 0.0
    pixels = np.random.default_rng(2).integers(0, 256, (5, 12, 12, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear, positive = (explain.fit_patterns(dead, image_set(pixels), estimator=e) for e in ESTIMATORS)
        one = explain.fit_patterns(dead.float(), image_set(pixels[:1].repeat(4, axis=0)))
    assert not linear.kernels["9"][5].any()
    assert linear.kernels["9"][2].any()
    assert not positive.kernels["9"][2].any()
    assert not one.kernels["9"].any()
    assert not one.kernels["11"].any()
    assert not explain.attribute(dead, torch.ones(1, 3, 12, 12), "pattern_net", 0, patterns=one).any()


@pytest.mark.parametrize("name", ["vgg8", "vgg11_bn", "squeezenet1_0"])
def test_networks_of_the_study(name):
    torch.manual_seed(3)
    network = classify.build(name, n_classes=3, size=32, **({"width": 0.25} if name == "vgg8" else {}))
    if name == "vgg11_bn":  # its dense layers have 120 million weights: that is time, and nothing new
        network.net.classifier = nn.Linear(512 * 7 * 7, 3)
    images = image_set(np.random.default_rng(4).integers(0, 256, (6, 32, 32, 3)))
    patterns = explain.fit_patterns(network, images)
    for method in ("pattern_net", "pattern_attribution"):
        maps = explain.attribute(network, images.as_tensor(), method, 1, patterns=patterns)
        again = explain.attribute(network, images.as_tensor(), method, 1, patterns=patterns, batch_size=4)
        torch.testing.assert_close(maps, again, rtol=1e-3, atol=1e-4 * maps.abs().max().item())
    assert all(torch.isfinite(pattern).all() for pattern in patterns.kernels.values())


def test_only_the_train_fold_is_used(model, train):
    for split in ("", "val", "test", "held-back", "synthetic"):
        mixed = ImageSet.concat(train, image_set(train.images[:1], split))
        with pytest.raises(BadInput, match="train fold"):
            explain.fit_patterns(model, mixed)
    with pytest.raises(BadInput, match="no rows"):
        explain.fit_patterns(model, train.select([]))


def test_patterns_of_another_network_are_refused(model, train):
    x = train.as_tensor()
    with pytest.raises(BadInput, match="fitted on the train fold"):
        explain.attribute(model, x, "pattern_net", 0)
    torch.manual_seed(5)
    other = layered(deepcopy(model))
    nn.init.normal_(other[11].weight)
    smaller = nn.Sequential(nn.Flatten(), nn.Linear(432, 3)).double()
    for network in (other, smaller):
        patterns = explain.fit_patterns(network, train)
        with pytest.raises(BadInput, match="another network"):
            explain.attribute(model, x, "pattern_attribution", 0, patterns=patterns)
    fitting = explain.fit_patterns(model, train)
    coarse = Subject(deepcopy(model), dtype=torch.bfloat16)  # coarse weights are the same network
    assert (
        explain.METHODS["pattern_attribution"]
        .run(coarse, coarse.prepare(x), torch.zeros(7, dtype=torch.int64), patterns=fitting)
        .any()
    )


def test_refusals(train):
    residual = classify.build("resnet18", n_classes=3, size=32)
    with pytest.raises(BadInput, match="residual"):
        explain.fit_patterns(residual, train)
    assert all("residual" in explain.obstacles(residual)[name] for name in ("pattern_net", "pattern_attribution"))
    with pytest.raises(BadInput, match="linear, relu_positive"):
        explain.fit_patterns(residual, train, estimator="quadratic")
