"""The ``stda`` command: run a study, look at it, check it, start a new one, make images with what it fitted."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stda import BadInput, runs
from stda import study as studies
from stda.runs import Job
from stda.software import software

if TYPE_CHECKING:
    from stda.generators.base import Generator
    from stda.shards import Order

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
CORES = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
)  # macOS has no affinity
StudyName = Annotated[str, typer.Argument(help="name of a file in params/ (without .yaml), or its path")]
DataRoot = Annotated[str, typer.Option("--data", help="folder of the images; replaces data.root of the study")]


@app.command()
def run(
    study: StudyName,
    data: DataRoot = "",
    cores: Annotated[int, typer.Option(min=1, help="CPU cores to use")] = CORES,
    jobs: Annotated[int, typer.Option(min=0, help="notebooks side by side; 0: one per core")] = 0,
    timeout: Annotated[int, typer.Option(min=0, help="seconds that one cell may take; 0: no limit")] = 0,
    keep_going: Annotated[bool, typer.Option(help="go on with what does not depend on a failed job")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would run, and run nothing")] = False,
    snakemake: Annotated[str, typer.Option(help="more words for Snakemake, such as '--executor slurm'")] = "",
) -> None:
    """Run what is missing or out of date in a study and build its report."""
    import shlex

    from stda import publish, schedule

    console = Console()
    wanted = _checked(study, data, console)
    plan = schedule.make_plan(
        wanted, cores=cores, jobs=jobs, timeout=timeout, keep_going=keep_going, extra=tuple(shlex.split(snakemake))
    )
    if dry_run:
        _print_plan(wanted, plan, console)
        return
    before = {job: _made(wanted, job) for job in runs.jobs(wanted)}
    try:
        states = schedule.run_study(wanted, plan, console)
    except KeyboardInterrupt:
        print("stda: interrupted; finished stages are kept, the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        index = publish.publish(wanted)
    failed = [state for state in states if state.status == "failed"]
    ran = [job for job in before if _made(wanted, job) != before[job]]
    if not ran and not failed:
        console.print(f"Nothing to do: every part of study '{wanted.name}' is up to date.")
    elif failed:
        console.print(f"[red]{len(failed)} of {len(states)} jobs failed[/]; the report says which and why.")
    print(index)
    if failed or any(state.status != "done" for state in states):
        raise typer.Exit(1)


@app.command()
def status(study: StudyName) -> None:
    """Say how every job of a study stands."""
    from stda import batch

    wanted = studies.load(study, data_root=_last_root(study))
    table = Table("job", "status", "seconds", "headline or error", title=f"study {wanted.name}", title_justify="left")
    for job in runs.jobs(wanted):
        state = batch.read_status(wanted, job)
        said = state.error or (_headline(wanted, job) if state.status == "done" else "")
        table.add_row(job.key, state.status, f"{state.seconds:.0f}" if state.seconds else "", said)
    Console().print(table)


@app.command()
def check(study: StudyName, data: DataRoot = "") -> None:
    """Validate the parameters, the notebooks and the data of a study, and run nothing."""
    console = Console()
    wanted = _checked(study, data, console)
    console.print(f"Study '{wanted.name}' is sound: {len(runs.jobs(wanted))} notebook runs.")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="name of the new study")],
    source: Annotated[str, typer.Option("--from", help="study to start from")] = "quick",
    data: DataRoot = "",
) -> None:
    """Write params/NAME.yaml with every parameter and its meaning, copied from another study."""
    path = studies.project_root() / "params" / f"{name}.yaml"
    if not studies.NAME.fullmatch(name):
        raise BadInput(f"Study name '{name}' must be lower-case letters, digits, '-' and '_'.")
    if path.exists():
        raise BadInput(f"{path} exists; choose another name or remove it.")
    old = studies.load(source, data_root=data or _last_root(source))
    partial = path.with_suffix(".partial")
    partial.write_text(studies.dump(old, header=f"Study '{name}', started from '{source}'."))
    partial.rename(path)
    print(path)


@app.command()
def job(
    study: StudyName,
    key: Annotated[str, typer.Argument(help="which one, such as r0/wgan or r1/classification/balanced")],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
    timeout: Annotated[int, typer.Option(min=0, help="seconds that one cell may take; 0: no limit")] = 0,
) -> None:
    """Run one notebook of a study (what the batch calls for every job)."""
    from stda import batch

    wanted = studies.load(study, data_root=_last_root(study))
    known = {job.key: job for job in runs.jobs(wanted)}
    if key not in known:
        raise BadInput(f"Study '{wanted.name}' has no job '{key}'; 'stda status {wanted.name}' lists them.")
    state = batch.run_job(wanted, known[key], threads=threads, timeout=timeout)
    if state.status == "failed":
        print(f"{key} failed: {state.error} (partial report: {state.html or 'none'})", file=sys.stderr)
        raise typer.Exit(1)
    print(f"{key} done in {state.seconds} s")


@app.command()
def generate(
    generator: Annotated[str, typer.Argument(help="a generator that the study has fitted: nst, dcgan, wgan, pggan")],
    study: Annotated[str, typer.Option(help="name of the study, as in runs/")],
    n: Annotated[int, typer.Option("--n", min=1, help="images of the whole data base")],
    shards: Annotated[int, typer.Option(min=1, help="parts that the data base is made in")] = 1,
    shard: Annotated[int, typer.Option(min=-1, help="the part to make, from 0; -1: all, one after the other")] = -1,
    out: Annotated[str, typer.Option(help="folder; empty: runs/STUDY/rREPLICATE/generated/GENERATOR")] = "",
    replicate: Annotated[int, typer.Option(min=0, help="whose data and generator")] = 0,
    layout: Annotated[str, typer.Option(help="tar: for WebDataset; folders: for torchvision's ImageFolder")] = "tar",
    format: Annotated[str, typer.Option(help="png or jpeg")] = "png",
    quality: Annotated[int, typer.Option(help="of JPEG, 1 to 95")] = 95,
    size: Annotated[int, typer.Option(min=0, help="pixels of a side; 0: as fitted")] = 0,
    labels: Annotated[str, typer.Option(help="balanced, empirical, rare (all but the largest), or mel=.5,nv=.5")] = (
        "balanced"
    ),
    seed: Annotated[int, typer.Option(help="of the images; -1: the study's")] = -1,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: as this data base was begun")] = 0,
) -> None:
    """Make an image data base with a fitted generator, shard by shard; the same command goes on after a kill."""
    from stda import shards as base

    replicate_dir = runs.runs_root() / _study_with_runs(study) / f"r{replicate}"
    folder = Path(out).absolute() if out else replicate_dir / "generated" / generator
    choices = {"replicate": replicate, "generator": generator, "n": n, "shards": shards, "size": size}
    choices |= {"layout": layout, "format": format, "quality": quality}
    fitted, order, sources = _prepare(replicate_dir, folder, choices, labels=labels, seed=seed, threads=threads)
    wanted = range(shards) if shard < 0 else [shard]
    try:
        failed = sum(_make_shard(order, folder, k, fitted, sources) for k in wanted)
    except KeyboardInterrupt:
        print("stda: interrupted; what was made is kept, the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    base.join_tables(order, folder)
    print(folder)
    if failed:
        raise typer.Exit(1)


@app.command()
def regenerate(
    table: Annotated[Path, typer.Argument(help="a table of 'stda generate', or table.csv of a generator's stage")],
    row: Annotated[str, typer.Argument(help="image_id of the row, or its number from 0")],
    out: Annotated[str, typer.Option(help="file to write, .png or .jpg; empty: IMAGE_ID.png")] = "",
) -> None:
    """Make one image again from its row, bit for bit on the same machine."""
    from stda import compute, upstream
    from stda import shards as base

    origin, rows = base.origin_of(table.absolute()), base.find_row(table.absolute(), row)
    machine = compute.setup(origin.precision, origin.threads)
    fitted = upstream.open_generator(origin.replicate_dir, origin.generator, machine, size=origin.size)
    origin.check(fitted)
    path = Path(out or f"{rows['image_id'].iloc[0]}.png")
    base.write_picture(fitted.regenerate(rows)[0], path, quality=origin.quality)
    print(path)


@app.command()
def audit(
    files: Annotated[list[str], typer.Argument(help="tables, in order (before, after); or example:isic2019-report")],
    as_json: Annotated[bool, typer.Option("--json", help="write the findings as JSON")] = False,
) -> None:
    """Say which numbers of a published table cannot be, rounding included, with the arithmetic.

    A file is Markdown, CSV, LaTeX or scikit-learn's classification report, with prose around it:

    \b
        # Our method             (a heading names a table; the first one
        accuracy: 39 %            is compared with those after it)
        n: 7,599
        class, precision, recall, F1, support
        MEL,   .22,       .07,    .11, 1357
        NV,    .34,       .77,    .47, 3863

    First column: class, or model for a row of overall rates each.
    List every class, or say how many there are (classes: 8).
    More columns: prior, specificity, sensitivity, accuracy.
    More lines, for all tables where no heading is above: classes,
    prevalence, positives, macro F1, averaging, units, labels.
    A number stands for half a unit of its last digit to both sides;
    143/182 is exact. A prior becomes a whole number of the n images.
    Exit code 1: something is impossible or inconsistent.
    """  # noqa: D301
    from stda.measure import claims

    raise typer.Exit(claims.run(files, as_json=as_json))


def _study_with_runs(study: str) -> str:
    """Return the name of a study that has a folder of runs, or at least a params file."""
    name = Path(study).stem
    if not (runs.runs_root() / name).is_dir():
        studies.find(study)
    return name


def _prepare(
    replicate_dir: Path, folder: Path, choices: dict[str, Any], *, labels: str, seed: int, threads: int
) -> tuple[Generator, Order, set[str]]:
    """Open the generator and begin the data base, or go on with it; return generator, order and allowed source ids."""
    from stda import compute, generators, upstream
    from stda import shards as base
    from stda.generators.pairs import target_shares

    name = choices["generator"]
    generators.generator_class(name)
    stage, before = upstream.finished_stage(replicate_dir, name)["parameters"], base.read_order(folder)
    # a data base that was begun goes on as it was begun: precision and threads decide the last bits
    begun = (before.precision, threads or before.threads) if before else (stage["precision"], threads or None)
    machine = compute.setup(*begun)
    fitted = upstream.open_generator(replicate_dir, name, machine, size=choices["size"])
    train = upstream.train_table(replicate_dir)
    counts = train["label"].value_counts().to_dict()
    order = base.Order(
        **choices,
        study=replicate_dir.parent.name,
        digest=base.generator_digest(fitted),
        seed=stage["seed"] if seed < 0 else seed,
        shares=target_shares(labels, counts),
        classes=sorted(counts),
        precision=machine.precision,
        threads=machine.threads,
    )
    base.begin(folder, order, machine=machine.describe(), software=software())
    return fitted, order, set(train["image_id"])


def _make_shard(order: Order, folder: Path, shard: int, generator: Generator, sources: set[str]) -> int:
    """Make one shard, show how it goes, say how it ended, and return the number of rows that could not be made."""
    from stda import shards as base
    from stda.show.progress import watched

    console, started = Console(stderr=True), time.monotonic()
    with watched(console, f"shard {shard} of {order.shards}") as callback:
        done = base.make_shard(order, folder, shard, generator, sources=sources, callback=callback)
    said = f"shard {shard} was there already: {done.table}"
    if not done.was_there:
        seconds = time.monotonic() - started
        said = f"shard {shard}: {done.made} images in {seconds:.0f} s ({done.made / max(seconds, 1e-9):.3g} images/s)"
    console.print(said, highlight=False, soft_wrap=True)
    if done.failed:
        listed = done.table.with_name(done.table.name.replace("table-", "failed-"))
        console.print(f"{done.failed} images could not be made; {listed} says why.", style="yellow", soft_wrap=True)
    return done.failed


def _checked(name: str, data_root: str, console: Console) -> studies.Study:
    """Load a study and check everything that can be known before it runs; warm the image cache on the way."""
    from stda import batch
    from stda.checks import check_choices
    from stda.data import load as load_images
    from stda.data import skipped, split

    wanted = studies.load(name, data_root=data_root or _last_root(name))
    batch.check_study(wanted)
    runs.probe_writable(runs.runs_root() / wanted.name)
    runs.probe_writable(runs.reports_root() / wanted.name)
    d = wanted.data
    with console.status(f"reading the images of {d.source}"):
        images = load_images(
            *(d.source, d.root),
            size=d.image_size,
            classes=d.classes,
            n_images=d.n_images,
            seed=wanted.study.seed,
            skip_unreadable=d.skip_unreadable,
            cache_dir=runs.runs_root() / "cache",
        )
        folds = split(
            images.table,
            val_fraction=d.val_fraction,
            test_fraction=d.test_fraction,
            oracle_fraction=d.oracle_fraction,
            seed=wanted.study.seed,
            by=d.split_by,
        )
    console.print(f"{len(images)} images of {len(images.classes)} classes at {d.image_size} px.", highlight=False)
    check_choices(wanted, images.select(folds == "train").counts())
    if "warning" in images.table.attrs:
        console.print(images.table.attrs["warning"], style="yellow", highlight=False, markup=False)
    for reason in skipped(images):
        console.print(f"skipped {reason}", highlight=False, markup=False)
    return wanted


def _print_plan(study: studies.Study, plan: object, console: Console) -> None:
    from stda import schedule

    todo = schedule.pending(study, plan)
    for planned in todo:
        console.print(f"would run {planned.key}", highlight=False)
    console.print(
        f"{len(todo)} of {len(runs.jobs(study))} jobs, {plan.jobs} side by side, {plan.threads} threads each."
    )


def _last_root(name: str) -> str:
    """Return the data root that the last run of a study used, so that --data need be said only once."""
    section = studies.read(studies.find(name)).get("data", {})
    path = runs.runs_root() / Path(name).stem / "study.json"
    if not isinstance(section, dict) or section.get("root") or not path.is_file():
        return ""
    last = json.loads(path.read_text()).get("data", {})
    return last.get("root", "") if last.get("source") == section.get("source") else ""


def _made(study: studies.Study, wanted: Job) -> float:
    path = runs.runs_root() / study.name / wanted.key / "manifest.json"
    return path.stat().st_mtime if path.is_file() else 0.0


def _headline(study: studies.Study, wanted: Job) -> str:
    folder = runs.runs_root() / study.name / wanted.key
    return runs.read_manifest(folder)["headline"] if (folder / "manifest.json").is_file() else ""


def main() -> None:
    """Run the command; a user's mistake is one sentence and exit code 2."""
    try:
        app()
    except BadInput as error:
        print(f"stda: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
