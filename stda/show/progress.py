"""Progress of a long loop: a bar for a person, a line every few seconds for a saved notebook."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# every line starts with this, so that reports can fold the lines and nbval's sanitizer can drop them:
#     regex: (?m)^progress \|.*\n?
#     replace:
PREFIX = "progress | "


def interactive(stream: TextIO | None = None) -> bool:
    """Tell whether a person watches this loop.

    The batch runner sets ``STDA_BATCH=1``: never a bar then.  Otherwise a bar is drawn at a terminal, and in a kernel
    started by a Jupyter server (which names the notebook in ``JPY_SESSION_NAME``); papermill, nbconvert and nbval start
    kernels without that name and get lines.
    """
    if os.environ.get("STDA_BATCH") == "1":
        return False
    stream = stream or sys.stderr
    return bool(stream.isatty()) or "JPY_SESSION_NAME" in os.environ


def progress(total: int, label: str, *, every_seconds: float = 5.0) -> Callable[[dict], None]:
    """Return a callback that a fit loop calls with its record after each step.

    A record has ``step`` (1 for the first finished step), and may have ``steps`` (replaces ``total``), losses and other
    numbers, which are shown, and words, which are shown too; arrays such as sample grids are passed over.  A step
    smaller than the last one starts the count anew (the next phase or class).  What is shown goes to stderr.
    """
    return _Bar(total, label) if interactive() else _Lines(total, label, every_seconds)


class _Lines:
    """One line every few seconds, and one at the end of the loop, however short it was."""

    def __init__(
        self, total: int, label: str, every_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.label, self.every_seconds, self.clock = total, label, every_seconds, clock
        self.first = self.last_printed = clock()
        self.first_step = self.last_step = 0

    def __call__(self, record: dict) -> None:
        now, step = self.clock(), int(record.get("step", self.last_step + 1))
        if step < self.last_step:
            self.first, self.first_step = now, step
        self.last_step = step
        total = int(record.get("steps", self.total))
        if step < total and now - self.last_printed < self.every_seconds:
            return
        self.last_printed = now
        rate = (step - self.first_step) / max(now - self.first, 1e-9)
        left = f"{duration((total - step) / rate)} left" if rate > 0 and step < total else duration(now - self.first)
        parts = [self.label, f"{step}/{total}", *describe(record), f"{rate:.3g} steps/s", left]
        print(PREFIX + " | ".join(parts), file=sys.stderr, flush=True)


class _Bar:
    """A tqdm bar; its text form, which needs no widgets and works in a terminal and in JupyterLab alike."""

    def __init__(self, total: int, label: str) -> None:
        self.total, self.label, self.bar = total, label, None

    def __call__(self, record: dict) -> None:
        step = int(record.get("step", self.bar.n + 1 if self.bar is not None else 1))
        total = int(record.get("steps", self.total))
        if self.bar is None or step < self.bar.n:
            self._start(total)
        self.bar.set_postfix_str(", ".join(describe(record)), refresh=False)
        self.bar.update(step - self.bar.n)
        if step >= total:
            self.bar.close()
            self.bar = None

    def _start(self, total: int) -> None:
        from tqdm import tqdm

        if self.bar is not None:
            self.bar.close()
        self.bar = tqdm(total=total, desc=self.label, file=sys.stderr, dynamic_ncols=True, mininterval=0.2)


def describe(record: dict) -> list[str]:
    """Return the numbers and words of a record as short texts, without its counters and arrays."""
    texts = []
    for name, value in record.items():
        if name in ("step", "steps"):
            continue
        if isinstance(value, str):
            texts.append(f"{name} {value}")
        elif isinstance(value, bool):
            texts.append(f"{name} {'yes' if value else 'no'}")
        elif isinstance(value, Real) or getattr(value, "shape", None) == ():  # numbers, and 0-d arrays and tensors
            texts.append(f"{name} {float(value):.4g}")
    return texts


def duration(seconds: float) -> str:
    """Return seconds as ``42 s``, ``3 min 05 s`` or ``2 h 10 min``; an en dash when unknown."""
    if not math.isfinite(seconds) or seconds < 0:
        return "\N{EN DASH}"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


@contextmanager
def watched(console: Console, label: str, *, every_seconds: float = 5.0) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a callback for :func:`stda.shards.make_shard`: a bar at a terminal, else a line every few seconds."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    started = last = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None, pace="")

        def callback(record: dict[str, Any]) -> None:
            nonlocal last
            now, step, steps = time.monotonic(), record["step"], record["steps"]
            rate = (step - record["resumed"]) / max(now - started, 1e-9)
            pace = f"{rate:.3g} images/s, {duration((steps - step) / rate)} left"
            bar.update(task, completed=step, total=steps, pace=pace)
            if not console.is_terminal and now - last >= every_seconds:
                last = now
                print(f"{label}: {step}/{steps}, {pace}", file=sys.stderr, flush=True)

        yield callback
