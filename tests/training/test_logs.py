"""Loggers: records of the offline W&B file, and runs with a server that does not respond."""

import logging
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
import yaml
from pytorch_lightning.loggers import CSVLogger
from wandb.sdk.launch.sweeps import utils as sweeps

from bespoke.audio.io import write_wav
from bespoke.audio.stft import STFT
from bespoke.cli import train
from bespoke.models.losses import TPSALoss
from bespoke.models.networks import MaskBLSTM
from bespoke.models.separator import load_separator
from bespoke.training import logs
from bespoke.training.system import BespokeSystem
from bespoke.utils.errors import BespokeError
from conftest import ROOT, read_wandb

pytestmark = pytest.mark.slow  # whole runs


RATE = 16000
SIGNALS = {
    name: np.random.default_rng(0).normal(size=(2, RATE)).astype(np.float32) * 0.1
    for name in ("mixture", "estimate")
}


def test_an_offline_run_holds_config_figures_media_and_files(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_wav(tmp_path / "target.wav", SIGNALS["estimate"], RATE)
    loggers = logs.wandb(tmp_path, "the_sweep")
    logs.log_config(
        loggers,
        {"aug": {"target_gain_db": [-12, 6], "mix": {}}, "seed": 3},
        {"aug": "heavy", "hydra/launcher": "basic"},
        "aug=heavy",
    )
    loggers[0].log_metrics({"train/loss": 0.5}, 10)
    logs.log_separation(loggers, SIGNALS["mixture"], SIGNALS["estimate"], RATE, 20)
    logs.log_results(
        loggers,
        tmp_path,
        {"si_sdr": 1.0, "si_sdr_improvement": None, "seed": 3, "seconds": {"total": 9.0}},
        20,
    )
    logs.finish(loggers, failed=False)
    run = read_wandb(tmp_path)
    assert run.group == "the_sweep"
    assert run.config == {
        "aug": "heavy",
        "aug/target_gain_db": "[-12, 6]",
        "aug/mix": "{}",
        "seed": 3,
        "settings": "aug=heavy",
    }
    assert run.history["train/loss"] == {10: 0.5}
    assert run.history["final/si_sdr"] == {20: 1.0}
    assert run.history["final/seconds"] == {20: 9.0}
    assert "final/si_sdr_improvement" not in run.history
    names = ("mixture", "estimate", "residual")
    media = {
        *(f"{kind}/{name}" for kind in ("audio", "spectrogram") for name in names),
        "mask/estimate",
    }
    assert {
        key for key in run.history if key.partition("/")[0] in ("audio", "spectrogram", "mask")
    } == media
    assert all(set(run.history[key]) == {20} for key in media)
    files = [
        file for file in tmp_path.glob("wandb/offline-run-*/files/media/**/*") if file.is_file()
    ]
    heard = [soundfile.info(file) for file in files if file.suffix == ".ogg"]
    assert [(info.subtype, info.channels) for info in heard] == [("OPUS", 2)] * 3
    assert all(info.duration == pytest.approx(1, abs=0.01) for info in heard)
    assert sum(file.suffix == ".jpg" for file in files) == 4 == len(files) - len(heard)
    assert run.artifacts["stems"] == {"target.wav": str(tmp_path / "target.wav")}
    assert run.exit_code == 0
    assert caplog.messages[-1] == f"To upload this run: wandb sync {tmp_path / 'wandb'}"


def test_what_stays_the_same_is_sent_once(tmp_path):
    loggers = logs.wandb(tmp_path, None)
    for step in (0, 5):
        logs.log_separation(
            loggers,
            SIGNALS["mixture"],
            SIGNALS["estimate"],
            RATE,
            step,
            SIGNALS["estimate"],
            again=step > 0,
        )
    logs.finish(loggers, failed=False)
    history = read_wandb(tmp_path).history
    steps = {
        name: {*history[f"audio/{name}"]}
        for name in ("mixture", "estimate", "residual", "reference")
    }
    assert steps == {"mixture": {0}, "estimate": {0, 5}, "residual": {0, 5}, "reference": {0}}


def test_the_network_alone_is_uploaded_and_separates_the_same(tmp_path):
    torch.manual_seed(0)
    stft = STFT(RATE)
    system = BespokeSystem(
        stft, MaskBLSTM(stft.bins, 8, 1), TPSALoss(), torch.optim.Adam, 0, {"strength": 1.5}
    )
    whole = {
        "state_dict": system.state_dict(),
        "hyper_parameters": dict(system.hparams),
        "global_step": 7,
    }
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    torch.save({**whole, "optimizer_states": [{"state": torch.zeros(1 << 20)}]}, checkpoint)
    loggers = logs.wandb(tmp_path, None)
    logs.log_results(loggers, tmp_path, {}, 7)
    logs.finish(loggers, failed=False)
    ((name, file),) = read_wandb(tmp_path).artifacts["checkpoint"].items()
    assert name == "last.ckpt"
    assert os.path.getsize(file) < checkpoint.stat().st_size - 4_000_000
    stems = [
        load_separator(path).separate(SIGNALS["mixture"], RATE)[0] for path in (file, checkpoint)
    ]
    assert np.array_equal(*stems)


def test_a_resumed_offline_run_keeps_its_id_and_both_legs_are_uploaded_together(tmp_path):
    logs.finish(logs.wandb(tmp_path, None), failed=True)
    first = (tmp_path / "wandb_id").read_text()
    time.sleep(1.1)  # its folder is named by the second
    loggers = logs.wandb(tmp_path, None)
    assert loggers[0].experiment.id == first
    logs.finish(loggers, failed=False)
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(tmp_path / "wandb")]
    said = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "WANDB_SILENT": "false"},
    ).stderr
    assert "Would sync 2 run(s)" in said


def test_a_server_that_never_answers_leaves_the_run_offline(tmp_path, monkeypatch, caplog):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        loggers = logs.wandb(tmp_path, None, timeout_seconds=3)
        loggers[0].log_metrics({"train/loss": 0.5}, 1)
        logs.finish(loggers, failed=False)
    assert any("did not answer" in message for message in caplog.messages)
    assert read_wandb(tmp_path).history["train/loss"] == {1: 0.5}


def test_without_a_key_auto_is_csv_and_says_so(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert isinstance(logs.auto(tmp_path, None)[0], CSVLogger)
    assert any("no Weights & Biases key" in message for message in caplog.messages)


def test_a_key_is_found_in_the_environment_or_in_netrc(tmp_path, monkeypatch):
    assert not logs._has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert logs._has_wandb_key()
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert logs._has_wandb_key()


@pytest.mark.parametrize("server", ["https://wandb.example.org", "http://localhost:8080"])
def test_a_server_of_ones_own_has_a_key_of_its_own(server, tmp_path, monkeypatch):
    machine = server.partition("//")[2]
    (tmp_path / "netrc").write_text(f"machine {machine} login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    assert not logs._has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", server)
    assert logs._has_wandb_key()
    monkeypatch.delenv("WANDB_BASE_URL")
    (tmp_path / "wandb").mkdir()  # as `wandb login --host` leaves it, in the user's folder or here
    (tmp_path / "wandb" / "settings").write_text(f"[default]\nbase_url = {server}\n")
    assert logs._has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://another.example.org")
    assert not logs._has_wandb_key()


def test_wandbs_own_settings_go_before_ours(tmp_path, monkeypatch):
    own = {
        "WANDB_PROJECT": "theirs",
        "WANDB_NAME": "my run",
        "WANDB_RUN_GROUP": "my group",
        "WANDB_RUN_ID": "abc123",
        "WANDB_DIR": str(tmp_path / "elsewhere"),
    }
    (tmp_path / "elsewhere").mkdir()
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "run").mkdir()
    (logger,) = logs.wandb(tmp_path / "run", None)
    run = logger.experiment
    assert (run.project, run.name, run.group, run.id) == ("theirs", "my run", "my group", "abc123")
    assert (tmp_path / "run" / "wandb_id").read_text() == "abc123"
    assert str(run.dir).startswith(str(tmp_path / "elsewhere"))
    logs.finish([logger], failed=False)
    # What the command line says goes before both; each job of a sweep has an id of its own.
    (logger,) = logs.wandb(tmp_path, "sweep", project="mine")
    assert (logger.experiment.project, logger.experiment.id != "abc123") == ("mine", True)
    logs.finish([logger], failed=False)


def test_the_sweep_agents_id_is_the_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "agent7")
    (logger,) = logs.wandb(tmp_path, "group")
    assert logger.experiment.id == "agent7"
    logs.finish([logger], failed=False)


def test_the_sweep_that_ships_runs_as_wandbs_agent_starts_it(
    run_train, tiny_song, tmp_path, monkeypatch
):
    sweep = yaml.safe_load((ROOT / "scripts" / "wandb_sweep.yaml").read_text())
    for group in ("song", "aug"):
        known = {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")}
        assert set(sweep["parameters"][group]["values"]) <= known
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "agent7")
    # What the agent makes of the definition: lists and nothing are as Python writes them.
    asked = {"aug": "none", "seed": 1, "aug.target_gain_db": [-6, 2], "song.excerpt": None}
    command = {"args": {name: {"value": value} for name, value in asked.items()}}
    formed = sweeps.create_sweep_command_args(command)
    given = [
        word
        for part in sweeps.create_sweep_command(sweep["command"])[3:]
        for word in (formed[part[2:-1]] if part.startswith("${") else [part])
    ]
    assert given[2:4] == ["aug=none", "seed=1"]
    result = run_train(*tiny_song.overrides, *given, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = read_wandb(tmp_path / "outputs" / "agent" / "sweep1" / "agent7")
    assert (run.config["aug"], run.config["seed"], run.config["song/excerpt"]) == ("none", 1, None)
    assert run.config["aug/target_gain_db"] == "[-6, 2]"
    assert sweep["metric"]["name"].removeprefix("final/") in ("si_sdr_improvement", "agreement")
    # Its default form is the same, and Hydra's own options stay options.
    assert train._command_line("train.py", formed["args"])[1:] == [
        "aug=none",
        "seed=1",
        "aug.target_gain_db=[-6, 2]",
        "song.excerpt=null",
    ]
    options = ["--config-dir=x", "-m", "--help"]
    assert train._command_line("train.py", options)[1:] == options


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_what_wandb_was_told_in_this_folder_is_heeded_at_once(mode, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nothing answers
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text(f"[default]\nmode = {mode}\n")
    began = time.monotonic()
    (logger,) = logs.auto(tmp_path, None)
    assert time.monotonic() - began < 20
    assert not any("did not answer" in message for message in caplog.messages)
    if mode == "disabled":
        assert isinstance(logger, CSVLogger)
        assert any("disabled" in message for message in caplog.messages)
        (logger,) = logs.wandb(tmp_path, None)
        assert logger.experiment.disabled
    else:
        assert logger.experiment.settings.mode == "offline"
    logs.finish([logger], failed=False)


@pytest.mark.parametrize("target", ["auto", "wandb"])
def test_project_that_wandb_would_refuse_is_named(target, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    with pytest.raises(BespokeError, match="WANDB_PROJECT=a/b"):
        logs.check(f"bespoke.training.logs.{target}")
    logs.check(f"bespoke.training.logs.{target}", project="mine")
    logs.check("bespoke.training.logs.none")


def test_tensorboard_gets_the_same(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = logs.tensorboard(tmp_path, None)
    logs.log_config(loggers, {"aug": {"target_gain_db": [-12, 6]}, "seed": 3}, {"aug": "heavy"})
    logs.log_separation(loggers, **SIGNALS, sample_rate=RATE, step=0, reference=SIGNALS["estimate"])
    logs.log_results(loggers, tmp_path, {"si_sdr": 1.0}, 20)
    logs.finish(loggers, failed=False)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "version_0")).Reload()
    tags, names = events.Tags(), ("mixture", "estimate", "residual", "reference")
    assert events.Scalars("final/si_sdr")[0].value == 1.0
    assert tags["audio"] == [f"audio/{name}" for name in names]
    assert tags["images"] == [*(f"spectrogram/{name}" for name in names), "mask/estimate"]
    assert (
        "aug: heavy" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    )
    assert "_hparams_/session_start_info" in events.summary_metadata


@pytest.mark.parametrize("seconds", [1, 60])
def test_a_tone_is_a_bright_line_at_its_height_and_long_pictures_stay_small(seconds):
    tone = np.sin(2 * np.pi * 2000 * np.arange(RATE * seconds) / RATE)[None].astype(np.float32)
    picture = logs.spectrogram_image(tone, RATE)
    assert picture.shape[1] <= logs.MAX_COLUMNS
    column = picture[:, picture.shape[1] // 2].astype(int).sum(axis=-1)
    assert 1 - column.argmax() / len(column) == pytest.approx(2000 / 8000, abs=0.01)


def test_a_mask_is_what_the_estimate_keeps():
    times = np.arange(2 * RATE) / RATE
    low, high = (np.sin(2 * np.pi * hz * times)[None].astype(np.float32) for hz in (1000, 3000))
    column = logs.mask_image(low, low + high, RATE)[:, 40].astype(int).sum(axis=-1)
    kept, gone = (column[round((1 - hz / 8000) * (len(column) - 1))] for hz in (1000, 3000))
    assert kept == column.max() > 600
    assert gone < 20
