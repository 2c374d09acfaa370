"""The sections of a params file: every parameter with its default, its limits and its one-line meaning.

The parameters cells of the notebooks and ``params/quick.yaml`` repeat the defaults for readers; tests keep
them in step.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

STAGES = ("data", "nst", "dcgan", "wgan", "pggan", "classification", "explainability", "results")
GENERATORS = ("nst", "dcgan", "wgan", "pggan")
NOTEBOOKS = {stage: f"{number:02d}_{stage}" for number, stage in enumerate(STAGES, start=1)}

# what an arm may add without a synthetic image: nothing, or real pictures of the train fold in some form
REAL_ONLY = ("none", "oversample", "augmented", "self-training", "noised", "blurred")
ORACLE = "oracle"  # real images that were held back: what a perfect generator would make
PLACEBOS = ("oversample", "noised", "blurred")  # as many images as a generator's arm adds, with nothing new in them
PLACEBO_LABELS = ("shuffled", "wrong")  # a generator's images with labels that say nothing


# names of stda.explain.METHODS; a test keeps the two in step, for this module knows no torch
GRADIENT_METHODS = (
    "input",
    "random",
    "gradient",
    "input_x_gradient",
    "integrated_gradients",
    "smoothgrad",
)  # any network
LAYER_METHODS = (  # networks whose layers all have rules
    "deconvnet",
    "guided_backprop",
    "deeplift",
    "lrp_z",
    "lrp_epsilon",
    "lrp_w2",
    "lrp_flat",
    "lrp_alpha1beta0",
    "lrp_alpha2beta1",
    "lrp_z_plus",
    "lrp_preset_a",
    "lrp_preset_b",
    "lrp_preset_a_flat",
    "lrp_preset_b_flat",
)
PATTERN_METHODS = ("pattern_net", "pattern_attribution")  # with patterns fitted on the train fold
CHAIN_METHODS = ("deep_taylor", "deep_taylor_bounded", *PATTERN_METHODS)  # no residual network
AttributionMethod = Literal[GRADIENT_METHODS + LAYER_METHODS + CHAIN_METHODS]


def option(default: Any, **limits: Any) -> Any:
    """Return a field that notebooks receive in the one parameter ``options``: a cell has room for 15 names."""
    return Field(default, json_schema_extra={"option": True}, **limits)


Count = option(0, ge=0, le=1_000_000, description="images of each class instead of ratio; 0: go by ratio")
Balance = option(False, description="as many images as bring each class up to the largest, instead of ratio")
Classes = option([], description="classes that get images; empty: all but the largest")
OPTIONS = "further knobs by name, where they depart from stda/sections.py"


class Section(BaseModel):
    """A section of the params file: flat, typed, nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StudySection(Section):
    """What holds for the whole study."""

    question: str = Field(
        "Do synthetic images help a classifier of skin lesions?", min_length=1, description="what the study asks"
    )
    replicates: int = Field(2, ge=1, le=1000, description="independent repetitions; the unit of statistical evidence")
    seed: int = Field(0, ge=0, description="every other seed is derived from this one by name")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="auto: bf16 where the processor has it natively, float32 elsewhere"
    )


class DataSection(Section):
    """01_data."""

    source: Literal["phantom", "ham10000", "dermamnist", "folder"] = Field(
        "phantom", description="where images come from"
    )
    root: str = Field("", description="folder (or .npz file) of the source; the phantom needs none")
    classes: str = Field("", description="task of the source (ham10000: seven, eight, two); empty: all its classes")
    image_size: int = Field(32, ge=16, le=1024, description="pixels of a side; images are square")
    n_images: int = Field(
        2000, ge=100, le=1_000_000, description="images that the phantom draws (other sources: not used)"
    )
    val_fraction: float = Field(0.2, gt=0, lt=0.5, description="share of the validation fold")
    test_fraction: float = Field(0.25, gt=0, lt=0.8, description="share of the test fold")
    encoder: Literal["in-domain", "squeezenet1_0", "mobilenet_v2", "vgg16", "vgg19"] = Field(
        "in-domain", description="frozen network of style transfer; it measures fidelity unless judge names another"
    )
    encoder_weights: str = Field("", description="weights file; empty: torchvision's cache (in-domain: trained here)")
    encoder_steps: int = Field(
        200, ge=1, description="training steps of the in-domain network, also the pseudo-labeller"
    )
    oracle_fraction: float = option(
        0.2, ge=0, lt=0.5, description="share of the lesions held back from all but the oracle's arms; 0: none"
    )
    split_by: Literal["group", "image"] = option(
        "group", description="image: the leaky split of much published work, shown beside the honest one"
    )
    replicates_per_split: int = option(
        1, ge=1, le=100, description="replicates that share one split, so that seeds can be told from splits"
    )
    skip_unreadable: bool = option(False, description="list and skip images that cannot be decoded")
    judge: Literal["auto", "encoder", "inception", "squeezenet1_0", "mobilenet_v2", "in-domain"] = option(
        "auto",
        description="network of the fidelity measures; auto: Inception where its weights are cached, else the encoder",
    )


class Arm(Section):
    """One way to train the classifier."""

    arm: str = Field("balanced", description="name of the arm")
    synthetic: Literal[
        "none",
        "oversample",
        "augmented",
        "self-training",
        "noised",
        "blurred",
        "oracle",
        "nst",
        "dcgan",
        "wgan",
        "pggan",
    ] = Field("none", description="added images: a generator's, held-back real ones (oracle), or real ones again")
    ratio: float = Field(0.5, gt=0, le=100, description="added images per real one of every class but the largest")
    protocol: Literal["mix", "pretrain", "synthetic-only"] = Field(
        "mix", description="mix with real images, train on the added ones first, or on nothing else"
    )
    augment: Literal["none", "classic", "fivecrop", "trivial", "randaugment", "mixup", "cutmix"] = Field(
        "classic", description="classic: flips, rotations, zoom, colour"
    )
    sampler: Literal["shuffle", "balanced"] = Field(
        "balanced", description="balanced: every class is drawn equally often"
    )
    # how many of which class, and which of them
    count: int = Count
    balance: bool = Balance
    classes: list[str] = Classes
    select: Literal["all", "confident", "diverse"] = option(
        "all", description="of a pool that is larger than needed: the first, the surest, or those farthest apart"
    )
    labels: Literal["given", "style", "pseudo", "soft", "shuffled", "wrong"] = option(
        "given",
        description="of added images: their table's, the style's class, pseudo-label, probabilities; or placebos",
    )
    min_confidence: float = option(0.0, ge=0, lt=1, description="leave out added images labelled less surely than this")
    # how it is trained
    loss: Literal["cross-entropy", "weighted", "focal", "logit-adjusted"] = option(
        "cross-entropy", description="what is minimised; weighted and logit-adjusted go by class frequencies"
    )
    pretrain_share: float = option(
        0.5, gt=0, lt=1, description="share of the updates that protocol pretrain gives to added images"
    )
    real_share: float = option(
        1.0, gt=0, le=1, description="share of the train fold's lesions that is used, for the learning curve"
    )
    spend: Literal["", "nst", "dcgan", "wgan", "pggan"] = option(
        "", description="generator whose measured seconds this arm trains longer instead"
    )
    spend_on: Literal["steps", "ensemble"] = option(
        "steps", description="spend them on a longer schedule, or on more networks whose probabilities are averaged"
    )

    @property
    def generator(self) -> str:
        """Name of the generator that the arm needs, or an empty string."""
        return self.synthetic if self.synthetic in GENERATORS else ""

    @property
    def kind(self) -> Literal["real", "placebo", "oracle", "subset", "synthetic"]:
        """What the arm is in the comparison; only "synthetic" arms are judged."""
        return arm_kind(self.synthetic, labels=self.labels, real_share=self.real_share)

    @model_validator(mode="after")
    def _fits_together(self) -> Arm:
        name = f"arm '{self.arm}'"
        own_labels = self.synthetic in ("none", "oversample", "augmented", "noised", "blurred", ORACLE)
        if own_labels and (self.labels != "given" or self.min_confidence):
            raise ValueError(f"{name} adds no image of unsure label; leave out labels and min_confidence")
        if self.synthetic == "self-training" and self.labels in ("style", *PLACEBO_LABELS):
            raise ValueError(f"{name} has no style; give self-training the labels pseudo or soft")
        if self.loss in ("weighted", "logit-adjusted") and self.sampler == "balanced":
            raise ValueError(
                f"{name} mends the class frequencies twice, by its sampler and by loss {self.loss}; "
                "give it sampler: shuffle"
            )
        if self.protocol != "mix" and self.synthetic == "none":
            raise ValueError(f"{name} has protocol {self.protocol} but adds no image; give it synthetic: nst")
        if self.count and self.balance:
            raise ValueError(f"{name} has count and balance; choose one of them")
        if self.select != "all" and not self.generator:
            raise ValueError(f"{name} selects among a generator's images but has synthetic {self.synthetic}")
        if self.real_share < 1 and self.synthetic != "none":
            raise ValueError(
                f"{name} has real_share {self.real_share} and adds {self.synthetic}; a subset is for the learning "
                "curve and adds nothing"
            )
        if self.spend_on != "steps" and not self.spend:
            raise ValueError(f"{name} has spend_on {self.spend_on} but names no generator in spend; give it one")
        if self.spend and (self.synthetic != "none" or self.real_share < 1):
            raise ValueError(f"{name} spends the seconds of {self.spend} on training; let it add no image")
        return self


def arm_kind(synthetic: str, *, labels: str = "given", real_share: float = 1.0) -> str:
    """Return what an arm is in the comparison: "real", "placebo", "oracle", "subset" or "synthetic"."""
    if synthetic == ORACLE:
        return "oracle"
    if real_share < 1:
        return "subset"
    if synthetic in PLACEBOS or labels in PLACEBO_LABELS:
        return "placebo"
    return "synthetic" if synthetic in GENERATORS else "real"


def may_be_baseline(kind: str, synthetic: str) -> bool:
    """Say whether an arm trains on the whole real train fold and no synthetic image: an honest baseline."""
    return kind == "real" or (kind == "placebo" and synthetic in REAL_ONLY)


DEFAULT_ARMS = (
    # without a synthetic image: the baselines
    Arm(arm="none", augment="none", sampler="shuffle"),
    Arm(arm="classic", sampler="shuffle"),
    Arm(arm="balanced"),
    Arm(arm="oversample", synthetic="oversample"),
    Arm(arm="longer", spend="wgan"),
    # with: these are judged
    *(Arm(arm=name, synthetic=name) for name in GENERATORS),
    # what they must beat, what they cannot beat, and the learning curve
    Arm(arm="wgan-wrong", synthetic="wgan", labels="wrong"),
    Arm(arm="oracle", synthetic=ORACLE),
    Arm(arm="half", real_share=0.5),
    Arm(arm="quarter", real_share=0.25),
)


class ClassificationSection(Section):
    """06_classification, one run per arm."""

    network: Literal["vgg8", "vgg11_bn", "vgg16_bn", "alexnet", "resnet18", "squeezenet1_0", "mobilenet_v2"] = Field(
        "vgg8", description="architecture of the classifier"
    )
    steps: int = Field(300, ge=1, description="optimiser updates, the same for every arm")
    batch_size: int = Field(64, ge=2, le=65536, description="images per step")
    learning_rate: float = Field(2e-3, gt=0, lt=1, description="peak of the one-cycle schedule")
    weights: str = option("none", description="none: from scratch; cache: torchvision's cache; else a weights file")
    repeats: int = option(1, ge=1, le=100, description="trainings per arm and replicate, to measure repeatability")
    tries: int = option(
        1, ge=1, le=9, description="learning rates tried per arm, equally many for all, the best on validation kept"
    )
    spend_limit: float = option(
        4.0, ge=0, le=1000, description="an arm with spend trains at most so many times longer, whatever is left"
    )
    arms: tuple[Arm, ...] = Field(DEFAULT_ARMS, min_length=1, strict=False, description="the arms that are compared")


class ExplainabilitySection(Section):
    """07_explainability."""

    methods: list[AttributionMethod] = Field([], description="attribution methods; empty: all that the network allows")
    attention_methods: list[AttributionMethod] = Field(
        ["deep_taylor", "deeplift"], min_length=1, description="methods by which all arms are compared"
    )
    n_images: int = Field(32, ge=1, description="test images that all methods explain, drawn evenly from the classes")
    n_attention: int = Field(96, ge=1, description="test images by which all arms are compared, drawn evenly, too")
    region_size: int = Field(0, ge=0, description="pixels of a perturbed region's side; 0: 9 at 224 px, in proportion")
    replace: list[Literal["mean", "zeros", "noise", "blur"]] = Field(
        ["mean", "zeros", "noise", "blur"], min_length=1, description="what a perturbed region becomes"
    )
    random_orders: int = Field(5, ge=1, description="random orders that a ranking is compared with")
    recomputed: list[AttributionMethod] = option(
        ["gradient", "deep_taylor"], description="methods whose ranking is made anew as regions go, too"
    )
    recompute_every: int = option(4, ge=1, description="regions replaced between two rankings")
    n_fitted: int = option(500, ge=2, description="train images from which PatternNet's patterns are estimated")
    estimator: Literal["linear", "relu_positive"] = option("linear", description="signal estimator of PatternNet")
    n_randomised: int = option(16, ge=1, description="images of the parameter-randomisation check")
    noise: float = option(0.02, gt=0, le=1, description="noise of the stability check, share of the value range")
    artefacts: list[Literal["hair", "ruler", "vignette", "frame"]] = option(
        ["hair", "ruler", "vignette"], description="artefacts that are drawn over test images"
    )


class ResultsSection(Section):
    """08_results."""

    metric: Literal["balanced_accuracy", "macro_f1", "accuracy", "sensitivity", "specificity"] = Field(
        "balanced_accuracy", description="what the verdict is about"
    )
    smallest_effect: float = Field(0.02, gt=0, lt=1, description="smallest difference of the metric that matters")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")
    resamples: int = Field(2000, ge=100, le=1_000_000, description="bootstrap resamples")
    smallest_attention: float = Field(
        0.02, gt=0, lt=1, description="smallest difference in share of relevance that matters"
    )
    leaky_study: str = Field("", description="the same study with data.split_by: image, to show the inflation")
