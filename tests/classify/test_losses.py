import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from stda import BadInput
from stda.classify.losses import LOSSES, loss_function

COUNTS = np.array([80, 15, 5])
LABELS = np.repeat([0, 1, 2], COUNTS)
NOISE = torch.Generator().manual_seed(0)
LOGITS = torch.randn(12, 3, generator=NOISE, dtype=torch.float64)
WANTED = torch.randint(0, 3, (12,), generator=NOISE)


def test_weights_are_those_of_scikit_learn():
    weights = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=LABELS))
    expected = functional.cross_entropy(LOGITS, WANTED, weight=weights)
    torch.testing.assert_close(loss_function("weighted", COUNTS)(LOGITS, WANTED), expected, rtol=1e-6, atol=0)


def test_focal_without_focus_is_cross_entropy_and_with_it_the_formula():
    plain = functional.cross_entropy(LOGITS, WANTED)
    torch.testing.assert_close(loss_function("focal", COUNTS, gamma=0)(LOGITS, WANTED), plain)
    p = LOGITS.softmax(1)[torch.arange(12), WANTED]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(loss_function("focal", COUNTS)(LOGITS, WANTED), expected)


def test_logit_adjustment_learns_the_logits_of_equally_frequent_classes():
    """With no image to go by, the best plain logits are equal, and cross-entropy's are the logarithms of the counts."""
    for name, expected in (("logit-adjusted", np.zeros(3)), ("cross-entropy", np.log(COUNTS) - np.log(COUNTS).mean())):
        logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-10)
        loss = loss_function(name, COUNTS)

        def closure(logits=logits, optimiser=optimiser, loss=loss):
            optimiser.zero_grad()
            value = loss(logits.expand(len(LABELS), 3), torch.from_numpy(LABELS))
            value.backward()
            return value

        optimiser.step(closure)
        found = logits.detach().numpy()
        np.testing.assert_allclose(found - found.mean(), expected, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_a_certain_probability_is_an_index_and_a_mixture_lies_between(name):
    loss, one_hot = loss_function(name, COUNTS), functional.one_hot(WANTED, 3).double()
    torch.testing.assert_close(loss(LOGITS, one_hot), loss(LOGITS, WANTED), rtol=1e-6, atol=0)
    first, second = (functional.one_hot(torch.full((1,), c), 3).double() for c in (0, 2))
    mixed = loss(LOGITS[:1], 0.25 * first + 0.75 * second)
    ends = sorted(loss(LOGITS[:1], end).item() for end in (first, second))
    assert ends[0] < mixed.item() < ends[1]


def test_unusable_input_is_refused_in_one_sentence():
    with pytest.raises(BadInput, match="Unknown loss 'hinge'"):
        loss_function("hinge", COUNTS)
    with pytest.raises(BadInput, match="choose focal"):
        loss_function("weighted", np.array([3, 0]))
