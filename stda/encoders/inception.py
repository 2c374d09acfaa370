"""The Inception network of the Fréchet inception distance (Heusel et al. 2017), arranged for fast inference.

It is the TensorFlow graph of 2015-12-05 that pytorch-fid and torch-fidelity use: 299 px by TensorFlow 1.x's bilinear
resize, pixels as (p - 128) / 128, 1008 classes, and 2,048 pooled features.  It departs from torchvision's Inception v3
in its average pooling, which leaves the padding out of the mean, and in the last block, which pools by the maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from stda import BadInput
from stda.encoders.base import Encoder
from stda.encoders.pretrained import checked_digest, finite_state, read_state

INCEPTION = "inception"
SIDE = 299  # px
# one file under pytorch-fid's name and torch-fidelity's
FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
# ends of the trunk's parts by pytorch-fid's and torch-fidelity's names of their features: the number of channels
ENDS = {"64": 0, "192": 1, "768": 9, "2048": 12}


class Inception(Encoder):
    """The Inception network of FID as an encoder: enlarges or shrinks any image to 299 px first."""

    def __init__(self, trunk: nn.Sequential, provenance: dict[str, Any]) -> None:
        super().__init__(INCEPTION, trunk, ENDS, provenance, min_size=SIDE)

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise, then resize to 299 px as TensorFlow 1.x does (both are affine, and small images are cheaper)."""
        return resize_like_tensorflow(x * self.gain + self.bias, SIDE)


class Block(nn.Module):
    """An Inception block: branches over one input, side by side in the channels, with one ReLU over all of them.

    ``merged`` are branches that begin with a 1x1 convolution, given as (that convolution, what follows): these
    convolutions are run as one.  ``direct`` are the other branches.
    """

    def __init__(self, merged: Sequence[tuple[nn.Module, nn.Module]], direct: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.entry = _fused(*(entry for entry, _ in merged)) if merged else None
        self.widths = [entry.conv.out_channels for entry, _ in merged]
        self.tails, self.direct = nn.ModuleList(tail for _, tail in merged), nn.ModuleList(direct)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the branches' channels, those of ``merged`` first."""
        parts = self.entry(x).split(self.widths, dim=1) if self.entry is not None else ()
        found = [tail(part) for tail, part in zip(self.tails, parts, strict=True)]
        return torch.cat([*found, *(branch(x) for branch in self.direct)], dim=1).relu_()


class Fork(nn.Module):
    """Two convolutions over one input, side by side in the channels."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = _fused(left), _fused(right)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the channels of both."""
        return torch.cat([self.left(x), self.right(x)], dim=1)


def load_inception(*, weights: str = "cache") -> Inception:
    """Return the Inception network of FID.

    ``weights`` is the path of its state dict, or ``cache``: one of :data:`FILES` in ``torch.hub.get_dir()/checkpoints``
    (its SHA-256 must begin as its name says).  Nothing is downloaded.  Raises BadInput when the file is missing,
    unreadable or of another network, as torchvision's own Inception v3 is.
    """
    cached = weights == "cache"
    path = cached_inception() if cached else Path(weights)
    if not path.is_file():
        raise BadInput(missing_inception(path, cached=cached))
    digest = checked_digest(path, cached=cached)
    source = "torch.hub cache" if cached else "file"
    provenance = {"name": INCEPTION, "source": source, "file": path.name, "sha256": digest, "normalisation": "byte"}
    return Inception(inception_trunk(read_state(path), path), provenance)


def cached_inception() -> Path:
    """Return where the weights lie in torch.hub's folder of checkpoints (pytorch-fid's name when there are none)."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return next((folder / name for name in FILES if (folder / name).is_file()), folder / FILES[0])


def missing_inception(path: Path, *, cached: bool) -> str:
    """Return the sentence that says which weights are missing and how to get them."""
    if not cached:
        return f"The weights file '{path}' of Inception does not exist: correct the path, or choose another judge."
    return (
        f"No Inception weights of FID at {path}: copy {FILES[0]} there (from the releases of pytorch-fid), or choose "
        "judge: encoder."
    )


def inception_trunk(state: dict[str, torch.Tensor], path: Path) -> nn.Sequential:
    """Build the network around loaded weights (names as in torchvision's Inception3), without its classifier."""
    from torchvision.models.inception import Inception3

    with torch.device("meta"):  # no memory, no random numbers: what is not loaded cannot be used by accident
        network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    part = finite_state({key: value for key, value in state.items() if not key.startswith("AuxLogits.")}, path)
    try:
        network.load_state_dict(part, strict=True, assign=True)
    except RuntimeError:
        raise BadInput(f"{path} does not hold the Inception weights of FID (1008 classes): give {FILES[0]}.") from None
    with torch.no_grad():
        return _arranged(network.eval()).requires_grad_(False).to(memory_format=torch.channels_last)


def resize_like_tensorflow(x: torch.Tensor, side: int) -> torch.Tensor:
    """Resize ``(N, C, H, W)`` to ``side`` px, bilinear, with pixel i at i H / ``side`` as TensorFlow 1.x has it.

    With the last row and column doubled, this is a resize to ``side`` + 1 px with aligned corners, less the last pixel.
    """
    if x.shape[-2:] == (side, side):
        return x
    x = functional.pad(x, (0, 1, 0, 1), mode="replicate")
    x = functional.interpolate(x, size=(side + 1, side + 1), mode="bilinear", align_corners=True)
    return x[:, :, :side, :side]


def _arranged(n: nn.Module) -> nn.Sequential:
    """Put torchvision's convolutions, BatchNorm merged, into the arrangement of this module."""
    relu, halve = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2)
    # the maximum first: ReLU then has a quarter of the work
    first = nn.Sequential(_chain(n.Conv2d_1a_3x3, n.Conv2d_2a_3x3, n.Conv2d_2b_3x3), halve, relu)
    second = nn.Sequential(_chain(n.Conv2d_3b_1x1, n.Conv2d_4a_3x3), halve, relu)
    a = (_block_a(block) for block in (n.Mixed_5b, n.Mixed_5c, n.Mixed_5d))
    c = (_block_c(block) for block in (n.Mixed_6b, n.Mixed_6c, n.Mixed_6d, n.Mixed_6e))
    b, d = n.Mixed_6a, n.Mixed_7a
    shrink_b = Block([], [_fused(b.branch3x3), _chain(b.branch3x3dbl_1, b.branch3x3dbl_2, b.branch3x3dbl_3), halve])
    seven = (d.branch7x7x3_2, d.branch7x7x3_3, d.branch7x7x3_4)
    shrink_d = Block([(d.branch3x3_1, _tail(d.branch3x3_2)), (d.branch7x7x3_1, _tail(*seven))], [halve])
    last = _block_e(n.Mixed_7b, average=True), _block_e(n.Mixed_7c, average=False)
    return nn.Sequential(first, second, *a, shrink_b, *c, shrink_d, *last)


def _block_a(b: nn.Module) -> Block:
    three = _tail(b.branch3x3dbl_2, b.branch3x3dbl_3)
    five = b.branch5x5_1, _tail(b.branch5x5_2)
    return Block([(b.branch1x1, nn.Identity()), five, (b.branch3x3dbl_1, three), (b.branch_pool, _average())])


def _block_c(b: nn.Module) -> Block:
    short = b.branch7x7_1, _tail(b.branch7x7_2, b.branch7x7_3)
    long = (b.branch7x7dbl_2, b.branch7x7dbl_3, b.branch7x7dbl_4, b.branch7x7dbl_5)
    return Block([(b.branch1x1, nn.Identity()), short, (b.branch7x7dbl_1, _tail(*long)), (b.branch_pool, _average())])


def _block_e(b: nn.Module, *, average: bool) -> Block:
    three = nn.Sequential(nn.ReLU(), Fork(b.branch3x3_2a, b.branch3x3_2b))
    double = nn.Sequential(_tail(b.branch3x3dbl_2), nn.ReLU(inplace=True), Fork(b.branch3x3dbl_3a, b.branch3x3dbl_3b))
    merged = [(b.branch1x1, nn.Identity()), (b.branch3x3_1, three), (b.branch3x3dbl_1, double)]
    if average:
        return Block([*merged, (b.branch_pool, _average())])
    return Block(merged, [nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), _fused(b.branch_pool))])


def _average() -> nn.Module:
    """Return the average pooling; a convolution of 1x1 may come before it: the weights of a mean add up to one."""
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _tail(*blocks: nn.Module) -> nn.Sequential:
    """Return what follows a merged convolution: its ReLU (not in place: that copies the slice), then a chain."""
    return nn.Sequential(nn.ReLU(), _chain(*blocks))


def _chain(*blocks: nn.Module) -> nn.Sequential:
    """Return convolutions with ReLU between them, none at the end."""
    layers = [layer for block in blocks for layer in (nn.ReLU(inplace=True), _fused(block))]
    return nn.Sequential(*layers[1:])


def _fused(*blocks: nn.Module) -> nn.Conv2d:
    """Return one convolution for several of one shape over one input, BatchNorm merged, outputs side by side."""
    parts = [nn.utils.fusion.fuse_conv_bn_eval(block.conv, block.bn) for block in blocks]
    first = parts[0]
    shape = {"kernel_size": first.kernel_size, "stride": first.stride, "padding": first.padding}
    merged = nn.Conv2d(first.in_channels, sum(part.out_channels for part in parts), **shape, device="meta")
    merged.weight = nn.Parameter(torch.cat([part.weight for part in parts]))
    merged.bias = nn.Parameter(torch.cat([part.bias for part in parts]))
    return merged
