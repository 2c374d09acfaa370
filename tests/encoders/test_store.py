"""Features are computed once per image set, whatever happens to the cache."""

import copy

import numpy as np
import pytest
import torch

from stda import BadInput
from stda import encoders as E
from stda.encoders import store as module


@pytest.fixture
def count(monkeypatch):
    """Note the number of images of every computation."""
    calls = []

    def encode(encoder, images, **knobs):
        calls.append(len(images))
        return E.encode(encoder, images, **knobs)

    monkeypatch.setattr(module, "encode", encode)
    return calls


@pytest.mark.parametrize("on_disk", [False, True])
def test_features_are_computed_once_and_are_those_of_the_encoder(trained, toy, machine, tmp_path, count, on_disk):
    images = toy(12).images
    store = E.FeatureStore(trained, compute=machine, folder=tmp_path / "made" if on_disk else None, batch_size=5)
    first = store.features(images)
    np.testing.assert_array_equal(first, E.encode(trained, images, compute=machine, batch_size=5))
    assert first.dtype == np.float32
    np.testing.assert_array_equal(store.features(images.copy()), first)  # another array of the same content
    assert count == [12]
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
    again = E.FeatureStore(trained, compute=machine, folder=tmp_path / "made" if on_disk else None, batch_size=5)
    np.testing.assert_array_equal(again.features(images), first)
    assert count == ([12] if on_disk else [12, 12])  # memory goes with the store
    assert store.features(images[:0]).shape == (0, 256)


def test_whatever_changes_the_features_changes_the_key(trained, toy, machine):
    images = toy(4).images

    def key(encoder=trained, images=images, **knobs):
        return E.FeatureStore(encoder, compute=machine, **knobs).key(images)

    other = copy.deepcopy(trained)
    with torch.no_grad():
        next(other.trunk.parameters())[0, 0, 0, 0] += 1e-3
    scaled, enlarged = copy.deepcopy(trained), copy.deepcopy(trained)
    scaled.provenance, enlarged.min_size = {**trained.provenance, "normalisation": "imagenet"}, 64
    touched = images.copy()
    touched[-1, -1, -1, -1] ^= 1
    keys = [
        key(),
        key(other),
        key(scaled),
        key(enlarged),
        key(precision="bf16"),
        key(images=touched),
        key(images=images[:3]),
        key(images=images.reshape(4, 8, 32, 3)),  # the same bytes in another shape
        key(images=images[::-1]),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key(images=images.copy())


def test_the_version_is_part_of_the_key(trained, toy, machine, monkeypatch):
    images = toy(4).images
    before = E.FeatureStore(trained, compute=machine).key(images)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert E.FeatureStore(trained, compute=machine).key(images) != before


def test_the_key_does_not_depend_on_how_a_memory_map_is_read(trained, toy, machine, tmp_path, monkeypatch):
    images = toy(9).images
    np.save(tmp_path / "images.npy", images)
    store = E.FeatureStore(trained, compute=machine)
    expected = store.key(images)
    monkeypatch.setattr(module, "HASHED_AT_ONCE", 2000)  # two images and a bit
    assert store.key(np.load(tmp_path / "images.npy", mmap_mode="r")) == expected
    assert store.key(np.asfortranarray(images)) == expected


@pytest.mark.parametrize("damage", ["short", "empty", "flipped", "other"])
def test_damaged_files_are_computed_again(trained, toy, machine, tmp_path, count, damage):
    images = toy(6).images
    store = E.FeatureStore(trained, compute=machine, folder=tmp_path)
    expected = store.features(images).copy()
    (path,) = tmp_path.glob("*.npy")
    np.testing.assert_array_equal(np.load(path), expected)  # the digest behind the array disturbs nobody
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    change = {"short": bytes(content[: len(content) // 2]), "empty": b"", "flipped": bytes(content), "other": b"x" * 99}
    path.write_bytes(change[damage])
    np.testing.assert_array_equal(store.features(images), expected)
    np.testing.assert_array_equal(store.features(images), expected)
    assert count == [6, 6]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no partial file is left


@pytest.mark.parametrize("name", ["trained", "squeezenet"])  # with convolutions of 1x1 and without
def test_bf16_is_recorded_and_kept_apart(name, request, toy, machine, tmp_path):
    images, encoder = toy(6).images, request.getfixturevalue(name)
    exact = E.FeatureStore(encoder, compute=machine, folder=tmp_path)
    rounded = E.FeatureStore(encoder, compute=machine, folder=tmp_path, precision="bf16")
    difference = np.linalg.norm(exact.features(images) - rounded.features(images))
    assert 0 < difference < 0.02 * np.linalg.norm(exact.features(images))
    assert exact.provenance == {**encoder.provenance, "precision": "float32"}
    assert rounded.provenance["precision"] == "bf16"


def test_errors_are_sentences(trained, toy, machine, tmp_path):
    store = E.FeatureStore(trained, compute=machine)
    with pytest.raises(BadInput, match=r"uint8 images \(N, H, W, 3\); got float64 \(2, 3\)"):
        store.features(np.zeros((2, 3)))
    with pytest.raises(BadInput, match="precision is 'half'"):
        E.FeatureStore(trained, compute=machine, precision="half")
    (tmp_path / "file").write_text("not a folder")
    blocked = E.FeatureStore(trained, compute=machine, folder=tmp_path / "file")
    with pytest.raises(BadInput, match=r"feature cache .*file cannot be written"):
        blocked.features(toy(4).images)
