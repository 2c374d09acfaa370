"""environment.yml, constraints.txt and pyproject.toml say the same."""

import re
import tomllib

import yaml

from stda.study import project_root

ROOT = project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]


def ranges(lines):
    return dict(re.match(r"([A-Za-z0-9_.-]+)(.*)", line).groups() for line in lines)


def test_environment_yml_is_in_step_with_pyproject():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    by_pip = next(item["pip"] for item in conda if isinstance(item, dict))
    found = ranges([c for c in conda if isinstance(c, str)] + [c for c in by_pip if not c.startswith("-")])
    assert found.pop("python") == PROJECT["requires-python"]
    found.pop("pip")
    found["torch"] = found.pop("pytorch")  # the same package by another name
    assert found == ranges([*PROJECT["dependencies"], *EXTRAS])


def test_every_dependency_is_pinned_within_its_range():
    from packaging.requirements import Requirement

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split(";")[0].strip().split("==")
            pins[name.lower().replace("_", "-")] = version
    for line in [*PROJECT["dependencies"], *EXTRAS]:
        wanted = Requirement(line)
        assert pins[wanted.name] in wanted.specifier, line
