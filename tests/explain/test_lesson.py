"""The lesson must show what the methods do: its numbers are compared with the network and with the methods' maps."""

import numpy as np
import pytest
import torch
from torch import nn

from stda import BadInput, classify, explain
from stda.explain.layers import layered, trace


@pytest.fixture(scope="module", params=["vgg8", "squeezenet1_0", "resnet18"])
def model(request):
    torch.manual_seed(0)
    model = classify.build(request.param, n_classes=4, size=32, **({"width": 0.25} if request.param == "vgg8" else {}))
    model.classes = ["a", "b", "c", "d"]
    return model.eval()


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_contributions_and_bias_sum_to_the_output(model, image):
    neuron = explain.last_neuron(model, image, "c")
    assert neuron.contributions.sum() + neuron.bias == pytest.approx(neuron.output, rel=1e-9, abs=1e-12)
    if model.name != "squeezenet1_0":  # there the logit is an average of such neurons behind a ReLU
        with torch.no_grad():
            assert neuron.output == pytest.approx(model(image)[0, 2].item(), rel=1e-4, abs=1e-5)


def test_the_rules_of_the_last_neuron_on_paper():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    network[1].weight.data, network[1].bias.data = torch.eye(3).double(), torch.zeros(3).double()
    network[3].weight.data = torch.tensor([[2.0, -1.0, 5.0], [0.0, 0.0, 1.0]]).double()
    network[3].bias.data = torch.tensor([1.0, 0.0]).double()
    neuron = explain.last_neuron(network, torch.tensor([[[[1.0, 0.5, 0.0]]]]), 0)
    assert (neuron.output, neuron.bias) == (2.5, 1.0)  # 1 * 2 - 0.5 * 1 + 0 * 5 + 1
    np.testing.assert_allclose(neuron.contributions, [2, -0.5, 0])
    np.testing.assert_allclose(neuron.relevance["epsilon"], [2, -0.5, 0])
    np.testing.assert_allclose(neuron.relevance["z+"], [2.5, 0, 0])
    # positive: 2 and the bias 1 share twice 2.5; negative: all of 2.5 is taken from the second input
    np.testing.assert_allclose(neuron.relevance["alpha2-beta1"], [2 * 2.5 * 2 / 3, -2.5, 0])
    np.testing.assert_allclose(neuron.relevance["w²"], 2.5 * np.array([4, 1, 25]) / 30)
    np.testing.assert_allclose(neuron.relevance["flat"], [2.5 / 3] * 3)
    sums = neuron.sums().set_index("rule")
    assert sums.loc["epsilon", "handed on"] == pytest.approx(1.5)
    assert sums.loc["epsilon", "kept"] == pytest.approx(1.0)  # the bias
    np.testing.assert_allclose(sums["for"] + sums["against"], sums["handed on"])
    assert sums.loc[["z+", "w²", "flat"], "kept"].abs().max() < 1e-12


def test_relevance_by_layer_starts_at_the_logit_and_ends_at_the_pixels(model, image):
    names = ["lrp_epsilon", "lrp_z_plus"]
    table = explain.relevance_by_layer(model, image, names, "b")
    with torch.no_grad():
        logit = model(image)[0, 1].item()
    assert table["layer"].iloc[0] == "logit"
    assert len(table) == len(layered(model)) + 1
    assert table["layer"].is_unique
    for name in names:
        assert table[name].iloc[0] == pytest.approx(logit, rel=1e-4, abs=1e-6)
        total = explain.attribute(model.double(), image, name, "b").double().sum().item()
        assert table[name].iloc[-1] == pytest.approx(total, rel=1e-4, abs=1e-6)
    model.float()
    np.testing.assert_allclose(table["lrp_z_plus"], logit, rtol=1e-3, atol=1e-6)


def test_the_first_epsilon_step_is_the_last_neuron(image):
    torch.manual_seed(0)
    model = classify.build("vgg8", n_classes=3, size=32, width=0.25).eval()
    table = explain.relevance_by_layer(model, image, ["lrp_z"], 0)
    assert table["layer"].iloc[1] == "dense 3"
    assert table["lrp_z"].iloc[1] == pytest.approx(explain.last_neuron(model, image, 0).contributions.sum(), rel=1e-6)
    assert len(trace(layered(model), image).inputs) == len(table) - 1


@pytest.mark.parametrize("name", ["gradient", "deep_tailor", "integrated_gradients", "guided_backprop", "pattern_net"])
def test_methods_that_do_not_go_layer_by_layer_are_refused(model, image, name):
    with pytest.raises(BadInput, match="layer by layer"):
        explain.relevance_by_layer(model, image, [name])


def test_one_image_and_some_method_are_asked_for(model, image):
    with pytest.raises(BadInput, match="without a method"):
        explain.relevance_by_layer(model, image, [])
    for images in (torch.cat([image, image]), image[:0], image[0]):
        with pytest.raises(BadInput, match="one image"):
            explain.relevance_by_layer(model, images, ["lrp_epsilon"])
        with pytest.raises(BadInput, match="one image"):
            explain.last_neuron(model, images, 0)


def test_networks_without_rules_are_refused(image):
    model = classify.build("mobilenet_v2", n_classes=3, size=32)
    with pytest.raises(BadInput, match="MobileNetV2"):
        explain.last_neuron(model, image, 0)
