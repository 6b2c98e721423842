"""Run commands as a user does, and record their time, memory and results."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bespoke.audio.dsp import resample
from bespoke.audio.io import read_audio, write_wav
from bespoke.cli.launch import setting
from bespoke.evaluation.benchmark import Case
from bespoke.score.midi import Part, choose_part, read_score, shift, write_midi
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import read_csv

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "data" / "songs" / "feelings"


@dataclass(frozen=True)
class Finished:
    """A successful command: start (seconds since the epoch), duration, and peak memory."""

    began: float
    seconds: float
    peak_mb: float


def run(arguments: Sequence[str | Path], folder: Path, **environment: str) -> Finished:
    """Run Python with these arguments in a folder. The output goes to log.txt there.

    Raises:
        BespokeError: the command failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open(folder / "log.txt", "wb") as log:
        began, clock = time.time(), time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, **environment, "PYTHONPATH": path},
            stdout=log,
            stderr=log,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - clock
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
        raise BespokeError(
            f"{' '.join(map(str, arguments))} ended with {process.returncode}: {' '.join(last)}"
        )
    return Finished(
        began, seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    )


@dataclass(frozen=True)
class TrainingRun:
    """A finished train.py."""

    folder: Path
    process: Finished

    @property
    def metrics(self) -> dict[str, Any]:
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))

    @property
    def curve(self) -> list[dict[str, float]]:
        return read_csv(self.folder / "curve.csv")

    def until(self, name: str) -> float:
        """Seconds from the start of the command until it wrote a file."""
        return (self.folder / name).stat().st_mtime - self.process.began


def train(folder: Path, *overrides: str) -> TrainingRun:
    """Run train.py into a new folder."""
    fixed = ("logger=none", "report=false", setting("hydra.run.dir", str(folder)))
    return TrainingRun(
        folder, run([ROOT / "train.py", *fixed, *overrides], folder.with_name(f"{folder.name}.log"))
    )


def song_of(case: Case) -> list[str]:
    """Overrides of train.py for a case."""
    song = case.song
    return [
        "song=custom",
        setting("song.mixture", song["mixture"]),
        setting("song.target.score", song["target"]["score"]),
        f"song.target.patches=[{case.program}]",
        setting("song.reference", song["reference"]),
    ]


def long_song(folder: Path, times: int, sample_rate: int = 44100) -> tuple[Path, Path]:
    """Repeat the shipped song of 20 seconds, in stereo, and its score.

    A little independent noise in each channel makes the separation use the target's panning, as
    with any stereo recording.

    Returns:
        The WAV and the MIDI file.
    """
    waveform, rate = read_audio(SHIPPED / "mix.flac")
    once = resample(waveform, rate, sample_rate)
    mixture, score = folder / f"long_{times}.wav", folder / f"long_{times}.mid"
    folder.mkdir(parents=True, exist_ok=True)
    stereo = np.tile(
        once + np.random.default_rng(0).normal(0, 1e-4, (2, once.shape[-1])).astype(np.float32),
        (1, times),
    )
    write_wav(mixture, stereo, sample_rate)
    part = choose_part(read_score(SHIPPED / "target.mid"), None, SHIPPED / "target.mid")
    seconds = once.shape[-1] / sample_rate
    notes = [note for index in range(times) for note in shift(part.notes, index * seconds)]
    write_midi(score, [Part(part.name, part.program, part.is_drum, tuple(notes))])
    return mixture, score
