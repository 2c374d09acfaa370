"""Losses for unbalanced classes: weights, focus on what is hard, or logits adjusted by the prior."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from stda import BadInput

# float32 logits (N, K) and class indices (N,) or probabilities (N, K) -> mean loss
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES = ("cross-entropy", "weighted", "focal", "logit-adjusted")
BY_FREQUENCY = ("weighted", "logit-adjusted")  # they mend what a balanced sampler has mended already


def loss_function(
    name: str,
    counts: np.ndarray,
    *,
    gamma: float = 2.0,  # focal: how much less an easy image counts
    tau: float = 1.0,  # logit-adjusted: strength of the prior
) -> Loss:
    """Return a loss of :data:`LOSSES` for training images of which ``counts`` (K,) are of each class.

    - ``cross-entropy``: as it is.
    - ``weighted``: classes weigh n / (K n_k), as scikit-learn's "balanced" (King and Zeng 2001), in the mean too.
    - ``focal``: -(1 - p)^gamma log p of the true class (Lin et al. 2017).
    - ``logit-adjusted``: cross-entropy of logits + tau log(n_k / n) (Menon et al. 2021): the plain logits then
      predict as if all classes were equally frequent.

    A target of probabilities counts as their mixture.  Raises BadInput for an unknown name, and for a class without
    images where the loss goes by frequencies.
    """
    if name not in LOSSES:
        raise BadInput(f"Unknown loss '{name}'; it must be one of {', '.join(LOSSES)}.")
    shares = torch.as_tensor(np.asarray(counts, dtype=np.float64) / np.sum(counts))
    if name in BY_FREQUENCY and not (shares > 0).all():
        raise BadInput(f"Loss '{name}' goes by class frequencies, but class counts are {list(counts)}: choose focal.")
    if name == "weighted":
        weights = (1 / (len(shares) * shares)).float()
        return lambda logits, wanted: _weighted(logits, wanted, weights.to(logits.device))
    if name == "focal":
        return lambda logits, wanted: _focal(logits, wanted, gamma)
    if name == "logit-adjusted":
        offset = (tau * shares.log()).float()
        return lambda logits, wanted: functional.cross_entropy(logits + offset.to(logits.device), wanted)
    return functional.cross_entropy


def _weighted(logits: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean: PyTorch divides by the weights of the batch for indices only."""
    share = _shares(logits, wanted) * weights
    return -(share * logits.log_softmax(dim=1)).sum() / share.sum()


def _focal(logits: torch.Tensor, wanted: torch.Tensor, gamma: float) -> torch.Tensor:
    log_p = logits.log_softmax(dim=1)
    return -(_shares(logits, wanted) * (1 - log_p.exp()) ** gamma * log_p).sum(dim=1).mean()


def _shares(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return targets as probabilities ``(N, K)``."""
    return wanted if wanted.ndim == 2 else functional.one_hot(wanted, logits.shape[1]).to(logits.dtype)
