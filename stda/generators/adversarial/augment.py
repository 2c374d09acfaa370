"""Augmentation of what the critic sees, real and fake alike, so that a small image set lasts longer.

DiffAugment (Zhao et al. 2020) always applies its transforms; adaptive augmentation (Karras et al. 2020) applies each
with a probability that follows how far the critic overfits.  The critic never sees an image without them, and the
generator learns through them, so its images stay free of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stda import BadInput

MODES = ("none", "diffaugment", "adaptive")
# DiffAugment's strengths for images in [-1, 1]: a number is drawn from neutral - spread to neutral + spread
BRIGHTNESS, SATURATION, CONTRAST = 0.5, 1.0, 0.5
TRANSLATION = 1 / 8  # largest shift, share of the size
CUTOUT = 1 / 2  # side of the square, share of the size
CALLS_BETWEEN_MOVES = 4  # of p, as in the paper

# images in channels-last memory -> the same shape
Map = Callable[[Tensor], Tensor]


class Linear(torch.autograd.Function):
    """A linear map of images whose gradient is its adjoint, both given: derivatives of every order, at forward cost."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, images: Tensor, there: Map, back: Map) -> Tensor:
        """Return ``there(images)``."""
        ctx.maps = there, back
        return there(images)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return ``back(gradient)``, itself differentiable."""
        there, back = ctx.maps
        return Linear.apply(gradient, back, there), None, None


def blit(images: Tensor, turned: Tensor, upside_down: Tensor, mirrored: Tensor) -> Tensor:
    """Transpose, then flip rows, then flip columns, of the images ``(N, C, S, S)`` that the bool ``(N,)`` mark.

    The eight combinations are the quarter turns and their mirror images; pixels are moved, never changed.
    """
    n, n_channels, size, _ = images.shape
    here = torch.arange(size, device=images.device)
    first = torch.arange(n, device=images.device)[:, None] * size**2

    def moved(images: Tensor, upside_down: Tensor, mirrored: Tensor) -> Tensor:
        rows = torch.where(upside_down[:, None], size - 1 - here, here)
        columns = torch.where(mirrored[:, None], size - 1 - here, here)
        down = first + torch.where(turned[:, None], rows, rows * size)
        across = torch.where(turned[:, None], columns * size, columns)
        order = (down[:, :, None] + across[:, None, :]).flatten()
        pixels = images.permute(0, 2, 3, 1).reshape(-1, n_channels).index_select(0, order)
        return pixels.view(n, size, size, n_channels).permute(0, 3, 1, 2)

    # the inverse: what was flipped after a transposition is flipped along the other axis before it
    other = torch.where(turned, mirrored, upside_down), torch.where(turned, upside_down, mirrored)
    return Linear.apply(images, lambda x: moved(x, upside_down, mirrored), lambda x: moved(x, *other))


def recolour(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Add the brightness, scale by the saturation about each pixel's grey, and by the contrast about the mean.

    Grey is the mean of the channels and the mean that of the whole image, as in DiffAugment's code; one number
    ``(N,)`` each per image.  The result is not clipped to [-1, 1].
    """
    brightness, saturation, contrast = (x.to(images).view(-1, 1, 1) for x in (brightness, saturation, contrast))
    own = (contrast * saturation).unsqueeze(1)

    def scaled(images: Tensor) -> Tensor:
        # both scalings at once: the mean of an image does not change with its saturation
        grey = sum(images.unbind(1)) / images.shape[1]
        mean = grey.mean(dim=(1, 2), keepdim=True)
        shared = contrast * (1 - saturation) * grey + (1 - contrast) * mean
        result = own * images
        for channel in result.unbind(1):  # faster than adding all at once, whose inner loop would be 3 channels long
            channel.add_(shared)
        return result

    # a symmetric matrix in the pixels, hence its own adjoint
    return Linear.apply(images + brightness.unsqueeze(1), scaled, scaled)


def translate(images: Tensor, down: Tensor, right: Tensor, *, largest: int) -> Tensor:
    """Shift images ``(N, C, S, S)`` by whole pixels ``(N,)`` of at most ``largest``; what comes in is 0 (grey)."""
    n, n_channels, size, _ = images.shape
    padded = size + 2 * largest
    rows = torch.arange(n, device=images.device)[:, None] * padded + torch.arange(size, device=images.device) + largest

    def shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
        border = torch.nn.functional.pad(images.permute(0, 2, 3, 1), (0, 0, *[largest] * 4))
        # a row of the result is one run of memory: a view of all runs, and the number of its first pixel
        runs = border.flatten().unfold(0, size * n_channels, n_channels)
        starts = (rows - down[:, None]) * padded + largest - right[:, None]
        return runs.index_select(0, starts.flatten()).view(n, size, size, n_channels).permute(0, 3, 1, 2)

    return Linear.apply(images, lambda x: shifted(x, down, right), lambda x: shifted(x, -down, -right))


def cut_out(images: Tensor, top: Tensor, left: Tensor, *, side: int) -> Tensor:
    """Set a square of ``side`` pixels to 0 (grey), its corner ``(N,)`` possibly outside the image ``(N, C, S, S)``."""
    n, n_channels, size, _ = images.shape
    here = torch.arange(size, device=images.device)
    rows, columns = (((here >= x[:, None]) & (here < x[:, None] + side)).to(images.dtype) for x in (top, left))
    # laid out like the images, which makes one product of long rows
    kept = 1 - rows[:, :, None] * columns.repeat_interleave(n_channels, dim=1)[:, None, :]
    return images * kept.view(n, size, size, n_channels).permute(0, 3, 1, 2)


def chosen(n: int, p: float, noise: torch.Generator) -> Tensor:
    """Return n bool, each True with probability ``p``."""
    return torch.rand(n, generator=noise) < p


def random_blit(images: Tensor, noise: torch.Generator, p: float) -> Tensor:
    """Give chosen images one of the eight orientations."""
    moves = torch.randint(2, (3, len(images)), generator=noise).bool() & chosen(len(images), p, noise)
    return blit(images, *moves.to(images.device))


def random_color(images: Tensor, noise: torch.Generator, p: float) -> Tensor:
    """Change brightness, saturation and contrast, each of its own chosen images."""

    def draw(neutral: float, spread: float) -> Tensor:
        value = neutral + spread * (2 * torch.rand(len(images), generator=noise) - 1)
        return torch.where(chosen(len(images), p, noise), value, neutral)

    return recolour(images, draw(0.0, BRIGHTNESS), draw(1.0, SATURATION), draw(1.0, CONTRAST))


def random_translation(images: Tensor, noise: torch.Generator, p: float) -> Tensor:
    """Shift chosen images in both directions."""
    largest = int(images.shape[-1] * TRANSLATION + 0.5)
    shifts = torch.randint(-largest, largest + 1, (2, len(images)), generator=noise)
    return translate(images, *(shifts * chosen(len(images), p, noise)).to(images.device), largest=largest)


def random_cutout(images: Tensor, noise: torch.Generator, p: float) -> Tensor:
    """Blank a square, centred anywhere in the image, of chosen images."""
    size = images.shape[-1]
    side = int(size * CUTOUT + 0.5)
    corners = torch.randint(size + 1 - side % 2, (2, len(images)), generator=noise) - side // 2
    corners = torch.where(chosen(len(images), p, noise), corners, size)  # of the others: below the image
    return cut_out(images, *corners.to(images.device), side=side)


TRANSFORMS = {
    "blit": random_blit,  # not in DiffAugment; the first group of Karras et al., for subjects without an up
    "color": random_color,
    "translation": random_translation,
    "cutout": random_cutout,
}
POLICIES = tuple(TRANSFORMS)


def check_policy(policy: Iterable[str]) -> tuple[str, ...]:
    """Return the policy in the order of application; raise BadInput unless its names are of :data:`POLICIES`."""
    wanted = [policy] if isinstance(policy, str) else list(policy)
    if not wanted or set(wanted) - set(POLICIES):
        raise BadInput(f"policy is {wanted}; it must be a list of one or more of {', '.join(POLICIES)}.")
    return tuple(name for name in POLICIES if name in wanted)


def diff_augment(images: Tensor, policy: Iterable[str], *, noise: torch.Generator, p: float = 1.0) -> Tensor:
    """Transform float images ``(N, C, S, S)`` in [-1, 1], each in its own way, differentiably and twice so.

    Each transform of the policy (brightness, saturation and contrast count as three) is applied to an image with
    probability ``p``.  ``noise`` is a generator on the CPU, so that a seed means the same on every device, and the
    number of draws does not depend on ``p``.  Returns the same dtype in channels-last memory.
    Zhao et al. 2020, section 3 and their code's strengths; Karras et al. 2020, section 2.2 for ``p``.
    """
    for name in check_policy(policy):
        images = TRANSFORMS[name](images, noise, p)
    return images


@dataclass
class Augmentation:
    """What one GAN holds while it is trained: the transforms, and how likely each of them is now.

    ``p`` is 1 for "diffaugment"; for "adaptive" it starts at 0 and moves by the overfitting signal (:meth:`observe`).
    """

    mode: str = "none"  # "none", "diffaugment" or "adaptive"
    policy: Iterable[str] = ("color", "translation", "cutout")  # of POLICIES
    target: float = field(default=0.6, kw_only=True)  # of the overfitting signal, in (0, 1); the paper's
    images_to_full: int = field(kw_only=True)  # real images over which p can move from 0 to 1 (paper: 500,000)
    p: float = field(init=False)  # probability that a transform is applied to an image
    signal: float = field(init=False, default=0.0)  # overfitting over the last calls of observe
    # since p last moved; all numbers, for a checkpoint is made of them
    sign_sum: float = field(init=False, default=0.0)
    n_images: float = field(init=False, default=0.0)
    n_calls: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise BadInput(f"augmentation is '{self.mode}'; it must be one of {', '.join(MODES)}.")
        if not 0 < self.target < 1:
            raise BadInput(f"target is {self.target}; it must be between 0 (no overfitting) and 1 (complete).")
        if not self.images_to_full > 0:
            raise BadInput(f"images_to_full is {self.images_to_full}; it must be a positive number of images.")
        self.policy = check_policy(self.policy)
        self.p = 1.0 if self.mode == "diffaugment" else 0.0

    def __call__(self, images: Tensor, noise: torch.Generator) -> Tensor:
        """Return the images as the critic is to see them; mode "none" returns them as they are and draws nothing."""
        return images if self.mode == "none" else diff_augment(images, self.policy, noise=noise, p=self.p)

    def observe(self, real_scores: Tensor, fake_scores: Tensor | None = None) -> None:
        """Take note of the critic's scores ``(N,)`` on the (augmented) real images of one batch; move p now and then.

        The signal is ``r_t = E[sign(D(real))]``: 0 when the critic does not know its training images from fakes, 1
        when it knows every one.  Each 4th call moves p by the images seen / ``images_to_full``, up when the signal is
        above ``target``, else down, within [0, 1] (Karras et al. 2020, section 3.1).  It is recorded in every mode.

        ``fake_scores`` must be given for a Wasserstein critic.  Its loss does not change when a constant is added to
        all scores, so its zero, and with it a sign, means nothing; scores are then centred midway between the batch's
        mean real and mean fake score, where a logit's zero lies too when the classifier errs alike on both sides.
        That keeps the scale and the target of ``r_t``, depends on neither constant nor scale of the scores, and takes
        no image away from training, as the paper's ``r_v`` (eq. 1) would with its held-out images *(reading)*.
        """
        scores = real_scores.detach().float()
        if fake_scores is not None:
            scores = scores - (scores.mean() + fake_scores.detach().float().mean()) / 2
        self.sign_sum += scores.sign().sum().item()
        self.n_images += len(scores)
        self.n_calls += 1
        if self.n_calls == CALLS_BETWEEN_MOVES:
            self._move()

    def _move(self) -> None:
        """Turn the noted signs into the signal, move an adaptive p towards its target, and forget them."""
        self.signal = self.sign_sum / self.n_images
        if self.mode == "adaptive":
            by = self.n_images / self.images_to_full
            self.p = min(1.0, max(0.0, self.p + (by if self.signal > self.target else -by)))
        self.sign_sum = self.n_images = self.n_calls = 0.0

    def state(self) -> dict[str, float]:
        """Return all that changes, for a checkpoint."""
        return {name: getattr(self, name) for name in ("p", "signal", "sign_sum", "n_images", "n_calls")}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from what :meth:`state` returned."""
        for name in self.state():
            setattr(self, name, state[name])
