"""What the tests of encoders share: two classes that any classifier tells apart, and a network trained on them."""

import numpy as np
import pandas as pd
import pytest
import torch

from stda import encoders as E
from stda.compute import Compute
from stda.images import ImageSet


@pytest.fixture(scope="session")
def machine():
    return Compute(torch.device("cpu"), "float32", 1)


@pytest.fixture(scope="session")
def toy():
    def make(n=40, size=16, seed=0, split="train"):
        """Red and blue noise."""
        random = np.random.default_rng(seed)
        labels = np.array(["blue", "red"])[np.arange(n) % 2]
        images = random.integers(0, 80, (n, size, size, 3))
        images[np.arange(n), :, :, np.where(labels == "red", 0, 2)] += 120
        table = pd.DataFrame({"image_id": [f"{split}{i}" for i in range(n)], "label": labels, "split": split})
        return ImageSet(images.astype(np.uint8), table)

    return make


@pytest.fixture(scope="session")
def trained(toy, machine):
    return E.train_in_domain(toy(), steps=12, seed=3, compute=machine, batch_size=16)


@pytest.fixture(scope="session")
def squeezenet(tmp_path_factory):
    """SqueezeNet with random weights."""
    import torchvision

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_0(weights=None).state_dict(), path)
    return E.load_encoder("squeezenet1_0", weights=str(path))
