import json

import nbformat
import pytest

from stda import BadInput, batch, runs
from stda.runs import Job
from stda.study import Study

RESULTS = runs.parameters(Study(), Job("results"))
CELL = "\n".join(f"{name}: {type(value).__name__} = {value!r}  # meaning" for name, value in RESULTS.items())
FINISH = "from stda import runs\nrun = runs.begin('results', globals())\nfolder = run.finish(headline='fine')"


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Replace the notebook of the results stage by one with the given cells."""
    monkeypatch.setenv("STDA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("STDA_REPORTS", str(tmp_path / "a folder" / "reports"))
    path = tmp_path / "08_results.ipynb"
    monkeypatch.setattr(batch, "notebook_path", lambda stage: path)

    def make(*bodies, cell=CELL, tags=("parameters",)):
        cells = [
            nbformat.v4.new_markdown_cell("# Title"),
            nbformat.v4.new_code_cell(cell, metadata={"tags": list(tags)}),
        ]
        nb = nbformat.v4.new_notebook(cells=cells + [nbformat.v4.new_code_cell(body) for body in bodies])
        nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(nb, path)
        return path

    return make


def test_a_good_notebook_leaves_report_status_and_folder(notebook, tmp_path):
    notebook("import os\nassert os.environ['STDA_THREADS'] == os.environ['OMP_NUM_THREADS'] == '1'", FINISH)
    status = batch.run_job(Study(), Job("results"), threads=1)
    assert (status.status, status.error, status.html) == ("done", "", "08_results.html")
    reports = tmp_path / "a folder" / "reports" / "quick"
    assert {p.name for p in reports.iterdir()} == {"08_results.ipynb", "08_results.html"}
    assert batch.read_status(Study(), Job("results")) == status
    executed = json.loads((reports / "08_results.ipynb").read_text())
    assert not [o for c in executed["cells"] for o in c.get("outputs", []) if o.get("name") == "stderr"]


@pytest.mark.parametrize(
    ("body", "timeout", "said"),
    [
        ("1 / 0", 0, "cell 4: ZeroDivisionError: division by zero"),
        ("from stda import BadInput\nraise BadInput('Run notebook 01 first.')", 0, "Run notebook 01 first."),
        ("import os\nos.kill(os.getpid(), 9)", 0, "the kernel died"),
        ("import time\ntime.sleep(60)", 2, "a cell took longer than 2 s"),
        ("x = 1", 0, "without finishing its stage folder"),
        ("raise OSError(28, 'No space left on device')", 0, "The disk is full"),
        ("raise PermissionError(13, 'Permission denied', 'x')", 0, "set STDA_RUNS to a folder that you may write to"),
    ],
)
def test_what_goes_wrong_ends_as_failed_with_a_line_and_a_partial_report(notebook, tmp_path, body, timeout, said):
    notebook("print('before')", body)
    status = batch.run_job(Study(), Job("results"), threads=1, timeout=timeout)
    assert status.status == "failed"
    assert said in status.error
    assert "\n" not in status.error
    page = tmp_path / "a folder" / "reports" / "quick" / "08_results.failed.html"
    assert page.is_file()
    assert status.html == page.name
    assert not page.with_name("08_results.html").exists()
    assert not (runs.runs_root() / "quick/results").exists()


def test_success_removes_the_failed_report(notebook, tmp_path):
    notebook("1 / 0")
    batch.run_job(Study(), Job("results"))
    notebook(FINISH)
    batch.run_job(Study(), Job("results"))
    assert not list((tmp_path / "a folder" / "reports" / "quick").glob("*failed*"))


@pytest.mark.parametrize(
    ("cell", "tags", "said"),
    [
        (CELL, (), "has no cell tagged 'parameters'"),
        (CELL.replace("metric:", "metrik:"), ("parameters",), "lacks metric"),
        (CELL + "\nmore: int = 3  # x", ("parameters",), "has more"),
        (CELL.replace("seed: int", "seed: str"), ("parameters",), "seed is 0, but 08_results.ipynb declares it as str"),
        (CELL + "\nprint(3)", ("parameters",), "may hold only"),
        (
            CELL.replace("seed: int = 0", "seed: int = f()"),
            ("parameters",),
            "'seed' in 08_results.ipynb must have a literal",
        ),
        (CELL + "\n(", ("parameters",), "does not parse"),
    ],
)
def test_a_replaced_notebook_is_refused_before_launch(notebook, cell, tags, said):
    notebook(FINISH, cell=cell, tags=tags)
    with pytest.raises(BadInput) as error:
        batch.run_job(Study(), Job("results"))
    assert said in str(error.value)


def test_a_missing_or_broken_notebook_is_refused(notebook):
    path = notebook()
    path.write_text("no json")
    with pytest.raises(BadInput, match="is not a notebook"):
        batch.check_notebook("results", RESULTS)
    path.unlink()
    with pytest.raises(BadInput, match="is missing"):
        batch.check_notebook("results", RESULTS)


def test_status_of_a_job_whose_folder_was_removed_is_waiting(notebook):
    notebook(FINISH)
    batch.run_job(Study(), Job("results"))
    (runs.runs_root() / "quick/results/manifest.json").unlink()
    assert batch.read_status(Study(), Job("results")).status == "waiting"


def test_the_environment_is_put_back(monkeypatch):
    import os

    monkeypatch.setenv("STDA_THREADS", "7")
    monkeypatch.delenv("STDA_BATCH", raising=False)
    with batch._environment(2):
        assert (os.environ["STDA_THREADS"], os.environ["STDA_BATCH"]) == ("2", "1")
    assert os.environ["STDA_THREADS"] == "7"
    assert "STDA_BATCH" not in os.environ
