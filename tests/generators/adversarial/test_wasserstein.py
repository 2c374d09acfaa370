"""The Wasserstein step on linear networks, where every part of it has a closed form."""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np
import pytest
import torch
from gan_cases import CPU, TINY, discs, started
from torch import nn

from stda import BadInput
from stda.generators import create
from stda.generators.adversarial.wasserstein import Wasserstein

N_PIXELS = 3 * 8 * 8


class LinearCritic(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.score, self.classify = nn.Linear(N_PIXELS, 1), nn.Linear(N_PIXELS, n_classes)

    def forward(self, images):
        return self.score(images.flatten(1)).flatten(), self.classify(images.flatten(1))


class LinearGenerator(nn.Module):
    def __init__(self, n_classes, latent):
        super().__init__()
        self.paint, self.classes = nn.Linear(latent, N_PIXELS), nn.Embedding(n_classes, N_PIXELS)

    def forward(self, z, labels):
        return (self.paint(z) + self.classes(labels)).unflatten(1, (3, 8, 8))


@dataclass(kw_only=True, eq=False)
class Linear(Wasserstein):
    """Linear networks whose weights stay where they are, so that several updates can be compared."""

    name: ClassVar[str] = "linear"
    latent: int = 5
    batch_size: int = 6

    def make_generator(self, n_classes):
        return LinearGenerator(n_classes, self.latent)

    def make_critic(self, n_classes):
        return LinearCritic(n_classes)

    def make_optimizer(self, name, network):
        return torch.optim.SGD(network.parameters(), lr=0.0)


def still(gan):
    """Return a GAN's state before its first step, with optimisers that move nothing."""
    training = started(gan, discs(counts={"dark": 9, "grey": 4, "light": 5}), steps=4)
    training.optimizers = {key: torch.optim.SGD(training.networks[key].parameters(), lr=0.0) for key in
                           ("generator", "critic")}  # fmt: skip
    return training


def record_calls(gan, *names):
    """Return lists that fill with what methods of a GAN return."""
    seen = {}
    for name in names:
        method, calls = getattr(gan, name), seen.setdefault(name, [])
        setattr(gan, name, lambda *args, m=method, c=calls, **kwargs: c.append(m(*args, **kwargs)) or c[-1])
    return seen


def gradients(network):
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def plain(tensor):
    return tensor.detach().double().numpy()


def cross_entropy(logits, labels):
    return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels])


def heads(critic, images):
    """Return scores and logits of a linear critic in float64."""
    x = plain(images).reshape(len(images), -1)
    return [x @ plain(head.weight).T + plain(head.bias) for head in (critic.score, critic.classify)]


SWITCHES = {
    "penalty": ("gradient", "r1"),
    "drift_weight": (0.0, 0.3),
    "class_weight": (0.0, 0.5),
    "fake_class_weight": (0.0, 0.7),
    "augment": ("none", "diffaugment"),
    "penalty_every": (1, 3),
}


@pytest.mark.parametrize("values", list(product(*SWITCHES.values())), ids=str)
def test_critic_loss_is_the_sum_of_its_parts(values):
    knobs = dict(zip(SWITCHES, values, strict=True))
    gan = Linear(compute=CPU, penalty_weight=7.0, **knobs)
    training = still(gan)
    seen, critic = record_calls(gan, "reals", "fakes", "augmented"), training.networks["critic"]
    for penalise in {True, knobs["penalty_every"] == 1}:
        record = gan.advance_critic(training, penalise=penalise)
        score, logits = heads(critic, seen["augmented"][-1])
        real_labels, fake_labels = seen["reals"][-1][1].numpy(), seen["fakes"][-1][1].numpy()
        length = np.linalg.norm(plain(critic.score.weight))
        penalty = (length - 1) ** 2 if knobs["penalty"] == "gradient" else length**2 / 2

        expected = score[6:].mean() - score[:6].mean()
        expected += knobs["class_weight"] * cross_entropy(logits[:6], real_labels)
        expected += knobs["fake_class_weight"] * cross_entropy(logits[6:], fake_labels)
        expected += knobs["drift_weight"] * np.square(score[:6]).mean()
        expected += 7 * knobs["penalty_every"] * penalty if penalise else 0
        assert record["d_loss"] == pytest.approx(expected, rel=1e-4)
        assert record["wasserstein"] == pytest.approx(score[:6].mean() - score[6:].mean(), abs=1e-5)
        assert (record["d_real"], record["d_fake"]) == pytest.approx((score[:6].mean(), score[6:].mean()), abs=1e-5)
        assert ("penalty" in record) == penalise
        assert record.get("penalty", penalty) == pytest.approx(penalty, rel=1e-4)


@pytest.mark.parametrize("length", [0.3, 1.0, 4.0])
def test_gradient_of_the_critic_s_step_has_its_closed_form(length):
    gan = Linear(compute=CPU, class_weight=0.0)
    training = still(gan)
    weight = training.networks["critic"].score.weight
    with torch.no_grad():
        weight.mul_(length / weight.norm())
    seen = record_calls(gan, "augmented")
    gan.advance_critic(training, penalise=True)
    real, fake = plain(seen["augmented"][0]).reshape(2, 6, -1).mean(axis=1)
    direction = plain(weight)[0] / length
    assert np.allclose(plain(weight.grad)[0], fake - real + 10 * 2 * (length - 1) * direction, atol=2e-4)


def test_generator_s_loss_and_its_gradient_have_their_closed_form():
    gan = Linear(compute=CPU, class_weight=0.5)
    training = still(gan)
    generator, critic = training.networks["generator"], training.networks["critic"]
    seen = record_calls(gan, "fakes", "augmented")
    record = gan.advance_generator(training)
    z, labels = seen["fakes"][0]
    score, logits = heads(critic, seen["augmented"][0])
    assert record["g_class_loss"] == pytest.approx(cross_entropy(logits, labels.numpy()), rel=1e-5)
    assert record["g_loss"] == pytest.approx(0.5 * record["g_class_loss"] - score.mean(), rel=1e-5)
    # d/dx of each image's loss: -w / n, and half the softmax's error times the class weights / n
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(3)[labels]
    slope = (0.5 * shares @ plain(critic.classify.weight) - plain(critic.score.weight)) / 6
    assert np.allclose(plain(generator.paint.weight.grad), slope.T @ plain(z), atol=1e-6)
    assert all(p.grad is None for p in critic.parameters())


@pytest.mark.parametrize("penalty", ["gradient", "r1"])
def test_lazy_penalties_average_to_the_eager_gradient(penalty):
    found = {}
    for every in (1, 4):
        gan = create("wgan", compute=CPU, penalty=penalty, penalty_every=every, n_critic=4, **small("width", "latent"))
        training = still(gan)
        critic, batch, each = training.networks["critic"], training.noise.get_state(), []
        for update in range(4):
            training.noise.set_state(batch)  # the same images and interpolates in each update
            gan.advance_critic(training, penalise=update % every == 0)
            each.append(gradients(critic))
        found[every] = torch.stack(each)
    eager, lazy = found[1], found[4]
    assert torch.equal(eager[0], eager[3])
    assert not torch.allclose(lazy[0], lazy[1], rtol=0.1)
    assert torch.equal(lazy[1], lazy[3])
    assert torch.allclose(lazy.mean(dim=0), eager[0], atol=1e-4 * eager[0].abs().max())


def test_penalty_is_paid_every_so_many_updates_across_steps():
    gan = Linear(compute=CPU, n_critic=2, penalty_every=3)
    training, paid = still(gan), []
    advance_critic = gan.advance_critic
    gan.advance_critic = lambda training, penalise: paid.append(penalise) or advance_critic(training, penalise=penalise)
    calls = record_calls(gan, "slope_penalty")
    for training.step in range(1, 5):
        record = gan.advance(training)
        assert ("penalty" in record) == any(paid[-2:])
    assert paid == [True, False, False, True, False, False, True, False]
    assert len(calls["slope_penalty"]) == 3


def test_critic_takes_its_updates_before_the_generator_takes_one():
    gan = create("wgan", compute=CPU, n_critic=3, **small("width", "latent"))
    training = started(gan, discs(), steps=2)
    for training.step in (1, 2):
        gan.advance(training)
    updates = {key: int(next(iter(o.state.values()))["step"]) for key, o in training.optimizers.items()}
    assert updates == {"generator": 2, "critic": 6}


@pytest.mark.parametrize(
    ("sampling", "fake_labels", "share"),
    [
        ("balanced", "matched", 0.5),
        ("empirical", "matched", 0.9),
        ("empirical", "uniform", 0.5),
        ("balanced", "empirical", 0.9),
    ],
)
def test_classes_of_fakes_are_uniform_or_empirical(sampling, fake_labels, share):
    gan = Linear(compute=CPU, sampling=sampling, fake_labels=fake_labels)
    training = started(gan, discs(counts={"dark": 90, "light": 10}), steps=1)
    z, labels = gan.fakes(training, 4000)
    # six standard errors
    assert (labels == 0).double().mean().item() == pytest.approx(share, abs=6 * (share * (1 - share) / 4000) ** 0.5)
    assert z.shape == (4000, gan.latent)
    _, real_labels = gan.reals(training, 4000)
    share = {"balanced": 0.5, "empirical": 0.9}[sampling]
    assert (real_labels == 0).double().mean().item() == pytest.approx(share, abs=0.05)


def test_unknown_penalty_is_refused():
    with pytest.raises(BadInput, match="penalty is 'r2'; it must be one of gradient, r1"):
        Linear(compute=CPU, penalty="r2")


def small(*knobs):
    return {knob: TINY["wgan"][knob] for knob in knobs} | {"batch_size": 4}
