"""The minimisation of a batch: each picture as if it were alone, snapshots, masks, sizes, failures."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from stda import BadInput
from stda.generators.style.canvas import Canvas
from stda.generators.style.minimise import EVALUATIONS, FIRST_STEP, SMOOTHNESS, minimise, minimise_coarse_to_fine

GENERATOR = torch.Generator().manual_seed(0)
START, WANTED = torch.rand(2, 3, 3, 32, 40, generator=GENERATOR, dtype=torch.float64) * 1.6 - 0.8


def loss_at(size, *, spoil=None):
    """A loss of two parts that is no quadratic; ``spoil`` makes one row not a number from its third evaluation on."""
    wanted = functional.interpolate(WANTED, size=size, mode="area")
    stiffness = torch.linspace(0, 5, wanted[0].numel(), dtype=torch.float64).exp()
    calls = []

    def loss(x, rows):
        gaps = (x - wanted[rows]).square().flatten(1) * stiffness
        rough = (x[..., 1:] - x[..., :-1]).square().flatten(1)
        calls.append(rows)
        if spoil in rows and len(calls) >= 3:
            gaps = gaps * torch.tensor([[float("nan") if row == spoil else 1.0] for row in rows])
        return {"near": 30 * (gaps + gaps.square()).mean(dim=1), "smooth": rough.mean(dim=1)}

    loss.calls = calls
    return loss


def loss(**knobs):
    return loss_at(tuple(START.shape[-2:]), **knobs)


def total(x, function=None):
    return sum((function or loss())(x, list(range(len(x)))).values())


@pytest.mark.parametrize("optimiser", ["lbfgs", "adam"])
def test_a_batch_gives_what_each_picture_gives_alone(optimiser):
    together = list(minimise(loss(), START, iterations=2, save_at=[1], optimiser=optimiser))
    assert [snapshot.iteration for snapshot in together] == [1, 2]
    assert together[-1].evaluations.tolist() == [40, 40, 40]
    for row in range(3):
        function = loss()
        alone = minimise(
            lambda x, rows, row=row, function=function: function(x, [row]),
            START[row : row + 1],
            iterations=2,
            save_at=[1],
            optimiser=optimiser,
        )
        for ours, theirs in zip(alone, together, strict=True):
            torch.testing.assert_close(ours.x[0], theirs.x[row], rtol=1e-7, atol=1e-9)


def test_snapshots_hold_the_best_pictures_and_their_losses():
    snapshots = list(minimise(loss(), START, iterations=3, save_at=[1, 2]))
    totals = [total(START), *(snapshot.losses["total"] for snapshot in snapshots)]
    for before, after in pairwise(totals):
        assert (after <= before).all()
    assert (totals[-1] < 0.3 * totals[0]).all()
    for snapshot in snapshots:
        assert snapshot.x.abs().max() <= 1
        assert snapshot.failed == {}
        found = loss()(snapshot.x, [0, 1, 2])
        for name in found:
            torch.testing.assert_close(snapshot.losses[name], found[name])
        torch.testing.assert_close(snapshot.losses["total"], sum(found.values()))


def test_reaches_what_torch_reaches_on_the_same_coordinates():
    canvas = Canvas(START[:1], smoothness=SMOOTHNESS["lbfgs"])
    scale = FIRST_STEP / 127.5 * START[0].numel()  # torch's first step has an L1 norm of 1
    point = torch.zeros(1, START[0].numel(), dtype=torch.float64, requires_grad=True)
    best = []

    def closure():
        point.grad = None
        value = total(canvas.draw(point * scale, [0]))
        value.backward()
        best.append(value.item())
        return value

    limits = {"max_iter": EVALUATIONS, "max_eval": EVALUATIONS, "tolerance_grad": 0, "tolerance_change": 0}
    torch.optim.LBFGS([point], history_size=10, line_search_fn="strong_wolfe", **limits).step(closure)
    (ours,) = minimise(loss(), START[:1], iterations=1)
    assert ours.losses["total"].item() <= 1.01 * min(best[:EVALUATIONS])


def test_rounding_does_not_end_the_descent():
    # as in bf16: small changes of the picture are rounded away, and the content loss jumps with the first that is not
    first = total(START)

    def rounded(x, rows):
        grid = [(picture / 0.02).round() * 0.02 for picture in (x, START[rows])]
        changed = (grid[0] != grid[1]).flatten(1).any(dim=1)
        return {**loss()(x + (grid[0] - x).detach(), rows), "content": changed * 0.03 * first[rows]}

    (snapshot,) = minimise(rounded, START, iterations=1)
    assert (snapshot.losses["total"] < 0.1 * first).all()


def test_a_picture_that_improves_too_little_rests():
    totals = []
    for _ in minimise(loss(), START, iterations=4, callback=lambda r: totals.append(r["losses"]["total"].clone())):
        pass
    fall = [1 - after / before for before, after in pairwise(totals)]
    expected = [20 * next((k for k, by in enumerate(fall, start=2) if by[row] < 0.05), 4) for row in range(3)]
    (snapshot,) = minimise(loss(), START, iterations=4, early_stop=5.0)
    assert snapshot.evaluations.tolist() == expected
    assert len(set(expected)) > 1


def test_a_loss_that_is_no_number_stops_its_picture_only():
    function = loss(spoil=1)
    (snapshot,) = minimise(function, START, iterations=1)
    assert snapshot.failed == {1: 3}
    assert snapshot.evaluations.tolist() == [20, 3, 20]
    assert function.calls[3:] == [[0, 2]] * 17
    assert snapshot.x.isfinite().all()
    assert snapshot.losses["total"].isfinite().all()  # the best before
    (whole,) = minimise(loss(), START, iterations=1)
    torch.testing.assert_close(snapshot.x[[0, 2]], whole.x[[0, 2]], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("levels", [1, 2])
def test_outside_the_mask_nothing_changes(levels):
    # the start is noise there: what is kept is another picture
    keep = torch.rand(START.shape, dtype=torch.float64, generator=GENERATOR)
    mask = torch.zeros(3, 1, 32, 40, dtype=torch.bool)
    mask[:, :, 3:21, 5:30] = True
    knobs = {"iterations": 2, "save_at": [1], "mask": mask, "keep": keep, "levels": levels}
    for snapshot in minimise_coarse_to_fine(loss_at, START, **knobs):
        outside = ~mask.expand_as(START)
        assert torch.equal(snapshot.x[outside], keep[outside])
        inside = torch.where(mask, START, keep)
        assert (total(snapshot.x) < total(inside)).all()


def test_small_sizes_come_first():
    sizes = []

    def at(size):
        function = loss_at(size)
        return lambda x, rows: sizes.append(tuple(x.shape[-2:])) or function(x, rows)

    start = functional.interpolate(START, size=(64, 80), mode="bilinear")
    wanted = functional.interpolate(WANTED, size=(64, 80), mode="bilinear")
    records = []
    knobs = {"iterations": 4, "share": 0.5, "save_at": [1], "callback": records.append}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "WANTED", wanted)
        early, late = minimise_coarse_to_fine(at, start, **knobs)
        found = total(early.x, loss_at((64, 80)))
    # the early snapshot is evaluated once at full size
    assert sizes == [(32, 40)] * 20 + [(64, 80)] + [(32, 40)] * 20 + [(64, 80)] * 40
    assert [record["size"] for record in records] == [(32, 40)] * 2 + [(64, 80)] * 2
    assert early.x.shape == late.x.shape == start.shape
    torch.testing.assert_close(early.losses["total"], found)
    assert (late.losses["total"] < early.losses["total"]).all()
    assert late.evaluations.tolist() == [80, 80, 80]


def test_coarse_to_fine_adds_the_change_to_the_whole_start():
    fine = torch.rand(1, 3, 32, 32, generator=GENERATOR) * 0.2

    def at(size):
        return lambda x, rows: {"lighter": (x.mean(dim=(1, 2, 3)) - 0.5).square()}

    early, _ = minimise_coarse_to_fine(at, fine, iterations=2, save_at=[1])
    lift = early.x - fine
    assert lift.std() < 0.01 < 0.35 < lift.mean()  # lighter by an even amount: the detail of the start is still there


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"optimiser": "sgd"}, "optimiser is 'sgd'; it must be one of lbfgs, adam"),
        ({"iterations": 0}, "iterations"),
        ({"save_at": [3]}, "name iterations from 1 on"),
        ({"levels": 3}, "needs 16 px"),
        ({"share": 1.0}, "share is 1.0"),
        ({"mask": torch.ones(3, 1, 4, 4, dtype=torch.bool)}, r"mask is \(3, 1, 4, 4\)"),
        ({"keep": START[:1]}, "keep is"),
    ],
)
def test_impossible_knobs_are_one_sentence(knobs, words):
    with pytest.raises(BadInput, match=words):
        next(minimise_coarse_to_fine(loss_at, START, **{"iterations": 2, "levels": 1, **knobs}))


def test_float32_repeats_bit_for_bit():
    start = START.float()
    first, second = (next(minimise(loss(), start, iterations=1)) for _ in range(2))
    assert first.x.dtype == torch.float32
    assert np.array_equal(first.x, second.x)
