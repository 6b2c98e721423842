"""Progress on a terminal and elsewhere."""

import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from types import SimpleNamespace

import pytest
import torch

from bespoke.training.callbacks import StepLog
from bespoke.utils import progress
from conftest import ROOT


class Terminal(io.StringIO):
    def isatty(self):
        return True


def seen(text):
    """Lines as they remain on screen: without overwritten text and cursor codes."""
    lines = [
        re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", line).rstrip("\r").rpartition("\r")[2].rstrip()
        for line in text.split("\n")
    ]
    return [line for line in lines if line]


def test_a_stage_counts_and_tells_the_time_left_and_what_is_logged_stays_above(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    console = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(console)
    try:
        with progress.stage("align"):
            for number in progress.track(range(4)):
                time.sleep(0.15)
                if number == 2:
                    logging.getLogger("bespoke").error("a word meanwhile")
        with progress.stage("render"):
            pass
    finally:
        logging.getLogger().removeHandler(console)
    assert re.search(r"Aligning the score +75% .* 00:00, 00:00 left", terminal.getvalue())
    lines = seen(terminal.getvalue())
    assert lines[0] == "a word meanwhile"
    assert re.fullmatch(r"Aligning the score 0\.\d s", lines[1])
    assert re.fullmatch(r"Synthesizing +0\.\d s", lines[2])


def test_a_stage_that_fails_leaves_no_line(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(ValueError, match="no"), progress.stage("load"):
        raise ValueError("no")
    assert seen(terminal.getvalue()) == []


def test_without_a_terminal_a_line_says_what_begins(capsys, monkeypatch):
    with progress.stage("load"):
        assert capsys.readouterr() == ("Reading the song ...\n", "")
        assert list(progress.track([1, 2])) == [1, 2]
        progress.advance(1, 2)
    assert capsys.readouterr() == ("", "")
    with progress.on_stderr(), progress.stage("separate"):
        assert capsys.readouterr() == ("", "Separating ...\n")
    monkeypatch.setenv("LOCAL_RANK", "1")  # the second of two that train together
    with progress.stage("load"):
        assert capsys.readouterr() == ("", "")


def test_on_a_terminal_results_are_not_mixed_with_stages(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.on_stderr(), progress.stage("separate"):
        progress.advance(1, 2)
    assert re.fullmatch(r"Separating +\d\.\d s", seen(terminal.getvalue())[-1])
    assert capsys.readouterr().out == ""


def test_a_terminal_that_does_not_know_its_size_shows_the_stages(monkeypatch):
    ours, theirs = pty.openpty()  # 0 columns
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        with progress.stage("train"):
            progress.advance(1, 2)
            assert "Training" in os.read(ours, 65536).decode()
    os.close(ours)


def test_the_last_step_promises_no_time_as_there_is_more_to_come(caplog):
    trainer = SimpleNamespace(global_step=0, max_steps=4, is_global_zero=True)
    every_step = StepLog(every_seconds=0)
    every_step.on_train_start(trainer, None)
    with caplog.at_level(logging.INFO, "bespoke"):
        for trainer.global_step in range(1, 5):
            every_step.on_train_batch_end(trainer, None, {"loss": torch.tensor(0.5)}, None, 0)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(" (")[0].split(",")[0] for line in lines] == [
        f"Step {step} of 4" for step in range(1, 5)
    ]
    assert ["left" in line for line in lines] == [True, True, True, False]


@pytest.mark.slow
def test_a_run_on_a_terminal_shows_its_stages_and_ends_with_a_summary(tiny_song, tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    overrides = [
        *tiny_song.overrides,
        f"song.reference={tiny_song.reference}",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=theirs, stderr=theirs, stdin=theirs, env=environment
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # what Linux raises at the end
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait() == 0, written
    lines = seen(written.decode().replace("\r\n", "\n"))
    ended = [match[1] for line in lines if (match := re.fullmatch(r"(.+?) +\d+\.\d s", line))]
    assert ended == [
        progress.STAGES[name] for name in ("load", "render", "train", "separate", "evaluate")
    ]
    assert re.search(r"step \d of 3, loss", written.decode())
    assert [line.split()[0] for line in lines[-4:]] == [
        "target",
        "residual",
        "SI-SDR",
        "next",
    ]  # a quick recipe, and no good one
