"""The step of the Wasserstein GANs: a critic with bounded slope and a head that names the class (wgan and pggan)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stda import BadInput
from stda.generators.adversarial.gan import Adversarial
from stda.generators.adversarial.penalties import gradient_penalty, r1_penalty
from stda.generators.adversarial.training import Training, frozen, update

PENALTIES = ("gradient", "r1")


@dataclass(kw_only=True, eq=False)
class Wasserstein(Adversarial):
    """A GAN whose critic returns scores ``(N,)`` and class logits ``(N, K)`` and holds no BatchNorm.

    A step is ``n_critic`` critic updates and one of the generator (Gulrajani et al. 2017, algorithm 1).
    """

    n_critic: int = 1
    penalty: str = "gradient"  # on interpolates (two-sided), or "r1": on real images, towards slope zero
    penalty_weight: float = 10.0
    # critic updates per penalty, which then weighs as many times more (lazy: Karras et al. 2020, appendix B)
    penalty_every: int = 1
    drift_weight: float = 0.0  # of E[D(real)^2], which keeps the scores near zero
    class_weight: float = 1.0  # of the class head's cross-entropy on real images (critic) and on fakes (generator)
    fake_class_weight: float = 0.0  # of the critic's cross-entropy on fakes

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty not in PENALTIES:
            raise BadInput(f"penalty is '{self.penalty}'; it must be one of {', '.join(PENALTIES)}.")

    def second_decay(self, name: str, eager: float) -> float:
        """Return Adam's second decay of a network: with lazy penalties the critic's looks back as many times further.

        Adam would otherwise divide a rare penalty's large gradient by little more than itself: with the WGAN's 0.9 and
        a penalty every 16 updates, the penalty ended twice as large (0.054 instead of 0.028).  Karras et al. 2020
        correct the rate and both decays by k / (k + 1), for their 0.99; here the rate stays *(departure)*.
        """
        return eager ** (1 / self.penalty_every) if name == "critic" else eager

    def batch(self, training: Training) -> int:
        """Return how many real and how many fake images one update sees."""
        return self.batch_size

    def advance(self, training: Training) -> dict[str, Any]:
        """Update the critic ``n_critic`` times, then the generator; return the losses of the last updates."""
        record: dict[str, Any] = {}
        for update_number in range(self.n_critic):
            done = (training.step - 1) * self.n_critic + update_number
            record |= self.advance_critic(training, penalise=done % self.penalty_every == 0)
        return record | self.advance_generator(training)

    def advance_critic(self, training: Training, *, penalise: bool) -> dict[str, Any]:
        """Update the critic: E[D(fake)] - E[D(real)] + penalty + drift + cross-entropy of the class head."""
        generator, critic = training.networks["generator"], training.networks["critic"]
        n = self.batch(training)
        real, real_labels = self.reals(training, n)
        z, labels = self.fakes(training, n)
        with self.compute.autocast():
            with torch.no_grad():
                fake = generator(z, labels).float()
            # without BatchNorm an image's score depends on that image only: real and fake share one pass
            both = self.augmented(training, torch.cat([real, fake]))
            score, logits = critic(both)
            penalty = self.slope_penalty(training, *both.chunk(2)) if penalise else None
        score_real, score_fake = score.float().chunk(2)
        logits_real, logits_fake = logits.float().chunk(2)
        class_loss = F.cross_entropy(logits_real, real_labels)
        wasserstein = score_real.mean() - score_fake.mean()

        loss = self.class_weight * class_loss - wasserstein
        record = {"wasserstein": wasserstein, "d_class_loss": class_loss}
        if penalty is not None:
            loss = loss + self.penalty_weight * self.penalty_every * penalty
            record["penalty"] = penalty
        if self.drift_weight:
            loss = loss + self.drift_weight * score_real.square().mean()
        if self.fake_class_weight:
            record["d_class_loss_fake"] = F.cross_entropy(logits_fake, labels)
            loss = loss + self.fake_class_weight * record["d_class_loss_fake"]
        gradient = update(training.optimizers["critic"], loss, critic)
        training.augmentation.observe(score_real, score_fake)
        record |= {"d_loss": loss, "d_real": score_real.mean(), "d_fake": score_fake.mean()}
        return {key: value.item() for key, value in record.items()} | {"d_gradient": gradient}

    def slope_penalty(self, training: Training, real: Tensor, fake: Tensor) -> Tensor:
        """Return the penalty that ``penalty`` names, not yet weighted."""
        critic = training.networks["critic"]
        if self.penalty == "r1":
            return r1_penalty(lambda x: critic(x)[0].float(), real)
        mix = torch.rand(len(real), generator=training.noise).to(real.device)
        return gradient_penalty(lambda x: critic(x)[0].float(), real, fake, mix)

    def advance_generator(self, training: Training) -> dict[str, Any]:
        """Update the generator: -E[D(fake)] + cross-entropy of the class head on fake images."""
        generator, critic = training.networks["generator"], training.networks["critic"]
        z, labels = self.fakes(training, self.batch(training))
        with frozen(critic):
            with self.compute.autocast():
                score, logits = critic(self.augmented(training, generator(z, labels)))
            class_loss = F.cross_entropy(logits.float(), labels)
            loss = self.class_weight * class_loss - score.float().mean()
            gradient = update(training.optimizers["generator"], loss, generator)
        return {"g_loss": loss.item(), "g_gradient": gradient, "g_class_loss": class_loss.item()}

    def opinion(self, training: Training, images: Tensor, labels: Tensor) -> Tensor:
        """Return the critic's scores, which have no unit: only their differences mean something."""
        return training.networks["critic"](images)[0]
