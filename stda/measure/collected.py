"""Collect what the notebooks of a study have left behind: predictions, manifests, fidelity, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stda import BadInput
from stda.measure.sweep import arm_settings
from stda.runs import Job, Stage, arm_knobs, finished, jobs, option_defaults, read_manifest, runs_root
from stda.sections import GENERATORS, REAL_ONLY, arm_kind, may_be_baseline
from stda.study import load

SHARES = {  # tables of notebook 07: their columns of words, and those of numbers
    "focus": ("arm kind method image_id group label", "inside area gain"),
    "artefacts": ("arm method artefact image_id group label", "inside before area gain drawn_in"),
}


@dataclass(frozen=True)
class Collected:
    """Everything the results notebook reads, as tables.

    Replicates that share a split are not independent: ``predictions`` and ``repeats`` hold the first of each split, and
    only ``trainings`` holds them all.
    """

    predictions: pd.DataFrame  # replicate, arm, image_id, group, split, label, predicted, p_<class>...
    repeats: pd.DataFrame  # test answers of every training: replicate, arm, repeat, image_id, label, predicted...
    trainings: pd.DataFrame  # the same of all replicates
    splits: dict[int, int]  # replicate -> number of its split
    arms: dict[str, str]  # arm -> its generator, or an empty string
    kinds: dict[str, str]  # arm -> real, placebo, oracle, subset or synthetic (stda.sections.arm_kind)
    synthetic: list[str]  # arms that are judged
    baselines: list[str]  # arms that they may be judged against
    placebos: dict[str, list[str]]  # judged arm -> placebos it must beat
    oracles: list[str]  # arms with held-back real images
    settings: pd.DataFrame  # arm, synthetic, amount (added images, mean), and the knobs in which the arms differ
    composition: pd.DataFrame  # replicate, arm, class, real, lesions, wanted, added, labelled
    leaky: bool  # the split is by image, on purpose (data.split_by)
    overview: pd.DataFrame  # arm by replicate: run or missing
    manifests: list[dict[str, Any]]
    fidelity: pd.DataFrame  # of each generator's images and of real ones: means over replicates, as the next three
    copying: pd.DataFrame
    membership: pd.DataFrame
    realism: pd.DataFrame
    registered: pd.DataFrame
    not_run: pd.DataFrame
    updates: pd.DataFrame  # replicate, arm, updates, members
    tuning: pd.DataFrame  # every learning rate that was tried: replicate, arm, learning_rate, val_balanced_accuracy...
    switches: pd.DataFrame  # answers to altered test images: replicate, arm, altered, image_id, group, label, before...
    focus: pd.DataFrame  # relevance inside the lesion, where there are masks: replicate, arm, kind, method, image_id...
    artefacts: pd.DataFrame  # relevance on drawn artefacts: replicate, arm, method, artefact, image_id, group, label...


def collect(run: Stage, study: str = "") -> Collected:
    """Read every finished stage of the study of ``run`` (or of another one) and record it as an input.

    Only replicates in which every trained arm was run enter (the comparison is paired); the others are named in
    ``not_run``.  Raises BadInput when no arm was trained yet, or when no replicate has them all.
    """
    study = study or run.values["study"]
    root = runs_root() / study
    found, left_out = finished(study)
    trained = [job for job in found if job.stage == "classification"]
    if not trained:
        raise BadInput(f"Run notebooks/06_classification.ipynb first: {root} holds no trained arm.")
    names = list(dict.fromkeys(job.arm for job in trained))
    complete, partial = _complete_replicates(trained, names)
    used = [job for job in trained if job.replicate in complete]
    folders = {job: run.upstream(job.stage, job.arm, replicate=job.replicate, study=study) for job in used}
    knobs = {job.arm: arm_knobs(folder) for job, folder in folders.items()}
    composition = pd.concat([_composition(folder, job) for job, folder in folders.items()], ignore_index=True)
    manifests = [read_manifest(root / job.key) for job in found if job.replicate in complete]
    splits = _splits(root, complete)
    first = set({split: replicate for replicate, split in reversed(splits.items())}.values())
    own = {job: folder for job, folder in folders.items() if job.replicate in first}
    trainings = pd.concat([_repeats(f, job) for job, f in folders.items()], ignore_index=True)
    arms = {arm: known["synthetic"] if known["synthetic"] in GENERATORS else "" for arm, known in knobs.items()}
    return Collected(
        predictions=pd.concat([_predictions(f, job) for job, f in own.items()], ignore_index=True),
        repeats=trainings[trainings["replicate"].isin(first)].reset_index(drop=True),
        trainings=trainings,
        splits=splits,
        arms=arms,
        **_roles(knobs, arms),
        settings=arm_settings(manifests, composition),
        composition=composition,
        leaky=any(m["stage"] == "data" and m["parameters"]["options"].get("split_by") == "image" for m in manifests),
        overview=_overview(trained, names),
        manifests=manifests,
        **{name: _averaged(root, complete, name) for name in ("fidelity", "copying", "membership", "realism")},
        registered=_registered(root),
        not_run=_not_run(root, found, left_out, partial, arms),
        updates=pd.DataFrame([_updates(folder, job) for job, folder in folders.items()]),
        tuning=pd.concat([_tuning(folder, job) for job, folder in folders.items()], ignore_index=True),
        switches=pd.concat([_switches(f, job) for job, f in own.items()], ignore_index=True),
        **_relevance(run, study, [job for job in found if job.stage == "explainability" and job.replicate in first]),
    )


def _roles(knobs: dict[str, dict], arms: dict[str, str]) -> dict[str, Any]:
    """Return what each arm is in the comparison: the fields ``kinds`` to ``oracles`` of :class:`Collected`."""
    kinds = {
        arm: arm_kind(known["synthetic"], labels=known["labels"], real_share=known["real_share"])
        for arm, known in knobs.items()
    }
    judged = [arm for arm, kind in kinds.items() if kind == "synthetic"]
    placebos = [arm for arm, kind in kinds.items() if kind == "placebo"]
    return {
        "kinds": kinds,
        "synthetic": judged,
        "baselines": [arm for arm, kind in kinds.items() if may_be_baseline(kind, knobs[arm]["synthetic"])],
        "placebos": {arm: [p for p in placebos if _is_placebo_of(knobs[p], knobs[arm])] for arm in judged},
        "oracles": [arm for arm, kind in kinds.items() if kind == "oracle"],
    }


def _is_placebo_of(placebo: dict[str, Any], arm: dict[str, Any]) -> bool:
    """Say whether a placebo differs from an arm in its images or labels alone: the rest of the recipe is the same."""
    same = all(placebo[knob] == arm[knob] for knob in ("augment", "sampler", "loss"))
    return same and placebo["synthetic"] in (*REAL_ONLY, arm["synthetic"])


def _splits(root: Path, replicates: list[int]) -> dict[int, int]:
    """Return the number of the split of each replicate, from the data stage (by hand: one split each)."""
    found = {}
    for r in replicates:
        path = root / f"r{r}" / "data"
        options = read_manifest(path)["parameters"]["options"] if (path / "manifest.json").is_file() else {}
        found[r] = r // {**option_defaults("data"), **options}["replicates_per_split"]
    return found


def _complete_replicates(trained: list[Job], names: list[str]) -> tuple[list[int], list[int]]:
    have: dict[int, set[str]] = {}
    for job in trained:
        have.setdefault(job.replicate, set()).add(job.arm)
    complete = sorted(r for r, arms in have.items() if arms == set(names))
    if not complete:
        raise BadInput(
            f"No replicate has all of the arms {', '.join(names)}, so nothing can be compared in pairs: run "
            "notebooks/06_classification.ipynb for the missing arms of one replicate."
        )
    return complete, sorted(set(have) - set(complete))


def _predictions(folder: Path, job: Job, name: str = "predictions.csv") -> pd.DataFrame:
    text = dict.fromkeys(("image_id", "group", "split", "label", "predicted", "altered", "before", "after"), str)
    table = pd.read_csv(folder / name, dtype=text, keep_default_na=False)
    table.insert(0, "replicate", job.replicate)
    table.insert(1, "arm", job.arm)
    return table


def _repeats(folder: Path, job: Job) -> pd.DataFrame:
    """Return the test answers of all trainings of an arm: ``repeats.csv``, else those of its one training."""
    if (folder / "repeats.csv").is_file():
        return _predictions(folder, job, "repeats.csv")
    table = _predictions(folder, job)
    table = table[table["split"] == "test"].drop(columns=["group", "split"])
    table.insert(2, "repeat", 0)
    return table


def _switches(folder: Path, job: Job) -> pd.DataFrame:
    """Return both answers of an arm to every altered test image."""
    if not (folder / "switches.csv").is_file():
        raise BadInput(f"{job.key} has no switches.csv: it was made by an older notebook 06, run it again.")
    return _predictions(folder, job, "switches.csv")


def _relevance(run: Stage, study: str, explained: list[Job]) -> dict[str, pd.DataFrame]:
    """Return the tables :data:`SHARES` of the replicates that were explained; without rows where there are none."""
    folders = {job: run.upstream(job.stage, replicate=job.replicate, study=study) for job in explained}
    tables = {}
    for name, (words, numbers) in SHARES.items():
        types = {"replicate": int, **dict.fromkeys(words.split(), object), **dict.fromkeys(numbers.split(), float)}
        read = {"dtype": dict.fromkeys(words.split(), str), "keep_default_na": False}
        read["na_values"] = {column: [""] for column in numbers.split()}
        parts = [pd.DataFrame(columns=list(types)).astype(types)]
        for job, folder in folders.items():
            if (folder / f"{name}.csv").is_file():
                part = pd.read_csv(folder / f"{name}.csv", **read).assign(replicate=job.replicate)
                if not set(types) <= set(part):
                    raise BadInput(f"{name}.csv of {job.key} lacks columns: an older notebook 07 made it, run again.")
                parts.append(part[list(types)])
        tables[name] = pd.concat(parts[1:] or parts, ignore_index=True)
    return tables


def _tuning(folder: Path, job: Job) -> pd.DataFrame:
    """Return what an arm tried on the validation fold."""
    if not (folder / "tuning.csv").is_file():
        raise BadInput(f"{job.key} has no tuning.csv: an older notebook 06 made it, run it again.")
    return pd.read_csv(folder / "tuning.csv").assign(replicate=job.replicate, arm=job.arm)


def _composition(folder: Path, job: Job) -> pd.DataFrame:
    """Return how many images of each class an arm trained on."""
    rows = pd.DataFrame(read_manifest(folder)["facts"].get("composition", []))
    if "lesions" not in rows:
        raise BadInput(f"{job.key} does not say how many lesions it used: an older notebook 06 made it, run it again.")
    return rows.assign(replicate=job.replicate, arm=job.arm)


def _updates(folder: Path, job: Job) -> dict[str, Any]:
    facts = read_manifest(folder)["facts"]
    return {"replicate": job.replicate, "arm": job.arm, "updates": facts["updates"], "members": facts.get("members", 1)}


def _overview(trained: list[Job], names: list[str]) -> pd.DataFrame:
    replicates = sorted({job.replicate for job in trained})
    have = {(job.arm, job.replicate) for job in trained}
    rows = [[name, *("run" if (name, r) in have else "missing" for r in replicates)] for name in names]
    return pd.DataFrame(rows, columns=["arm", *(f"replicate {r}" for r in replicates)])


def _averaged(root: Path, replicates: list[int], table: str) -> pd.DataFrame:
    """Average a table of the generators over replicates: ``generator``, its words (set, space) and mean numbers."""
    parts = []
    for name in GENERATORS:
        for r in replicates:
            path = root / f"r{r}" / name / f"{table}.csv"
            if path.is_file():
                parts.append(pd.read_csv(path).assign(generator=name))
    if not parts:
        return pd.DataFrame({"generator": ["no generator was run"]})
    both = pd.concat(parts, ignore_index=True)
    words = ["generator", *(name for name in ("set", "space") if name in both)]
    return both.groupby(words, sort=False).mean(numeric_only=True).reset_index()


def _registered(root: Path) -> pd.DataFrame:
    path = root / "registered.csv"
    if not path.is_file():
        return pd.DataFrame({"time": ["never: these notebooks were run by hand, without 'stda run'"]})
    table = pd.read_csv(path)
    return table.assign(sha256=table["sha256"].str[:12])


def _not_run(
    root: Path, found: list[Job], left_out: list[Job], partial: list[int], arms: dict[str, str]
) -> pd.DataFrame:
    rows = [(name, "no arm that was run uses it") for name in GENERATORS if name not in arms.values()]
    rows += [(f"replicate {r}", "left out of the comparison: some arms are missing") for r in partial]
    rows += [(job.key, "left out: not in the params of this study") for job in left_out]
    if (root / "study.json").is_file():
        expected = [job for job in jobs(load(root / "study.json")) if job.stage != "results"]
        rows += [(job.key, "planned, not finished") for job in expected if job not in found]
    else:
        maps = [Job("explainability", r) for r in sorted({job.replicate for job in found} - {None})]
        rows += [
            (job.key, "not run: nothing is known of where its classifiers look") for job in maps if job not in found
        ]
    return pd.DataFrame(rows or [("nothing", "everything that was planned was run")], columns=["what", "why"])


def tuning_table(tuning: pd.DataFrame) -> pd.DataFrame:
    """Return how each arm was searched: ``arm, tries`` (per replicate), ``from, to`` (rates), ``kept`` (as text)."""
    rows = []
    for arm, own in tuning.groupby("arm", sort=False):
        kept = own.loc[own["chosen"], "learning_rate"]
        tries = own.groupby("replicate").size()
        words = ", ".join(f"{rate:g} ({n}x)" for rate, n in kept.value_counts(sort=False).sort_index().items())
        ends = (own["learning_rate"].min(), own["learning_rate"].max())
        rows.append((arm, int(tries.max()), *ends, words))
    return pd.DataFrame(rows, columns=["arm", "tries", "from", "to", "kept"])


def verdict_sentence(verdicts: pd.DataFrame) -> str:
    """Say the verdicts in one line, such as ``wgan helps; nst, dcgan undecided``."""
    if verdicts.empty:
        return "no verdict: no arm with synthetic images was run"
    said = [f"{', '.join(g['arm'])} {verdict}" for verdict, g in verdicts.groupby("verdict", sort=True)]
    return "; ".join(said)


def interval_rows(arms: pd.DataFrame) -> pd.DataFrame:
    """Turn the wide :func:`stda.measure.arm_table` into rows of arm, metric, mean, low and high, for scripts."""
    metrics = [column.removesuffix("_low") for column in arms.columns if column.endswith("_low")]
    parts = [
        arms[["arm", m, f"{m}_low", f"{m}_high"]].set_axis(["arm", "mean", "low", "high"], axis=1).assign(metric=m)
        for m in metrics
    ]
    return pd.concat(parts, ignore_index=True)[["arm", "metric", "mean", "low", "high"]]


def interval_texts(arms: pd.DataFrame, *, digits: int = 3) -> pd.DataFrame:
    """Put mean and interval of :func:`stda.measure.arm_table` into one column per metric, for readers."""
    metrics = [column.removesuffix("_low") for column in arms.columns if column.endswith("_low")]
    table = arms[["arm", "kind", "replicates"]].copy()
    for m in metrics:
        cells = zip(arms[m], arms[f"{m}_low"], arms[f"{m}_high"], strict=True)
        table[m.replace("_", " ")] = [f"{v:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]" for v, low, high in cells]
    return table


def conclusion(verdicts: pd.DataFrame, *, smallest_effect: float) -> str:
    """Return the conclusion of a study in a few sentences, every number computed."""
    if verdicts.empty:
        return "No arm with synthetic images was run, so there is nothing to judge: run notebook 06 for such an arm."
    metric, baseline = verdicts["metric"].iloc[0], verdicts["baseline"].iloc[0]
    words = [f"The best way to train without synthetic images, chosen on the validation fold, is arm {baseline}."]
    for row in verdicts.itertuples():
        words.append(
            f"Arm {row.arm} changes {metric} by {row.difference:+.3f} ({row.level:.1%} interval {row.low:+.3f} to "
            f"{row.high:+.3f}, {row.evidence}): {row.verdict}."
        )
    undecided = verdicts[verdicts["verdict"] == "undecided"]
    if len(undecided):
        words.append(
            f"{len(undecided)} of {len(verdicts)} arms are undecided at a smallest effect of {smallest_effect}: "
            "that is missing evidence, not evidence of no effect."
        )
    return " ".join(words)
