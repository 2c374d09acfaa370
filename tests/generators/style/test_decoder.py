"""The mirrored decoder: doubling and convolution in one, features that lie where the picture has them, shapes."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from stda.generators.style.decoder import UpConv, centre, mirror, settled


def test_up_conv_is_doubling_then_a_reflect_padded_convolution():
    torch.manual_seed(0)
    conv = UpConv(5, 4, 3).double()
    for x in (torch.randn(2, 5, 3, 6).double(), torch.randn(1, 5, 1, 1).double()):
        doubled = functional.pad(functional.interpolate(x, scale_factor=2, mode="nearest"), (1,) * 4, mode="reflect")
        torch.testing.assert_close(conv(x), functional.conv2d(doubled, conv.weight, conv.bias), rtol=1e-12, atol=1e-12)


def test_vgg19_gets_the_decoder_of_the_paper():
    from torchvision.models import vgg19

    with torch.device("meta"):  # shapes only
        chain = vgg19(weights=None).features[:21]  # up to the activation of conv4_1
    decoder, stride = mirror(chain)
    convolutions = [layer for layer in decoder if isinstance(layer, nn.Conv2d)]
    widths = [(512, 256), (256, 256), (256, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64), (64, 3)]
    assert [(conv.in_channels, conv.out_channels) for conv in convolutions] == widths
    assert [i for i, conv in enumerate(convolutions) if isinstance(conv, UpConv)] == [1, 5, 7]
    assert all(conv.padding_mode == "reflect" for conv in convolutions)
    assert stride == 8
    assert not isinstance(decoder[-1], nn.ReLU)


@pytest.mark.parametrize(("name", "depth"), [("squeezenet1_0", 8), ("mobilenet_v2", 7)])
def test_strided_networks_are_mirrored_to_the_full_size(name, depth):
    from torchvision.models import get_model

    chain = get_model(name, weights=None).features[:depth].eval()
    centre(chain)
    decoder, stride = mirror(chain)
    assert stride == 8
    features = chain(torch.zeros(1, 3, 48, 64))
    assert features.shape[2:] == (6, 8)
    assert decoder(features).shape == (1, 3, 48, 64)


def test_a_centred_feature_lies_over_what_it_sees():
    from torchvision.models import squeezenet1_0

    chain = squeezenet1_0(weights=None).features[:3]  # convolution of stride 2 and a pool of stride 2, unpadded
    nn.init.constant_(chain[0].weight, 1.0)  # a blurred dot, brightest where the dot is
    for place in (0, 20, 44):
        x = torch.zeros(1, 3, 48, 48)
        x[..., place, place] = 1.0
        centred = nn.Sequential(*chain)
        centre(centred)
        lit = torch.nonzero(centred(x)[0, 0] > centred(torch.zeros_like(x))[0, 0] + 0.5).double()
        assert abs(lit.mean().item() * 4 - place) <= 2


def test_settled_is_the_same_function():
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1, padding_mode="reflect"), nn.ReLU(True), UpConv(5, 3, 3))
    x = torch.randn(2, 6, 4, 7)
    with torch.no_grad():
        exact = settled(decoder, torch.float64)
        torch.testing.assert_close(exact(x.double()), decoder.double()(x.double()), rtol=1e-5, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in exact.parameters())
    assert settled(decoder, torch.bfloat16)[0].weight.dtype == torch.bfloat16
    assert decoder[0].weight.requires_grad
