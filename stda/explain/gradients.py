"""Methods that need a gradient and nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stda.explain.subject import DIFFERENCE, Method, Subject


def gradient(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Return the derivative of the target logit by each input value (Simonyan et al. 2014, without absolute values)."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        chosen = subject.network(x).gather(1, target[:, None]).sum()
        (slope,) = torch.autograd.grad(chosen, x)
    return slope


def integrated_gradients(
    subject: Subject,
    x: Tensor,
    target: Tensor,
    *,
    n_steps: int = 32,  # points on the way from the baseline
    baseline: float | Tensor = 0.0,  # image without evidence: a value or a tensor that fits x; 0 is mid-grey
) -> Tensor:
    """Return the mean gradient on the straight way from ``baseline`` to x, times the difference.

    The relevances sum to the difference of the logits at both ends (completeness) up to the error of the integral,
    which is taken by the Gauss-Legendre rule, as in captum (Sundararajan et al. 2017).
    """
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)
    baseline = torch.as_tensor(baseline, dtype=x.dtype, device=x.device).expand_as(x)
    way, total = x - baseline, torch.zeros_like(x)
    each = max(1, 256 // len(x))  # points computed at once: memory stays that of a training batch
    for start in range(0, n_steps, each):
        share = torch.tensor((nodes[start : start + each] + 1) / 2, dtype=x.dtype, device=x.device)
        points = torch.lerp(baseline, x, share.view(-1, 1, 1, 1, 1))
        slopes = gradient(subject, points.flatten(0, 1), target.repeat(len(share))).view_as(points)
        weight = torch.tensor(weights[start : start + each] / 2, dtype=x.dtype, device=x.device)
        total += (slopes * weight.view(-1, 1, 1, 1, 1)).sum(dim=0)
    return way * total


METHODS = {
    "gradient": Method(gradient, "gradient", "Simonyan et al. 2014"),
    "integrated_gradients": Method(
        integrated_gradients, "integrated gradients", "Sundararajan et al. 2017", conserves=DIFFERENCE
    ),
}
