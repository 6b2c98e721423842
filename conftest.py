"""Fixtures for all tests: render cache, command line, and a tiny song that trains in a second."""

import contextlib
import copy
import functools
import io
import json
import logging
import os
import struct
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bespoke.audio.io import write_wav
from bespoke.score.midi import Note, Part, write_midi
from bespoke.score.synth import Patch, render

ROOT = Path(__file__).resolve().parent
# A network of a few hundred weights and three steps: tests the whole path, not the quality.
SMALL = [
    "recipe=quick",
    "model.hidden_size=8",
    "model.layers=1",
    "data.batch_size=2",
    "data.segment_seconds=0.5",
    "data.validation_batches=1",
    "data.workers=0",
    "trainer.max_steps=3",
    "trainer=cpu",
    "logger=none",
    "report=false",
]
MELODY = (Note(0.1, 0.8, 60), Note(0.9, 1.6, 64), Note(1.7, 2.5, 67))


@dataclass(frozen=True)
class WandbRun:
    """Contents of an offline run's file.

    `history` maps keys to values by step; `artifacts` maps types to paths of files by name;
    `summary` holds what was set in it, not the last values of the history.
    """

    group: str
    config: dict
    history: dict
    artifacts: dict
    system: set
    summary: dict
    exit_code: int | None


def read_wandb(folder):
    """Read the only offline W&B run in a run's folder, after W&B's process has written its end."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 20
    while (
        not any(record.WhichOneof("record_type") == "exit" for record in _records(file))
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    group, config, history, artifacts, system, summary, exit_code = (
        "",
        {},
        defaultdict(dict),
        {},
        set(),
        {},
        None,
    )
    for record in _records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            group = record.run.run_group
        elif kind == "config":
            config |= {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.config.update
            }
        elif kind == "history":
            values = {
                item.key or item.nested_key[0]: json.loads(item.value_json)
                for item in record.history.item
            }
            for name, value in values.items():
                history[name.partition(".")[0]][values.get("trainer/global_step")] = value
        elif kind == "summary":
            summary |= {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.summary.update
            }
        elif kind == "artifact":
            artifacts[record.artifact.type] = {
                file.path: file.local_path for file in record.artifact.manifest.contents
            }
        elif kind == "stats":
            system |= {item.key for item in record.stats.item}
        elif kind == "exit":
            exit_code = record.exit.exit_code
    return WandbRun(group, config, dict(history), artifacts, system, summary, exit_code)


def _records(file):
    """Records of a .wandb file.

    The file is a LevelDB log: blocks of 32 KiB, with fragments whose header is checksum, length and
    type.
    """
    from wandb.proto import wandb_internal_pb2

    data, position, fragments = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        fragments += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            record = wandb_internal_pb2.Record()
            record.ParseFromString(fragments)
            yield record
            fragments = b""


@dataclass(frozen=True)
class TinySong:
    """A melody in noise, three seconds long, with true stem and score.

    `overrides` configure a small run of train.py on it.
    """

    folder: Path
    mixture: Path
    reference: Path
    score: Path
    sample_rate: int = 22050

    @property
    def overrides(self) -> list[str]:
        return [
            *SMALL,
            "song=custom",
            f"song.mixture={self.mixture}",
            f"song.target.score={self.score}",
        ]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Folder of the render cache, shared by all tests.

    The user's own cache, keys and soundfont folders are not used.
    """
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BESPOKE_CACHE", str(folder))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("NETRC", os.devnull)
        patch.setenv("OMP_NUM_THREADS", "1")  # more threads are slower on such small problems
        for name in ("WANDB_API_KEY", "BESPOKE_SOUNDFONTS", "HYDRA_FULL_ERROR"):
            patch.delenv(name, raising=False)
        torch.set_num_threads(1)
        yield folder


@pytest.fixture(scope="session")
def make_song(cache):
    """Make a tiny song in a folder: `mix.wav`, `target.wav` and `target.mid`.

    The score has one part per program.
    """

    def make(folder, seconds=3.0, channels=1, programs=(80,)):
        song = TinySong(folder, folder / "mix.wav", folder / "target.wav", folder / "target.mid")
        samples = round(seconds * song.sample_rate)
        melody = render(MELODY, Patch(programs[0]), song.sample_rate)[:, :samples]
        target = np.pad(
            0.3 * melody / abs(melody).max(), ((0, 0), (0, samples - melody.shape[-1]))
        ).repeat(channels, axis=0)
        noise = np.random.default_rng(0).normal(0, 0.03, target.shape).astype(np.float32)
        write_wav(song.reference, target, song.sample_rate)
        write_wav(song.mixture, target + noise, song.sample_rate)
        write_midi(
            song.score,
            [
                Part(f"Part {index}", program, False, MELODY)
                for index, program in enumerate(programs)
            ],
        )
        return song

    return make


@pytest.fixture(scope="session")
def tiny_song(make_song, tmp_path_factory):
    """A tiny song, made once. Read only."""
    return make_song(tmp_path_factory.mktemp("song"))


@pytest.fixture(scope="session")
def run_train(cache):
    """Run `python train.py OVERRIDES` in a folder.

    It runs in this process, which saves seconds of imports, or in a new one with `env` or
    `own_process`.
    """

    def run(*overrides, cwd, env=None, own_process=False):
        overrides = [str(override) for override in overrides]
        if not (own_process or env):
            return _run_here(overrides, cwd)
        path = os.pathsep.join(filter(None, [(env or {}).get("PYTHONPATH"), str(ROOT)]))
        return subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *overrides],
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {}), "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def _run_here(overrides, cwd):
    from bespoke.cli import launch, train

    root, out, err = logging.getLogger(), io.StringIO(), io.StringIO()
    handlers, level, launch.SweepTable.folder = root.handlers[:], root.level, None
    here = Path.cwd()
    os.chdir(cwd)
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        try:
            code = train.main(overrides)
        except SystemExit as ended:  # raised by Hydra after --help and similar options
            code = ended.code or 0
        finally:
            os.chdir(here)
            for handler in [handler for handler in root.handlers if handler not in handlers]:
                handler.close()
            root.handlers[:], root.level, launch.SweepTable.folder = handlers, level, None
    return subprocess.CompletedProcess(overrides, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def compose_config():
    """Compose the config of a command line.

    Each config is composed once, because this takes a third of a second.
    """

    @functools.cache
    def composed(overrides):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("config", list(overrides))

    def make(*overrides):
        return copy.deepcopy(composed(tuple(map(str, overrides))))

    return make


@pytest.fixture(scope="session")
def song_config(compose_config):
    """The song config of a command line, as `Song.load` takes it."""

    def make(*overrides):
        return OmegaConf.to_container(compose_config(*overrides).song, resolve=True)

    return make


def pytest_terminal_summary(terminalreporter):
    """Print the CPU time of the tests and their processes, since wall time varies with the load."""
    seconds = sum(os.times()[:4])
    terminalreporter.write_line(f"{seconds:.0f} CPU seconds")
