import numpy as np
import pytest
import torch
from torch import nn

from stda.generators.adversarial.training import (
    TrainingDiverged,
    check_finite,
    frozen,
    gradient_norm,
    measure_batch_norm,
    update_average,
)


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
