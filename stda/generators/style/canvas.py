"""Pictures drawn by weighted cosines instead of pixels, the coordinates in which their losses are minimised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional


def cosine_matrix(size: int) -> torch.Tensor:
    """Return the orthonormal discrete cosine transform (DCT-II) as a float64 ``(size, size)`` matrix of rows."""
    n = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(torch.pi / size * (n + 0.5) * n[:, None]) * (2 / size) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


class Canvas:
    """Pictures ``(B, 3, H, W)`` in [-1, 1] as ``start`` plus a sum of cosines weighted by 1 / frequency^smoothness.

    The cosine transform does not wrap around, so nothing leaks from one border to the opposite one.  The weights have
    a root mean square of 1: a mean change of the coefficients is about that of the pixels.  Where ``mask``, bool
    ``(B, 1, H, W)``, is False a picture is that of ``keep``, bit for bit.
    """

    def __init__(
        self,
        start: torch.Tensor,
        *,
        smoothness: float,  # 0: coefficients of all frequencies count alike, as pixels do
        mask: torch.Tensor | None = None,
        keep: torch.Tensor | None = None,  # None: the start
    ) -> None:
        height, width = start.shape[-2:]
        self.start, self.smoothness, self.mask, self.keep = start, smoothness, mask, start if keep is None else keep
        self.rows, self.columns = (cosine_matrix(n).to(start) for n in (height, width))
        frequency = torch.hypot(torch.arange(height)[:, None] / height, torch.arange(width) / width)
        self.frequency = frequency.clamp_min(1 / max(height, width)).to(start)  # 1: as fine as pixels can be
        weights = self.frequency**-smoothness
        self.weights = weights / weights.square().mean().sqrt()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return tuple(self.start.shape[-2:])

    def draw(self, coefficients: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Return the pictures of these rows, clamped to [-1, 1], from their coefficients ``(len(rows), 3 H W)``."""
        change = coefficients.view(-1, *self.start.shape[1:]) * self.weights
        x = (self.start[rows] + self.rows.T @ change @ self.columns).clamp(-1, 1)
        return x if self.mask is None else torch.where(self.mask[rows], x, self.keep[rows])

    def blank(self) -> torch.Tensor:
        """Return the pictures as they are before anything is drawn."""
        return self.draw(torch.zeros_like(self.start), range(len(self.start)))

    def octaves(self) -> torch.Tensor:
        """Return the octave of the frequency of each coefficient, long ``(3 H W,)``, 0 the lowest."""
        octave = self.frequency.log2().floor().long()
        return (octave - octave.min()).flatten().repeat(self.start.shape[1])

    def resized(self, size: tuple[int, int], change: torch.Tensor | None = None) -> Canvas:
        """Return the canvas at another size ``(h, w)``, its pixels averaged over areas, its start moved by a change.

        ``change`` ``(B, 3, h', w')`` is of any size.  A cell is drawn where at least half of its area was.
        """
        start, keep, mask = self.start, self.keep, self.mask
        if size != self.size:
            start, keep = (functional.interpolate(x, size=size, mode="area") for x in (start, keep))
            mask = mask if mask is None else functional.interpolate(mask.to(start), size=size, mode="area") >= 0.5
        if change is not None:
            start = start + functional.interpolate(change, size=size, mode="bilinear", align_corners=False)
        return Canvas(start, smoothness=self.smoothness, mask=mask, keep=keep)
