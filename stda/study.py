"""The study: its sections together, reading and writing a params file, and the seeds.  Knows no torch."""

from __future__ import annotations

import difflib
import hashlib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from stda import BadInput
from stda.generator_sections import DcganSection, NstSection, PgganSection, WganSection
from stda.sections import (
    CHAIN_METHODS,
    GENERATORS,
    LAYER_METHODS,
    PATTERN_METHODS,
    Arm,
    ClassificationSection,
    DataSection,
    ExplainabilitySection,
    ResultsSection,
    Section,
    StudySection,
)

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


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
                raise ValueError(f"arm '{name}' is given twice (also where a name is left out); give every arm its own")
        if all(arm.kind != "real" for arm in self.classification.arms):
            raise ValueError("no arm without synthetic images; add one, for example {arm: balanced}")
        self._check_protocols()
        for arm in self.classification.arms:
            self._check_pool(arm)
        if self.data.source != "phantom" and not self.data.root:
            raise ValueError(f"data.root is empty but source {self.data.source} needs it; give it or --data DIR")
        self._check_sizes()
        return self

    def _check_pool(self, arm: Arm) -> None:
        """Raise for an arm that asks its generator for more than it makes, as far as that shows without the data."""
        made = getattr(self, arm.generator) if arm.generator else None
        if made is None:
            return
        by_ratio = not (arm.count or arm.balance or made.count or made.balance)
        if by_ratio and arm.ratio > made.ratio:
            raise ValueError(
                f"arm '{arm.arm}' asks for ratio {arm.ratio} but {arm.generator}.ratio makes only {made.ratio}"
            )
        if made.count and arm.count > made.count:
            raise ValueError(
                f"arm '{arm.arm}' asks for count {arm.count} but {arm.generator}.count makes only {made.count}"
            )
        missing = [name for name in arm.classes if made.classes and name not in made.classes]
        if missing:
            raise ValueError(
                f"arm '{arm.arm}' asks for class {missing[0]} but {arm.generator}.classes makes only "
                f"{', '.join(made.classes)}"
            )

    def _check_protocols(self) -> None:
        """Raise for an arm that would have nothing to train on, or labels that its images do not have."""
        for name in GENERATORS:
            if getattr(self, name).count and getattr(self, name).balance:
                raise ValueError(f"{name} has count and balance; choose one of them")
        for arm in self.classification.arms:
            steps = self.classification.steps
            if arm.protocol == "pretrain" and not 0 < round(arm.pretrain_share * steps) < steps:
                raise ValueError(
                    f"arm '{arm.arm}' gives pretrain_share {arm.pretrain_share} of {steps} steps; each phase needs one"
                )
            if arm.kind == "oracle" and not self.data.oracle_fraction:
                raise ValueError(
                    f"arm '{arm.arm}' adds held-back real images but none are; set data.oracle_fraction, such as 0.2"
                )
            if arm.protocol == "synthetic-only" and arm.generator:
                made = getattr(self, arm.generator)
                opinion = arm.labels in ("pseudo", "soft") or (
                    arm.labels == "given" and getattr(made, "labels", "") == "pseudo"
                )
                if not (made.all_classes or made.classes or opinion):
                    raise ValueError(
                        f"arm '{arm.arm}' trains on synthetic images only; set {arm.generator}.all_classes: true"
                    )
        if self.data.val_fraction + self.data.test_fraction + self.data.oracle_fraction >= 0.9:
            raise ValueError("data.val_fraction, test_fraction and oracle_fraction leave less than a tenth to train on")

    def _check_sizes(self) -> None:
        """Raise for sizes that some part cannot work with, which would otherwise show after an hour."""
        size, network, weights = self.data.image_size, self.classification.network, self.classification.weights
        if set(self.generators) - {"nst"} and (size & (size - 1) or not 8 <= size <= 256):
            raise ValueError(f"data.image_size is {size}; the GANs need a power of 2 up to 256, such as 32 or 64")
        levels, given = size.bit_length() - 2, len(self.pggan.batch_sizes)
        if "pggan" in self.generators and given not in (0, levels):
            raise ValueError(f"pggan.batch_sizes has {given} numbers; from 4 to {size} px there are {levels} sizes")
        grow, sizes = self.pggan, self.pggan.batch_sizes or [self.pggan.batch_size] * levels
        early = [*sizes[:1], *(n for n in sizes[1:] for _ in ("fade", "stabilise"))][:-1]
        before = sum(-(-grow.phase_images // (grow.n_critic * n)) for n in early)
        if "pggan" in self.generators and before >= grow.steps:
            raise ValueError(
                f"pggan.phase_images is {grow.phase_images}, which takes {before} steps before the last phase; "
                f"pggan.steps is {grow.steps}: raise it, or lower phase_images"
            )
        if network == "alexnet" and size < 63:
            raise ValueError(f"data.image_size is {size}; alexnet needs at least 63, or choose another network")
        if network == "vgg8" and weights != "none":
            raise ValueError(f"classification.weights is '{weights}'; vgg8 has no pretrained weights, use none")
        self._check_methods(network)
        if self.explainability.region_size > size:
            raise ValueError(f"explainability.region_size is {self.explainability.region_size}; images have {size} px")

    def _check_methods(self, network: str) -> None:
        """Raise for attribution methods that cannot explain the network of the study."""
        refused = {"resnet18": CHAIN_METHODS, "mobilenet_v2": (*LAYER_METHODS, *CHAIN_METHODS)}.get(network, ())
        keys = [f"explainability.{key}" for key in ("methods", "attention_methods", "recomputed")]
        given = [getattr(self.explainability, key.split(".")[1]) for key in keys]
        wrong = {key: name for key, names in zip(keys, given, strict=True) for name in names if name in refused}
        if wrong:
            raise ValueError(
                f"{' and '.join(wrong)} name '{next(iter(wrong.values()))}', which cannot explain {network}; take "
                "others, such as deeplift or gradient"
            )
        fitted = [name for name in self.explainability.recomputed if name in PATTERN_METHODS]
        if fitted:
            raise ValueError(
                f"explainability.recomputed names '{fitted[0]}', whose patterns are not fitted again for every "
                "perturbed image; take others, such as gradient"
            )

    @property
    def generators(self) -> list[str]:
        """The generators that some arm uses or is compared with in seconds, in stage order; the others are not run."""
        used = {name for arm in self.classification.arms for name in (arm.generator, arm.spend)}
        return [name for name in GENERATORS if name in used]

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
    paths = ("data", "root"), ("data", "encoder_weights"), ("nst", "start_file"), ("classification", "weights")
    for section, key in paths:
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
            if _opens_options(type(section), key):
                lines.append("  # further knobs, which the notebook receives as options")
            if key == "arms":
                lines += ["  # one line per arm; what is not said has the default of an arm", "  arms:"]
                lines += [f"    - {_flow(_departures(arm))}" for arm in section.arms]
                continue
            meaning = type(section).model_fields[key].description
            lines.append(f"  {key}: {_flow(value)}  # {meaning}")
    return "\n".join(lines) + "\n"


def _opens_options(section: type[BaseModel], key: str) -> bool:
    """Say whether a key is the first of a section's options."""
    options = [name for name, field in section.model_fields.items() if (field.json_schema_extra or {}).get("option")]
    return options[:1] == [key]


def _departures(arm: Arm) -> dict[str, Any]:
    default = Arm()
    return {k: v for k, v in arm.model_dump().items() if k == "arm" or v != getattr(default, k)}


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()
