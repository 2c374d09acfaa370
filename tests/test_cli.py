import csv
import json
import shutil
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from stda import batch, cli, study
from stda.data.phantom import CLASSES


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
        ("dcgan", {"small_class": "c"}, "dcgan.small_class is 'c', but the data has a, b"),
        ("nst", {"start": "file", "start_file": "/nowhere.png"}, "nst.start_file /nowhere.png is not there"),
        ("data", {"encoder": "vgg16", "encoder_weights": "no/such.pth"}, "no/such.pth is not there"),
        ("classification", {"network": "vgg11_bn", "weights": "no/such.pth"}, "choose weights: none"),
        ("data", {"judge": "inception"}, "data.judge is 'inception'. No Inception weights of FID at"),
        ("data", {"judge": "mobilenet_v2"}, "or choose judge: auto."),
        ("results", {"metric": "sensitivity"}, None),
    ],
)
def test_check_names_choices_that_the_data_or_the_disk_does_not_have(
    project, monkeypatch, capsys, section, values, said
):
    import yaml

    monkeypatch.setenv("TORCH_HOME", str(project / "no-cache"))
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


# ------------------------------------------------------------------------------------------------ an image data base


@pytest.fixture(scope="module")
def fitted_runs(tmp_path_factory):
    """Runs of a study whose data stage and whose tiny WGAN are finished."""
    from stda import compute, data, generators, runs
    from stda.images import ImageSet

    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STDA_RUNS", str(root))
        values = {**runs.parameters(study.Study(), runs.Job("data", 0)), "n_images": 100, "image_size": 16}
        stage = runs.begin("data", values)
        images = data.load("phantom", size=16, n_images=100)
        folds = data.split(images.table, val_fraction=0.2, test_fraction=0.3, seed=0)
        images = ImageSet(images.images, images.table.assign(split=folds))
        images.save(stage.dir)
        stage.finish(headline="x")
        stage = runs.begin("wgan", {**runs.parameters(study.Study(), runs.Job("wgan", 0)), "seed": 3})
        machine = compute.setup("float32")
        generator = generators.create("wgan", width=4, latent=9, batch_size=4, n_critic=1, compute=machine)
        generator.fit(images.select(split="train"), steps=1, seed=0)
        pool = generator.generate(["MEL", "NV"], seed=1)
        pool.save(stage.dir)
        generator.save(stage.dir)
        stage.finish(headline="x", machine=machine.describe())
    return root, pool


@pytest.fixture
def fitted(project, fitted_runs, monkeypatch):
    """The same runs in a project, as a place of one's own."""
    shutil.copytree(fitted_runs[0], project / "runs")
    monkeypatch.chdir(project)
    return project


def pixels(path):
    return np.asarray(Image.open(path))


def test_generate_in_shards_and_any_image_again(fitted, monkeypatch, capsys):
    words = ("generate", "wgan", "--study", "quick", "--n", "80", "--shards", "2")
    assert call(monkeypatch, *words, "--shard", "1") == 0
    folder = fitted / "runs" / "quick" / "r0" / "generated" / "wgan"
    assert capsys.readouterr().out.strip() == str(folder)
    assert not (folder / "table.csv").exists()
    assert call(monkeypatch, *words) == 0
    assert "shard 1 was there already" in capsys.readouterr().err
    with open(folder / "table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["image_id"] for row in table] == [f"wgan-{k:09d}" for k in range(80)]
    assert {sum(row["label"] == name for row in table) for name in CLASSES} == {10}
    for row in (table[0], table[78]):
        assert call(monkeypatch, "regenerate", str(folder / "table.csv"), row["image_id"], "--out", "again.png") == 0
        with tarfile.open(folder / row["file"]) as archive:
            stored = archive.extractfile(f"{row['image_id']}.png").read()
        assert (fitted / "again.png").read_bytes() == stored


def test_generate_folders_of_chosen_classes(fitted, monkeypatch, capsys):
    words = ("generate", "wgan", "--study", "quick", "--n", "20", "--layout", "folders", "--format", "jpeg")
    assert call(monkeypatch, *words, "--labels", "MEL=3,NV=1", "--out", "base", "--seed", "5") == 0
    found = {path.name: len(list(path.iterdir())) for path in (fitted / "base" / "images").iterdir()}
    assert found == {"MEL": 15, "NV": 5}
    assert call(monkeypatch, *words, "--labels", "MEL=3,NV=1", "--out", "base") == 2
    assert "holds images made with seed 5 (now 3)" in capsys.readouterr().err


def test_an_interrupted_data_base_goes_on(fitted, monkeypatch, capsys):
    from stda import shards

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    words = ("generate", "wgan", "--study", "quick", "--n", "20", "--shards", "2", "--out", "base")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "make_shard", interrupt)
        assert call(monkeypatch, *words) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert call(monkeypatch, *words) == 0
    assert len((fitted / "base" / "table.csv").read_text().splitlines()) == 21


def test_an_image_of_a_notebook_s_pool_comes_again_too(fitted, fitted_runs, monkeypatch):
    table = fitted / "runs" / "quick" / "r0" / "wgan" / "table.csv"
    assert call(monkeypatch, "regenerate", str(table), "1") == 0
    np.testing.assert_array_equal(pixels(fitted / "wgan-000001.png"), fitted_runs[1].images[1])


def test_a_generator_fitted_anew_does_not_pretend(fitted, monkeypatch, capsys):
    words = ("generate", "wgan", "--study", "quick", "--n", "8", "--out", "base")
    assert call(monkeypatch, *words) == 0
    settings = fitted / "runs" / "quick" / "r0" / "wgan" / "generator.json"
    settings.write_text(settings.read_text().replace('"n_critic": 1', '"n_critic": 2'))
    assert call(monkeypatch, *words) == 2
    assert "made with digest" in capsys.readouterr().err
    assert call(monkeypatch, "regenerate", "base/table.csv", "0") == 2
    assert "was fitted anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("wgan", "--study", "quack", "--n", "5"), "There is no study 'quack'"),
        (("wgan", "--study", "ci", "--n", "5"), "Run notebooks/04_wgan.ipynb first, or 'stda job ci r0/wgan'"),
        (("dcgan", "--study", "quick", "--n", "5"), "Run notebooks/03_dcgan.ipynb first"),
        (("nope", "--study", "quick", "--n", "5"), "Unknown generator 'nope'"),
        (("wgan", "--study", "quick", "--n", "5", "--size", "64"), "makes no images of 64 px"),
        (("wgan", "--study", "quick", "--n", "5", "--labels", "wart=1"), "no class 'wart'"),
        (("wgan", "--study", "quick", "--n", "5", "--layout", "zip"), "layout is 'zip'"),
        (("wgan", "--study", "quick", "--n", "5", "--shards", "6"), "cannot be made in 6 shards"),
        (("wgan", "--study", "quick", "--n", "5", "--shards", "2", "--shard", "2"), "There is no shard 2"),
    ],
)
def test_generate_answers_a_mistake_in_one_line(fitted, monkeypatch, capsys, words, said):
    assert call(monkeypatch, "generate", *words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_audit_says_what_cannot_be_and_its_exit_code_says_whether_anything(tmp_path, monkeypatch, capsys):
    table = tmp_path / "table.csv"
    table.write_text("class,precision,recall,F1,support\na,.50,.50,.50,40\nb,.50,.50,.50,40\n")
    assert call(monkeypatch, "audit", str(table)) == 0
    assert "consistent" in capsys.readouterr().out
    table.write_text(table.read_text().replace(".50,40\nb", ".90,40\nb"))
    assert call(monkeypatch, "audit", str(table), "--json") == 1
    content = json.loads(capsys.readouterr().out)
    assert not content["passed"]
    assert content["findings"][0]["finding"] == "inconsistent"
    assert "F1 .90 stands for 0.895 to 0.905" in content["findings"][0]["arithmetic"]
    assert call(monkeypatch, "audit", "example:isic2019-report") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "There is no file"), ("class,precison\na,.3\n", "did you mean 'precision'"), ("\n", "nothing to audit")],
)
def test_audit_answers_what_it_cannot_read_in_one_line(tmp_path, monkeypatch, capsys, content, said):
    table = tmp_path / "table.csv"
    if content:
        table.write_text(content)
    assert call(monkeypatch, "audit", str(table)) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
