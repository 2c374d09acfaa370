import shutil
import sys

import pytest

from stda import batch, cli, study


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder of its own with the shipped params, so that nothing here touches the real one."""
    root = study.project_root()
    shutil.copytree(root / "params", tmp_path / "params")
    monkeypatch.setattr(study, "project_root", lambda: tmp_path)
    monkeypatch.setenv("STDA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("STDA_REPORTS", str(tmp_path / "reports"))
    return tmp_path


def call(monkeypatch, *words):
    """Return the exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["stda", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0


def make_folder(root, classes=("a", "b"), n=6):
    import numpy as np
    from PIL import Image

    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(np.full((20, 20, 3), 20 * i, np.uint8)).save(root / name / f"{name}{i}.png")
    return root


def test_new_writes_a_valid_study_once(project, monkeypatch, capsys):
    assert call(monkeypatch, "new", "mine", "--from", "ci") == 0
    made = study.load("mine")
    assert made.wgan == study.load("ci").wgan
    assert "mine.yaml" in capsys.readouterr().out
    assert call(monkeypatch, "new", "mine") == 2
    assert "exists" in capsys.readouterr().err
    assert call(monkeypatch, "new", "Not A Name") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("check", "quack"), "There is no study 'quack'"),
        (("run", "quack"), "There is no study 'quack'"),
        (("job", "ci", "r9/wgan"), "has no job 'r9/wgan'"),
    ],
)
def test_a_user_s_mistake_is_exit_code_2_and_one_line(project, monkeypatch, capsys, words, said):
    assert call(monkeypatch, *words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def folder_study(project, **data):
    import yaml

    arms = [{"arm": "balanced"}]
    content = {"data": {"source": "folder", **data}, "classification": {"arms": arms}}
    (project / "params" / "mine.yaml").write_text(yaml.safe_dump(content))


def test_check_accepts_a_sound_folder(project, monkeypatch, capsys):
    folder_study(project)
    make_folder(project / "pictures")
    assert call(monkeypatch, "check", "mine", "--data", str(project / "pictures")) == 0
    assert "is sound" in capsys.readouterr().out


def test_check_names_what_is_wrong_with_the_data(project, monkeypatch, capsys):
    folder_study(project)
    assert call(monkeypatch, "check", "mine", "--data", str(project / "nowhere")) == 2
    assert "nowhere" in capsys.readouterr().err
    root = make_folder(project / "pictures")
    (root / "a" / "a0.png").write_bytes(b"no image")
    assert call(monkeypatch, "check", "mine", "--data", str(root)) == 2
    assert "a0.png" in capsys.readouterr().err
    folder_study(project, skip_unreadable=True)
    assert call(monkeypatch, "check", "mine", "--data", str(root)) == 0


def test_check_refuses_a_class_with_a_single_group(project, monkeypatch, capsys):
    folder_study(project)
    root = make_folder(project / "pictures")
    make_folder(project / "more", classes=("lonely",), n=1)
    shutil.move(project / "more" / "lonely", root / "lonely")
    assert call(monkeypatch, "check", "mine", "--data", str(root)) == 2
    assert "lonely" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("nst", {"content_class": "c"}, "nst.content_class is 'c', but the data has a, b"),
        ("data", {"encoder": "vgg16", "encoder_weights": "no/such.pth"}, "no/such.pth is not there"),
        ("classification", {"network": "resnet18", "weights": "no/such.pth"}, "choose weights: none"),
        ("results", {"metric": "sensitivity"}, None),
    ],
)
def test_check_names_choices_that_the_data_or_the_disk_does_not_have(
    project, monkeypatch, capsys, section, values, said
):
    import yaml

    folder_study(project)
    path = project / "params" / "mine.yaml"
    content = yaml.safe_load(path.read_text())
    content.setdefault(section, {}).update(values)
    path.write_text(yaml.safe_dump(content))
    code = call(monkeypatch, "check", "mine", "--data", str(make_folder(project / "pictures")))
    assert code == (2 if said else 0)  # two classes have a sensitivity
    assert (said or "") in capsys.readouterr().err


def test_check_tells_that_nothing_says_which_images_belong_together(project, monkeypatch, capsys):
    folder_study(project)
    assert call(monkeypatch, "check", "mine", "--data", str(make_folder(project / "pictures"))) == 0
    assert "groups.csv" in capsys.readouterr().out


def test_the_remedy_in_domain_needs_no_file(project, monkeypatch, capsys):
    folder_study(project, encoder="in-domain", encoder_weights="no/such.pth")
    assert call(monkeypatch, "check", "mine", "--data", str(make_folder(project / "pictures"))) == 0


@pytest.mark.parametrize("text", ["data: [", "data: 3", "- a"])
def test_a_broken_params_file_is_one_sentence(project, monkeypatch, capsys, text):
    (project / "params" / "mine.yaml").write_text(text)
    for command in ("check", "status", "run"):
        assert call(monkeypatch, command, "mine") == 2
        assert capsys.readouterr().err.startswith("stda: mine.yaml")


def test_check_refuses_an_unwritable_run_folder(project, monkeypatch, capsys):
    folder_study(project)
    root = make_folder(project / "pictures")
    (project / "file").write_text("")
    monkeypatch.setenv("STDA_RUNS", str(project / "file" / "runs"))
    assert call(monkeypatch, "check", "mine", "--data", str(root)) == 2
    assert "STDA_RUNS" in capsys.readouterr().err


def test_check_refuses_a_notebook_without_parameters(project, monkeypatch, capsys):
    folder_study(project)
    root = make_folder(project / "pictures")
    (project / "notebooks").mkdir()
    path = project / "notebooks" / "x.ipynb"
    path.write_text('{"cells": []}')
    monkeypatch.setattr(batch, "notebook_path", lambda stage: path)
    assert call(monkeypatch, "check", "mine", "--data", str(root)) == 2
    assert "no cell tagged 'parameters'" in capsys.readouterr().err


def test_a_failed_job_is_exit_code_1(project, monkeypatch, capsys):
    def fail(wanted, job, **_):
        return batch.Status(job.key, "failed", error="the kernel died", html="r0/x.failed.html")

    monkeypatch.setattr(batch, "run_job", fail)
    assert call(monkeypatch, "job", "ci", "r0/wgan") == 1
    assert "r0/wgan failed: the kernel died (partial report: r0/x.failed.html)" in capsys.readouterr().err


def test_status_lists_every_job(project, monkeypatch, capsys):
    assert call(monkeypatch, "status", "ci") == 0
    out = capsys.readouterr().out
    assert "r1/classification/wgan" in out
    assert "waiting" in out
