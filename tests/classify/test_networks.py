from pathlib import Path

import pytest
import torch
from torch import nn

from stda import BadInput, classify
from stda.classify.networks import Features

SHARED = Path(__file__).resolve().parents[2] / "../shared"


@pytest.mark.parametrize("size", [8, 16, 32, 45, 64])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_vgg8_has_eight_weight_layers_at_every_size(size, batch_norm):
    model = classify.build("vgg8", n_classes=5, size=size, width=0.25, batch_norm=batch_norm)
    kernels = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [type(m) for m in kernels] == [nn.Conv2d] * 5 + [nn.Linear] * 3
    assert [m.out_channels for m in kernels[:5]] == [8, 16, 32, 64, 64]
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == batch_norm
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 5)


@pytest.mark.parametrize("name", [n for n in classify.NETWORKS if n not in ("vgg8", "vgg16_bn", "vgg11_bn", "alexnet")])
def test_torchvision_networks_answer(name):
    model = classify.build(name, n_classes=3, size=32).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert model.provenance["weights"] == "none"


@pytest.mark.parametrize(
    ("name", "file", "normalisation"),
    [
        ("squeezenet1_0", "squeezenet1_0_imagenet_deepcompression.pth", "imagenet"),
        ("mobilenet_v2", "mobilenet_v2_imagenet_tfptq_fp16.pth", "half"),
    ],
)
def test_pretrained_weights_get_their_input_scale_and_a_new_head(name, file, normalisation):
    path = SHARED / "weights" / file
    if not path.is_file():
        pytest.skip(f"../shared/weights/{file} is not on this machine")
    model = classify.build(name, n_classes=3, size=64, weights=str(path)).eval()
    assert model.provenance["normalisation"] == normalisation
    assert len(model.provenance["sha256"]) == 64
    state = torch.load(path, weights_only=True)
    for key, value in model.net.state_dict().items():
        if not key.startswith("classifier.1.") and value.is_floating_point():
            assert torch.equal(value, state[key].float())
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    mean, std = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "half": ([0.5] * 3, [0.5] * 3)}[
        normalisation
    ]
    scaled = ((x + 1) / 2 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(model(x), model.net(scaled), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "vgg19"}, "vgg8, vgg11_bn"),
        ({"n_classes": 1}, "at least 2 classes"),
        ({"name": "alexnet"}, "at least 63 px"),
        ({"size": 4}, "at least 8 px"),
        ({"weights": "cache"}, "no ready weights"),
        ({"width": 0.0}, "width"),
        ({"name": "resnet18", "weights": "nowhere.pth"}, "nowhere.pth"),
    ],
)
def test_bad_input_is_a_sentence(change, words):
    with pytest.raises(BadInput, match=words):
        classify.build(**({"name": "vgg8", "n_classes": 3, "size": 32} | change))


def test_weights_that_do_not_fit(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    for name in ("other", "broken"):
        with pytest.raises(BadInput, match=f"{name}.pth"):
            classify.build("resnet18", n_classes=3, size=32, weights=str(tmp_path / f"{name}.pth"))


def test_cached_weights_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BadInput, match="torchvision's cache"):
        classify.build("resnet18", n_classes=3, size=32, weights="cache")


class Calls(nn.ReLU):
    """A ReLU that notes the side of what it gets."""

    def __init__(self, sides):
        super().__init__(inplace=True)
        self.sides = sides

    def forward(self, x):
        self.sides.append(x.shape[-1])
        return super().forward(x)


def test_relu_and_pooling_change_places_only_where_they_are_neighbours():
    sides = []
    relus = [Calls(sides) for _ in range(4)]
    layers = [
        relus[0],
        nn.MaxPool2d(2),
        nn.MaxPool2d(2),
        relus[1],
        relus[2],
        nn.MaxPool2d(2),
        nn.AvgPool2d(2),
        relus[3],
    ]
    chain = Features(*layers)
    assert chain(torch.randn(1, 2, 32, 32)).shape == (1, 2, 2, 2)
    assert sides == [16, 8, 4, 2]
    assert list(chain) == layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, padding=1), nn.MaxPool2d(3, 2, ceil_mode=True)])
def test_the_order_of_relu_and_pooling_changes_no_bit(dtype, pool):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), pool, nn.Conv2d(8, 4, 3)
    x = torch.randn(4, 3, 17, 17).round(decimals=1).to(memory_format=torch.channels_last)  # ties within windows
    results = []
    for kind in (nn.Sequential, Features):
        network = kind(*layers)
        network.zero_grad()
        network[1].reset_running_stats()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = network(x)
        out.float().square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in network.parameters())])
    for plain, ours in zip(*results, strict=True):
        assert torch.equal(plain, ours)


@pytest.mark.parametrize("name", ["squeezenet1_0", "vgg11_bn", "vgg16_bn", "alexnet"])
def test_features_keep_the_names_of_torchvision(name):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        theirs = models.get_model(name, weights=None, num_classes=3)
        ours = classify.build(name, n_classes=3, size=64).net
    assert isinstance(ours.features, Features)
    assert list(ours.state_dict()) == list(theirs.state_dict())
