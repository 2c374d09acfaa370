"""Runs: which notebook runs a study unfolds to, where each leaves its folder, and the manifest that says what made it.

Knows no torch.  A stage writes into a temporary folder that is renamed when it is complete, so a half-written folder
never looks finished; ``manifest.json`` in it is the sign of completion.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from stda import BadInput
from stda.sections import GENERATORS, NOTEBOOKS, STAGES, Arm, StudySection
from stda.software import peak_memory_mb, software
from stda.study import NAME, Study, load, project_root, sentence, sub_seed


def runs_root() -> Path:
    """Return the folder of all runs: ``STDA_RUNS``, else ``runs/`` of the project."""
    return Path(os.environ.get("STDA_RUNS") or project_root() / "runs").absolute()


def reports_root() -> Path:
    """Return the folder of all reports: ``STDA_REPORTS``, else ``reports/`` of the project."""
    return Path(os.environ.get("STDA_REPORTS") or project_root() / "reports").absolute()


# ------------------------------------------------------------------------------------------------ the stage graph


@dataclass(frozen=True)
class Job:
    """One notebook run: a stage of a replicate (none for the results), and an arm for the classification."""

    stage: str
    replicate: int | None = None
    arm: str = ""

    @property
    def key(self) -> str:
        """Folder of the job below ``runs/<study>/``, such as ``r0/classification/wgan``."""
        parts = [f"r{self.replicate}"] if self.replicate is not None else []
        return "/".join([*parts, self.stage, *([self.arm] if self.arm else [])])

    @property
    def report(self) -> str:
        """Report of the job below ``reports/<study>/``, without suffix, such as ``r0/06_classification-wgan``."""
        parts = [f"r{self.replicate}"] if self.replicate is not None else []
        return "/".join([*parts, NOTEBOOKS[self.stage] + (f"-{self.arm}" if self.arm else "")])

    @staticmethod
    def parse(key: str) -> Job:
        """Read a :attr:`key` back."""
        parts = key.split("/")
        replicate = int(parts.pop(0)[1:]) if re.fullmatch(r"r\d+", parts[0]) else None
        return Job(parts[0], replicate, parts[1] if len(parts) > 1 else "")


def jobs(study: Study) -> list[Job]:
    """Return every notebook run of a study, upstream first."""
    todo = []
    for r in range(study.study.replicates):
        todo.append(Job("data", r))
        todo += [Job(name, r) for name in study.generators]
        todo += [Job("classification", r, arm.arm) for arm in study.classification.arms]
        todo.append(Job("explainability", r))
    return [*todo, Job("results")]


def needs(study: Study, job: Job) -> list[Job]:
    """Return the jobs whose folders a job reads."""
    r = job.replicate
    arms = [Job("classification", r, arm.arm) for arm in study.classification.arms]
    if job.stage == "data":
        return []
    if job.stage in GENERATORS:
        return [Job("data", r)]
    if job.stage == "classification":
        used = (study.arm(job.arm).generator, study.arm(job.arm).spend)
        return [Job("data", r), *(Job(name, r) for name in used if name)]
    if job.stage == "explainability":
        return [Job("data", r), *arms]
    return [other for other in jobs(study) if other.stage != "results"]


def parameters(study: Study, job: Job) -> dict[str, Any]:
    """Return the values that a job's parameters cell gets: plain literals, in the cell's order."""
    common = {
        "study": study.name,
        "replicate": job.replicate,
        "seed": study.study.seed,
        "precision": study.study.precision,
    }
    section = getattr(study, job.stage).model_dump(mode="json", exclude={"arms"})
    if job.stage == "results":
        return {"study": study.name, "seed": study.study.seed, **section}
    arm = study.arm(job.arm).model_dump(mode="json") if job.arm else {}
    values, known = {**arm, **section}, option_defaults(job.stage)
    departures = {name: values[name] for name, default in known.items() if values[name] != default}
    shown = {name: value for name, value in values.items() if name not in known}
    return {**common, **shown, **({"options": departures} if known else {})}


def parameter_model(stage: str) -> dict[str, type[BaseModel]]:
    """Return, per parameter name of a stage's notebook, the section model that knows its type and limits."""
    models: list[type[BaseModel]] = [Study.model_fields[stage].annotation]
    if stage == "classification":
        models.append(Arm)
    owners = {name: model for model in models for name in model.model_fields if name != "arms"}
    return {"seed": StudySection, **({} if stage == "results" else {"precision": StudySection}), **owners}


def option_defaults(stage: str) -> dict[str, Any]:
    """Return the knobs of a stage that its notebook gets in the one parameter ``options``, with their defaults."""
    fields = {name: owner.model_fields[name] for name, owner in parameter_model(stage).items()}
    marked = {name: field for name, field in fields.items() if (field.json_schema_extra or {}).get("option")}
    return {name: field.get_default(call_default_factory=True) for name, field in marked.items()}


def arm_knobs(folder: Path) -> dict[str, Any]:
    """Return every knob of the arm that was trained into a folder, options with their values or defaults."""
    given = read_manifest(folder)["parameters"]
    return {**given, **option_defaults("classification"), **given.get("options", {})}


def check_parameters(stage: str, values: dict[str, Any]) -> None:
    """Validate the flat values of one notebook's parameters cell (names are checked by the batch before launch)."""
    owners, options = parameter_model(stage), values.get("options", {})
    if not isinstance(options, dict) or set(options) - set(option_defaults(stage)):
        known = ", ".join(option_defaults(stage))
        raise BadInput(f"{NOTEBOOKS[stage]}: options is {options!r}; it maps names to values, of: {known}.")
    values = {**values, **options}
    for model in dict.fromkeys(owners.values()):
        given = {name: values[name] for name, owner in owners.items() if owner is model and name in values}
        try:
            model(**given)
        except ValidationError as error:
            raise BadInput(f"{NOTEBOOKS[stage]}: {sentence(error, model)}") from None


def resolved(study: Study) -> dict[str, Any]:
    """Return a study as plain values with nothing left to default: what ``study.json`` holds."""
    return {"name": study.name, **study.model_dump(mode="json")}


def register(study: Study) -> str:
    """Write ``study.json`` and note, before anything runs, what the verdict will be judged by; return its digest.

    ``registered.csv`` gains a line whenever metric, smallest effect, confidence, replicates or arms differ from its
    last line: a smallest effect moved, or replicates added, after the results were seen leave a trace in the report.
    """
    folder = runs_root() / study.name
    probe_writable(folder)
    r, arms = study.results, " ".join(arm.arm for arm in study.classification.arms)
    judged = {"metric": r.metric, "smallest_effect": r.smallest_effect, "confidence": r.confidence}
    judged |= {"replicates": study.study.replicates, "arms": arms}
    digest = hashlib.sha256(json.dumps(judged).encode()).hexdigest()
    path = folder / "registered.csv"
    lines = path.read_text().splitlines() if path.is_file() else [",".join(["time", "sha256", *judged])]
    if digest not in lines[-1]:
        lines.append(",".join([time.strftime("%Y-%m-%dT%H:%M:%S%z"), digest, *map(str, judged.values())]))
        path.write_text("\n".join(lines) + "\n")
    write_json(folder / "study.json", resolved(study))
    return digest


def finished(study_name: str) -> tuple[list[Job], list[Job]]:
    """Return the finished jobs of a study, and those among its folders that its registered params do not plan.

    Left-overs of an arm or a replicate that was taken out of the params must not enter a comparison; without
    ``study.json`` (notebooks run by hand) everything that is there counts.
    """
    root = runs_root() / study_name
    found = [Job.parse(str(path.parent.relative_to(root))) for path in sorted(root.glob("*/**/manifest.json"))]
    found = [job for job in found if job.stage in STAGES and not job.arm.startswith(".")]
    if not (root / "study.json").is_file():
        return found, []
    planned = jobs(load(root / "study.json"))
    return [job for job in planned if job in found], [job for job in found if job not in planned]


def overwritten(study: Study) -> list[Job]:
    """Return finished jobs that no longer belong to this study: made with other parameters, or from other inputs.

    A notebook run by hand with ``study`` left at its default writes into the same folders as the batch; Snakemake,
    which looks at what *it* did, would not notice.
    """
    root, stale = runs_root() / study.name, []
    for job in finished(study.name)[0]:
        manifest = read_manifest(root / job.key)
        made_from = {
            key: manifest["inputs"].get(key) == read_manifest(root / key)["outputs"]
            for key in (need.key for need in needs(study, job))
            if job.stage != "results" and (root / key / "manifest.json").is_file()
        }
        if manifest["parameters"] != parameters(study, job) or not all(made_from.values()):
            stale.append(job)
    return stale


# ------------------------------------------------------------------------------------------------ stage folders


@dataclass
class Stage:
    """An open stage folder: a notebook asks it for inputs and seeds, writes into :attr:`dir`, and finishes it."""

    job: Job
    values: dict[str, Any]
    dir: Path
    final: Path
    inputs: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    @property
    def options(self) -> dict[str, Any]:
        """Every knob of ``options`` with its value, given or default."""
        return {**option_defaults(self.job.stage), **self.values.get("options", {})}

    @property
    def settings(self) -> dict[str, Any]:
        """Every parameter of the notebook and every knob of ``options`` by name."""
        return {**{name: value for name, value in self.values.items() if name != "options"}, **self.options}

    @property
    def checkpoints(self) -> Path:
        """Folder for the checkpoints of this stage: it outlives a killed run, and goes when the stage is finished."""
        return self.final.parent / f".{self.final.name}.checkpoints"

    def seed(self, *names: str | int) -> int:
        """Return the sub-seed of these names for this stage of this replicate (of its split, for the data stage)."""
        shared = self.options.get("replicates_per_split", 1)
        who = [] if self.job.replicate is None else [f"r{self.job.replicate // shared}"]
        return sub_seed(self.values["seed"], *who, self.job.stage, *names)

    def path(self, name: str) -> Path:
        """Return where a file of this stage is to be written."""
        return self.dir / name

    def folder(self, name: str) -> Path:
        """Make and return a sub-folder of this stage."""
        (self.dir / name).mkdir(exist_ok=True)
        return self.dir / name

    def upstream(self, stage: str, arm: str = "", *, replicate: int | None = None, study: str = "") -> Path:
        """Return the finished folder of another stage and record it as an input.

        It is of this replicate and this study unless another one is named.
        """
        job = Job(stage, self.job.replicate if replicate is None else replicate, arm)
        name = study or self.values["study"]
        folder = runs_root() / name / job.key
        if not (folder / "manifest.json").is_file():
            setting = f" with arm = '{arm}'" if arm else ""
            what = f"study '{name}', replicate {job.replicate}"
            raise BadInput(f"Run notebooks/{NOTEBOOKS[stage]}.ipynb{setting} first: {folder} is missing ({what}).")
        key = job.key if name == self.values["study"] else f"{name}/{job.key}"
        self.inputs[key] = read_manifest(folder)["outputs"]
        return folder

    def uses(self, path: str | Path, digest: str = "") -> None:
        """Record a file from outside the runs as an input (``digest`` where it is known already)."""
        self.inputs[str(path)] = digest or sha256(Path(path))

    def finish(self, *, headline: str, machine: dict[str, Any] | None = None, **facts: Any) -> Path:
        """Write the manifest, move the folder to its final place in one step and return it.

        ``headline`` is the one line that the index shows; ``machine`` is ``Compute.describe()``.
        """
        try:
            outputs = {str(p.relative_to(self.dir)): sha256(p) for p in sorted(self.dir.rglob("*")) if p.is_file()}
            manifest = {
                "stage": self.job.stage,
                "replicate": self.job.replicate,
                "arm": self.job.arm,
                "headline": headline,
                "parameters": self.values,
                "seconds": round(time.time() - self.started, 2),
                "peak_memory_mb": peak_memory_mb(),
                "machine": machine or {},
                "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "facts": facts,
                "software": software(),
                "inputs": self.inputs,
                "outputs": outputs,
            }
            write_json(self.dir / "manifest.json", manifest)
            replace_folder(self.dir, self.final)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        except OSError as error:
            raise unwritable(self.final, error) from None
        return self.final


def begin(stage: str, namespace: dict[str, Any]) -> Stage:
    """Open the folder of a stage for the values in a notebook's namespace (pass ``globals()``).

    The values are checked against the schema first, so that a notebook run by hand answers a wrong value like the
    batch does.  Left-overs of an interrupted run of the same stage are removed.
    """
    known = option_defaults(stage)
    own = [name for name in parameter_model(stage) if name not in known]
    names = ["study", *(["replicate"] if stage != "results" else []), *own, *(["options"] if known else [])]
    missing = [name for name in names if name not in namespace]
    if missing:
        raise BadInput(f"The parameters cell of {NOTEBOOKS[stage]} does not set {', '.join(missing)}; add it.")
    values = {name: namespace[name] for name in names}
    if not NAME.fullmatch(str(values["study"])):
        raise BadInput(f"study is {values['study']!r}; a name is lower-case letters, digits, '-' and '_'.")
    replicate = values.get("replicate")
    if stage != "results" and not (type(replicate) is int and replicate >= 0):
        raise BadInput(f"replicate is {replicate!r}; it must be 0, 1, 2, ...")
    check_parameters(stage, values)
    if known:  # what is given its default departs from nothing
        values["options"] = {name: value for name, value in values["options"].items() if value != known[name]}
    job = Job(stage, replicate, values.get("arm", ""))
    final = runs_root() / values["study"] / job.key
    partial = final.parent / f".{final.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise unwritable(partial, error) from None
    return Stage(job, values, partial, final)


def replace_folder(new: Path, final: Path) -> None:
    """Put a complete folder in the place of an old one; whoever looks sees the old, none, or the new one whole."""
    old = final.parent / f".{final.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def unwritable(path: Path, error: OSError) -> BadInput:
    """Turn an operating-system error while writing into a sentence with the remedy."""
    if error.errno == errno.ENOSPC:
        return BadInput(f"The disk is full while writing {path}: free some space or set STDA_RUNS to another disk.")
    return BadInput(
        f"Cannot write {path} ({error.strerror or error}): set STDA_RUNS to a folder that you may write to."
    )


def probe_writable(folder: Path) -> None:
    """Raise unless a file can be written into ``folder`` (made if need be)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"0" * 65536)
        probe.unlink()
    except OSError as error:
        raise unwritable(folder, error) from None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what a finished stage folder says about itself."""
    return json.loads((folder / "manifest.json").read_text())


def write_json(path: Path, content: Any) -> None:
    """Write JSON through a temporary name, so that a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def _plain(value: Any) -> Any:
    """Turn NumPy scalars, tuples and paths into JSON's own types; what is not finite becomes null (JSON has no NaN)."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
