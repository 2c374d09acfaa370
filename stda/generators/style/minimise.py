"""Redraw a batch of pictures so that their losses fall, each as if it were alone.

An iteration is 20 evaluations of the loss, as in the Keras tool behind ST-DA, whose L-BFGS calls make at most 20.
Departures from the tool: the optimiser goes on from one iteration to the next (memory, line search and all), the best
picture met is the result, and pictures are drawn by cosine coefficients weighted by 1 / frequency^0.6 instead of
pixels: the same losses of the same pictures, but colour and shading move in the first steps.  On dermoscopy at 96 px,
20 evaluations of SqueezeNet's loss reached what took 100 on pixels, without the frame of untouched colour along the
border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from stda import BadInput
from stda.generators.style.canvas import Canvas
from stda.generators.style.optimisers import Adam, Lbfgs

# (pictures (n, 3, h, w), their n rows in the batch) -> losses by name, (n,) each; their sum is minimised
Loss = Callable[[torch.Tensor, list[int]], dict[str, torch.Tensor]]

EVALUATIONS = 20  # of the loss per iteration, as in the tool
# exponent of 1 / frequency; 0 is pixels.  1 and more made L-BFGS fail with some encoders; Adam, which moves every
# coefficient alike, draws noise below 1
SMOOTHNESS = {"lbfgs": 0.5, "adam": 1.6}
FIRST_STEP = 0.1  # mean change of L-BFGS' first trial in grey levels
# of L-BFGS' first guess of the curvature; 0.5 ends as low as 0.25 with SqueezeNet and spares a tenth of the evaluations
# with a random VGG19.  On Rosenbrock's function 0 is best
BOLDNESS = 0.5
# relative rise that passes for rounding: in bf16 the content loss is exactly 0 at the content and jumps with the
# first change, which may be more than a step gains
SLACK = 0.01
SMALLEST = 16  # px of the smallest size of coarse to fine: deep layers see nothing below it
LEARNING_RATE = 8.0  # of Adam, in grey levels


@dataclass(frozen=True)
class Snapshot:
    """The best pictures of a batch after so many iterations.

    ``x`` ``(B, 3, H, W)`` in [-1, 1]; ``losses`` by name and their ``total``, ``(B,)``; ``evaluations`` ``(B,)``;
    ``failed`` maps a row whose loss or gradient was no finite number to the evaluation at which that was (the row
    keeps its best picture before, with infinite losses if there was none).
    """

    iteration: int
    x: torch.Tensor
    losses: dict[str, torch.Tensor]
    evaluations: torch.Tensor
    failed: dict[int, int]


@dataclass
class Tally:
    """Evaluations per row ``(B,)``, and the evaluation at which a row failed."""

    evaluations: torch.Tensor
    failed: dict[int, int] = field(default_factory=dict)


class Descent:
    """The minimisation of the losses of a batch at one size; it remembers the best picture of every row."""

    def __init__(self, loss: Loss, canvas: Canvas, search: Lbfgs | Adam, tally: Tally) -> None:
        self.loss, self.canvas, self.search, self.tally = loss, canvas, search, tally
        self.x = canvas.blank()
        self.losses = {"total": canvas.start.new_full((len(canvas.start),), torch.inf)}
        self.before = self.losses["total"].clone()  # at the end of the iteration before
        self.stopped: set[int] = set()

    def step(self) -> None:
        """Evaluate once the loss of every row that has not failed, been stopped or reached a minimum."""
        out = self.stopped | self.search.finished | set(self.tally.failed)
        rows = [row for row in range(len(self.x)) if row not in out]
        if not rows:
            return
        points = self.search.ask(rows).requires_grad_()
        x = self.canvas.draw(points, rows)
        losses = self.loss(x, rows)
        total = sum(losses.values())
        (gradients,) = torch.autograd.grad(total.sum(), points)
        total = total.detach()

        self._keep_best(x.detach(), {"total": total, **losses}, rows)
        self.tally.evaluations[rows] += 1
        finite = (total.isfinite() & gradients.abs().amax(dim=1).isfinite()).tolist()
        good = [i for i, is_finite in enumerate(finite) if is_finite]
        bad = [row for row, is_finite in zip(rows, finite, strict=True) if not is_finite]
        self.tally.failed.update({row: int(self.tally.evaluations[row]) for row in bad})
        if good:
            self.search.tell([rows[i] for i in good], total[good], gradients[good])

    def _keep_best(self, x: torch.Tensor, losses: dict[str, torch.Tensor], rows: list[int]) -> None:
        """Remember the pictures and losses of these rows that are better than any before; NaN never is."""
        better = losses["total"] < self.losses["total"][rows]
        self.x[rows] = torch.where(better.view(-1, 1, 1, 1), x, self.x[rows])
        for name, found in losses.items():
            known = self.losses.setdefault(name, torch.full_like(self.before, torch.inf))
            known[rows] = torch.where(better, found.detach().to(known), known[rows])

    def change(self, full: Canvas) -> torch.Tensor:
        """Return how far the best pictures are from the start of ``full`` at this size."""
        return self.x - full.resized(self.canvas.size).start

    def stop_early(self, percent: float) -> None:
        """Stop rows whose best total fell by less than ``percent`` since the call before; the first stops none."""
        now = self.losses["total"].clone()
        slow = self.before.isfinite() & (self.before - now < percent / 100 * self.before)
        self.stopped.update(slow.nonzero().flatten().tolist())
        self.before = now


def minimise(loss: Loss, start: torch.Tensor, **knobs: Any) -> Iterator[Snapshot]:
    """Yield snapshots of pictures ``(B, 3, H, W)`` in [-1, 1] whose ``loss`` is minimised from ``start``.

    The knobs are those of :func:`minimise_coarse_to_fine`, with full size from the first evaluation on.
    """
    return minimise_coarse_to_fine(lambda size: loss, start, levels=1, **knobs)


def minimise_coarse_to_fine(
    loss_at: Callable[[tuple[int, int]], Loss],
    start: torch.Tensor,
    *,
    iterations: int,  # of 20 evaluations each, over all sizes
    levels: int = 2,  # sizes, each half of the next
    share: float = 0.3,  # of the evaluations, made at smaller sizes, as many at each
    optimiser: str = "lbfgs",  # or adam
    learning_rate: float = LEARNING_RATE,  # of Adam at each size's beginning, in grey levels; falls to 0 like a cosine
    save_at: Sequence[int] = (),  # iterations after which a snapshot is yielded, besides the last
    early_stop: float = 0.0,  # percent: a row whose best total falls by less in an iteration rests at that size
    mask: torch.Tensor | None = None,  # bool (B, 1, H, W): what is drawn
    keep: torch.Tensor | None = None,  # (B, 3, H, W): what stands outside the mask, bit for bit; None: the start
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[Snapshot]:
    """Yield snapshots of pictures whose losses are minimised at a fraction of their size first, then at full size.

    ``loss_at((h, w))`` gives the :data:`Loss` of pictures of that size.  A size begins with the whole ``start`` plus
    the enlarged change of the size before.  Snapshots from a smaller size are enlarged, their losses those at full
    size by an evaluation that is not counted.  ``callback`` receives after every iteration a record of ``iteration``,
    ``size``, the best ``losses`` at that size and ``evaluations``.  Raises BadInput for impossible knobs.
    """
    _check(start, mask, keep, iterations, levels, share, optimiser, save_at)
    full = Canvas(start, smoothness=SMOOTHNESS[optimiser], mask=mask, keep=keep)
    tally, descent = Tally(torch.zeros(len(start), dtype=torch.long)), None
    sizes = _plan(full.size, iterations * EVALUATIONS, levels, share)
    for count, size in enumerate(sizes, start=1):
        if descent is None or size != descent.canvas.size:
            canvas = full.resized(size, descent and descent.change(full))
            points = torch.zeros_like(canvas.start).flatten(1)
            if optimiser == "adam":
                search = Adam(points, learning_rate=learning_rate / 127.5, n_steps=sizes.count(size))
            else:
                knobs = {"first_step": FIRST_STEP / 127.5, "boldness": BOLDNESS, "slack": SLACK}
                search = Lbfgs(points, groups=canvas.octaves(), **knobs)
            descent = Descent(loss_at(size), canvas, search, tally)
        descent.step()
        iteration, rest = divmod(count, EVALUATIONS)
        if rest:
            continue
        if early_stop:
            descent.stop_early(early_stop)
        if callback:
            record = {"iteration": iteration, "size": size, "losses": descent.losses}
            callback({**record, "evaluations": tally.evaluations.clone()})
        if iteration in save_at or iteration == iterations:
            yield _snapshot(iteration, descent, full, loss_at)


def _plan(size: tuple[int, int], n_evaluations: int, levels: int, share: float) -> list[tuple[int, int]]:
    """Return the size at which each evaluation is made, small to large."""
    small = [(size[0] >> level, size[1] >> level) for level in range(levels - 1, 0, -1)]
    n_small = round(share * n_evaluations) if small else 0
    return [small[k * len(small) // n_small] for k in range(n_small)] + [size] * (n_evaluations - n_small)


def _snapshot(iteration: int, descent: Descent, full: Canvas, loss_at: Callable[[tuple[int, int]], Loss]) -> Snapshot:
    """Return the best pictures at full size with their losses."""
    x, losses, tally = descent.x, descent.losses, descent.tally
    if descent.canvas.size != full.size:
        x = full.resized(full.size, descent.change(full)).blank()
        with torch.no_grad():
            losses = loss_at(full.size)(x, list(range(len(x))))
        losses = {"total": sum(losses.values()), **losses}
    losses = {name: found.clone() for name, found in losses.items()}
    return Snapshot(iteration, x.clone(), losses, tally.evaluations.clone(), dict(tally.failed))


def _check(
    start: torch.Tensor,
    mask: torch.Tensor | None,
    keep: torch.Tensor | None,
    iterations: int,
    levels: int,
    share: float,
    optimiser: str,
    save_at: Sequence[int],
) -> None:
    """Raise BadInput for knobs that make no sense."""
    if optimiser not in SMOOTHNESS:
        raise BadInput(f"optimiser is '{optimiser}'; it must be one of {', '.join(SMOOTHNESS)}.")
    if iterations < 1 or not all(1 <= iteration <= iterations for iteration in save_at):
        raise BadInput(
            f"Pictures are saved after {list(save_at)} of {iterations} iterations: name iterations from 1 on."
        )
    if not 0 <= share < 1:
        raise BadInput(f"share is {share}; the part of the evaluations at smaller sizes must be at least 0, below 1.")
    size = tuple(start.shape[-2:])
    if levels < 1 or min(size) >> (levels - 1) < SMALLEST:
        raise BadInput(f"{levels} sizes do not fit {size}: the smallest, half of the next each, needs {SMALLEST} px.")
    for name, given, channels in (("mask", mask, 1), ("keep", keep, 3)):
        if given is not None and tuple(given.shape) != (len(start), channels, *size):
            raise BadInput(
                f"{name} is {tuple(given.shape)}; it must be {(len(start), channels, *size)} for this start."
            )
