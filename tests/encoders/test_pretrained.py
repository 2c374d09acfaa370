"""ImageNet networks: layers against torchvision, weights that are missing or wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stda import BadInput
from stda import encoders as E

SHARED = Path(__file__).resolve().parents[2] / "../shared/weights"


def saved(tmp_path, name, change=None):
    """A state dict of a torchvision network with random weights and BatchNorm statistics that matter."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    state = network.state_dict()
    if change:
        change(state)
    torch.save(state, tmp_path / "weights.pth")
    return network, str(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["squeezenet1_0", "mobilenet_v2"])
def test_layers_are_those_of_torchvision(tmp_path, name):
    network, path = saved(tmp_path, name)
    encoder = E.load_encoder(name, weights=path)
    x = torch.rand(2, 3, 96, 96) * 2 - 1
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected, h = {}, ((x + 1) / 2 - mean) / std
    with torch.no_grad():
        for i, layer in enumerate(network.features):
            h = layer(h)
            expected[str(i)] = h.clone()
        for layer, found in encoder.layers(x, encoder.layer_names).items():
            torch.testing.assert_close(found, expected[layer], rtol=1e-3, atol=1e-4)
    assert set(encoder.style_layers) | {encoder.content_layer} <= set(encoder.layer_names)


def test_vgg_layer_names_are_the_positions_after_the_activation():
    import torchvision

    with torch.device("meta"):
        vgg16, vgg19 = (torchvision.models.get_model(name, weights=None).features for name in ("vgg16", "vgg19"))
    # positions as tabulated in public style transfer code for torchvision's VGG (convolution + 1 for its ReLU)
    assert [E.layer_ends("vgg19", vgg19)[f"conv{b}_1"] for b in range(1, 6)] == [1, 6, 11, 20, 29]
    assert E.layer_ends("vgg19", vgg19)["conv4_2"] == 22
    assert E.layer_ends("vgg16", vgg16)["conv5_2"] == 27
    for name, trunk in (("vgg16", vgg16), ("vgg19", vgg19)):
        style, content = E.LAYERS[name]
        assert {*style, content} <= set(E.layer_ends(name, trunk))


def test_missing_weights_are_an_error_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    for name in E.NETWORKS:
        with pytest.raises(BadInput, match=r"No ImageNet weights of .*IMAGENET1K_V1.*in-domain"):
            E.load_encoder(name)
    with pytest.raises(BadInput, match="does not exist"):
        E.load_encoder("vgg16", weights=str(tmp_path / "vgg.pth"))
    path = E.cached_weights("squeezenet1_0")
    assert path.parent == tmp_path / "hub" / "checkpoints"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a download")
    with pytest.raises(BadInput, match="damaged"):
        E.load_encoder("squeezenet1_0")


def test_wrong_files_are_refused(tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(BadInput, match="not a readable PyTorch state dict"):
        E.load_encoder("squeezenet1_0", weights=str(tmp_path / "text.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(BadInput, match="no state dict"):
        E.load_encoder("squeezenet1_0", weights=str(tmp_path / "list.pth"))
    _, path = saved(tmp_path, "squeezenet1_0", lambda s: s.pop("features.10.expand3x3.bias"))
    with pytest.raises(BadInput, match="does not hold weights of"):  # one tensor less: no random one in its place
        E.load_encoder("squeezenet1_0", weights=path)
    with pytest.raises(BadInput, match="does not hold weights of mobilenet_v2"):
        E.load_encoder("mobilenet_v2", weights=path)
    _, path = saved(tmp_path, "squeezenet1_0", lambda s: s["features.0.bias"].fill_(float("nan")))
    with pytest.raises(BadInput, match="finite"):
        E.load_encoder("squeezenet1_0", weights=path)
    with pytest.raises(BadInput, match="train_in_domain"):
        E.load_encoder("in-domain")
    with pytest.raises(BadInput, match="normalisation is 'unit'"):
        E.load_encoder("squeezenet1_0", weights=path, normalisation="unit")


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/weights is not here")
def test_shared_weights_load_with_their_own_normalisation(machine):
    squeezenet = E.load_encoder("squeezenet1_0", weights=str(SHARED / "squeezenet1_0_imagenet_deepcompression.pth"))
    mobilenet = E.load_encoder("mobilenet_v2", weights=str(SHARED / "mobilenet_v2_imagenet_tfptq_fp16.pth"))
    assert squeezenet.provenance["normalisation"] == "imagenet"
    assert mobilenet.provenance["normalisation"] == "half"
    assert len(squeezenet.provenance["sha256"]) == 64
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for encoder, width in ((squeezenet, 512), (mobilenet, 1280)):
        features = E.encode(encoder, images, compute=machine, batch_size=2)
        assert features.shape == (3, width)
        assert features.dtype == np.float32
        assert np.isfinite(features).all()
