"""What every encoder does: layers, pooled features, precision, batches, merged BatchNorm."""

import numpy as np
import pytest
import torch

from stda import BadInput
from stda import encoders as E
from stda.images import to_tensor


def test_layers_above_the_deepest_one_are_not_run(trained):
    calls = []
    hooks = [m.register_forward_hook(lambda *_, n=n: calls.append(n)) for n, m in trained.trunk.named_children()]
    trained.layers(torch.zeros(1, 3, 16, 16), ["conv2_1", "conv1_1"])
    for hook in hooks:
        hook.remove()
    assert calls == ["conv1_1", "pool1", "conv2_1"]
    with pytest.raises(BadInput, match="no layer"):
        trained.layers(torch.zeros(1, 3, 16, 16), ["conv9_9"])


def test_pooled_features_are_means_of_the_deepest_layer(trained, toy, machine):
    images = toy(6).images
    deepest = trained.layers(to_tensor(images), ["conv4_1"])["conv4_1"]
    found = E.encode(trained, images, compute=machine, batch_size=4)
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


def test_bf16_is_a_copy_that_is_nearly_the_same(trained, squeezenet, toy, machine):
    images = toy(6).images
    for encoder in (trained, squeezenet):
        exact = E.encode(encoder, images, compute=machine)
        rounded = E.encode(encoder, images, compute=machine, precision="bf16")
        assert rounded.dtype == np.float32
        assert 1e-5 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.02
        assert all(parameter.dtype == torch.float32 for parameter in encoder.parameters())
        assert np.array_equal(E.encode(encoder, images, compute=machine), exact)
        assert encoder.in_precision("float32") is encoder
    with pytest.raises(BadInput, match="precision is 'float16'; encoders have float32 and bf16"):
        E.encode(trained, images, compute=machine, precision="float16")


def test_neither_batches_nor_autocast_nor_memory_maps_change_the_features(trained, toy, machine, tmp_path):
    images = toy(7).images
    np.save(tmp_path / "images.npy", images)
    expected = E.encode(trained, images, compute=machine, batch_size=7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = E.encode(trained, np.load(tmp_path / "images.npy", mmap_mode="r"), compute=machine, batch_size=3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    empty = E.encode(trained, images[:0], compute=machine)
    assert (empty.shape, empty.dtype) == ((0, 256), np.float32)


def test_a_batch_holds_about_as_many_pixels_whatever_the_size(trained, squeezenet, machine, monkeypatch):
    seen = []
    for encoder in (trained, squeezenet):
        monkeypatch.setattr(encoder, "features", lambda x: seen.append(tuple(x.shape)) or torch.zeros(len(x), 1))
    monkeypatch.setitem(E.base.PIXELS_AT_ONCE, "cpu", 4 * 128 * 128)
    E.encode(squeezenet, np.zeros((6, 32, 32, 3), np.uint8), compute=machine)  # enlarged to 128 px
    E.encode(squeezenet, np.zeros((2, 512, 512, 3), np.uint8), compute=machine)  # more than the limit, one by one
    E.encode(trained, np.zeros((6, 32, 32, 3), np.uint8), compute=machine)
    assert [shape[0] for shape in seen] == [4, 2, 1, 1, 6]
