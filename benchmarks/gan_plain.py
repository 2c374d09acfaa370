"""Plain loops of the GANs, as tutorials write them, and how far ours is from them; ``gan.py`` times both.

Float32, NCHW, up-sample then convolve, convolve then pool, real and fake images in passes of their own, unfused Adam,
nothing frozen.  The networks' tensors have the names of ours, so that both can begin with the same weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stda.generators.adversarial.checkpoint import Checkpoints
from stda.generators.adversarial.fitting import Fit
from stda.generators.adversarial.gan import Adversarial
from stda.generators.adversarial.training import Training
from stda.generators.adversarial.watching import Watching
from stda.generators.wgan import channels_per_level
from stda.images import ImageSet

# ------------------------------------------------------------------------------------------------ networks


class PlainDCGenerator(nn.Module):
    def __init__(self, size: int, width: int, latent: int) -> None:
        super().__init__()
        channels = [width * size // 8 // 2**level for level in range(int(math.log2(size)) - 2)]
        layers = [nn.ConvTranspose2d(latent, channels[0], 4, bias=False)]
        for n_in, n_out in pairwise(channels):
            layers += [nn.BatchNorm2d(n_in), nn.ReLU(True), nn.ConvTranspose2d(n_in, n_out, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU(True), nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z.view(*z.shape, 1, 1))


class PlainDCDiscriminator(nn.Module):
    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(int(math.log2(size)) - 2)]
        layers = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        for n_in, n_out in pairwise(channels):
            layers += [nn.Conv2d(n_in, n_out, 4, 2, 1, bias=False), nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2, True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 4), nn.Sigmoid())

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).view(-1)


class PlainUp(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(n_in), nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(n_out), nn.Conv2d(n_out, n_out, 3, padding=1)
        self.shortcut, self.up = nn.Conv2d(n_in, n_out, 1), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        deep = self.conv1(self.up(F.relu(self.norm1(x))))
        return self.conv2(F.relu(self.norm2(deep))) + self.shortcut(self.up(x))


class PlainDown(nn.Module):
    """The layer norm is spelled as one group: the same mathematics, and 3 to 10 % faster than nn.LayerNorm in NCHW."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(1, n_in), nn.Conv2d(n_in, n_in, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(1, n_in), nn.Conv2d(n_in, n_out, 3, padding=1)
        self.shortcut, self.pool = nn.Conv2d(n_in, n_out, 1), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        deep = self.conv1(F.relu(self.norm1(x)))
        return self.pool(self.conv2(F.relu(self.norm2(deep)))) + self.shortcut(self.pool(x))


class PlainWGenerator(nn.Module):
    def __init__(self, channels: list[int], latent: int, n_classes: int) -> None:
        super().__init__()
        self.n_classes, self.n_first = n_classes, channels[0]
        self.linear = nn.Linear(latent, channels[0] * 16)
        self.blocks = nn.Sequential(*(PlainUp(a, b) for a, b in pairwise(channels)))
        self.norm, self.to_rgb = nn.BatchNorm2d(channels[-1]), nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        z = torch.cat([F.one_hot(labels, self.n_classes).float(), z[:, self.n_classes :]], dim=1)
        x = self.blocks(self.linear(z).view(-1, self.n_first, 4, 4))
        return torch.tanh(self.to_rgb(F.relu(self.norm(x))))


class PlainWCritic(nn.Module):
    def __init__(self, channels: list[int], n_classes: int) -> None:
        super().__init__()
        self.from_rgb = nn.Conv2d(3, channels[-1], 3, padding=1)
        self.blocks = nn.Sequential(*(PlainDown(a, b) for a, b in pairwise(channels[::-1])))
        self.score, self.classify = nn.Linear(channels[0], 1), nn.Linear(channels[0], n_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.blocks(self.from_rgb(images))).mean(dim=(2, 3))
        return self.score(x).view(-1), self.classify(x)


class PlainEqual(nn.Module):
    """A convolution or dense layer with equalised learning rate."""

    def __init__(self, *shape: int, gain: float = math.sqrt(2)) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.zeros(shape[0]))
        self.scale = gain / math.sqrt(math.prod(shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if weight.ndim == 2:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)


def plain_pixel_norm(x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(dim=1, keepdim=True) + 1e-8)


def plain_minibatch_stddev(x: Tensor) -> Tensor:
    n, _, height, width = x.shape
    deviation = torch.sqrt(x.reshape(n // 4, 4, -1).var(dim=1, unbiased=False) + 1e-8).mean(dim=1)
    return torch.cat([x, deviation.repeat_interleave(4).view(n, 1, 1, 1).expand(n, 1, height, width)], dim=1)


def plain_block(n_in: int, n_between: int, n_out: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {"conv1": PlainEqual(n_between, n_in, 3, 3), "conv2": PlainEqual(n_out, n_between, 3, 3)},
    )


class PlainProgressiveGenerator(nn.Module):
    """The fully grown network."""

    def __init__(self, channels: list[int], latent: int, n_classes: int) -> None:
        super().__init__()
        self.n_classes, self.n_first, last = n_classes, channels[0], str(len(channels) - 1)
        self.dense = PlainEqual(channels[0] * 16, latent + n_classes, gain=math.sqrt(2) / 4)
        self.conv = PlainEqual(channels[0], channels[0], 3, 3)
        self.blocks = nn.ModuleList(plain_block(a, b, b) for a, b in pairwise(channels))
        self.to_rgb = nn.ModuleDict({last: PlainEqual(3, channels[-1], 1, 1, gain=1.0)})
        self.up, self.activate = nn.Upsample(scale_factor=2), nn.LeakyReLU(0.2)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        labels = F.one_hot(labels, self.n_classes).float()
        x = self.dense(torch.cat([plain_pixel_norm(z), plain_pixel_norm(labels)], dim=1))
        x = plain_pixel_norm(self.activate(x.view(-1, self.n_first, 4, 4)))
        x = plain_pixel_norm(self.activate(self.conv(x)))
        for block in self.blocks:
            x = plain_pixel_norm(self.activate(block["conv1"](self.up(x))))
            x = plain_pixel_norm(self.activate(block["conv2"](x)))
        return next(iter(self.to_rgb.values()))(x)


class PlainProgressiveCritic(nn.Module):
    """The fully grown network."""

    def __init__(self, channels: list[int], n_classes: int) -> None:
        super().__init__()
        self.from_rgb = nn.ModuleDict({str(len(channels) - 1): PlainEqual(channels[-1], 3, 1, 1)})
        self.blocks = nn.ModuleList(plain_block(b, b, a) for a, b in pairwise(channels))
        self.conv = PlainEqual(channels[0], channels[0] + 1, 3, 3)
        self.dense = PlainEqual(channels[0], channels[0] * 16)
        self.score = PlainEqual(1, channels[0], gain=1.0)
        self.classify = PlainEqual(n_classes, channels[0], gain=1.0)
        self.pool, self.activate = nn.AvgPool2d(2), nn.LeakyReLU(0.2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.activate(next(iter(self.from_rgb.values()))(images))
        for block in reversed(self.blocks):
            x = self.activate(block["conv1"](x))
            x = self.activate(self.pool(block["conv2"](x)))
        x = self.activate(self.conv(plain_minibatch_stddev(x)))
        x = self.activate(self.dense(x.flatten(1)))
        return self.score(x).view(-1), self.classify(x)


def plain_networks(gan: Adversarial) -> dict[str, nn.Module]:
    """Return the plain generator and critic that stand for a GAN's."""
    n_classes = len(gan.classes)
    if gan.name == "dcgan":
        made = PlainDCGenerator(gan.size, gan.width, gan.latent), PlainDCDiscriminator(gan.size, gan.width)
    elif gan.name == "wgan":
        channels = channels_per_level(gan.size, gan.width)
        made = PlainWGenerator(channels, gan.latent, n_classes), PlainWCritic(channels, n_classes)
    else:
        critic = PlainProgressiveCritic(gan.channels, n_classes)
        made = PlainProgressiveGenerator(gan.channels, gan.latent, n_classes), critic
    return dict(zip(("generator", "critic"), made, strict=True))


# ------------------------------------------------------------------------------------------------ steps


def begin(gan: Adversarial, train: ImageSet) -> Training:
    """Return a GAN's state before a step; the networks of a progressive GAN have grown to their full size."""
    gan.classes, gan.size, steps = train.classes, train.size, 1000
    fit = Fit(gan, steps, None, Watching(None, None, 0, 1, 0), Checkpoints(None, 1, ""))
    training = fit.start(train, train.classes, steps, seed=0)
    training.step = steps
    return training


@dataclass
class Batch:
    """What one step draws: real images and labels, latents and labels of fakes for either update, interpolation."""

    real: Tensor
    real_labels: Tensor
    fakes: list[tuple[Tensor, Tensor]]
    mix: Tensor


def note_batch(gan: Adversarial, training: Training) -> Batch:
    """Return what the next step of ours will draw, and leave the source of randomness where it is."""
    state, n = training.noise.get_state(), gan.batch_size
    real, real_labels = gan.reals(training, n)
    first, mix, second = gan.fakes(training, n), torch.rand(n, generator=training.noise), gan.fakes(training, n)
    training.noise.set_state(state)
    return Batch(real.contiguous(), real_labels, [first, second], mix)


@dataclass
class Plain:
    """The state of the plain loop of a GAN."""

    gan: Adversarial
    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    average: nn.Module

    @staticmethod
    def like(gan: Adversarial, training: Training) -> Plain:
        """Return the plain loop where our training stands, with Adam set as ours is."""
        networks, optimizers = plain_networks(gan), {}
        for key, network in networks.items():
            ours = training.networks[key].state_dict()
            network.load_state_dict({name: ours[our_name(name, ours)] for name in network.state_dict()})
            knobs = {knob: training.optimizers[key].defaults[knob] for knob in ("lr", "betas")}
            optimizers[key] = torch.optim.Adam(network.parameters(), **knobs, foreach=False, fused=False)
        return Plain(gan, networks, optimizers, copy.deepcopy(networks["generator"]))

    def step(self, batch: Batch) -> dict[str, float]:
        """Update critic and generator and return their losses."""
        if self.gan.name == "dcgan":
            return self.dcgan_step(batch)
        return self.critic_step(batch) | self.generator_step(batch)

    def dcgan_step(self, batch: Batch) -> dict[str, float]:
        generator, critic = self.networks["generator"], self.networks["critic"]
        entropy, ones, zeros = nn.BCELoss(), torch.ones(len(batch.real)), torch.zeros(len(batch.real))
        critic.zero_grad()
        loss_real = entropy(critic(batch.real), ones)
        loss_real.backward()
        fake = generator(batch.fakes[0][0])
        loss_fake = entropy(critic(fake.detach()), zeros)
        loss_fake.backward()
        self.optimizers["critic"].step()

        generator.zero_grad()
        loss = entropy(critic(fake), ones)
        loss.backward()
        self.optimizers["generator"].step()
        return {"d_loss": loss_real.item() + loss_fake.item(), "g_loss": loss.item()}

    def critic_step(self, batch: Batch) -> dict[str, float]:
        """Update the critic of a Wasserstein GAN with gradient penalty."""
        critic, (z, labels) = self.networks["critic"], batch.fakes[0]
        fake = self.networks["generator"](z, labels).detach()
        score_real, logits_real = critic(batch.real)
        score_fake, logits_fake = critic(fake)
        mix = batch.mix.view(-1, 1, 1, 1)
        between = (mix * batch.real + (1 - mix) * fake).requires_grad_()
        score, _ = critic(between)
        (slope,) = torch.autograd.grad(score, between, torch.ones_like(score), create_graph=True)
        penalty = ((slope.view(len(slope), -1).norm(dim=1) - 1) ** 2).mean()

        loss = score_fake.mean() - score_real.mean() + self.gan.penalty_weight * penalty
        loss = loss + self.gan.class_weight * F.cross_entropy(logits_real, batch.real_labels)
        if self.gan.fake_class_weight:
            loss = loss + self.gan.fake_class_weight * F.cross_entropy(logits_fake, labels)
        if self.gan.drift_weight:
            loss = loss + self.gan.drift_weight * (score_real**2).mean()
        self.optimizers["critic"].zero_grad()
        loss.backward()
        self.optimizers["critic"].step()
        return {"d_loss": loss.item()}

    def generator_step(self, batch: Batch) -> dict[str, float]:
        """Update the generator of a Wasserstein GAN."""
        z, labels = batch.fakes[1]
        score, logits = self.networks["critic"](self.networks["generator"](z, labels))
        loss = self.gan.class_weight * F.cross_entropy(logits, labels) - score.mean()
        self.optimizers["generator"].zero_grad()
        loss.backward()
        self.optimizers["generator"].step()
        return {"g_loss": loss.item()}

    @torch.no_grad()
    def update_average(self) -> None:
        for mean, now in zip(self.average.parameters(), self.networks["generator"].parameters(), strict=True):
            mean.mul_(self.gan.ema_decay).add_(now, alpha=1 - self.gan.ema_decay)


def our_name(name: str, ours: dict[str, Tensor]) -> str:
    """Return what we call a tensor of a plain network: our layer norm has a scale and a shift."""
    return name if name in ours else name.replace("weight", "scale").replace("bias", "shift")


# ------------------------------------------------------------------------------------------------ agreement


class NotingSGD(torch.optim.SGD):
    """Gradient descent that keeps the gradients it was given."""

    def step(self) -> None:
        self.given = {p: p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None}
        super().step()


def gaps(gan: Adversarial, train: ImageSet) -> dict[str, float]:
    """Return how far one step of ours is from the plain loop's, from the same weights and draws.

    The losses ("d_loss", "g_loss") and all gradients of each network together ("critic", "generator"), as the length of
    the difference over the length of the plain loop's.  Both descend without Adam, which would divide gradients by
    their own size and make rounding visible; the generator's step then sees critics that took the same step.
    """
    training = begin(gan, train)
    plain = Plain.like(gan, training)
    for networks, optimizers in ((training.networks, training.optimizers), (plain.networks, plain.optimizers)):
        optimizers |= {name: NotingSGD(networks[name].parameters(), lr=1e-4) for name in optimizers}
    expected = plain.step(note_batch(gan, training))
    found = gan.advance(training)
    gap = {loss: abs(found[loss] / value - 1) for loss, value in expected.items()}
    for key, network in plain.networks.items():
        pairs = list(paired_gradients(network, plain.optimizers[key], training.networks[key], training.optimizers[key]))
        away, length = (torch.cat([t.flatten() for t in each]) for each in zip(*pairs, strict=True))
        gap[key] = ((away - length).norm() / length.norm()).item()
    return gap


def paired_gradients(
    plain: nn.Module, plain_optimizer: NotingSGD, ours: nn.Module, our_optimizer: NotingSGD
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield our gradient and the plain loop's of each tensor."""
    named = dict(ours.named_parameters())
    for name, parameter in plain.named_parameters():
        yield our_optimizer.given[named[our_name(name, named)]], plain_optimizer.given[parameter]
