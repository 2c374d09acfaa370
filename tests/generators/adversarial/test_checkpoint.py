import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from gan_cases import CPU, TINY, discs, noisy_judge, started
from safetensors import safe_open

import stda.generators as generators
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
    late = {r["step"]: r["grid"] for r in records if "grid" in r and r["model"] == records[-1]["model"]}
    shown = {r["step"]: r["grid"] for r in seen if "grid" in r and r["model"] == records[-1]["model"]}
    assert late.keys() == shown.keys()
    assert all(np.array_equal(late[step], shown[step]) for step in late)


def test_the_second_break_and_a_break_in_the_second_model(tmp_path):
    whole, history, _ = fit("dcgan", tmp_path / "whole")  # 15 steps per model
    for stop_after in (9, 17, 25):  # at 17 the last checkpoint is the end of the first model
        with pytest.raises(Killed):
            fit("dcgan", tmp_path / "killed", stop_after=stop_after)
    resumed, again, seen = fit("dcgan", tmp_path / "killed")
    assert_same(whole, resumed)
    pd.testing.assert_frame_equal(history, again, check_exact=True)
    assert {record["model"] for record in seen} == {"light"}


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from gan_cases import CPU, TINY, discs
import stda.generators as generators
generator = generators.create("pggan", compute=CPU, checkpoint_every=2, **TINY["pggan"])
folder = Path({folder!r})
generator.fit(discs(size=16), steps=40, seed=3, callback=lambda r: time.sleep(0.05), checkpoints=folder)
"""


def test_a_process_killed_in_the_middle_of_a_fade_loses_nothing(tmp_path):
    folder, tests = tmp_path / "killed", str(Path(__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    script = KILLED.format(tests=tests, folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    deadline, step = time.monotonic() + 60, 0
    while step < 10:
        assert process.poll() is None, "it ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.01)
        step = saved_step(folder)
    process.send_signal(signal.SIGKILL)
    process.wait()

    def run(checkpoints):
        generator, records = generators.create("pggan", compute=CPU, checkpoint_every=2, **TINY["pggan"]), []
        generator.fit(discs(size=16), steps=40, seed=3, callback=records.append, checkpoints=checkpoints)
        return generator, records

    resumed, records = run(folder)
    assert records[0]["step"] > 10
    assert 0 < records[0]["alpha"] < 1  # mid-fade
    assert_same(run(None)[0], resumed)


def saved_step(folder):
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["facts"].split('"step": ')[1].split(",")[0])


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


def test_a_file_is_whole_or_the_one_before(tmp_path, monkeypatch):
    gan = generators.create("wgan", compute=CPU, **TINY["wgan"])
    training, store = started(gan, discs(), steps=4), Checkpoints(tmp_path, 1, "digest")
    training.step = 1
    store.write(training, {}, history=[], kept={})
    before = (tmp_path / CHECKPOINT_FILE).read_bytes()

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stda.generators.adversarial.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space"):
        store.write(training, {}, history=[], kept={})
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == before
    assert Checkpoints(tmp_path, 1, "digest").read().facts["step"] == 1
    assert Checkpoints(tmp_path, 1, "other").read() is None


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    gan = generators.create("wgan", compute=CPU, **TINY["wgan"])
    training, store = started(gan, discs(), steps=9), Checkpoints(tmp_path, 1, "digest")
    training.step = 1
    store.write(training, {}, history=[], kept={})
    training.step = 2
    next(training.networks["critic"].parameters()).data.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"not finite after step 2 of 9; lower .*last good checkpoint: step 1, "):
        store.write(training, {}, history=[], kept={})
    assert Checkpoints(tmp_path, 1, "digest").read().facts["step"] == 1


def test_divergence_names_the_last_good_checkpoint(tmp_path):
    gan = generators.create("wgan", compute=CPU, checkpoint_every=1, **(TINY["wgan"] | {"learning_rate": 1e30}))
    with pytest.raises(TrainingDiverged, match="lower learning_rate") as caught:
        gan.fit(discs(), steps=60, seed=0, checkpoints=tmp_path)
    assert (CHECKPOINT_FILE in str(caught.value)) == (tmp_path / CHECKPOINT_FILE).is_file()


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
