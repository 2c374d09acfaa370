import numpy as np
import pytest
import torch
from gan_cases import discs

from stda.compute import rng
from stda.generators.adversarial.batches import Batches


def test_batches_are_balanced_or_empirical():
    train = discs(counts={"dark": 90, "light": 10})
    share = {}
    for sampling in ("balanced", "empirical"):
        batches = Batches(train, train.classes, sampling=sampling, noise=rng(0))
        share[sampling] = batches.draw(4000)[1].double().mean().item()
    assert share["balanced"] == pytest.approx(0.5, abs=0.04)
    assert share["empirical"] == pytest.approx(0.1, abs=0.03)
    assert batches.fake_labels(4000, "uniform").double().mean().item() == pytest.approx(0.5, abs=0.04)
    assert batches.fake_labels(4000, "empirical").double().mean().item() == pytest.approx(0.1, abs=0.03)


def test_batches_are_flips_of_the_right_image_with_its_label():
    noise = np.random.default_rng(0)
    train = discs(counts={"dark": 3, "light": 2})
    train = type(train)(noise.integers(0, 256, train.images.shape, dtype=np.uint8), train.table)
    images, labels = Batches(train, train.classes, sampling="balanced", noise=rng(0)).draw(200)
    assert images.dtype == torch.float32
    known = {}
    for row, image in enumerate(train.images):
        for flip in range(4):
            turned = image[:: 1 - 2 * (flip & 1), :: 1 - (flip & 2)]
            known[np.ascontiguousarray(turned).tobytes()] = (row, flip)
    found = [
        known[np.ascontiguousarray(((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).tobytes()]
        for image in images
    ]
    assert [train.classes[label] for label in labels] == [train.labels[row] for row, _ in found]
    assert {flip for _, flip in found} == {0, 1, 2, 3}
    assert {row for row, _ in found} == {0, 1, 2, 3, 4}
