"""L-BFGS against dense BFGS, torch's L-BFGS and itself alone; Adam against torch's."""

import numpy as np
import pytest
import torch

from stda.generators.style import optimisers
from stda.generators.style.optimisers import Adam, Lbfgs, LineSearch, Trial, cubic_minimum


def rosenbrock(x):
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(dim=1)


def descend(optimiser, function, n_evaluations):
    """Evaluate so often and return the best value of each row after each evaluation, ``(evaluations, B)``."""
    best = np.full(len(optimiser.points), np.inf)
    history = []
    for _ in range(n_evaluations):
        rows = [row for row in range(len(best)) if row not in optimiser.finished]
        if rows:
            points = optimiser.ask(rows).requires_grad_()
            values = function(points)
            (gradients,) = torch.autograd.grad(values.sum(), points)
            optimiser.tell(rows, values.detach(), gradients)
            best[rows] = np.minimum(best[rows], values.detach().numpy())
        history.append(best.copy())
    return np.array(history)


def torchs(start, function, n_evaluations):
    """Return the same of torch.optim.LBFGS with its strong Wolfe line search, one row after another."""
    histories = []
    for row in start:
        point, values = row.clone().requires_grad_(), []
        knobs = {"max_iter": n_evaluations, "max_eval": n_evaluations, "tolerance_grad": 0, "tolerance_change": 0}
        optimiser = torch.optim.LBFGS([point], history_size=10, line_search_fn="strong_wolfe", **knobs)

        def closure(point=point, values=values):
            point.grad = None
            value = function(point[None])[0]
            value.backward()
            values.append(value.item())
            return value

        optimiser.step(closure)
        histories.append(np.minimum.accumulate(values)[:n_evaluations])
    return histories


def stiff(x):
    stiffness = torch.linspace(0, 6, x.shape[1], dtype=x.dtype).exp()
    return (stiffness * (x.square() + x**4)).sum(dim=1)


@pytest.mark.parametrize(("function", "size"), [(rosenbrock, 2), (stiff, 30)])
def test_needs_as_few_evaluations_as_torch(function, size):
    start = torch.randn(20, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # torch's first step has an L1 norm of 1
    ours = descend(Lbfgs(start, first_step=1 / size), function, 120).T
    theirs = torchs(start, function, 120)
    needed = [sum(np.argmax(np.append(row, 0) < 1e-3) for row in history) for history in (ours, theirs)]
    assert needed[0] <= 1.03 * needed[1] < 20 * 100


def test_directions_are_those_of_dense_bfgs():
    # the inverse Hessian as a matrix, Nocedal and Wright 2006, equation 6.17, begun for each direction anew
    boldness = 0.25
    start = torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    optimiser = Lbfgs(start, first_step=0.1, boldness=boldness, history=4)
    pairs, before = [], None
    for _ in range(40):
        searching = optimiser.searches[0]
        descend(optimiser, rosenbrock, 1)
        if optimiser.searches[0] is searching:
            continue
        now = optimiser.points[0].numpy().copy(), optimiser.gradients[0].numpy().copy()
        if before is not None:
            pairs.append((now[0] - before[0], now[1] - before[1]))
            s, y = pairs[-1]
            # between the two scales of Barzilai and Borwein
            inverse = np.eye(6) * ((s @ s) / (s @ y)) ** boldness * ((s @ y) / (y @ y)) ** (1 - boldness)
            for s, y in pairs[-4:]:
                left = np.eye(6) - np.outer(s, y) / (s @ y)
                inverse = left @ inverse @ left.T + np.outer(s, s) / (s @ y)
            np.testing.assert_allclose(optimiser.directions[0], -inverse @ now[1], rtol=1e-6, atol=1e-9)
        before = now
    assert len(pairs) > 10


def test_groups_learn_their_own_curvature():
    curvature = torch.tensor([1.0] * 50 + [1e4] * 50, dtype=torch.float64)
    curvature = curvature * torch.linspace(1, 3, 100)
    start = torch.randn(2, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    groups = torch.tensor([0] * 50 + [1] * 50)

    def quadratic(x):
        return (curvature * x.square()).sum(dim=1)

    alike, apart = (descend(Lbfgs(start, first_step=1e-3, groups=g), quadratic, 30)[-1] for g in (None, groups))
    assert (apart < 1e-3 * alike).all()


def test_a_batch_gives_what_each_row_gives_alone():
    start = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    start[1] = 1  # the minimum: this row is finished at once, the others go on
    together = Lbfgs(start, first_step=0.1)
    found = descend(together, rosenbrock, 25)
    assert together.finished == {1}
    for row in range(3):
        alone = descend(Lbfgs(start[row : row + 1], first_step=0.1), rosenbrock, 25)
        np.testing.assert_allclose(found[:, row], alone[:, 0], rtol=1e-9, atol=1e-20)


def test_gradients_that_lie_end_the_row():
    optimiser = Lbfgs(torch.ones(1, 4), first_step=0.1)
    for _ in range(1 + optimisers.MAX_TRIALS):
        point = optimiser.ask([0])
        optimiser.tell([0], point.sum(dim=1), -torch.ones_like(point))
    assert optimiser.finished == {0}


def test_line_search_satisfies_the_strong_wolfe_conditions():
    random = np.random.default_rng(0)
    for _ in range(200):
        # a falling line, a bowl and a wave, from steps far too short to far too long
        bowl, wave, phase = random.uniform(0.1, 5), random.uniform(0, 0.3), random.uniform(0, 6)
        function = np.polynomial.Polynomial([0, -random.uniform(0.5, 2), bowl])

        def value(t, function=function, wave=wave, phase=phase):
            return function(t) + wave * np.sin(3 * t + phase) / 3

        def slope(t, function=function, wave=wave, phase=phase):
            return function.deriv()(t) + wave * np.cos(3 * t + phase)

        search = LineSearch(value(0), slope(0), step=10 ** random.uniform(-3, 2))
        while not search.ended:
            search.tell(value(search.step), slope(search.step))
        assert search.succeeded
        assert value(search.step) <= value(0) + 1e-4 * search.step * slope(0)
        assert abs(slope(search.step)) <= 0.9 * abs(slope(0))


def test_cubic_minimum():
    cubic = np.polynomial.Polynomial([1, -2, 0.5, 1])
    trials = [Trial(t, cubic(t), cubic.deriv()(t)) for t in (0.1, 1.7)]
    lowest = max(cubic.deriv().roots().real)
    assert cubic_minimum(*trials) == pytest.approx(lowest)
    assert cubic_minimum(Trial(0, 0, -1), Trial(2, -2, -1)) == 1  # a straight line has no minimum


def test_adam_is_torchs_with_a_cosine():
    start = torch.randn(2, 6, dtype=torch.float64)
    ours = Adam(start, learning_rate=0.1, n_steps=30)
    descend(ours, rosenbrock, 30)
    points = start.clone().requires_grad_()
    theirs = torch.optim.Adam([points], lr=0.1, betas=ours.betas)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 30)
    for _ in range(30):
        points.grad = None
        rosenbrock(points).sum().backward()
        theirs.step()
        schedule.step()
    torch.testing.assert_close(ours.points, points.detach())
