"""Whole runs through the command line, on a three-second song."""

import json
import os
import runpy
import signal
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wandb_workspaces.reports.v2 as wr
from omegaconf import OmegaConf

import bespoke
from bespoke.audio.io import read_audio
from bespoke.cli import app as cli
from bespoke.models.separator import load_separator
from bespoke.score.midi import Note, Part, write_midi
from bespoke.training import logs
from bespoke.training.run import objective
from bespoke.utils.files import read_csv
from conftest import ROOT, SMALL, read_wandb

pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture(scope="module")
def finished(run_train, tiny_song, tmp_path_factory):
    """A run with a reference."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    result = run_train(
        *tiny_song.overrides,
        f"song.reference={tiny_song.reference}",
        f"hydra.run.dir={folder}",
        "logger=csv",
        cwd=folder.parent,
    )
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_run_leaves_the_files_of_the_interface(finished):
    folder, result = finished
    assert {file.name for file in folder.iterdir()} >= {
        "target.wav",
        "residual.wav",
        "metrics.json",
        "checkpoints",
        "config.yaml",
        "train.log",
    }
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert "SI-SDR" in result.stdout
    assert str(folder / "target.wav") in result.stdout
    assert not list(folder.rglob(".*.wav"))


def test_figures_of_training_are_logged_at_the_steps_of_the_loss(run_train, tiny_song, tmp_path):
    every_second = (
        "trainer.max_steps=5",
        "trainer.log_every_n_steps=2",
        "logger=csv",
        "hydra.run.dir=run",
    )
    result = run_train(*tiny_song.overrides, *every_second, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = read_csv(tmp_path / "run" / "csv" / "version_0" / "metrics.csv")
    for name in ("train/loss", "train/gradient_norm", "train/steps_per_second"):
        assert [row["step"] for row in rows if row[name] is not None] == [1, 3]


def test_metrics_hold_the_figures_and_the_facts(finished):
    metrics = json.loads((finished[0] / "metrics.json").read_text())
    assert metrics["si_sdr_improvement"] == pytest.approx(
        metrics["si_sdr"] - metrics["si_sdr_mixture"]
    )
    assert metrics["si_sdr_oracle"] > metrics["si_sdr_mixture"]
    assert metrics["steps"] == 3
    assert set(metrics["seconds"]) == {"load", "render", "train", "separate", "evaluate", "total"}
    assert (metrics["song"], metrics["recipe"], metrics["seed"], metrics["is_standin"]) == (
        "custom",
        "quick",
        0,
        False,
    )
    assert set(metrics["hashes"]) == {"mixture", "reference", "score", "soundfont TimGM6mb.sf2"}
    assert metrics["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_stems_are_float_wav_like_the_recording_and_add_up(finished, tiny_song):
    import soundfile

    mixture, _ = read_audio(tiny_song.mixture)
    stems = [read_audio(finished[0] / name) for name in ("target.wav", "residual.wav")]
    assert {rate for _, rate in stems} == {read_audio(tiny_song.mixture)[1]}
    assert {stem.shape for stem, _ in stems} == {mixture.shape}
    assert soundfile.info(finished[0] / "target.wav").subtype == "FLOAT"
    assert np.abs(stems[0][0] + stems[1][0] - mixture).max() <= 1e-6 * np.abs(mixture).max()


def test_same_seed_gives_the_same_bytes_and_the_reference_is_for_metrics_only(
    finished, run_train, tiny_song, tmp_path
):
    result = run_train(*tiny_song.overrides, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for name in ("target.wav", "residual.wav"):
        assert (tmp_path / "run" / name).read_bytes() == (finished[0] / name).read_bytes()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "si_sdr" not in metrics
    assert metrics["hashes"].keys() == {"mixture", "score", "soundfont TimGM6mb.sf2"}


def test_a_checkpoint_is_enough(finished, tiny_song, tmp_path, capfd):
    checkpoint = finished[0] / "checkpoints" / "last.ckpt"
    torch.load(checkpoint, weights_only=True)
    command = [
        sys.executable,
        "-m",
        "bespoke",
        "apply",
        checkpoint,
        tiny_song.mixture,
        "--out",
        tmp_path / "stems",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    for name in ("target.wav", "residual.wav"):
        assert (tmp_path / "stems" / f"mix.{name}").read_bytes() == (
            finished[0] / name
        ).read_bytes()
    assert cli.main([str(word) for word in command[3:]]) == 2
    assert "already there" in capfd.readouterr().err


def test_a_finished_run_is_neither_overwritten_nor_continued_with_another_config(
    finished, run_train, tiny_song
):
    folder = finished[0]
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    arguments = [
        *tiny_song.overrides,
        f"song.reference={tiny_song.reference}",
        f"hydra.run.dir={folder}",
        "logger=csv",
    ]
    refused = run_train(*arguments, cwd=folder.parent)
    changed = run_train(*arguments, "ckpt=last", "seed=1", cwd=folder.parent)
    assert (refused.returncode, changed.returncode) == (2, 2)
    assert "already has results" in refused.stderr
    assert "seed: 0 there, 1 now" in changed.stderr
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_run_is_not_continued_with_another_recording(finished, run_train, tiny_song):
    folder = finished[0]
    written = (folder / "hashes.json").read_text()
    try:
        (folder / "hashes.json").write_text(
            json.dumps(json.loads(written) | {"mixture": "of another", "reference": "of another"})
        )
        arguments = [
            *tiny_song.overrides,
            f"song.reference={tiny_song.reference}",
            f"hydra.run.dir={folder}",
            "logger=csv",
        ]
        changed = run_train(*arguments, "ckpt=last", cwd=folder.parent)
    finally:
        (folder / "hashes.json").write_text(written)
    assert changed.returncode == 2
    assert (
        "has another config (the recording is another): repeat its overrides, or start a new run"
        in changed.stderr
    )


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_killed_run_continues_bit_for_bit(run_train, tiny_song, tmp_path):
    # Workers prefetch batches, dropout and batch normalization have state, and effects use the
    # global generators.
    overrides = [
        *tiny_song.overrides,
        "aug=light",
        "model.layers=2",
        "trainer.accumulate_grad_batches=2",
        "data.workers=1",
        "checkpoint_steps=4",
        "trainer.max_steps=24",
        "trainer.val_check_interval=5",
        "curve_steps=2",
        f"song.reference={tiny_song.reference}",
        "logger=csv",
    ]
    whole = run_train(*overrides, f"hydra.run.dir={tmp_path / 'whole'}", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "killed"
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *map(str, overrides),
        f"hydra.run.dir={folder}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while (
        not (folder / "checkpoints" / "last.ckpt").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    step = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < step < 24
    assert not (folder / "target.wav").exists()
    resumed = run_train(*overrides, f"hydra.run.dir={folder}", "ckpt=last", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in weights(folder).items())
    assert (folder / "target.wav").read_bytes() == (tmp_path / "whole" / "target.wav").read_bytes()
    curves = [
        [(row["step"], row["si_sdr"]) for row in read_csv(run / "curve.csv")]
        for run in (folder, tmp_path / "whole")
    ]
    assert curves[0] == curves[1]
    assert [step for step, _ in curves[0]] == list(range(2, 25, 2))
    losses = read_csv(folder / "training.csv")
    assert losses == read_csv(tmp_path / "whole" / "training.csv")
    assert [row["step"] for row in losses] == list(range(1, 25))
    assert sum(row["val_loss"] is not None for row in losses) >= 1
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["steps"], metrics["resumed_from_step"]) == (24, step)


def test_the_step_that_agrees_most_with_the_score_can_be_kept(run_train, tiny_song, tmp_path):
    folder = tmp_path / "run"
    best = (
        "trainer.max_steps=12",
        "curve_steps=2",
        "keep=best",
        "optimizer.lr=0.05",
        "checkpoint_steps=1",
    )
    result = run_train(
        *tiny_song.overrides,
        *best,
        f"song.reference={tiny_song.reference}",
        f"hydra.run.dir={folder}",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    curve, metrics = (
        read_csv(folder / "curve.csv"),
        json.loads((folder / "metrics.json").read_text()),
    )
    kept = max(curve, key=lambda row: row["agreement"])
    assert metrics["kept_step"] == kept["step"] < 12
    assert f"kept      step {metrics['kept_step']}" in result.stdout
    assert metrics["si_sdr"] == pytest.approx(kept["si_sdr"], abs=1e-3)
    assert metrics["agreement"] == pytest.approx(kept["agreement"], abs=1e-3)
    estimate = load_separator(folder / "checkpoints" / "best.ckpt").separate(
        *read_audio(tiny_song.mixture)
    )[0]
    assert np.array_equal(estimate, read_audio(folder / "target.wav")[0])

    # As if it had been killed when all but the separation was done: what was kept still is.
    for name in ("target.wav", "residual.wav", "metrics.json"):
        (folder / name).unlink()
    again = run_train(
        *tiny_song.overrides,
        *best,
        f"song.reference={tiny_song.reference}",
        f"hydra.run.dir={folder}",
        "ckpt=last",
        cwd=tmp_path,
    )
    assert again.returncode == 0, again.stderr
    assert json.loads((folder / "metrics.json").read_text())["kept_step"] == metrics["kept_step"]
    assert np.array_equal(estimate, read_audio(folder / "target.wav")[0])


def test_a_score_of_something_else_chooses_no_step(run_train, tiny_song, tmp_path):
    write_midi(
        tmp_path / "drone.mid",
        [Part("Drone", 40, False, (Note(0.0, 3.0, 25), Note(0.0, 3.0, 26), Note(0.0, 3.0, 27)))],
    )
    settings = (
        "curve_steps=1",
        "keep=best",
        f"song.target.score={tmp_path / 'drone.mid'}",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    result = run_train(*tiny_song.overrides, *settings, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert not {"kept_step", "agreement"} & metrics.keys()
    assert any("the last step is kept" in warning for warning in metrics["warnings"])
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


def test_without_a_reference_a_search_goes_by_the_agreement(run_train, tiny_song, tmp_path):
    folder = tmp_path / "sweep"
    result = run_train(
        "-m",
        *tiny_song.overrides,
        "seed=0,1",
        "curve_steps=3",
        f"hydra.sweep.dir={folder}",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    for job in ("0", "1"):
        (row,) = read_csv(folder / job / "curve.csv")
        assert row.keys() == {"step", "seconds", "agreement"}
        metrics = json.loads((folder / job / "metrics.json").read_text())
        assert "si_sdr" not in metrics
        (listed,) = (row for row in read_csv(folder / "sweep.csv") if row["run"] == int(job))
        assert (
            objective(metrics)
            == listed["agreement"]
            == metrics["agreement"]
            == pytest.approx(row["agreement"], abs=1e-3)
        )
    assert (
        objective(
            {"si_sdr": None, "si_sdr_mixture": 1.0, "si_sdr_improvement": None, "agreement": 3.0}
        )
        == -np.inf
    )


@pytest.fixture(scope="module")
def dashboard():
    """What scripts/wandb_dashboard.py defines: names of its figures, tables and config columns."""
    script = runpy.run_path(str(ROOT / "scripts" / "wandb_dashboard.py"))
    workspace = script["build"]("me", "bespoke", "aug", ["none", "heavy"])
    panels = [panel for section in workspace.sections for panel in section.panels]
    figures = set()
    for panel in panels:
        for attribute in ("x", "y", "metrics", "media_keys"):
            value = getattr(panel, attribute, None) or []
            figures |= {
                getattr(item, "name", item)
                for item in (value if isinstance(value, list) else [value])
            }
    columns = workspace.runset_settings.pinned_columns
    return SimpleNamespace(
        figures=figures,
        tables={panel.table_name for panel in panels if hasattr(panel, "table_name")},
        columns=[name.partition(":")[2] for name in columns if name.startswith("config:")],
        means=[
            (panel.groupby, panel.groupby_aggfunc) for panel in panels if hasattr(panel, "groupby")
        ],
        text=script["definition"](workspace),
    )


def test_the_dashboard_shows_means_by_group_and_the_policies_parameters(dashboard, compose_config):
    assert set(dashboard.means) == {(wr.Config("aug"), "mean")}
    assert "aug/target/eq/p" in dashboard.columns
    assert "aug/compressor/ratios" in dashboard.columns
    plain = OmegaConf.to_container(compose_config("aug=heavy"), resolve=True)
    logged = {"aug", "song", logs.SETTINGS, *dict(logs.flat(plain))}
    assert set(dashboard.columns) <= logged
    sent = json.loads(dashboard.text)["spec"]["section"]
    assert sent["panelBankConfig"]["sections"][0]["name"] == "Which is better"


def test_a_sweep_ends_with_a_table_although_a_job_fails(run_train, tiny_song, tmp_path, dashboard):
    sweep = tmp_path / "sweep"
    result = run_train(
        "-m",
        *tiny_song.overrides,
        f"song.reference={tiny_song.reference}",
        "aug=none,paper",
        "data.batch_size=0,2",
        "logger=wandb",
        "log_audio_steps=2",
        "trainer.val_check_interval=2",
        "trainer.log_every_n_steps=1",
        f"hydra.sweep.dir={sweep}",
        cwd=tmp_path,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "4 runs; this table is in" in result.stdout
    rows = (sweep / "sweep.csv").read_text().splitlines()
    assert len(rows) == 5
    failed = ["data.batch_size=0 is not possible" in row for row in rows[1:]]
    assert sum(failed) == 2
    assert [(sweep / str(job) / "target.wav").exists() for job in range(4)] == [
        not job for job in failed
    ]
    # Each job is a W&B run of its own, closed before the next one begins, and holds all.
    runs = sorted(sweep.glob("*/wandb/offline-run-*/run-*.wandb"))
    assert len({run.stem for run in runs}) == len(runs) == 2
    run = read_wandb(runs[0].parents[2])
    assert (run.group, run.exit_code) == ("sweep", 0)
    assert (
        run.config["aug"],
        run.config["model/hidden_size"],
        run.config["song"],
        run.config["song/name"],
    ) == (
        "none",
        8,
        "custom",
        "custom",
    )
    assert run.history["train/loss"].keys() == {0, 1, 2}
    assert list(run.history["train/learning_rate"].values()) == pytest.approx([0.001] * 3)
    for name in (
        "train/gradient_norm",
        "train/steps_per_second",
        "system/cpu_cores",
        "system/peak_memory_mb",
    ):
        assert all(value > 0 for value in run.history[name].values())
    kinds = ("audio", "spectrogram")
    changing = {
        "mask/estimate",
        *(f"{kind}/{name}" for kind in kinds for name in ("estimate", "residual")),
    }
    assert all(run.history[name].keys() == {0, 2, 3} for name in changing)
    assert all(
        run.history[f"{kind}/{name}"].keys() == {0}
        for kind in kinds
        for name in ("mixture", "reference")
    )
    assert "final/si_sdr_improvement" in run.history
    assert {name.rpartition("/")[2] for name in run.artifacts["checkpoint"]} == {
        "last.ckpt",
        "config.yaml",
        "metrics.json",
    }
    assert all(
        Path(place).is_file() for files in run.artifacts.values() for place in files.values()
    )
    assert "optimizer_states" not in torch.load(
        run.artifacts["checkpoint"]["last.ckpt"], weights_only=True
    )
    assert "optimizer_states" in torch.load(
        runs[0].parents[2] / "checkpoints" / "last.ckpt", weights_only=True
    )
    assert run.artifacts["stems"].keys() == {"target.wav", "residual.wav"}
    assert "proc.memory.rssMB" in run.system
    assert dashboard.figures <= run.history.keys()
    assert run.config[logs.SETTINGS] == "batch_size=2 aug=none"
    comparison = read_wandb(sweep)
    assert (comparison.group, comparison.exit_code) == ("sweep", 0)
    assert dashboard.tables <= comparison.history.keys()
    assert {"groups", "listen", "runs"} <= comparison.history.keys()
    assert comparison.artifacts["comparison"].keys() == {"sweep.csv", "groups.csv"}
    assert "from one run each" in comparison.summary["answer"]
    gain = json.loads((runs[0].parents[2] / "metrics.json").read_text())["si_sdr_improvement"]
    assert comparison.summary["si_sdr_improvement/aug=none"] == pytest.approx(gain)


def test_several_processes_train_together_and_one_writes(run_train, tiny_song, tmp_path):
    result = run_train(
        *tiny_song.overrides,
        "trainer.devices=2",
        "+trainer.strategy=ddp",
        "logger=wandb",
        f"hydra.run.dir={tmp_path / 'run'}",
        cwd=tmp_path,
        own_process=True,  # Lightning starts the second with the first one's command
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 3
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1
    assert result.stdout.count("Step 3 of 3") == 1


def test_the_standin_says_so(run_train, tiny_song, tmp_path):
    small = [override for override in tiny_song.overrides if not override.startswith("song")]
    result = run_train(
        "song=take_on_me", *small, "aug=heavy", f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert "STAND-IN" in result.stdout
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["is_standin"] is True
    assert read_audio(tmp_path / "run" / "target.wav")[0].shape[0] == 2
    mixes = json.loads((tmp_path / "run" / "mixes.json").read_text())
    assert len(mixes) == 2
    assert all(-12 <= mix["target_gain_db"] <= 6 for mix in mixes)


def test_relative_paths_are_taken_from_where_the_command_started(
    run_train, make_song, tiny_song, tmp_path
):
    make_song(tmp_path, channels=2, programs=(80, 33))
    small = [override for override in tiny_song.overrides if not override.startswith("song.")]
    # All backgrounds at once, and blocks that only the checkpoint knows of.
    backgrounds = [
        "song.others=rest",
        "background=mixed",
        "background.weights.audio=1",
        "background.audio.paths=[target.wav]",
    ]
    blocks = ["separate.block_seconds=1", "separate.overlap_seconds=0.2", "data.batch_size=8"]
    files = [
        "song.mixture=mix.wav",
        "song.target.score=target.mid",
        "song.target.instrument=index:0",
        "hydra.run.dir=out",
    ]
    result = run_train(*small, *backgrounds, *blocks, *files, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    mixture, sample_rate = read_audio(tmp_path / "mix.wav")
    stem = read_audio(tmp_path / "out" / "target.wav")[0]
    assert stem.shape == mixture.shape
    separator = load_separator(tmp_path / "out" / "checkpoints" / "last.ckpt")
    assert separator.block_seconds == 1
    assert separator.separate(mixture, sample_rate)[0] == pytest.approx(stem, abs=1e-5)
    mixes = json.loads((tmp_path / "out" / "mixes.json").read_text())
    assert {mix["background_source"] for mix in mixes} == {"mixture", "synth", "audio"}


def test_the_wheel_works_from_any_folder(tiny_song, tmp_path):
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"bespoke_separation-{bespoke.__version__}-py3-none-any.whl"
    packed = set(zipfile.ZipFile(wheel).namelist())
    configs = {
        f"bespoke/conf/{file.relative_to(ROOT / 'conf')}"
        for file in Path(ROOT / "conf").rglob("*.yaml")
    }
    assert configs <= packed
    report = "bespoke/evaluation/report"
    assets = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / report / "assets").rglob("*.*")
        if file.is_file()
    }
    assert {
        "bespoke/training/run.py",
        "bespoke/models/prior.pt",
        f"{report}/assets/vendor/wavesurfer.LICENSE.txt",
    } <= packed
    assert assets <= packed
    assert {name.partition("/")[0] for name in packed} == {
        "bespoke",
        f"bespoke_separation-{bespoke.__version__}.dist-info",
    }
    # An environment of its own, which sees the packages of this one behind its own.
    venv.create(tmp_path / "venv", with_pip=False)
    bin = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    install = ["install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(bin / "python"), *install],
        check=True,
        capture_output=True,
    )
    (site,) = (tmp_path / "venv").rglob("site-packages")
    (site / "behind.pth").write_text(sysconfig.get_path("purelib"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings = [f"--set={setting}" for setting in SMALL if not setting.startswith("logger")]
    command = [bin / "bespoke", "separate", tiny_song.mixture, tiny_song.score, *settings]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["mix.target.wav", "mix.residual.wav"]
    versions = json.loads((tmp_path / "mix.bespoke" / "metrics.json").read_text())["versions"]
    assert versions["bespoke"] == bespoke.__version__
    where = subprocess.run(
        [bin / "python", "-c", "import bespoke; print(bespoke.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(site))


def test_an_interrupt_ends_a_sweep_which_goes_on_with_what_is_not_finished(
    run_train, tiny_song, tmp_path
):
    sweep = tmp_path / "sweep"
    overrides = [
        "-m",
        *tiny_song.overrides,
        f"song.reference={tiny_song.reference}",
        "seed=0,1,2",
        "trainer.max_steps=60",
    ]
    overrides += ["checkpoint_steps=2", f"hydra.sweep.dir={sweep}"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *overrides],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 120
    while (
        not (sweep / "1" / "checkpoints" / "last.ckpt").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode not in (0, 2)
    assert "Interrupted at step" in output
    assert f"hydra.sweep.dir={sweep} ckpt=last" in output
    assert not (sweep / "2").exists()
    assert [(row["seed"], row["error"]) for row in read_csv(sweep / "sweep.csv")] == [
        (0, None),
        (1, "not finished"),
    ]
    finished = (sweep / "0" / "target.wav").stat().st_mtime_ns
    resumed = run_train(*overrides, "ckpt=last", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert (sweep / "0" / "target.wav").stat().st_mtime_ns == finished
    steps = [
        json.loads((sweep / str(job) / "metrics.json").read_text())["resumed_from_step"]
        for job in range(3)
    ]
    assert steps[0] == steps[2] == 0 < steps[1]
    rows = read_csv(sweep / "sweep.csv")
    assert [(row["seed"], row["steps"], row["error"]) for row in rows] == [
        (seed, 60, None) for seed in range(3)
    ]
    assert "ckpt" not in rows[0]
