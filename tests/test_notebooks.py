"""Hygiene of the notebooks: skeleton, parameters cell, cell length, ids, alt text."""

import ast
import itertools
import json
import re

import pytest

from stda import batch, runs
from stda.sections import NOTEBOOKS, OPTIONS
from stda.study import Study, project_root

PATHS = sorted((project_root() / "notebooks").glob("*.ipynb"))
FIGURES = (
    "class_counts class_sheet grid training_grids loss_curves effects arms recall_heatmap perturbation_curves "
    "attribution_grid confusion copies agreement confidence_curve repeatability ladder reliability told_by_place "
    "prevalence switch_rates evidence_maps spectra faults growth inflation variance_parts two_class "
    "calibration exchange sweep gallery through_arms sanity_curves attention focus neuron"
)


def cells(path, kind=None):
    return [c for c in json.loads(path.read_text())["cells"] if kind in (None, c["cell_type"])]


def source(cell):
    return "".join(cell["source"])


def test_there_is_one_notebook_per_stage():
    assert [path.stem for path in PATHS] == list(NOTEBOOKS.values())


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
class TestNotebook:
    def test_is_stored_without_outputs_and_with_stable_ids(self, path):
        ids = [cell["id"] for cell in cells(path)]
        assert len(set(ids)) == len(ids)
        assert all(not c["outputs"] and c["execution_count"] is None for c in cells(path, "code"))

    def test_follows_the_skeleton(self, path):
        text = "\n".join(source(c) for c in cells(path, "markdown"))
        assert re.match(rf"# {path.stem[:2]} · .+\n\n\*\*Question\.\*\* .+\?\n", text)
        assert all(f"| **{word}** |" in text for word in ("Needs", "Writes", "Time"))
        heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
        numbered = [h for h in heads if re.match(r"\d+\. ", h)]
        assert [int(h.split(".")[0]) for h in numbered] == list(range(1, len(numbered) + 1))
        assert heads == [*numbered, "Check", "What we learned", "Exercises", "Next"]

    def test_code_cells_are_short_and_hold_no_machinery(self, path):
        for cell in cells(path, "code"):
            lines = source(cell).splitlines()
            assert len(lines) <= 15 or "parameters" in cell["metadata"].get("tags", []), source(cell)
            tree = ast.parse(source(cell))
            assert not any(isinstance(node, ast.ClassDef | ast.FunctionDef) for node in ast.walk(tree))
            assert max(map(len, lines)) <= 130

    def test_prose_comes_before_code_in_every_numbered_section(self, path):
        for cell, following in itertools.pairwise(cells(path)):
            if cell["cell_type"] == "markdown" and following["cell_type"] == "code":
                words = re.split(r"^## \d+\. .+$", source(cell), flags=re.MULTILINE)[-1]
                assert words.strip(), source(cell)

    def test_parameters_are_the_schema_s(self, path):
        stage = path.stem[3:]
        declared = batch.declared_parameters(path)
        # the hand-run default of 06 is the default arm; everything else is the quick study
        job = runs.Job(stage, None if stage == "results" else 0, "balanced" if stage == "classification" else "")
        values = runs.parameters(Study(), job)
        assert {name: p.default for name, p in declared.items()} == values
        assert len(declared) <= 15
        owners = runs.parameter_model(stage)
        for name, parameter in declared.items():
            assert parameter.comment, name
            if name == "options":
                assert parameter.comment == OPTIONS
            elif name in owners:
                assert parameter.comment == owners[name].model_fields[name].description
        batch.check_notebook(stage, values)

    def test_every_figure_has_an_alternative_text(self, path):
        for cell in cells(path, "code"):
            for node in ast.walk(ast.parse(source(cell))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"show.{f}" for f in FIGURES.split()}:
                    alt = [k for k in node.keywords if k.arg == "alt"]
                    assert alt, ast.unparse(node)

    def test_begins_and_finishes_its_own_stage(self, path):
        code = "\n".join(source(c) for c in cells(path, "code"))
        assert f'run = runs.begin("{path.stem[3:]}", globals())' in code
        assert code.count("run.finish(") == 1
        assert "plt." not in code
