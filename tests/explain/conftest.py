"""The network and the images that several test modules explain."""

import pytest
import torch

from stda import classify


@pytest.fixture(scope="module")
def model():
    """A VGG8 whose BatchNorm has statistics that are not the neutral ones."""
    torch.manual_seed(0)
    model = classify.build("vgg8", n_classes=4, size=32, width=0.5)
    model.classes = ["a", "b", "c", "d"]
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(16, 3, 32, 32) * 2 - 1)
        model.net.head[-1].bias.fill_(2.0)  # positive logits, so that every class has a map
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
