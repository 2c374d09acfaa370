"""L-BFGS and Adam of many points at once that couple none of them: memory, line search and step belong to each row.

``torch.optim.LBFGS`` over a batch shares one step length and one curvature among all its pictures.  These optimisers
are asked for the points to evaluate and told what was found there, so the loop that evaluates belongs to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

HISTORY = 10  # curvature pairs; longer memories have diverged in bf16
SUFFICIENT_DECREASE, CURVATURE = 1e-4, 0.9  # of the strong Wolfe conditions (Nocedal and Wright 2006, equation 3.7)
LEAST_BEND = 1e-6  # change of slope, relative to the slope, below which a step says nothing about curvature
SPREAD = 1e3  # factor by which a group of coordinates may differ from all together in that guess
MAX_TRIALS = 10  # evaluations of one line search


@dataclass(frozen=True)
class Trial:
    """A step length with the value and the directional derivative there."""

    step: float
    value: float
    slope: float


class LineSearch:
    """Search for a step that satisfies the strong Wolfe conditions, by bracketing and cubic interpolation.

    Evaluate at ``step`` and :meth:`tell` what is there until the search has ``ended``.  It ends at the step evaluated
    last, so that no other gradient need be kept; ``succeeded`` says whether the conditions hold there or, after too
    many trials, whether the value is below the start's.  Values up to a relative ``slack`` above it pass for below it,
    as values may that are rounded coarsely.
    """

    def __init__(self, value: float, slope: float, *, step: float = 1.0, slack: float = 0.0) -> None:
        self.start = self.low = self.trial = Trial(0.0, value, slope)
        self.high: Trial | None = None
        self.step, self.limit = step, value + slack * abs(value)
        self.n_trials, self.ended, self.succeeded = 0, False, False

    def tell(self, value: float, slope: float) -> None:
        """Take the value and the directional derivative at ``step``; end the search or choose the next step."""
        self.n_trials += 1
        self.trial = trial = Trial(self.step, value, slope)
        decreased = value <= self.limit + SUFFICIENT_DECREASE * trial.step * self.start.slope
        found = decreased and abs(slope) <= -CURVATURE * self.start.slope
        self.ended = found or self.n_trials == MAX_TRIALS
        self.succeeded = found or value < self.start.value
        if self.ended:
            return
        before = self.low
        if decreased and slope < 0:
            self.low = trial
        else:
            self.high = trial
        if self.high is None:  # still falling: at least twice, at most ten times as far
            self.step = min(max(cubic_minimum(before, trial), 2 * trial.step), 10 * trial.step)
        else:
            margin = 0.1 * (self.high.step - self.low.step)
            minimum = cubic_minimum(self.low, self.high)
            self.step = min(max(minimum, self.low.step + margin), self.high.step - margin)


def cubic_minimum(a: Trial, b: Trial) -> float:
    """Return where the cubic through two trials has its minimum, or their middle if it has none.

    Nocedal and Wright 2006, equation 3.59.
    """
    first = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    square = first**2 - a.slope * b.slope
    root = math.sqrt(max(square, 0.0))
    divisor = b.slope - a.slope + 2 * root
    if square < 0 or divisor == 0:
        return (a.step + b.step) / 2
    return b.step - (b.step - a.step) * (b.slope + root - first) / divisor


class Lbfgs:
    """Limited-memory BFGS of points ``(B, n)`` (Nocedal and Wright 2006, algorithms 7.4 and 7.5).

    Departure: the first guess of the inverse Hessian is not one number times the identity but one for each group of
    coordinates, in the ratio of the remembered changes of point and gradient there.  Vectors are updated for all rows
    together, with two transfers of numbers from the device per evaluation.  A line search that finds nothing lower
    forgets its row's memory; if there was none, the row is in ``finished``.
    """

    def __init__(
        self,
        points: torch.Tensor,
        *,
        first_step: float,  # mean absolute change of a value in a first trial along the bare gradient
        groups: torch.Tensor | None = None,  # long (n,), numbers from 0 on; None: all coordinates alike
        boldness: float = 0.0,  # scale of the first guess, from the usual (cautious) at 0 to the largest sensible at 1
        slack: float = 0.0,  # of the line searches
        history: int = HISTORY,
    ) -> None:
        n_rows, size = points.shape
        groups = torch.zeros(size, dtype=torch.long, device=points.device) if groups is None else groups
        self.members = torch.nn.functional.one_hot(groups).to(points)  # (n, groups)
        self.points, self.first_step = points.clone(), first_step
        self.boldness, self.slack, self.history = boldness, slack, history
        self.gradients, self.directions = torch.zeros_like(points), torch.zeros_like(points)
        self.values = [math.inf] * n_rows
        # rings of changes of point and gradient, and 1 / their product: 0 where there is no pair
        self.moves, self.bends = points.new_zeros(2, n_rows, history, size)
        self.weights = points.new_zeros(n_rows, history)
        # squared sizes of both changes in each group
        self.move_sizes, self.bend_sizes = points.new_zeros(2, n_rows, history, self.members.shape[1])
        self.n_pairs = [0] * n_rows  # since the row last forgot; the newest is at (n_pairs - 1) % history
        self.searches: list[LineSearch | None] = [None] * n_rows
        self.finished: set[int] = set()

    def ask(self, rows: Sequence[int]) -> torch.Tensor:
        """Return the points of these rows to evaluate, ``(len(rows), n)``."""
        return self.points[rows] + self._steps(rows)

    def _steps(self, rows: Sequence[int]) -> torch.Tensor:
        searches = [self.searches[row] for row in rows]
        lengths = [search.step if search else 0.0 for search in searches]
        return self.points.new_tensor(lengths)[:, None] * self.directions[rows]

    @torch.no_grad()
    def tell(self, rows: Sequence[int], values: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take the values ``(len(rows),)`` and gradients ``(len(rows), n)`` at the points asked for; all finite."""
        slopes = (gradients * self.directions[rows]).sum(dim=1)
        numbers = torch.stack([values.to(slopes), slopes], dim=1).tolist()
        moved, stuck = {}, []
        for i, (row, (value, slope)) in enumerate(zip(rows, numbers, strict=True)):
            search = self.searches[row]
            if search:
                search.tell(value, slope)
            if search is None or (search.ended and search.succeeded):
                moved[row], self.values[row] = i, value
            elif search.ended:
                stuck.append(row)
        if moved:
            self._move(list(moved), gradients[list(moved.values())])
        self._forget(stuck)
        self._aim([*moved, *stuck])

    def _move(self, rows: list[int], gradients: torch.Tensor) -> None:
        """Go to the ends of the line searches of these rows and remember what they said about curvature."""
        moves, bends = self._steps(rows), gradients - self.gradients[rows]
        move_sizes, bend_sizes = (change.square() @ self.members for change in (moves, bends))
        self.points[rows] += moves
        self.gradients[rows] = gradients
        for i, row in enumerate(rows):
            search = self.searches[row]
            bend = search.trial.slope - search.start.slope if search else 0.0
            if search and bend > -LEAST_BEND * search.start.slope:
                slot = self.n_pairs[row] % self.history
                self.moves[row, slot], self.bends[row, slot] = moves[i], bends[i]
                self.move_sizes[row, slot], self.bend_sizes[row, slot] = move_sizes[i], bend_sizes[i]
                self.weights[row, slot] = 1 / (search.step * bend)
                self.n_pairs[row] += 1

    def _forget(self, rows: list[int]) -> None:
        """Empty the memory of rows whose direction led nowhere; without any memory they are finished."""
        for row in rows:
            if not self.n_pairs[row]:
                self.finished.add(row)
            self.weights[row] = 0
            self.n_pairs[row] = 0

    def _aim(self, rows: list[int]) -> None:
        """Begin a line search for these rows, along minus the gradient times the approximate inverse Hessian."""
        rows = [row for row in rows if row not in self.finished]
        if not rows:
            return
        directions = self._descend(rows)
        slopes = (directions * self.gradients[rows]).sum(dim=1).tolist()
        self.directions[rows] = directions
        uphill = [row for row, slope in zip(rows, slopes, strict=True) if not slope < 0]
        for row, slope in zip(rows, slopes, strict=True):
            self.searches[row] = LineSearch(self.values[row], slope, slack=self.slack)
        self._forget(uphill)
        self._aim(uphill)

    def _descend(self, rows: list[int]) -> torch.Tensor:
        """Return the directions by the two-loop recursion; without memory the gradient of mean ``first_step``."""
        index = torch.tensor(rows, device=self.points.device)
        pairs = torch.tensor([self.n_pairs[row] for row in rows], device=self.points.device)
        depth = min(max(self.n_pairs[row] for row in rows), self.history)
        slots = [(pairs - 1 - k) % self.history for k in range(depth)]  # newest first
        found, shares = -self.gradients[rows], []
        for slot in slots:
            share = self.weights[index, slot] * (self.moves[index, slot] * found).sum(dim=1)
            found -= share[:, None] * self.bends[index, slot]
            shares.append(share)
        found *= self._first_guess(index, slots[0] if slots else None)
        for slot, share in zip(reversed(slots), reversed(shares), strict=True):
            back = self.weights[index, slot] * (self.bends[index, slot] * found).sum(dim=1)
            found += (share - back)[:, None] * self.moves[index, slot]
        return found

    def _first_guess(self, index: torch.Tensor, newest: torch.Tensor | None) -> torch.Tensor:
        """Return the diagonal of the first guess of the inverse Hessian of each row, ``(len(index), n or 1)``."""
        tiny = torch.finfo(self.points.dtype).tiny
        bare = self.first_step / self.gradients[index].abs().mean(dim=1, keepdim=True).clamp_min(tiny)
        if newest is None:
            return bare
        # a pair counts by its weight, so that long and short steps say equally much; no weight, no pair
        weights = self.weights[index][..., None]
        moves, bends = ((weights * sizes[index]).sum(dim=1) for sizes in (self.move_sizes, self.bend_sizes))
        usual = (moves.sum(dim=1, keepdim=True) / bends.sum(dim=1, keepdim=True).clamp_min(tiny)).sqrt()
        guess = (moves / bends.clamp_min(tiny)).sqrt().clamp(usual / SPREAD, usual * SPREAD)
        # the newest pair, s and y, says how large, by the two rules of Barzilai and Borwein 1988 for H: y H y = y s
        # (the usual one, cautious) and s s = s y H, each with the guess as the measure
        newest_weights = self.weights[index, newest]
        cautious = (guess * self.bend_sizes[index, newest]).sum(dim=1) * newest_weights
        bold = (self.move_sizes[index, newest] / guess.clamp_min(tiny)).sum(dim=1) * newest_weights
        scale = bold**self.boldness / cautious.clamp_min(tiny) ** (1 - self.boldness)
        return torch.where(newest_weights[:, None] > 0, (guess * scale[:, None]) @ self.members.T, bare)


class Adam:
    """Adam (Kingma and Ba 2015) of points ``(B, n)`` whose learning rate falls to zero like a half cosine."""

    def __init__(
        self,
        points: torch.Tensor,
        *,
        learning_rate: float,  # change of every value in the first step
        n_steps: int,
        betas: tuple[float, float] = (0.9, 0.9),  # the second forgets fast: steps are few
        epsilon: float = 1e-8,
    ) -> None:
        self.points, self.learning_rate, self.n_steps = points.clone(), learning_rate, n_steps
        self.betas, self.epsilon, self.n_done = betas, epsilon, 0
        self.means, self.squares = torch.zeros_like(points), torch.zeros_like(points)
        self.finished: set[int] = set()

    def ask(self, rows: Sequence[int]) -> torch.Tensor:
        """Return the points of these rows to evaluate, ``(len(rows), n)``."""
        return self.points[rows]

    @torch.no_grad()
    def tell(self, rows: Sequence[int], values: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take the gradients ``(len(rows), n)`` at the points asked for; the values play no part."""
        rate = self.learning_rate * (1 + math.cos(math.pi * self.n_done / self.n_steps)) / 2
        self.n_done += 1
        self.means[rows] = self.means[rows].lerp(gradients, 1 - self.betas[0])
        self.squares[rows] = self.squares[rows].lerp(gradients.square(), 1 - self.betas[1])
        mean, square = (
            moment[rows] / (1 - beta**self.n_done)
            for moment, beta in zip((self.means, self.squares), self.betas, strict=True)
        )
        self.points[rows] -= rate * mean / (square.sqrt() + self.epsilon)
