"""Pictures that the optimisation starts from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from stda import BadInput
from stda.compute import rng
from stda.images import to_tensor

STARTS = ("content", "noise", "grey", "file")
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def start_image(
    kind: str,  # content: as it is; noise: uniform over the whole range; grey: the content's luma; file: picture
    content: torch.Tensor,
    seeds: Sequence[int],  # of noise, one per picture: each is the same alone and in a batch, on every device
    picture: np.ndarray | None = None,  # uint8 (h, w, 3), resized to the content's size, for all of them
) -> torch.Tensor:
    """Return the starts ``(B, 3, H, W)`` in [-1, 1] for contents of that shape; raises BadInput for another kind."""
    if kind == "content":
        return content.clone()
    if kind == "grey":
        weights = content.new_tensor(LUMA).view(1, 3, 1, 1)
        return (content * weights).sum(dim=1, keepdim=True).expand_as(content).contiguous()
    if kind == "noise":
        drawn = [torch.rand(content.shape[1:], generator=rng(int(seed))) for seed in seeds]
        return (torch.stack(drawn) * 2 - 1).to(content)
    if kind == "file":
        if picture is None:
            raise BadInput("start is 'file' but there is no picture to start from: give one, or start from 'content'.")
        resized = functional.interpolate(
            to_tensor(picture[None]), size=content.shape[-2:], mode="bilinear", antialias=True, align_corners=False
        )
        return resized.to(content).expand_as(content).contiguous()
    raise BadInput(f"start is '{kind}'; it must be one of {', '.join(STARTS)}.")
