"""What the benchmarks share: paired timings, the machine's convolution rate, and the table of ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from stda.compute import Compute


@dataclass
class Row:
    """A line of the table: seconds of the reference and ours (medians), and the seconds that arithmetic alone takes."""

    what: str
    reference: float
    ours: float
    limit: float | None = None

    @property
    def ratio(self) -> float:
        return self.reference / self.ours

    def cells(self) -> list[str]:
        share = "" if self.limit is None else f"{self.limit / self.ours:.0%}"
        return [self.what, *(f"{seconds * 1e3:.2f} ms" for seconds in (self.reference, self.ours)),
                f"{self.ratio:.2f}", share]  # fmt: skip


def alternate(*tasks: Callable[[], object], repeats: int = 7) -> list[float]:
    """Return the median seconds of tasks that are run in turn, A B A B ..., after one run each to warm up."""
    seconds: list[list[float]] = [[] for _ in tasks]
    for repeat in range(repeats + 1):
        for task, found in zip(tasks, seconds, strict=True):
            start = time.perf_counter()
            task()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in seconds]


def convolution_rate(compute: Compute, *, channels: int, side: int, batch: int) -> float:
    """Return FLOP/s of a 3x3 convolution of ``(batch, channels, side, side)``, in the precision of ours."""
    place = {"device": compute.device, "dtype": torch.bfloat16 if compute.precision == "bf16" else torch.float32}
    layer = nn.Conv2d(channels, channels, 3, padding=1, **place).to(memory_format=torch.channels_last)
    x = torch.randn(batch, channels, side, side, **place).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        (seconds,) = alternate(lambda: layer(x), repeats=21)
    return 2 * 9 * channels**2 * side**2 * batch / seconds


def print_table(rows: Sequence[Row]) -> None:
    """Print the rows with aligned columns."""
    table = [["what", "reference", "ours", "ratio", "share of the limit"], *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
