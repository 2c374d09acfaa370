"""Encoders: layers against torchvision, weights that are missing or wrong, the in-domain classifier."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stda import BadInput
from stda import encoders as E
from stda.compute import Compute
from stda.images import ImageSet, to_tensor

SHARED = Path(__file__).resolve().parents[1] / "../shared/weights"
FLOAT32 = Compute(torch.device("cpu"), "float32", 1)


def toy(n=40, size=16, seed=0, split="train"):
    """Red and blue noise: two classes that any classifier tells apart."""
    random = np.random.default_rng(seed)
    labels = np.array(["blue", "red"])[np.arange(n) % 2]
    images = random.integers(0, 80, (n, size, size, 3))
    images[np.arange(n), :, :, np.where(labels == "red", 0, 2)] += 120
    table = pd.DataFrame({"image_id": [f"{split}{i}" for i in range(n)], "label": labels, "split": split})
    return ImageSet(images.astype(np.uint8), table)


@pytest.fixture(scope="module")
def trained():
    return E.train_in_domain(toy(), steps=12, seed=3, compute=FLOAT32, batch_size=16)


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


def test_layers_above_the_deepest_one_are_not_run(trained):
    calls = []
    hooks = [m.register_forward_hook(lambda *_, n=n: calls.append(n)) for n, m in trained.trunk.named_children()]
    trained.layers(torch.zeros(1, 3, 16, 16), ["conv2_1", "conv1_1"])
    for hook in hooks:
        hook.remove()
    assert calls == ["conv1_1", "pool1", "conv2_1"]
    with pytest.raises(BadInput, match="no layer"):
        trained.layers(torch.zeros(1, 3, 16, 16), ["conv9_9"])


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
def test_shared_weights_load_with_their_own_normalisation():
    squeezenet = E.load_encoder("squeezenet1_0", weights=str(SHARED / "squeezenet1_0_imagenet_deepcompression.pth"))
    mobilenet = E.load_encoder("mobilenet_v2", weights=str(SHARED / "mobilenet_v2_imagenet_tfptq_fp16.pth"))
    assert squeezenet.provenance["normalisation"] == "imagenet"
    assert mobilenet.provenance["normalisation"] == "half"
    assert len(squeezenet.provenance["sha256"]) == 64
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for encoder, width in ((squeezenet, 512), (mobilenet, 1280)):
        features = E.encode(encoder, images, compute=FLOAT32, batch_size=2)
        assert features.shape == (3, width)
        assert features.dtype == np.float32
        assert np.isfinite(features).all()


def test_pooled_features_are_means_of_the_deepest_layer(trained):
    images = toy(6).images
    deepest = trained.layers(to_tensor(images), ["conv4_1"])["conv4_1"]
    found = E.encode(trained, images, compute=FLOAT32, batch_size=4)
    np.testing.assert_allclose(found, deepest.numpy().mean(axis=(2, 3)), rtol=1e-4, atol=1e-6)
    assert trained.features(torch.zeros(1, 3, 8, 8)).shape == (1, 256)  # smaller than trained for: enlarged


def test_merged_batch_norm_is_the_same_function():
    torch.manual_seed(1)
    trunk, _ = E.in_domain_network(2)
    for module in trunk.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = trunk.eval()(x)
        after = E.merge_batch_norm(trunk)(x)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in trunk.modules())


def test_in_domain_learns_is_frozen_and_repeats(trained):
    test = toy(seed=9, split="test")
    probabilities = trained.classify(test, FLOAT32)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (np.array(trained.classes)[probabilities.argmax(axis=1)] == test.labels).mean() > 0.9
    assert not any(p.requires_grad for p in trained.parameters())
    assert not trained.train().training

    before, records = torch.get_rng_state(), []
    again = E.train_in_domain(toy(), steps=12, seed=3, compute=FLOAT32, batch_size=16, callback=records.append)
    assert torch.equal(before, torch.get_rng_state())
    assert again.provenance == trained.provenance
    assert [r["step"] for r in records] == list(range(1, 13))
    assert np.array_equal(again.classify(test, FLOAT32), probabilities)
    other = E.train_in_domain(toy(), steps=12, seed=4, compute=FLOAT32, batch_size=16)
    assert other.provenance["sha256"] != trained.provenance["sha256"]


def test_in_domain_survives_saving(trained, tmp_path):
    E.save_in_domain(trained, tmp_path)
    opened = E.load_in_domain(tmp_path)
    assert (opened.classes, opened.size, opened.provenance) == (trained.classes, trained.size, trained.provenance)
    test = toy(seed=5, split="test")
    assert np.array_equal(opened.classify(test, FLOAT32), trained.classify(test, FLOAT32))
    text = (tmp_path / "encoder.json").read_text()
    (tmp_path / "encoder.json").write_text(text.replace(trained.provenance["sha256"], "0" * 64))
    with pytest.raises(BadInput, match="SHA-256"):
        E.load_in_domain(tmp_path)
    with pytest.raises(BadInput, match="01_data"):
        E.load_in_domain(tmp_path / "nothing")


def test_in_domain_refuses_what_it_must_not_see(trained):
    mixed = ImageSet.concat(toy(), toy(split="test"))
    with pytest.raises(BadInput, match="train fold only"):
        E.train_in_domain(mixed, steps=1, seed=0, compute=FLOAT32)
    with pytest.raises(BadInput, match="2 classes"):
        E.train_in_domain(toy().select(label="red"), steps=1, seed=0, compute=FLOAT32)
    with pytest.raises(BadInput, match="trained at 16 px"):
        trained.classify(toy(size=20), FLOAT32)
    assert trained.classify(toy().select([]), FLOAT32).shape == (0, 2)
