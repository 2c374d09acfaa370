"""Where and how numbers are computed: device, threads and precision, decided once per process and recorded."""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from stda import BadInput

PRECISIONS = ("auto", "float32", "bf16")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # numbers of mallopt(3), from malloc.h of glibc


@dataclass(frozen=True)
class Compute:
    """The device, the number of CPU threads and the precision ("float32" or "bf16") of this process."""

    device: torch.device
    precision: str
    threads: int

    def autocast(self) -> AbstractContextManager:
        """Return the context in which convolutions and matrix products run in the chosen precision."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def describe(self) -> dict[str, str | int | float]:
        """Return what a manifest records about the machine: device, threads, precision, GPU memory in MB."""
        facts: dict[str, str | int | float] = {"precision": self.precision, "threads": self.threads}
        if self.device.type == "cuda":
            facts["device"] = torch.cuda.get_device_name(self.device)
            facts["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)
        else:
            facts["device"] = "cpu"
        return facts


def setup(precision: str = "auto", threads: int | None = None) -> Compute:
    """Choose device, threads and precision.

    ``threads`` defaults to the environment variable ``STDA_THREADS`` (the batch sets it to cores / jobs), else to
    PyTorch's own choice.  ``auto`` takes bf16 where the processor computes in it natively, float32 elsewhere.  From
    then on the process keeps the memory that it frees, see :func:`keep_freed_memory`.
    """
    if precision not in PRECISIONS:
        raise BadInput(f"precision is '{precision}'; it must be one of {', '.join(PRECISIONS)}.")
    threads = threads or int(os.environ.get("STDA_THREADS", 0)) or torch.get_num_threads()
    torch.set_num_threads(threads)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if precision == "auto":
        precision = "bf16" if has_native_bf16(device) else "float32"
    return Compute(device, precision, threads)


def has_native_bf16(device: torch.device) -> bool:
    """Say whether bf16 arithmetic is done by the hardware of ``device`` rather than emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    try:
        with open("/proc/cpuinfo") as file:
            flags = file.read()
    except OSError:  # not Linux: no cheap way to know, so take the safe answer
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of freed tensors for the next ones, and say whether it can (glibc only).

    By itself glibc takes each large block from the kernel and returns it when it is freed, so every step of a training
    gets its activations and gradients anew, page by page, zeroed: 0.5 million page faults per step for VGG11-BN at 224
    px, a third of its time.  The price: the process holds, until it ends, the most that it ever needed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def rng(seed: int) -> torch.Generator:
    """Return a CPU random generator with this seed; noise drawn on the CPU means one image for one seed anywhere."""
    return torch.Generator().manual_seed(seed % 2**63)
