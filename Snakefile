# The batch: which notebook runs when.  `stda run STUDY` calls this with a resolved study; it also runs by itself:
#   snakemake --cores 2 --directory runs/quick --configfile params/quick.yaml
# Scaling out changes the executor (--executor slurm, kubernetes, ...), never the notebooks.
import json
import sys
from pathlib import Path

from stda import data, runs
from stda.batch import notebook_path
from stda.runs import Job
from stda.sections import NOTEBOOKS
from stda.study import load

options = {"threads": 1, "timeout": 0, **config.get("batch", {})}
STUDY = load(workflow.configfiles[0])
FOLDER = runs.runs_root() / STUDY.name
REPORTS = runs.reports_root() / STUDY.name
RESOLVED = FOLDER / "study.json"


onstart:  # not in a dry run
    runs.register(STUDY)


# stage folders are relative to --directory, which is runs/<study>; reports are absolute
def manifest(job: Job) -> str:
    return f"{job.key}/manifest.json"


def job_of(stage: str, wildcards) -> Job:
    return Job(stage, int(wildcards.replicate) if "replicate" in wildcards.keys() else None, wildcards.get("arm", ""))


def upstream(stage: str):
    return lambda wildcards: [manifest(job) for job in runs.needs(STUDY, job_of(stage, wildcards))]


# a job is rerun when these change: its parameters and, for the data stage, the files of the source
def values(stage: str):
    return lambda wildcards: json.dumps(runs.parameters(STUDY, job_of(stage, wildcards)), sort_keys=True)


def report(stage: str, suffix: str = "") -> str:
    folder = REPORTS if stage == "results" else REPORTS / "r{replicate}"
    return f"{folder}/{NOTEBOOKS[stage]}{suffix}.html"


COMMAND = "{sys.executable:q} -m stda job {RESOLVED:q} {params.key} --threads {options[threads]} --timeout {options[timeout]}"


wildcard_constraints:
    replicate=r"\d+",
    arm=r"[a-z0-9][a-z0-9_-]*",


rule all:
    input:
        [manifest(job) for job in runs.jobs(STUDY)],


rule data:
    input:
        notebook=notebook_path("data"),
    output:
        "r{replicate}/data/manifest.json",
        report("data"),
    params:
        key="r{replicate}/data",
        values=values("data"),
        source=data.fingerprint(STUDY.data.source, STUDY.data.root),
        weights=data.file_digest(STUDY.data.encoder_weights),
    shell:
        COMMAND


for stage in STUDY.generators:

    rule:
        name:
            stage
        input:
            upstream(stage),
            notebook=notebook_path(stage),
        output:
            f"r{{replicate}}/{stage}/manifest.json",
            report(stage),
        params:
            key=f"r{{replicate}}/{stage}",
            values=values(stage),
        priority: 1  # arms wait for these
        shell:
            COMMAND


rule classification:
    input:
        upstream("classification"),
        notebook=notebook_path("classification"),
    output:
        "r{replicate}/classification/{arm}/manifest.json",
        report("classification", "-{arm}"),
    params:
        key="r{replicate}/classification/{arm}",
        values=values("classification"),
    shell:
        COMMAND


rule explainability:
    input:
        upstream("explainability"),
        notebook=notebook_path("explainability"),
    output:
        "r{replicate}/explainability/manifest.json",
        report("explainability"),
    params:
        key="r{replicate}/explainability",
        values=values("explainability"),
    shell:
        COMMAND


rule results:
    input:
        upstream("results"),
        notebook=notebook_path("results"),
    output:
        "results/manifest.json",
        report("results"),
    params:
        key="results",
        values=values("results"),
    shell:
        COMMAND
