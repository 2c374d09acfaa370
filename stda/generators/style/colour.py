"""What is done with a finished picture: the content's colours, and the content itself outside a mask.

All functions take and return uint8 pictures ``(..., H, W, 3)``, single or in batches.
"""

from __future__ import annotations

import numpy as np

from stda import BadInput

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def keep_chroma(result: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Return the luma of the result with the chroma of the content (YCbCr of ITU-R BT.601, full range).

    Equal chroma means that red, green and blue all differ by as much as the luma does, so the conversion there and back
    is not needed; what leaves the range is clipped.
    """
    _check(result, content)
    lift = (result.astype(np.float64) - content) @ LUMA
    return np.clip(np.rint(content + lift[..., None]), 0, 255).astype(np.uint8)


def match_histogram(result: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Return the result with the levels of each channel distributed as in the content, of whatever height and width.

    The n-th darkest pixel gets the level of the content's n-th darkest; equal levels stay equal.
    """
    matched = np.empty_like(result)
    for place in np.ndindex(*result.shape[:-3], 3):
        channel = (*place[:-1], ..., place[-1])
        matched[channel] = _matched_levels(result[channel], content[channel])[result[channel]]
    return matched


def _matched_levels(result: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Return for each level 0..255 the level that takes its place: that of the same share of pixels at or below it."""
    ranks, wanted = (np.cumsum(np.bincount(channel.ravel(), minlength=256)) for channel in (result, content))
    return np.searchsorted(wanted * result.size, ranks * content.size).astype(np.uint8)


def apply_mask(result: np.ndarray, content: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the result where ``mask`` ``(..., H, W)`` is not zero and the content, bit for bit, elsewhere."""
    _check(result, content)
    if mask.shape != result.shape[:-1]:
        sizes = f"{mask.shape}, the picture {result.shape[:-1]}"
        raise BadInput(f"The mask is {sizes}: give a mask of the picture's size.")
    return np.where(mask[..., None] != 0, result, content)


def _check(result: np.ndarray, content: np.ndarray) -> None:
    if result.shape != content.shape:
        raise BadInput(f"The result is {result.shape}, the content {content.shape}: they must be of one size.")
