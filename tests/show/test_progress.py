import io
import re

import numpy as np
import pytest
from rich.console import Console

from stda.show import progress
from stda.show.progress import PREFIX, _Lines, describe, duration, interactive, watched


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def plain(monkeypatch):
    for name in ("STDA_BATCH", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_who_gets_a_bar(plain):
    assert interactive(Terminal())
    assert not interactive(io.StringIO())
    plain.setenv("JPY_SESSION_NAME", "04_wgan.ipynb")
    assert interactive(io.StringIO())
    plain.setenv("STDA_BATCH", "1")
    assert not interactive(Terminal())


def test_lines_come_every_few_seconds_and_at_the_end(capsys):
    now = [0.0]
    callback = _Lines(100, "WGAN", 5.0, clock=lambda: now[0])
    for step in range(1, 101):
        now[0] += 0.15
        callback({"step": step, "steps": 100, "critic": -1.25, "phase": "fade", "grid": np.zeros((4, 4))})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "progress | WGAN | 34/100 | critic -1.25 | phase fade | 6.67 steps/s | 10 s left"
    assert lines[-1].endswith("15 s")
    assert all(line.startswith(PREFIX) for line in lines)


def test_a_short_loop_still_says_one_line_that_a_sanitizer_can_drop(plain, capsys):
    plain.setenv("STDA_BATCH", "1")
    callback = progress(2, "DCGAN")
    callback({"step": 1})
    callback({"step": 2})
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.sub(r"(?m)^progress \|.*\n?", "", said) == ""


def test_a_new_phase_starts_the_count_anew(capsys):
    now = [0.0]
    callback = _Lines(10, "PGGAN", 5.0, clock=lambda: now[0])
    for step in (*range(1, 11), *range(1, 11)):
        now[0] += 1.0
        callback({"step": step})
    assert capsys.readouterr().err.splitlines()[-1].startswith("progress | PGGAN | 10/10 | 1 steps/s")


def test_bar_counts_steps_and_restarts(plain):
    terminal = Terminal()
    plain.setattr("sys.stderr", terminal)
    callback = progress(3, "VGG8")
    for step in (1, 2, 3, 1, 2, 3):
        callback({"step": step, "loss": 0.5})
    assert terminal.getvalue().count("3/3") == 2
    assert "loss 0.5" in terminal.getvalue()


def test_describe_takes_numbers_and_words_only():
    record = {
        "step": 3,
        "steps": 9,
        "loss": np.float32(0.5),
        "n": np.array(2),
        "grid": np.zeros(3),
        "phase": "stable",
        "ok": True,
    }
    assert describe(record) == ["loss 0.5", "n 2", "phase stable", "ok yes"]


def test_duration_in_words():
    assert [duration(s) for s in (0.4, 59, 185, 7800, float("inf"))] == ["0 s", "59 s", "3 min 05 s", "2 h 10 min", "–"]


def test_a_terminal_gets_a_bar_and_a_log_gets_lines(capsys):
    record = {"steps": 10, "resumed": 4}
    screen = io.StringIO()
    with watched(Console(file=screen, force_terminal=True, width=100), "shard 0 of 1") as callback:
        callback({**record, "step": 9})
    assert "9/10" in screen.getvalue()
    assert "images/s" in screen.getvalue()
    with watched(Console(file=io.StringIO()), "shard 0 of 1", every_seconds=0) as callback:
        callback({**record, "step": 9})
    line = capsys.readouterr().err
    assert line.startswith("shard 0 of 1: 9/10, ")
    assert "images/s" in line
    assert line.endswith(" left\n")
