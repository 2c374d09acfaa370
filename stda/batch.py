"""Run one notebook: check its parameters, execute it with papermill, render it, and say honestly how it ended."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stda import BadInput, runs
from stda.runs import Job
from stda.sections import NOTEBOOKS
from stda.study import Study, project_root

TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Status:
    """How a job stands: ``running``, ``done`` or ``failed``, with its minutes and, when failed, the reason."""

    job: str
    status: str
    seconds: float = 0.0
    error: str = ""
    html: str = ""
    started: float = 0.0


def notebook_path(stage: str) -> Path:
    """Return the notebook of a stage."""
    return project_root() / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb"


# ------------------------------------------------------------------------------------------------ parameters cell


@dataclass(frozen=True)
class Parameter:
    """A line of a parameters cell: its declared type, default and trailing comment."""

    type: str
    default: Any
    comment: str


def parameters_cell(path: Path) -> str:
    """Return the source of the one cell tagged ``parameters``.

    papermill itself goes on without one, and the notebook's defaults then overwrite what is injected; so that is an
    error here.
    """
    if not path.is_file():
        raise BadInput(f"Notebook {path} is missing; restore it with 'git checkout -- notebooks'.")
    try:
        cells = json.loads(path.read_text())["cells"]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path.name} is not a notebook (JSON with cells); restore it with 'git checkout'.") from None
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        found = f"{len(tagged)} cells" if tagged else "no cell"
        raise BadInput(
            f"{path.name} has {found} tagged 'parameters'; tag exactly one (JupyterLab: Property Inspector)."
        )
    return "".join(tagged[0]["source"])


def declared_parameters(path: Path) -> dict[str, Parameter]:
    """Read the names, types, defaults and comments of a notebook's parameters cell."""
    source = parameters_cell(path)
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise BadInput(f"The parameters cell of {path.name} does not parse (line {error.lineno}); mend it.") from None
    lines, found = source.splitlines(), {}
    for node in tree.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
            raise BadInput(f"The parameters cell of {path.name} may hold only 'name: type = value  # meaning' lines.")
        kind = ast.unparse(node.annotation)
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise BadInput(
                f"'{node.target.id}' in {path.name} must have a literal value, such as 3 or 'wgan'."
            ) from None
        comment = lines[node.end_lineno - 1][node.end_col_offset :].strip().removeprefix("#").strip()
        found[node.target.id] = Parameter(kind, default, comment)
    return found


def check_notebook(stage: str, values: dict[str, Any]) -> None:
    """Raise unless the notebook declares exactly the given parameters with fitting types (papermill only warns)."""
    path = notebook_path(stage)
    declared = declared_parameters(path)
    unknown, missing = sorted(set(values) - set(declared)), sorted(set(declared) - set(values))
    if unknown or missing:
        what = f"lacks {', '.join(unknown)}" if unknown else f"has {', '.join(missing)}, which the schema does not know"
        raise BadInput(f"The parameters cell of {path.name} {what}: notebook and stda/study.py must name the same.")
    for name, value in values.items():
        base = declared[name].type.split("[")[0]
        fits = isinstance(value, TYPES.get(base, ())) and (base == "bool") == isinstance(value, bool)
        if not fits and not (base == "float" and type(value) is int):
            kind = declared[name].type
            raise BadInput(f"{name} is {value!r}, but {path.name} declares it as {kind}: give a {kind}.")


def check_study(study: Study) -> None:
    """Check the parameters of every job of a study against its notebook before anything is launched."""
    for stage, job in {job.stage: job for job in runs.jobs(study)}.items():
        check_notebook(stage, runs.parameters(study, job))


# ------------------------------------------------------------------------------------------------ one job


def run_job(study: Study, job: Job, *, threads: int = 1, timeout: int = 0) -> Status:
    """Execute the notebook of a job, write its ``.ipynb`` and ``.html`` report and its status file.

    ``threads`` are the CPU threads it may use, ``timeout`` the seconds that one cell may take (0: no limit).  A dead
    kernel, a timeout and an error in a cell all end as a failed status with one clear line and a partial report named
    ``*.failed.ipynb`` and ``*.failed.html``; papermill's own metadata is never trusted for this.
    """
    values = runs.parameters(study, job)
    check_notebook(job.stage, values)
    report = runs.reports_root() / study.name / job.report
    runs.probe_writable(report.parent)
    partial = report.with_name(f"{report.name}.failed.ipynb")
    status = Status(job.key, "running", started=time.time())
    write_status(study, status)
    with _environment(threads):
        error = _execute(notebook_path(job.stage), partial, values, timeout)
    manifest = runs.runs_root() / study.name / job.key / "manifest.json"
    if not error and not (manifest.is_file() and manifest.stat().st_mtime >= status.started - 1):
        error = "the notebook ended without finishing its stage folder (its last cell must call run.finish)"
    status.seconds, status.error = round(time.time() - status.started, 1), error
    status.status = "failed" if error else "done"
    _render(study, job, status, partial, report)
    write_status(study, status)
    return status


def _execute(notebook: Path, output: Path, values: dict[str, Any], timeout: int) -> str:
    """Run papermill and return an empty string, or the reason why it failed in one line."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    # "auto" keeps ipykernel from warning about its unencrypted local transport in every notebook
    config = Config({"KernelManager": {"transport_encryption": "auto"}})
    try:
        papermill.execute_notebook(
            notebook,
            output,
            parameters=values,
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=timeout or None,
            config=config,
        )
    except papermill.PapermillExecutionError as error:
        text = " ".join(ANSI.sub("", str(error.evalue)).split())
        system = re.match(r"\[Errno (\d+)\] ([^:]+)", text)
        if system and int(system[1]) in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            return str(runs.unwritable(runs.runs_root(), OSError(int(system[1]), system[2])))
        return text if error.ename == "BadInput" else f"cell {error.exec_count}: {error.ename}: {text}"
    except DeadKernelError:
        return "the kernel died, most often because memory ran out: use a smaller batch_size or image_size"
    except CellTimeoutError:
        return f"a cell took longer than {timeout} s: raise --timeout or lower the steps"
    except OSError as error:
        return str(runs.unwritable(Path(error.filename or output), error))
    return ""


def _render(study: Study, job: Job, status: Status, partial: Path, report: Path) -> None:
    """Give the executed notebook its name and its HTML page; a failed one keeps ``.failed`` in both."""
    from stda.show.render import render_notebook

    report.with_name(f"{report.name}.failed.html").unlink(missing_ok=True)
    ipynb = report.with_name(f"{report.name}.ipynb")
    if status.status == "done":
        partial.replace(ipynb)
    else:
        ipynb = partial
    if not ipynb.is_file():
        return
    html = ipynb.with_suffix(".html")
    title = f"{study.name} · {job.key}"
    try:
        links = {"all results": "../" * job.report.count("/") + "index.html"}
        render_notebook(
            *(ipynb, html), title=title, status=status.status, message=status.error, links=links, study=study.name
        )
        status.html = str(html.relative_to(runs.reports_root() / study.name))
    except OSError as error:
        status.status, status.error = "failed", f"the report could not be written ({error.strerror}): {html}"


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Set what the kernel inherits: threads for every library, the batch flag, absolute roots."""
    chosen = {
        "STDA_BATCH": "1",
        "STDA_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "STDA_RUNS": str(runs.runs_root()),
        "STDA_REPORTS": str(runs.reports_root()),
    }
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


# ------------------------------------------------------------------------------------------------ status files


def status_path(study: Study, job: Job) -> Path:
    """Return the file that says how a job stands."""
    return runs.runs_root() / study.name / ".status" / f"{job.key.replace('/', '-')}.json"


def write_status(study: Study, status: Status) -> None:
    """Write a job's status file."""
    path = status_path(study, Job.parse(status.job))
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(path, asdict(status))


def read_status(study: Study, job: Job) -> Status:
    """Return how a job stands: its status file, corrected by whether its folder is complete."""
    status = Status(job.key, "waiting")
    with suppress(OSError, ValueError, TypeError):
        status = Status(**json.loads(status_path(study, job).read_text()))
    done = (runs.runs_root() / study.name / job.key / "manifest.json").is_file()
    if status.status == "done" and not done:
        status.status = "waiting"
    return status
