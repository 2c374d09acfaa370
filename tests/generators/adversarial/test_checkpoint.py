import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from gan_cases import CPU, TINY, discs, noisy_judge, started

import stda.generators as generators
from stda import BadInput
from stda.compute import Compute
from stda.generators.adversarial.checkpoint import CHECKPOINT_FILE, Checkpoints, fit_digest
from stda.generators.adversarial.training import TrainingDiverged

STEPS = 30
# every kind of state: adaptive augmentation, optimisers that are reset, several models, spectral norms, the best state
CASES = {
    "dcgan": ("dcgan", {"augment": "adaptive", "augment_images": 60}),
    "dcgan-one": ("dcgan", {"mode": "conditional", "spectral_norm": True, "augment": "diffaugment"}),
    "wgan": ("wgan", {"augment": "adaptive", "augment_images": 90, "penalty_every": 3, "keep": "best"}),
    "pggan": ("pggan", {"keep": "best", "augment": "diffaugment"}),
}


class Killed(Exception):
    pass


def fit(case, folder, *, stop_after=None, **changes):
    """Fit a case with checkpoints every 4 steps; ``stop_after`` breaks it off after that step."""
    name, knobs = CASES[case]
    knobs = TINY[name] | {"checkpoint_every": 4, "watch_every": 5, "grid_every": 7} | knobs | changes
    generator, seen = generators.create(name, compute=CPU, **knobs), []

    def callback(record):
        seen.append(record)
        if record["step"] == stop_after:
            raise Killed

    parts = {"held_out": discs(size=16, split="val", seed=1), "judge": noisy_judge, "checkpoints": folder}
    history = generator.fit(discs(size=16), steps=STEPS, seed=3, callback=callback, **parts)
    return generator, history, seen


def assert_same(one, two):
    assert one.models.keys() == two.models.keys()
    assert one.kept == two.kept
    for key, network in one.models.items():
        weights = two.models[key].state_dict()
        assert all(torch.equal(value, weights[k]) for k, value in network.state_dict().items())


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("stop_after", [5, 18, 29])
def test_a_broken_off_fit_goes_on_bit_for_bit(case, stop_after, tmp_path):
    whole, history, records = fit(case, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(case, tmp_path / "killed", stop_after=stop_after)
    resumed, again, seen = fit(case, tmp_path / "killed")
    assert_same(whole, resumed)
    pd.testing.assert_frame_equal(history, again, check_exact=True)
    # it did go on, from the last checkpoint, and shows the sample grids of before
    new = [record["step"] for record in seen if "g_loss" in record]
    first = 0 if case != "dcgan" or stop_after <= 15 else 15  # 15 steps per model
    assert new[0] == first + (stop_after - first) // 4 * 4 + 1
    assert (whole.resumed_at, resumed.resumed_at) == (0, new[0] - 1)
    assert_same_grids(records, seen)


def assert_same_grids(records, others):
    one, two = ({(r["model"], r["step"]): r["grid"] for r in part if "grid" in r} for part in (records, others))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("case", list(CASES))
def test_a_fit_that_had_ended_is_there_again_with_its_grids(case, tmp_path):
    whole, history, records = fit(case, tmp_path)
    again, same, seen = fit(case, tmp_path)
    assert_same(whole, again)
    pd.testing.assert_frame_equal(history, same, check_exact=True)
    assert not any("g_loss" in record for record in seen)
    assert_same_grids(records, seen)


def test_class_names_may_begin_alike(tmp_path):
    train = discs(counts={"a": 5, "a.b": 5, "finished.0.": 5})

    def run(folder, stop_after=None):
        def callback(record):
            if record["step"] == stop_after:
                raise Killed

        generator = generators.create("dcgan", compute=CPU, checkpoint_every=2, **TINY["dcgan"])
        generator.fit(train, steps=18, seed=3, callback=callback, checkpoints=folder)
        return generator

    with pytest.raises(Killed):
        run(tmp_path, stop_after=16)
    assert_same(run(None), run(tmp_path))


def test_the_second_break_and_a_break_in_the_second_model(tmp_path):
    whole, history, _ = fit("dcgan", tmp_path / "whole")  # 15 steps per model
    for stop_after in (9, 17, 25):  # at 17 the last checkpoint is the end of the first model
        with pytest.raises(Killed):
            fit("dcgan", tmp_path / "killed", stop_after=stop_after)
    resumed, again, seen = fit("dcgan", tmp_path / "killed")
    assert_same(whole, resumed)
    pd.testing.assert_frame_equal(history, again, check_exact=True)
    assert {record["model"] for record in seen if "g_loss" in record} == {"light"}


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from gan_cases import CPU, TINY, discs
import stda.generators as generators
from stda import BadInput
generator = generators.create("pggan", compute=CPU, checkpoint_every=2, **TINY["pggan"])
folder = Path({folder!r})
kill = lambda record: record["step"] == 9 and os.kill(os.getpid(), signal.SIGKILL)
generator.fit(discs(size=16), steps=40, seed=3, callback=kill, checkpoints=folder)
"""


def test_a_process_killed_in_the_middle_of_a_fade_loses_nothing(tmp_path):
    folder, tests = tmp_path / "killed", str(Path(__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    script = KILLED.format(tests=tests, folder=str(folder))
    assert subprocess.run([sys.executable, "-c", script], env=environment, timeout=60).returncode == -signal.SIGKILL

    def run(checkpoints):
        generator, records = generators.create("pggan", compute=CPU, checkpoint_every=2, **TINY["pggan"]), []
        generator.fit(discs(size=16), steps=40, seed=3, callback=records.append, checkpoints=checkpoints)
        return generator, records

    resumed, records = run(folder)
    assert records[0]["step"] == 9
    assert 0 < records[0]["alpha"] < 1  # mid-fade
    assert_same(run(None)[0], resumed)


@pytest.mark.parametrize(
    "changes", [{"seed": 4}, {"precision": "bf16"}, {"learning_rate": 1e-3}, {"train": discs(size=16, seed=9)}]
)
def test_the_checkpoint_of_another_fit_is_not_used(changes, tmp_path):
    def run(folder, *, seed=3, precision="float32", train=None, stop_after=None, **knobs):
        machine = Compute(torch.device("cpu"), precision, 1)
        generator = generators.create("wgan", compute=machine, checkpoint_every=2, **(TINY["wgan"] | knobs))
        seen = []

        def callback(record):
            seen.append(record["step"])
            if record["step"] == stop_after:
                raise Killed

        generator.fit(train or discs(size=16), steps=6, seed=seed, callback=callback, checkpoints=folder)
        return generator, seen

    with pytest.raises(Killed):
        run(tmp_path, stop_after=5)
    changed, seen = run(tmp_path, **changes)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert_same(changed, run(None, **changes)[0])


def test_a_damaged_file_is_not_used(tmp_path):
    whole, _, _ = fit("wgan", None)
    for content in (b"", b"nonsense", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "):
        (tmp_path / CHECKPOINT_FILE).write_bytes(content)
        again, _, seen = fit("wgan", tmp_path)
        assert seen[0]["step"] == 1
        assert_same(whole, again)


FACTS = {"history": [{"step": 1}], "kept": {}, "model": "(all)", "steps": 9}


@pytest.fixture
def written(tmp_path):
    """A training and the store that holds its state after a step."""
    gan = generators.create("wgan", compute=CPU, **TINY["wgan"])
    training, store = started(gan, discs(), steps=9), Checkpoints(tmp_path / "kept", 1, "digest")
    training.step = 1
    store.write(training, {}, {}, **FACTS)
    return training, store


def test_only_the_same_fit_reads_its_file(written):
    _, store = written
    assert Checkpoints(store.folder, 1, "digest").read().facts["step"] == 1
    assert Checkpoints(store.folder, 1, "other").read() is None
    assert Checkpoints(None, 1, "digest").read() is None


def test_a_disk_that_is_full_is_one_sentence_and_keeps_the_old_file(written):
    training, store = written
    before, (soft, hard) = store.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # no file may grow beyond: the write fails halfway
    try:
        with pytest.raises(BadInput, match=r"Cannot write the checkpoint .*free some disk space, or set STDA_RUNS"):
            store.write(training, {}, {}, **FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert store.path.read_bytes() == before
    assert [path.name for path in store.folder.iterdir()] == [CHECKPOINT_FILE]


def test_a_folder_that_cannot_be_made_is_one_sentence(written, tmp_path):
    training, _ = written
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="Cannot write the checkpoint"):
        Checkpoints(tmp_path / "file" / "below", 1, "digest").write(training, {}, {}, **FACTS)


def test_a_long_history_fits(written):
    training, store = written
    history = [{"step": k, "note": "x" * 1000} for k in range(110_000)]  # more than a safetensors header holds
    store.write(training, {}, {}, **{**FACTS, "history": history})
    assert Checkpoints(store.folder, 1, "digest").read().facts["history"] == history


def test_weights_that_are_not_finite_are_not_kept(written):
    training, store = written
    next(training.networks["critic"].parameters()).data.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"non-finite at step 2 of 9; lower .*last good checkpoint.*step 1: "):
        store.write(training, {}, {}, **{**FACTS, "history": [{"step": 1}, {"step": 2}]})
    assert len(Checkpoints(store.folder, 1, "digest").read().facts["history"]) == 1


def test_divergence_names_the_last_good_checkpoint(tmp_path, monkeypatch):
    gan = generators.create("dcgan", compute=CPU, checkpoint_every=2, **TINY["dcgan"])
    advance = gan.advance

    def broken(training):
        losses = advance(training)
        return (
            losses | {"g_loss": float("nan")} if training.step == 5 and "dark" not in gan_models(training) else losses
        )

    def gan_models(training):
        return [] if len(training.batches.labels) == 5 else ["dark"]  # 9 dark images, 5 light ones

    monkeypatch.setattr(gan, "advance", broken)
    said = rf"dcgan: g_loss became non-finite at step 15 of 20; .* is of step 14: .*{CHECKPOINT_FILE}"
    with pytest.raises(TrainingDiverged, match=said):
        gan.fit(discs(), steps=20, seed=0, checkpoints=tmp_path)


def test_the_digest_sees_every_pixel_and_label():
    train = discs()
    other = train.images.copy()
    other[3, 2, 1, 0] ^= 1
    digests = {
        fit_digest(train, None, steps=1),
        fit_digest(train, None, steps=2),
        fit_digest(type(train)(other, train.table), None, steps=1),
        fit_digest(type(train)(train.images, train.table.assign(label="x")), None, steps=1),
        fit_digest(train, discs(split="val"), steps=1),
    }
    assert len(digests) == 5
    assert fit_digest(discs(), None, steps=1) in digests


def test_another_judge_is_another_fit(tmp_path):
    def run(identity):
        def judge(real, synthetic):
            return {"kid": 0.0}

        judge.identity, seen = identity, []
        generator = generators.create("wgan", compute=CPU, watch_every=2, checkpoint_every=2, **TINY["wgan"])
        parts = {"held_out": discs(split="val"), "judge": judge, "checkpoints": tmp_path}
        generator.fit(discs(), steps=4, seed=0, callback=seen.append, **parts)
        return len([record for record in seen if "g_loss" in record])

    assert [run("one"), run("one"), run("two")] == [4, 0, 4]
