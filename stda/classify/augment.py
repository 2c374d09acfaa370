"""Augmentation of whole batches on tensors; each image draws its own transformation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from stda import BadInput

# float32 NCHW in [-1, 1] and a random generator on the CPU -> the same shape and range
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what PIL and torchvision call grey
RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def none(images: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Return the images as they are."""
    return images


def classic(
    images: torch.Tensor,
    noise: torch.Generator,
    *,
    zoom: tuple[float, float] = (0.9, 1.2),  # magnification
    # weak, because colour is evidence here: twice as much cost 0.03 to 0.04 on HAM10000's validation fold
    brightness: float = 0.1,  # factors are drawn from [1 - x, 1 + x]
    contrast: float = 0.1,
    saturation: float = 0.1,
    hue: float = 0.01,  # of a full turn of the colour circle, in either direction
) -> torch.Tensor:
    """Flip, rotate by any angle, zoom and jitter the colours of float32 ``(N, 3, H, W)`` in [-1, 1].

    A lesion has no up and no left, so all orientations are equally likely.  The geometry is one resampling (edges
    reflected) and the colour one matrix per image.  ``noise`` is a generator on the CPU, so the same seed gives
    the same transformations on every device.
    """
    # bicubic: bilinear sampling blurs small images, and those of the test are sharp (0.62 against 0.59 at 32 px)
    images = functional.grid_sample(
        images, _grids(images, noise, zoom), mode="bicubic", padding_mode="reflection", align_corners=False
    ).clamp_(-1, 1)
    return jitter(images, noise, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)


def _grids(images: torch.Tensor, noise: torch.Generator, zoom: tuple[float, float]) -> torch.Tensor:
    """Draw one rotation, flip and zoom per image and return the sampling grids ``(N, H, W, 2)``."""
    n = len(images)
    angle = torch.rand(n, generator=noise) * (2 * math.pi)
    # a flip along one axis is enough: with any rotation it makes the flip along the other
    flip = torch.randint(0, 2, (n,), generator=noise) * 2.0 - 1.0
    low, high = (math.log(bound) for bound in zoom)
    scale = torch.exp(-(low + (high - low) * torch.rand(n, generator=noise)))  # the grid shrinks as the image grows
    cos, sin, nought = angle.cos() * scale, angle.sin() * scale, torch.zeros(n)
    theta = torch.stack([cos * flip, -sin, nought, sin * flip, cos, nought], dim=1).view(n, 2, 3)
    return functional.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)


def jitter(
    images: torch.Tensor,
    noise: torch.Generator,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue of each image by factors of its own; clipped to [-1, 1].

    All four are affine in RGB and so one 3x3 matrix and one offset per image (hue turns the IQ plane of YIQ, as in
    Yosinski's and TensorFlow's approximation; torchvision goes through HSV).
    """
    n = len(images)

    def factor(spread: float) -> torch.Tensor:
        return 1 + spread * (2 * torch.rand(n, 1, 1, generator=noise) - 1)

    bright, contra, satur = factor(brightness), factor(contrast), factor(saturation)
    turn = 2 * math.pi * (factor(hue) - 1)
    luma = torch.tensor(LUMA).expand(3, 3)
    colour = _hue_matrix(turn) @ (satur * torch.eye(3) + (1 - satur) * luma)
    matrix = (bright * contra * colour).to(images.device)
    # contrast is about the mean grey of the image, and brightness about black, which is -1 here
    mean = images.mean(dim=(2, 3)) + 1  # (N, 3), from black
    grey = (mean @ torch.tensor(LUMA, device=images.device)).view(n, 1, 1)
    ones = torch.ones(3, 1, device=images.device)
    offset = matrix @ ones + (bright * (1 - contra)).to(images.device) * grey * ones - 1
    pixels = images.permute(0, 2, 3, 1).reshape(n, -1, 3)  # a view of channels-last memory
    changed = torch.baddbmm(offset.transpose(1, 2), pixels, matrix.transpose(1, 2)).clamp_(-1, 1)
    return changed.view(n, *images.shape[2:], 3).permute(0, 3, 1, 2)


def _hue_matrix(turn: torch.Tensor) -> torch.Tensor:
    """Return the RGB matrices ``(N, 3, 3)`` that turn the colour plane by angles ``(N, 1, 1)`` and keep the luma."""
    to_yiq = torch.tensor(RGB_TO_YIQ)
    rotation = torch.eye(3).repeat(len(turn), 1, 1)
    cos, sin = turn[:, 0, 0].cos(), turn[:, 0, 0].sin()
    rotation[:, 1, 1], rotation[:, 1, 2] = cos, -sin
    rotation[:, 2, 1], rotation[:, 2, 2] = sin, cos
    return torch.linalg.inv(to_yiq) @ rotation @ to_yiq


def five_crop(images: torch.Tensor, noise: torch.Generator, *, share: float = 0.875) -> torch.Tensor:
    """Cut each image to one of its four corners or its centre, mirrored or not, and enlarge it to its size again.

    ``share`` is the side of a crop over that of the image; the ISIC-2019 report does not print its own *(reading:
    224 of 256 px, the usual pair)*.  Over many steps every image is seen in all of its crops, as often as in five times
    as many images.
    """
    n = len(images)
    places = torch.tensor([[-1, -1], [1, -1], [-1, 1], [1, 1], [0, 0]]) * (1 - share)
    chosen = places[torch.randint(0, 5, (n,), generator=noise)]
    mirror = torch.randint(0, 2, (n,), generator=noise) * 2.0 - 1.0
    nought, theta = torch.zeros(n), torch.empty(n, 2, 3)
    theta[:, 0] = torch.stack([share * mirror, nought, chosen[:, 0]], dim=1)
    theta[:, 1] = torch.stack([nought, torch.full((n,), share), chosen[:, 1]], dim=1)
    grids = functional.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grids, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(
        -1, 1
    )


def _policy(name: str) -> Augment:
    """Return an automatic augmentation of torchvision, drawn anew for each image."""

    def apply(images: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
        from torchvision.transforms import v2

        policy = {"trivial": v2.TrivialAugmentWide, "randaugment": v2.RandAugment}[name](fill=127)
        levels = images.add(1).mul(127.5).round().to(torch.uint8)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from PyTorch's own generator
            torch.manual_seed(int(torch.randint(2**62, (), generator=noise)))
            changed = torch.stack([policy(image) for image in levels])
        return changed.to(images.dtype).div(127.5).sub(1).to(memory_format=torch.channels_last)

    return apply


AUGMENTS: dict[str, Augment] = {
    "none": none,
    "classic": classic,
    "fivecrop": five_crop,
    "trivial": _policy("trivial"),  # TrivialAugment (Müller and Hutter 2021)
    "randaugment": _policy("randaugment"),  # two operations of strength 9 (Cubuk et al. 2020)
    "mixup": classic,  # and then whole batches are mixed: MIXES
    "cutmix": classic,
}
# mixtures of two images and of their labels (Zhang et al. 2018; Yun et al. 2019), with the papers' alpha
MIXES = {"mixup": 0.2, "cutmix": 1.0}


def augmentation(name: str) -> Augment:
    """Return the augmentation of this name; raise BadInput for an unknown one."""
    if name not in AUGMENTS:
        raise BadInput(f"Unknown augmentation '{name}'; it must be one of {', '.join(AUGMENTS)}.")
    return AUGMENTS[name]


def mix(
    name: str, images: torch.Tensor, targets: torch.Tensor, n_classes: int, noise: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix a batch with its neighbours by torchvision's MixUp or CutMix; other augmentations leave it as it is.

    ``targets`` are class indices (N,) or probabilities (N, K); after mixing they are float32 probabilities.
    """
    if name not in MIXES:
        return images, targets
    from torchvision.transforms import v2

    mixture = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[name](alpha=MIXES[name], num_classes=n_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=noise)))
        mixed, shares = mixture(images, targets)
    return mixed, shares.to(torch.float32)
