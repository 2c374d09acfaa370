"""The study: the schema of a params file, reading and writing it, and the seeds.  Knows no torch.

The schema is the one place where a default, its limits and its one-line meaning live.  The parameters cells of the
notebooks and ``params/quick.yaml`` repeat the defaults for readers; tests keep them in step.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stda import BadInput

STAGES = ("data", "nst", "dcgan", "wgan", "pggan", "classification", "explainability", "results")
GENERATORS = ("nst", "dcgan", "wgan", "pggan")
NOTEBOOKS = {stage: f"{number:02d}_{stage}" for number, stage in enumerate(STAGES, start=1)}
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")

Ratio = Field(0.5, gt=0, le=100, description="synthetic images per real training image of every class but the largest")
Latent = Field(100, ge=1, le=4096, description="length of the latent vector")
Batch = Field(64, ge=2, le=65536, description="images per step")


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
        1500, ge=100, le=1_000_000, description="images that the phantom draws (other sources: not used)"
    )
    val_fraction: float = Field(0.2, gt=0, lt=0.5, description="share of the validation fold")
    test_fraction: float = Field(0.3, gt=0, lt=0.8, description="share of the test fold")
    skip_unreadable: bool = Field(False, description="list and skip images that cannot be decoded")
    encoder: Literal["in-domain", "squeezenet1_0", "mobilenet_v2", "vgg16", "vgg19"] = Field(
        "in-domain", description="frozen network of style transfer and of the fidelity measures"
    )
    encoder_weights: str = Field("", description="weights file; empty: torchvision's cache (in-domain: trained here)")
    encoder_steps: int = Field(
        200, ge=1, description="training steps of the in-domain network, also the pseudo-labeller"
    )


class NstSection(Section):
    """02_nst."""

    ratio: float = Ratio
    style_size: int = Field(96, ge=32, le=1024, description="pixels at which style is transferred")
    iterations: int = Field(1, ge=1, le=1000, description="L-BFGS calls of about 20 loss evaluations each")
    content_weight: float = Field(0.025, ge=0, description="weight of the content loss")
    style_weight: float = Field(1.0, ge=0, description="weight of the style loss")
    tv_weight: float = Field(8.5e-5, ge=0, description="weight of the total variation")
    start: Literal["content", "noise", "grey"] = Field("content", description="image that the optimisation starts from")
    labels: Literal["pseudo", "style"] = Field(
        "pseudo", description="label: the network's opinion, or the style's class"
    )
    content_class: str = Field("", description="class of the content images; empty: the largest class")


class DcganSection(Section):
    """03_dcgan."""

    ratio: float = Ratio
    mode: Literal["per-class", "conditional"] = Field(
        "per-class", description="one model per class, or one that is told it"
    )
    width: int = Field(16, ge=4, le=512, description="channels of the widest feature map")
    latent: int = Latent
    steps: int = Field(1200, ge=1, description="generator updates, shared out evenly among the models")
    batch_size: int = Batch
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="Adam's rate")


class WganSection(Section):
    """04_wgan."""

    ratio: float = Ratio
    width: int = Field(8, ge=4, le=512, description="channels d at the full size (paper: 64); up to 8 d at 4 px")
    latent: int = Field(32, ge=2, le=4096, description="latent entries (paper: 128); the first are the one-hot label")
    steps: int = Field(350, ge=1, description="generator updates")
    batch_size: int = Field(32, ge=2, le=65536, description="images per step (paper: 64)")
    learning_rate: float = Field(1.5e-3, gt=0, lt=1, description="Adam's rate (paper: 1e-4, for far longer runs)")
    n_critic: int = Field(2, ge=1, le=100, description="critic updates per generator update (paper: 5)")
    penalty_weight: float = Field(10.0, ge=0, description="weight of the gradient penalty")
    class_weight: float = Field(2.0, gt=0, description="weight of the class head's cross-entropy (paper: 1)")
    sampling: Literal["balanced", "empirical"] = Field("balanced", description="how often each class is drawn")


class PgganSection(Section):
    """05_pggan."""

    ratio: float = Ratio
    max_channels: int = Field(24, ge=8, le=512, description="channels of the lowest resolutions (paper: 512)")
    latent: int = Field(32, ge=2, le=4096, description="length of the latent vector (paper: 512)")
    steps: int = Field(900, ge=1, description="steps over all resolutions, stabilising and fading")
    batch_size: int = Field(16, ge=4, multiple_of=4, description="images per step; a multiple of 4, the stddev group")
    learning_rate: float = Field(2e-3, gt=0, lt=1, description="Adam's rate (paper: 1e-3, for far longer runs)")
    class_weight: float = Field(2.0, gt=0, description="weight of the class loss on real images and of the generator's")
    fake_class_weight: float = Field(0.0, ge=0, description="weight of the critic's class loss on its fakes (paper: 1)")
    sampling: Literal["balanced", "empirical"] = Field("balanced", description="how often each class is drawn")


class Arm(Section):
    """One way to train the classifier."""

    arm: str = Field("balanced", description="name of the arm")
    synthetic: Literal["none", "oversample", "nst", "dcgan", "wgan", "pggan"] = Field(
        "none", description="where the added images come from; oversample: duplicates of real ones"
    )
    ratio: float = Field(0.5, gt=0, le=100, description="added images per real one of every class but the largest")
    augment: Literal["none", "classic"] = Field("classic", description="classic: flips, rotations, zoom, colour")
    sampler: Literal["shuffle", "balanced"] = Field(
        "balanced", description="balanced: every class is drawn equally often"
    )

    @property
    def generator(self) -> str:
        """Name of the generator that the arm needs, or an empty string."""
        return self.synthetic if self.synthetic in GENERATORS else ""


DEFAULT_ARMS = (
    Arm(arm="none", augment="none", sampler="shuffle"),
    Arm(arm="classic", sampler="shuffle"),
    Arm(arm="balanced"),
    Arm(arm="oversample", synthetic="oversample"),
    *(Arm(arm=name, synthetic=name) for name in GENERATORS),
)


class ClassificationSection(Section):
    """06_classification, one run per arm."""

    network: Literal["vgg8", "vgg11_bn", "vgg16_bn", "alexnet", "resnet18", "squeezenet1_0", "mobilenet_v2"] = Field(
        "vgg8", description="architecture of the classifier"
    )
    weights: str = Field("none", description="none: from scratch; cache: torchvision's cache; else a weights file")
    steps: int = Field(300, ge=1, description="optimiser updates, the same for every arm")
    batch_size: int = Field(64, ge=2, le=65536, description="images per step")
    learning_rate: float = Field(2e-3, gt=0, lt=1, description="peak of the one-cycle schedule")
    arms: tuple[Arm, ...] = Field(DEFAULT_ARMS, min_length=1, strict=False, description="the arms that are compared")


class ExplainabilitySection(Section):
    """07_explainability."""

    methods: list[Literal["gradient", "integrated_gradients", "deep_taylor", "deep_taylor_bounded"]] = Field(
        ["gradient", "integrated_gradients", "deep_taylor", "deep_taylor_bounded"],
        min_length=1,
        description="attribution methods",
    )
    n_images: int = Field(64, ge=1, description="test images, drawn evenly from the classes")
    region_size: int = Field(4, ge=1, description="pixels of a perturbed region's side")
    replace: Literal["mean", "zeros", "noise", "blur"] = Field("mean", description="what a perturbed region becomes")
    random_orders: int = Field(5, ge=1, description="random orders that a ranking is compared with")


class ResultsSection(Section):
    """08_results."""

    metric: Literal["balanced_accuracy", "macro_f1", "accuracy", "sensitivity", "specificity"] = Field(
        "balanced_accuracy", description="what the verdict is about"
    )
    smallest_effect: float = Field(0.02, gt=0, lt=1, description="smallest difference of the metric that matters")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")
    resamples: int = Field(2000, ge=100, le=1_000_000, description="bootstrap resamples")


class Study(Section):
    """Everything a run needs, one YAML file in ``params/``."""

    name: str = Field("quick", exclude=True)
    study: StudySection = StudySection()
    data: DataSection = DataSection()
    nst: NstSection = NstSection()
    dcgan: DcganSection = DcganSection()
    wgan: WganSection = WganSection()
    pggan: PgganSection = PgganSection()
    classification: ClassificationSection = ClassificationSection()
    explainability: ExplainabilitySection = ExplainabilitySection()
    results: ResultsSection = ResultsSection()

    @model_validator(mode="after")
    def _fits_together(self) -> Study:
        names = [arm.arm for arm in self.classification.arms]
        for name in names:
            if not NAME.fullmatch(name):
                raise ValueError(f"arm name '{name}' must be lower-case letters, digits, '-' and '_'")
            if names.count(name) > 1:
                raise ValueError(f"arm '{name}' is given twice; give every arm its own name")
        if all(arm.synthetic != "none" for arm in self.classification.arms):
            raise ValueError("no arm without synthetic images; add one, for example {arm: balanced}")
        for arm in self.classification.arms:
            if arm.generator and arm.ratio > getattr(self, arm.generator).ratio:
                pool = getattr(self, arm.generator).ratio
                raise ValueError(
                    f"arm '{arm.arm}' asks for ratio {arm.ratio} but {arm.generator}.ratio makes only {pool}"
                )
        if self.data.source != "phantom" and not self.data.root:
            raise ValueError(f"data.root is empty but source {self.data.source} needs it; give it or --data DIR")
        self._check_sizes()
        return self

    def _check_sizes(self) -> None:
        """Raise for sizes that some part cannot work with, which would otherwise show after an hour."""
        size, network, weights = self.data.image_size, self.classification.network, self.classification.weights
        if set(self.generators) - {"nst"} and (size & (size - 1) or not 8 <= size <= 256):
            raise ValueError(f"data.image_size is {size}; the GANs need a power of 2 up to 256, such as 32 or 64")
        if network == "alexnet" and size < 63:
            raise ValueError(f"data.image_size is {size}; alexnet needs at least 63, or choose another network")
        if network == "vgg8" and weights != "none":
            raise ValueError(f"classification.weights is '{weights}'; vgg8 has no pretrained weights, use none")
        if self.explainability.region_size > size:
            raise ValueError(f"explainability.region_size is {self.explainability.region_size}; images have {size} px")

    @property
    def generators(self) -> list[str]:
        """The generators that some arm uses, in stage order; the others are not run."""
        return [name for name in GENERATORS if any(arm.generator == name for arm in self.classification.arms)]

    def arm(self, name: str) -> Arm:
        """Return the arm of this name."""
        for arm in self.classification.arms:
            if arm.arm == name:
                return arm
        known = ", ".join(a.arm for a in self.classification.arms)
        raise BadInput(f"Study '{self.name}' has no arm '{name}'; its arms are {known}.")


def project_root() -> Path:
    """Return the folder that holds ``notebooks/`` and ``params/``, found from where the package lies."""
    return Path(__file__).resolve().parent.parent


def sub_seed(seed: int, *names: str | int) -> int:
    """Derive a seed in [0, 2^63) from a seed and a path of names; other names give independent streams."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


# ---------------------------------------------------------------------------------------------- reading a params file


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 1e-4 as the number it is (YAML 1.1 takes it for text)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise BadInput(f"'{key}' is given twice (line {node.start_mark.line + 1} ff.); keep one of them.")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def find(study: str | Path) -> Path:
    """Return the params file of a study given by name or by path."""
    given = Path(study)
    path = given if given.suffix in {".yaml", ".yml", ".json"} else project_root() / "params" / f"{study}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in (project_root() / "params").glob("*.yaml"))
        raise BadInput(f"There is no study '{study}' ({path} is missing); known studies: {', '.join(known)}.")
    return path


def read(path: Path) -> dict[str, Any]:
    """Return the sections of a params file as they are written there."""
    try:
        content = _Loader(path.read_text()).get_single_data() or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path.name} is not valid YAML: {' '.join(str(error).split())}.") from None
    except BadInput as error:
        raise BadInput(f"{path.name}: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path.name} must hold sections such as 'data:'; it holds {type(content).__name__}.")
    return {section: values for section, values in content.items() if values is not None}


def load(study: str | Path, *, data_root: str = "") -> Study:
    """Read and validate a study by name (``params/<name>.yaml``) or path; ``data_root`` replaces ``data.root``."""
    path = find(study)
    content = read(path)
    if data_root and isinstance(content.get("data", {}), dict):
        content["data"] = {**content.get("data", {}), "root": str(Path(data_root).expanduser().resolve())}
    _resolve_paths(content)
    name = content.get("name", path.stem) if path.suffix == ".json" else path.stem  # study.json carries its name
    return validate({**content, "name": name}, where=path.name)


def _resolve_paths(content: dict[str, Any]) -> None:
    """Make the paths of a params file absolute: relative ones start at the project, wherever a notebook is run."""
    for section, key in (("data", "root"), ("data", "encoder_weights"), ("classification", "weights")):
        values = content.get(section)
        text = values.get(key) if isinstance(values, dict) else None
        if isinstance(text, str) and text not in ("", "none", "cache"):
            values[key] = str((project_root() / Path(text).expanduser()).resolve())


def validate(content: dict[str, Any], *, where: str) -> Study:
    """Return the study of these sections, or raise :class:`BadInput` naming the key, the value and the remedy."""
    name = content.get("name", "quick")
    if not NAME.fullmatch(str(name)):
        raise BadInput(f"Study name '{name}' must be lower-case letters, digits, '-' and '_'; rename {where}.")
    try:
        return Study(**content)
    except ValidationError as error:
        raise BadInput(f"{where}: {sentence(error, Study)}") from None


def sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """Turn pydantic's first complaint into one sentence that names the key, the value and the remedy."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        remedy = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}."
        return f"'{key}' is not a parameter; {remedy}"
    if first["type"] == "value_error":
        return f"{first['ctx']['error']!s}."
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key} is {first['input']!r}: {message.replace('input', 'it', 1)}."


def _known_keys(model: type[BaseModel], path: tuple) -> list[str]:
    for part in path:
        if part in model.model_fields:
            annotation = model.model_fields[part].annotation
            model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else Arm
    return [name for name in model.model_fields if name != "name"]


# ---------------------------------------------------------------------------------------------- writing a params file


def dump(study: Study, *, header: str) -> str:
    """Return a study as YAML, every key with its meaning as a comment."""
    lines = [f"# {line}" for line in header.splitlines()]
    for name, section in ((n, getattr(study, n)) for n in Study.model_fields if n != "name"):
        lines += ["", f"{name}:"]
        for key, value in section.model_dump(mode="json").items():
            if key == "arms":
                lines += ["  # one line per arm; what is not said has the default of an arm", "  arms:"]
                lines += [f"    - {_flow(_departures(arm))}" for arm in section.arms]
                continue
            meaning = type(section).model_fields[key].description
            lines.append(f"  {key}: {_flow(value)}  # {meaning}")
    return "\n".join(lines) + "\n"


def _departures(arm: Arm) -> dict[str, Any]:
    default = Arm()
    return {k: v for k, v in arm.model_dump().items() if k == "arm" or v != getattr(default, k)}


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()
