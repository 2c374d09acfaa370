"""The losses of style transfer, one value per picture of a batch.

Gatys, Ecker, Bethge 2015 (arXiv:1508.06576) and the variant of Novak and Nikulin 2016 (arXiv:1605.04603) with shifted
Gram matrices and Gram matrices between adjacent layers.  Sums are at least float32 whatever the features are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from stda import BadInput

CONTENT_SCALINGS = ("none", "sqrt", "size")


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return ``(B, M, K) @ (B, K, N)``; on a CPU picture by picture, which is faster than its batched product."""
    if a.is_cuda:
        return a @ b
    found = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    for out, left, right in zip(found, a, b, strict=True):
        torch.mm(left, right, out=out)
    return found


@contextmanager
def _exact_in_bf16(exact: bool) -> Iterator[None]:
    """Let float32 products run in bf16 arithmetic with float32 sums: no rounding where bf16 holds both factors exactly.

    On a CPU 2.3 times as fast; only for products whose factors were bf16.
    """
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16" if exact else before
    try:
        yield
    finally:
        settings.fp32_precision = before


class _SelfProduct(torch.autograd.Function):
    """(F - shift)^T W (F - shift) of ``(B, M, C)``, whose gradient is one product instead of autograd's two.

    ``weights`` ``(B|1, M, 1)`` are the diagonal of W, or None.  The gradient is made in the type of F, since it goes on
    through layers of that type.
    """

    @staticmethod
    def forward(ctx: Any, flat: torch.Tensor, weights: torch.Tensor | None, shift: float) -> torch.Tensor:
        ctx.save_for_backward(flat, weights)
        ctx.shift = shift
        wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
        weighted = wide if weights is None else wide * weights
        with _exact_in_bf16(flat.dtype == torch.bfloat16 and weights is None):
            found = _product(weighted.mT, wide)
        if shift:
            sums = shift * weighted.sum(dim=1, keepdim=True)
            total = flat.shape[1] if weights is None else weights.sum(dim=1, keepdim=True)
            found = found - sums - sums.mT + shift**2 * total
        return found

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        flat, weights = ctx.saved_tensors
        both = (gradient + gradient.mT).to(flat.dtype)
        found = _product(flat, both)
        if ctx.shift:
            found -= ctx.shift * both.sum(dim=1, keepdim=True)
        return found if weights is None else found * weights.to(found.dtype), None, None


class _CrossProduct(torch.autograd.Function):
    """A^T B of ``(B, M, C)`` and ``(B, M, K)``, at least float32, whose gradient is made in the features' ``dtype``."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        ctx.dtype = dtype
        return _product(a.mT, b)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        a, b, gradient = (tensor.to(ctx.dtype) for tensor in (*ctx.saved_tensors, gradient))
        return _product(b, gradient.mT), _product(a, gradient), None


def gram(features: torch.Tensor, weights: torch.Tensor | None = None, shift: float = 0.0) -> torch.Tensor:
    """Return the mean over positions of (F - shift)(F - shift)^T, ``(B, C, C)``, of features ``(B, C, h, w)``.

    ``weights`` ``(B|1, 1, h, w)`` in [0, 1] make it a weighted mean; they must not all be zero.  Gatys et al. 2015,
    equation 3, divided by the number of positions; Novak and Nikulin 2016 for the shift.
    """
    flat = features.flatten(2).mT  # (B, positions, channels): no copy where channels come last in memory
    if weights is None:
        return _SelfProduct.apply(flat, None, shift) / flat.shape[1]
    column = weights.flatten(2).mT
    return _SelfProduct.apply(flat, column, shift) / column.sum(dim=1, keepdim=True)


def cross_gram(
    shallow: torch.Tensor,
    deep: torch.Tensor,
    weights: torch.Tensor | None = None,
    shifts: tuple[float, float] = (0.0, 0.0),
) -> torch.Tensor:
    """Return the mean over positions of (F - shift)(up(D) - shift)^T, ``(B, C, K)``, of two layers.

    ``shallow`` F is ``(B, C, h, w)``, ``deep`` D ``(B, K, h', w')`` is enlarged to it (nearest), ``weights``
    ``(B|1, 1, h, w)`` as in :func:`gram`.  Novak and Nikulin 2016, correlations of adjacent layers.
    Averaging the shallow layer over the positions that share a deep one gives the same with fewer products; where h is
    no multiple of h', positions on the seams count to both sides.
    """
    wide = torch.promote_types(shallow.dtype, torch.float32)
    pooled, other = shallow.to(wide) - shifts[0], deep.to(wide) - shifts[1]
    size, total = deep.shape[-2:], 1.0
    if weights is not None:
        pooled, total = pooled * weights, weights.mean(dim=(2, 3))[..., None]
    if size != shallow.shape[-2:]:
        pooled = functional.adaptive_avg_pool2d(pooled, size)
    found = _CrossProduct.apply(pooled.flatten(2).mT, other.flatten(2).mT, shallow.dtype)
    return found / (size.numel() * total)


def style_loss(found: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return sum((G - A)^2) / (4 C K), ``(B,)``, of position-averaged Gram matrices ``(B, C, K)``.

    Gatys et al. 2015, equation 4: its 1 / (4 C^2 M^2) is of matrices summed over M positions.
    """
    return (found - target).square().mean(dim=(1, 2)) / 4


def content_loss(found: torch.Tensor, target: torch.Tensor, scaling: str = "none") -> torch.Tensor:
    """Return the sum of squared differences of features ``(B, C, h, w)``, ``(B,)``, scaled.

    ``scaling`` is the factor: ``none`` 1 (the tool's; Gatys et al. halve it), ``sqrt`` 1 / (2 sqrt(C) sqrt(h w)),
    ``size`` 1 / (C h w).  The tool takes the picture's size for h w, not the layer's.
    """
    _, channels, height, width = found.shape
    size = channels * height * width
    factors = {"none": 1.0, "sqrt": 0.5 / size**0.5, "size": 1 / size}
    if scaling not in factors:
        raise BadInput(f"content_scaling is '{scaling}'; it must be one of {', '.join(CONTENT_SCALINGS)}.")
    wide = torch.promote_types(found.dtype, torch.float32)
    return factors[scaling] * (found.to(wide) - target.to(wide)).square().sum(dim=(1, 2, 3))


def total_variation(pixels: torch.Tensor) -> torch.Tensor:
    """Return sum((dx^2 + dy^2)^1.25), ``(B,)``, over positions and channels of ``(B, 3, H, W)`` on the scale 0..255."""
    corner = pixels[..., :-1, :-1]
    steps = (corner - pixels[..., 1:, :-1]).square() + (corner - pixels[..., :-1, 1:]).square()
    return steps.pow(1.25).sum(dim=(1, 2, 3))
