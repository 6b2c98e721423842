"""What goes to the loggers: the offline W&B file is read record by record, and a server that never answers does not end a run."""

import logging
import socket
import struct

import numpy as np
import pytest
from pytorch_lightning.loggers import CSVLogger
from wandb.proto import wandb_internal_pb2

from bespoke import logs

RATE = 16000
SIGNALS = {name: np.random.default_rng(0).normal(size=(2, RATE)).astype(np.float32) * 0.1 for name in ("mixture", "target", "residual")}


def records(file):
    """The records of a .wandb file, which is a LevelDB log: blocks of 32 KiB, fragments with a header of checksum, length and type."""
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


def read_run(folder):
    """Group, config keys and history keys of a folder's only run."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found = list(records(file))
    run = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    config = {item.key or ".".join(item.nested_key) for record in found for item in record.config.update}
    history = {item.key or ".".join(item.nested_key) for record in found for item in record.history.item}
    return run, config | {item.key for item in run.config.update}, history


def test_an_offline_run_holds_config_losses_metrics_audio_and_pictures(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    loggers = logs.wandb(tmp_path, "the_sweep")
    loggers[0].log_hyperparams({"aug": {"target_gain_db": [-12, 6]}, "seed": 3})
    loggers[0].log_metrics({"train/loss": 0.5}, 10)
    logs.log_results(loggers, SIGNALS, RATE, {"si_sdr": 1.0, "si_sdr_improvement": None, "seed": 3}, 20)
    logs.finish(loggers, failed=False)
    run, config, history = read_run(tmp_path)
    assert run.run_group == "the_sweep"
    assert {"aug", "seed"} <= {key.partition(".")[0] for key in config}
    expected = {"train/loss", "final/si_sdr", *(f"{kind}/{name}" for kind in ("audio", "spectrogram") for name in SIGNALS)}
    assert expected <= {key.partition(".")[0] for key in history}
    assert "final/si_sdr_improvement" not in history
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/**/*.wav"))) == 3
    assert any("wandb sync" in message and "--append" not in message for message in caplog.messages)


def test_a_resumed_offline_run_keeps_its_id_and_says_how_to_append(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    logs.finish(logs.wandb(tmp_path, None), failed=True)
    first = (tmp_path / "wandb_id").read_text()
    loggers = logs.wandb(tmp_path, None)
    assert loggers[0].experiment.id == first
    logs.finish(loggers, failed=False)
    assert any("wandb sync --append" in message for message in caplog.messages)


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
    assert read_run(tmp_path)[2] >= {"train/loss"}


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


def test_tensorboard_gets_metrics_audio_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = logs.tensorboard(tmp_path, None)
    logs.log_results(loggers, SIGNALS, RATE, {"si_sdr": 1.0}, 20)
    logs.finish(loggers, failed=False)
    tags = EventAccumulator(str(tmp_path / "tensorboard" / "version_0")).Reload().Tags()
    assert "final/si_sdr" in tags["scalars"]
    assert tags["audio"] == [f"audio/{name}" for name in SIGNALS]
    assert tags["images"] == [f"spectrogram/{name}" for name in SIGNALS]


@pytest.mark.parametrize("seconds", [1, 60])
def test_a_tone_is_a_bright_line_at_its_height_and_long_pictures_stay_small(seconds):
    tone = np.sin(2 * np.pi * 2000 * np.arange(RATE * seconds) / RATE)[None].astype(np.float32)
    picture = logs.spectrogram_image(tone, RATE)
    assert picture.shape[1] <= logs.MAX_COLUMNS
    column = picture[:, picture.shape[1] // 2].astype(int).sum(axis=-1)
    assert 1 - column.argmax() / len(column) == pytest.approx(2000 / 8000, abs=0.01)
