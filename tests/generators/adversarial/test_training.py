import numpy as np
import pytest
import torch
from gan_cases import discs
from torch import nn

from stda.compute import rng
from stda.generators.adversarial.training import (
    Batches,
    TrainingDiverged,
    check_finite,
    frozen,
    gradient_norm,
    gradient_penalty,
    measure_batch_norm,
    update_average,
)


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


def test_average_follows_its_formula():
    network, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, 0.0)
    expected = 0.0
    for step in range(1, 101):
        nn.init.constant_(network.weight, float(step))
        update_average(average, network, decay=0.9, step=step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert average.weight.item() == pytest.approx(expected, rel=1e-5)


def test_average_copies_buffers():
    network, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    network(torch.randn(8, 2))
    update_average(average, network, decay=0.999, step=1)
    assert torch.equal(average.running_mean, network.running_mean)
    assert average.num_batches_tracked.item() == 1


def test_batch_norm_is_measured_for_the_weights_it_has():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    network[1].running_mean.fill_(99.0)
    data = torch.randn(16, 32, 3)
    measure_batch_norm(network, lambda i: (data[i],), batches=16)
    assert not network.training
    assert network[1].momentum == 0.1
    with torch.no_grad():
        hidden = network[0](data)
    assert torch.allclose(network[1].running_mean, hidden.mean(dim=(0, 1)), atol=1e-5)
    assert torch.allclose(network[1].running_var, hidden.var(dim=1).mean(dim=0), atol=1e-5)


def test_gradient_norm_and_frozen():
    network = nn.Linear(2, 1)
    network(torch.tensor([[3.0, 4.0]])).sum().backward()
    assert gradient_norm(network) == pytest.approx(np.sqrt(9 + 16 + 1))
    x = torch.ones(1, 2, requires_grad=True)
    network.zero_grad()
    with frozen(network):
        network(x).sum().backward()
    assert network.weight.grad is None
    assert x.grad is not None
    assert all(p.requires_grad for p in network.parameters())


def test_check_finite_names_what_broke():
    check_finite({"step": 1, "steps": 2, "loss": 1.0}, "wgan")
    with pytest.raises(TrainingDiverged, match="wgan: loss became non-finite at step 7 of 9; lower learning_rate"):
        check_finite({"step": 7, "steps": 9, "loss": float("nan"), "other": 1.0}, "wgan")


def test_batches_are_balanced_or_empirical():
    train = discs(counts={"dark": 90, "light": 10})
    share = {}
    for sampling in ("balanced", "empirical"):
        batches = Batches(train, train.classes, sampling=sampling, noise=rng(0))
        share[sampling] = batches.draw(4000)[1].double().mean().item()
    assert share["balanced"] == pytest.approx(0.5, abs=0.04)
    assert share["empirical"] == pytest.approx(0.1, abs=0.03)
    assert batches.fake_labels(4000, "uniform").double().mean().item() == pytest.approx(0.5, abs=0.04)
    assert batches.fake_labels(4000, "empirical").double().mean().item() == pytest.approx(0.1, abs=0.03)


def test_batches_are_flips_of_the_right_image_with_its_label():
    noise = np.random.default_rng(0)
    train = discs(counts={"dark": 3, "light": 2})
    train = type(train)(noise.integers(0, 256, train.images.shape, dtype=np.uint8), train.table)
    images, labels = Batches(train, train.classes, sampling="balanced", noise=rng(0)).draw(200)
    assert images.dtype == torch.float32
    known = {}
    for row, image in enumerate(train.images):
        for flip in range(4):
            turned = image[:: 1 - 2 * (flip & 1), :: 1 - (flip & 2)]
            known[np.ascontiguousarray(turned).tobytes()] = (row, flip)
    found = [
        known[np.ascontiguousarray(((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).tobytes()]
        for image in images
    ]
    assert [train.classes[label] for label in labels] == [train.labels[row] for row, _ in found]
    assert {flip for _, flip in found} == {0, 1, 2, 3}
    assert {row for row, _ in found} == {0, 1, 2, 3, 4}
