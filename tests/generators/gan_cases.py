"""Small image sets and settings for the tests of the GANs."""

import numpy as np
import pandas as pd
import torch

from stda.compute import Compute
from stda.generators.adversarial.checkpoint import Checkpoints
from stda.generators.adversarial.fitting import Fit
from stda.generators.adversarial.watching import Watching
from stda.images import ImageSet

# on the CPU in float32: what the tests compare is arithmetic, not hardware
CPU = Compute(torch.device("cpu"), "float32", 1)

# the smallest networks of each kind, and knobs common to the tests
TINY = {
    "dcgan": {"width": 4, "latent": 6, "batch_size": 4},
    "wgan": {"width": 4, "latent": 8, "batch_size": 4, "n_critic": 2},
    "pggan": {"max_channels": 4, "latent": 6, "batch_size": 4},
}


def discs(*, size=8, counts=None, split="train", seed=0):
    """Return pictures of discs, dark or light by class, with noise."""
    counts = counts or {"dark": 9, "light": 5}
    noise = np.random.default_rng(seed)
    yy, xx = np.mgrid[:size, :size] - (size - 1) / 2
    inside = (np.hypot(yy, xx) < size / 3)[..., None]
    labels = [label for label, n in counts.items() for _ in range(n)]
    level = np.array([{"dark": 40, "light": 200}.get(label, 120) for label in labels])[:, None, None, None]
    images = np.where(inside, level, 128) + noise.integers(-20, 20, (len(labels), size, size, 3))
    table = pd.DataFrame({"image_id": [f"i{k}" for k in range(len(labels))], "label": labels, "split": split})
    return ImageSet(images.astype(np.uint8), table)


def started(gan, train, *, steps, seed=0):
    """Return the state of a GAN of all classes before its first step."""
    gan.classes, gan.size = train.classes, train.size
    fit = Fit(gan, steps, None, Watching(None, None, 0, 1, 0), Checkpoints(None, 1, ""))
    return fit.start(train, train.classes, steps, seed)


def noisy_judge(real, synthetic):
    """Judge images by numbers that depend on every pixel and move up and down."""
    total = synthetic.images.astype(int).sum()
    return {"kid": float(total % 1009), "near_copies": float(total % 7) / 7}
