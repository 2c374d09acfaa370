"""The sections of the generators in a params file; the others are in :mod:`stda.sections`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stda.sections import Balance, Classes, Count, Section, option

Ratio = Field(0.5, gt=0, le=100, description="synthetic images per real training image of every class but the largest")
Latent = Field(100, ge=1, le=4096, description="length of the latent vector")
Batch = Field(64, ge=2, le=65536, description="images per step")
AllClasses = option(False, description="make images of the largest class too, as protocol synthetic-only needs them")


class NstSection(Section):
    """02_nst."""

    ratio: float = Ratio
    engine: Literal["optimise", "feedforward"] = Field(
        "optimise", description="optimise each image's pixels, or train one network that restyles at once"
    )
    style_size: int = Field(96, ge=32, le=1024, description="pixels at which style is transferred")
    iterations: int = Field(1, ge=1, le=1000, description="L-BFGS calls of about 20 loss evaluations each")
    content_weight: float = Field(0.025, ge=0, description="weight of the content loss")
    style_weight: float = Field(1.0, ge=0, description="weight of the style loss")
    tv_weight: float = Field(8.5e-5, ge=0, description="weight of the total variation")
    start: Literal["content", "noise", "grey", "file"] = Field(
        "content", description="image that the optimisation starts from"
    )
    labels: Literal["pseudo", "style"] = Field(
        "pseudo", description="label: the network's opinion, or the style's class"
    )
    content_class: str = Field("", description="class of the content images; empty: the largest class")
    # how many of which class
    count: int = Count
    balance: bool = Balance
    classes: list[str] = Classes
    all_classes: bool = AllClasses
    # which pictures meet
    pairs: Literal["published", "any", "within", "nearest", "farthest"] = option(
        "published",
        description="content of content_class, of any class, of the style's; nearest or farthest in features",
    )
    style_weights: list[float] = option(
        [1.0], min_length=1, description="weights of the styles of one image; as many styles as weights"
    )
    save_at: list[int] = option([], description="iterations kept of each pair (ST-DA: 5, 15, 30); empty: the last")
    start_file: str = option("", description="picture that start: file begins with")
    # what is compared
    content_layer: str = option("", description="layer of the content; empty: the encoder's own")
    style_layers: list[str] = option([], description="layers of the style; empty: the encoder's own")
    content_scaling: Literal["none", "sqrt", "size"] = option(
        "none", description="content loss as it is, over 2 sqrt(C H W), or over C H W"
    )
    style_scale: float = option(1.0, ge=0, description="factor of the style weight")
    variant: Literal["gatys", "improved"] = option(
        "gatys", description="improved: all layers, shifted Grams, weights halving (Novak and Nikulin 2016)"
    )
    chaining: Literal["none", "tool", "adjacent"] = option(
        "none", description="of style layers: as the Keras tool does it, or Grams between adjacent layers"
    )
    pooling: Literal["max", "average"] = option("max", description="pooling inside the encoder")
    padding: Literal["zeros", "reflect"] = option("zeros", description="what the encoder sees beyond the border")
    # how it is minimised
    optimiser: Literal["lbfgs", "adam"] = option("lbfgs", description="of the pixels")
    learning_rate: float = option(8.0, gt=0, description="Adam's rate at the start, in grey levels; decays to zero")
    early_stop: float = option(0.0, ge=0, lt=100, description="stop below this improvement per iteration, per cent")
    coarse_to_fine: bool = option(False, description="make the first 30 % of the evaluations at half the size")
    batch_size: int = option(1, ge=1, description="images optimised side by side; pays on a GPU only")
    # what becomes of the picture
    aspect: Literal["square", "keep"] = option(
        "square", description="centre square, or the whole picture (the study's images are squares)"
    )
    margin: int = option(0, ge=0, description="pixels cut off each side after the transfer")
    colour: Literal["none", "ycbcr", "histogram"] = option(
        "none", description="keep the content's colours: its chroma, or its histogram"
    )
    content_mask: Literal["none", "lesion"] = option("none", description="lesion: skin stays as it is, bit for bit")
    style_mask: Literal["none", "lesion"] = option("none", description="lesion: style is taken from the lesion only")
    regions: bool = option(False, description="style the lesion like the lesion and the skin like the skin")
    # the feed-forward network
    feedforward_steps: int = option(
        400, ge=1, description="training steps of the feed-forward network, which has layers and losses of its own"
    )
    feedforward_batch: int = option(8, ge=1, description="pairs per training step of the feed-forward network")
    alpha: float = option(1.0, ge=0, le=1, description="strength of the feed-forward network")
    # the strength ladder of the notebook
    ladder: list[Annotated[int, Field(ge=1, le=1000)]] = option(
        [1, 2, 4], min_length=1, description="iterations of the ladder (ST-DA: 5, 15, 30)"
    )
    ladder_factors: list[Annotated[float, Field(gt=0)]] = option(
        [0.1, 1.0, 10.0], min_length=1, description="factors of the style weight in the ladder"
    )
    ladder_pairs: int = option(14, ge=2, description="pairs of the ladder")
    independent_steps: int = option(200, ge=1, description="training steps of the independent classifier")

    @model_validator(mode="after")
    def _fits_together(self) -> NstSection:
        if self.save_at and (max(self.save_at) > self.iterations or min(self.save_at) < 1):
            raise ValueError(
                f"nst.save_at is {self.save_at}; give iterations from 1 to nst.iterations ({self.iterations})"
            )
        if min(self.style_weights) < 0 or not sum(self.style_weights):
            raise ValueError(
                f"nst.style_weights is {self.style_weights}; give weights of at least 0, not all of them 0"
            )
        if (self.start == "file") != bool(self.start_file):
            raise ValueError("nst.start 'file' and nst.start_file belong together; give both or none")
        if self.regions and (self.content_mask, self.style_mask) != ("none", "none"):
            raise ValueError("nst.regions already separates lesion and skin; leave content_mask and style_mask at none")
        if self.chaining == "tool" and self.variant != "improved":
            raise ValueError("nst.chaining 'tool' belongs to nst.variant improved; choose that, or chaining adjacent")
        if 2 * self.margin > self.style_size - 32:
            raise ValueError(f"nst.margin is {self.margin}; at style_size {self.style_size} it leaves less than 32 px")
        if self.engine == "feedforward" and (self.regions or self.style_mask != "none" or self.save_at):
            raise ValueError(
                "nst.engine 'feedforward' has no regions, style_mask or save_at; leave them at their defaults"
            )
        return self


class GanSection(Section):
    """What the adversarial generators have in common."""

    count: int = Count
    balance: bool = Balance
    classes: list[str] = Classes
    all_classes: bool = AllClasses
    fake_labels: Literal["matched", "uniform", "empirical"] = option(
        "matched", description="classes of fakes in training: as the real batches are drawn, or uniform, or empirical"
    )
    ema_decay: float = option(0.999, gt=0, lt=1, description="decay of the averaged weights, which make the images")
    truncation: float = option(
        0.0, ge=0, le=10, description="cut latents off at so many standard deviations when making images; 0: nowhere"
    )
    # small image sets
    augment: Literal["none", "diffaugment", "adaptive"] = option(
        "none", description="transform what the critic sees: never, always, or as often as it overfits"
    )
    augment_policy: list[Literal["blit", "color", "translation", "cutout"]] = option(
        ["color", "translation", "cutout"], min_length=1, description="transforms of augment"
    )
    augment_target: float = option(0.6, gt=0, lt=1, description="overfitting signal that augment: adaptive aims at")
    augment_images: int = option(
        50_000, ge=1, description="real images over which augment: adaptive can go from 0 to 1 (paper: 500,000)"
    )
    # quality while training, on the validation fold
    watch_images: int = option(256, ge=10, description="images per look at the validation fold")
    keep: Literal["last", "best"] = option(
        "last", description="weights that make images: the last, or those of the smallest KID to validation images"
    )
    patience: int = option(0, ge=0, description="looks without improvement after which training stops; 0: never")
    checkpoint_every: int = option(200, ge=1, description="steps between checkpoints, from which a killed run goes on")

    @model_validator(mode="after")
    def _looks_are_taken(self) -> GanSection:
        name = type(self).__name__.removesuffix("Section").lower()
        if (self.keep == "best" or self.patience) and not self.watch_every:
            raise ValueError(f"{name}.keep 'best' and {name}.patience go by looks: set {name}.watch_every above 0")
        return self


class DcganSection(GanSection):
    """03_dcgan."""

    ratio: float = Ratio
    mode: Literal["per-class", "unconditional", "conditional", "acgan"] = Field(
        "per-class", description="one model per class; one of all; one told the class; or one that also names it"
    )
    width: int = Field(16, ge=4, le=512, description="channels of the widest feature map")
    latent: int = Latent
    steps: int = Field(1200, ge=1, description="generator updates, shared out evenly among the models")
    batch_size: int = Batch
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="Adam's rate")
    beta1: float = option(0.5, ge=0, lt=1, description="Adam's first decay")
    sampling: Literal["balanced", "empirical"] = option("balanced", description="how often each class is drawn")
    class_weight: float = option(1.0, gt=0, description="weight of the class head's cross-entropy in mode acgan")
    max_tries: int = option(
        64, ge=1, description="images drawn by mode unconditional until the pseudo-label is the wanted class"
    )
    # what holds a discriminator back
    critic_rate: float = option(1.0, gt=0, description="factor of the discriminator's learning rate")
    label_smoothing: float = option(0.0, ge=0, lt=0.5, description="real images count as 1 minus this")
    spectral_norm: bool = option(False, description="spectral normalisation of the discriminator")
    watch_every: int = option(50, ge=0, description="steps between looks at the validation fold; 0: none")
    # the two lessons of the notebook
    failure_steps: int = option(150, ge=2, description="steps of each run of the lesson on conditional failure")
    small_steps: int = option(300, ge=2, description="steps of each run of the lesson on small data")
    small_class: str = option(
        "", description="class of the lesson on small data; empty: the rarest with ten validation images"
    )


class WganSection(GanSection):
    """04_wgan."""

    ratio: float = Ratio
    width: int = Field(8, ge=4, le=512, description="channels d at the full size (paper: 64); up to 8 d at 4 px")
    latent: int = Field(32, ge=2, le=4096, description="latent entries (paper: 128); the first are the one-hot label")
    steps: int = Field(350, ge=1, description="generator updates")
    batch_size: int = Field(32, ge=2, le=65536, description="images per step (paper: 64)")
    learning_rate: float = Field(1.5e-3, gt=0, lt=1, description="Adam's rate (paper: 1e-4, for far longer runs)")
    n_critic: int = Field(2, ge=1, le=100, description="critic updates per generator update (paper: 5)")
    penalty_weight: float = Field(
        10.0, ge=0, description="weight of the penalty on the critic's slope (r1 needs one of its own)"
    )
    class_weight: float = Field(2.0, gt=0, description="weight of the class head's cross-entropy (paper: 1)")
    sampling: Literal["balanced", "empirical"] = Field("balanced", description="how often each class is drawn")
    penalty: Literal["gradient", "r1"] = option(
        "gradient", description="on the critic's slope between real and fake (towards 1), or at real images (towards 0)"
    )
    penalty_every: int = option(1, ge=1, description="critic updates per penalty, which then weighs as many times more")
    drift_weight: float = option(0.0, ge=0, description="weight of E[D(real)^2], which keeps scores near zero")
    watch_every: int = option(50, ge=0, description="steps between looks at the validation fold; 0: none")


class PgganSection(GanSection):
    """05_pggan."""

    ratio: float = Ratio
    max_channels: int = Field(24, ge=8, le=512, description="channels of the lowest resolutions (paper: 512)")
    latent: int = Field(16, ge=2, le=4096, description="length of the latent vector (paper: 512)")
    steps: int = Field(900, ge=1, description="steps over all resolutions, stabilising and fading")
    batch_size: int = Field(16, ge=4, multiple_of=4, description="images per step; a multiple of 4, the stddev group")
    learning_rate: float = Field(4e-3, gt=0, lt=1, description="Adam's rate (paper: 1e-3, for far longer runs)")
    class_weight: float = Field(1.0, gt=0, description="weight of the class loss on real images and of the generator's")
    fake_class_weight: float = Field(0.0, ge=0, description="weight of the critic's class loss on its fakes (paper: 1)")
    sampling: Literal["balanced", "empirical"] = Field("balanced", description="how often each class is drawn")
    channel_base: int = option(8192, ge=8, description="channels are this over 2^stage, stage 1 at 4 px, at most max")
    batch_sizes: list[Annotated[int, Field(ge=4, multiple_of=4)]] = option(
        [], description="images per step at 4 px, 8 px, ... up to the full size; empty: batch_size everywhere"
    )
    phase_images: int = option(
        0, ge=0, description="real images per fading or stabilising phase (paper: 800,000); 0: by last_share"
    )
    last_share: float = option(0.6, gt=0, lt=1, description="share of all images for the last phase, at full size")
    n_critic: int = option(1, ge=1, le=100, description="critic updates per generator update")
    penalty: Literal["gradient", "r1"] = option(
        "gradient", description="on the critic's slope between real and fake (towards 1), or at real images (towards 0)"
    )
    penalty_weight: float = option(10.0, ge=0, description="weight of the penalty")
    penalty_every: int = option(1, ge=1, description="critic updates per penalty, which then weighs as many times more")
    drift_weight: float = option(1e-3, ge=0, description="weight of E[D(real)^2], which keeps scores near zero")
    watch_every: int = option(100, ge=0, description="steps between looks at the validation fold; 0: none")
