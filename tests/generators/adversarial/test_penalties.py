import pytest
import torch

from stda.compute import rng
from stda.generators.adversarial.penalties import gradient_penalty, r1_penalty


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_gradient_penalty_is_exact_for_a_linear_critic(scale):
    weight = torch.randn(3 * 4 * 4, generator=rng(0)) * scale
    real, fake = torch.randn(5, 3, 4, 4, generator=rng(1)), torch.randn(5, 3, 4, 4, generator=rng(2))
    weight.requires_grad_(True)
    penalty = gradient_penalty(lambda x: x.flatten(1) @ weight, real, fake, torch.rand(5, generator=rng(3)))
    length = weight.detach().norm()
    assert penalty.item() == pytest.approx((length.item() - 1) ** 2, rel=1e-5)
    penalty.backward()
    assert torch.allclose(weight.grad, 2 * (length - 1) * weight.detach() / length, rtol=1e-4)


def test_gradient_penalty_of_a_quadratic_critic_lies_on_the_interpolates():
    # critic |x|^2 / 2 has gradient x: the penalty reads the interpolate itself
    real, fake, mix = torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2), torch.tensor([0.25, 1.0])
    penalty = gradient_penalty(lambda x: x.square().sum(dim=(1, 2, 3)) / 2, real, fake, mix)
    assert penalty.item() == pytest.approx(((0.5 - 1) ** 2 + (2 - 1) ** 2) / 2)


def test_r1_is_half_the_squared_slope_at_real_images():
    real = torch.randn(3, 1, 2, 2, generator=rng(0))
    # critic |x|^2 / 2 has gradient x; a linear one has its weight everywhere
    found = r1_penalty(lambda x: x.square().sum(dim=(1, 2, 3)) / 2, real)
    assert found.item() == pytest.approx(real.square().sum().item() / 3 / 2, rel=1e-6)
    weight = torch.randn(4, generator=rng(1), requires_grad=True)
    penalty = r1_penalty(lambda x: x.flatten(1) @ weight, real)
    assert penalty.item() == pytest.approx(weight.detach().square().sum().item() / 2, rel=1e-6)
    penalty.backward()
    assert torch.allclose(weight.grad, weight.detach())
