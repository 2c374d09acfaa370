"""What made a result: versions of packages, the git commit, the memory it took.  Knows no torch."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from stda.study import project_root

PACKAGES = ("stda", "torch", "torchvision", "numpy", "pandas", "scikit-learn", "papermill", "snakemake")


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def software() -> dict[str, str]:
    """Return the versions that made a result: git commit (with "+" when files differ from it), Python, packages."""
    found = {"python": platform.python_version(), "commit": commit()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """Return the git commit of the project, "+" behind it when tracked files were changed, or "unknown"."""

    def git(*words: str) -> str:
        call = subprocess.run(["git", "-C", str(project_root()), *words], capture_output=True, text=True, check=True)
        return call.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
