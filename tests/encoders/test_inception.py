"""The Inception network of FID against torch-fidelity's, with random weights; missing and wrong files."""

import hashlib
import warnings

import numpy as np
import pytest
import torch

from stda import BadInput
from stda import encoders as E
from stda.encoders import inception
from stda.images import to_tensor


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A state dict of the network with random weights that keep the activations at one size from layer to layer."""
    from torchvision.models.inception import Inception3

    torch.manual_seed(0)
    network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.7, 1.3)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def encoder(weights):
    return E.load_inception(weights=str(weights))


@pytest.fixture(scope="module")
def reference(weights):
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    return fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["64", "192", "768", "2048"], feature_extractor_weights_path=str(weights)
    )


def noise(n, height, width):
    return np.random.default_rng(height).integers(0, 256, (n, height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (128, 128), (299, 299), (400, 400), (40, 61)])
def test_features_are_those_of_torch_fidelity_to_rounding(encoder, reference, machine, height, width):
    images = noise(2, height, width)
    expected = reference(torch.from_numpy(images).permute(0, 3, 1, 2))[-1].numpy()
    found = E.encode(encoder, images, compute=machine)
    assert (found.shape, found.dtype) == ((2, 2048), np.float32)
    assert expected.std() > 0.1  # an all-zero feature would agree with anything
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6 * abs(expected).max())
    rounded = E.encode(encoder, images, compute=machine, precision="bf16")
    assert np.linalg.norm(rounded - expected) / np.linalg.norm(expected) < 0.01


def test_layers_inside_are_those_of_torch_fidelity(encoder, reference):
    images = noise(1, 48, 48)
    expected = reference.convert_features_tuple_to_dict(reference(torch.from_numpy(images).permute(0, 3, 1, 2)))
    x = encoder.prepare(to_tensor(images))
    for name, end in encoder.layer_ends.items():
        found = encoder.trunk[: end + 1](x).mean(dim=(2, 3))
        assert found.shape[1] == int(name)
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5)


def test_resize_samples_pixel_i_at_i_times_the_ratio():
    x = torch.arange(6.0).square().view(1, 1, 1, 6).expand(1, 1, 6, 6)
    found = inception.resize_like_tensorflow(x, 4)[0, 0]
    places = np.arange(4) * 6 / 4  # TensorFlow 1.x: no half-pixel shift
    np.testing.assert_allclose(found[0], np.interp(places, np.arange(6), np.arange(6.0) ** 2), rtol=1e-6)
    up = inception.resize_like_tensorflow(x, 9)[0, 0, 0]
    np.testing.assert_allclose(up, np.interp(np.arange(9) * 6 / 9, np.arange(6), np.arange(6.0) ** 2), rtol=1e-5)
    assert inception.resize_like_tensorflow(x, 6) is x


def test_average_pooling_leaves_the_padding_out_and_the_last_block_takes_the_maximum(encoder):
    """Equal pixels: only with the padding left out is every position of a pooled branch that of the middle."""
    block = encoder.trunk[2]
    pooled = block.tails[-1](torch.ones(1, 1, 5, 5))
    torch.testing.assert_close(pooled, torch.ones(1, 1, 5, 5))
    assert len(encoder.trunk[-1].direct) == 1
    assert isinstance(encoder.trunk[-1].direct[0][0], torch.nn.MaxPool2d)
    assert len(encoder.trunk[-2].direct) == 0


def test_weights_come_from_the_cache_under_either_name(weights, machine, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(BadInput, match=r"No Inception weights of FID at .*pt_inception-2015-12-05-6726825d\.pth.*copy"):
        E.load_inception()
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    start = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    for prefix in ("pt_inception", "weights-inception"):
        name = f"{prefix}-2015-12-05-{start}.pth"
        monkeypatch.setattr(inception, "FILES", ("absent-00000000.pth", name))
        (folder / name).symlink_to(weights)
        assert E.cached_inception() == folder / name
        found = E.load_inception().provenance
        assert (found["name"], found["source"], found["file"]) == ("inception", "torch.hub cache", name)
        assert found["sha256"].startswith(start)
    monkeypatch.setattr(inception, "FILES", ("pt_inception-2015-12-05-6726825d.pth",))
    (folder / inception.FILES[0]).symlink_to(weights)
    with pytest.raises(BadInput, match="damaged"):
        E.load_inception()


def test_wrong_files_are_refused(weights, tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        E.load_inception(weights=str(tmp_path / "nothing.pth"))
    state = torch.load(weights, weights_only=True)
    path = tmp_path / "other.pth"

    def refused(change, said):
        torch.save({**state, **change}, path)
        with pytest.raises(BadInput, match=said):
            E.load_inception(weights=str(path))

    refused({"fc.weight": torch.zeros(1000, 2048)}, "does not hold the Inception weights of FID")  # torchvision's own
    refused({"more": torch.zeros(1)}, "does not hold the Inception weights of FID")
    refused({"fc.bias": torch.full((1008,), float("nan"))}, "finite")


def test_a_file_without_counters_of_batches_is_read(weights, encoder, machine, tmp_path):
    """The published file was made before BatchNorm counted its batches."""
    state = torch.load(weights, weights_only=True)
    path = tmp_path / "old.pth"
    torch.save({key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = E.load_inception(weights=str(path))
    images = noise(1, 32, 32)
    assert np.array_equal(E.encode(found, images, compute=machine), E.encode(encoder, images, compute=machine))
