"""The launchers of the extras, where they are installed."""

import json

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins import basic_launcher
from hydra.core.utils import JobStatus

from bespoke.cli.launch import explained
from bespoke.training import run
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import read_csv
from conftest import ROOT

pytestmark = pytest.mark.slow  # whole runs


@pytest.mark.parametrize(
    ("name", "package", "launcher"),
    [
        ("joblib", "hydra_joblib_launcher", "JoblibLauncher"),
        ("submitit_local", "hydra_submitit_launcher", "LocalLauncher"),
        ("submitit_slurm", "hydra_submitit_launcher", "SlurmLauncher"),
        ("slurm", "hydra_submitit_launcher", "SlurmLauncher"),
        ("ray", "hydra_ray_launcher", "RayLauncher"),
        ("ray_cluster", "hydra_ray_launcher", "RayLauncher"),
    ],
)
def test_launcher_composes(name, package, launcher):
    pytest.importorskip(f"hydra_plugins.{package}", reason="an extra")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [f"hydra/launcher={name}"], return_hydra_config=True)
    assert cfg.hydra.launcher._target_.endswith(f".{launcher}")
    if name == "slurm":
        assert (
            cfg.hydra.launcher.timeout_min,
            cfg.hydra.launcher.cpus_per_task,
            cfg.hydra.launcher.partition,
        ) == (60, 4, None)
        assert cfg.hydra.launcher.max_num_timeout == 3
    if name == "ray_cluster":
        assert (cfg.hydra.launcher.ray.init.address, cfg.hydra.launcher.ray.remote.num_cpus) == (
            "auto",
            4,
        )


def test_submitit_runs_a_sweep_of_which_a_job_fails(run_train, tiny_song, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra cluster")
    sweep = tmp_path / "sweep"
    overrides = [
        *tiny_song.overrides,
        "data.batch_size=0,2",
        "hydra/launcher=submitit_local",
        f"hydra.sweep.dir={sweep}",
    ]
    result = run_train("-m", *overrides, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    rows = read_csv(sweep / "sweep.csv")
    assert [row["steps"] for row in rows] == [None, 3]
    assert "data.batch_size=0 is not possible" in rows[0]["error"]
    assert json.loads((sweep / "1" / "metrics.json").read_text())["steps"] == 3


def test_a_job_that_a_launcher_does_again_goes_on_where_it_was(
    run_train, tiny_song, tmp_path, monkeypatch
):
    """As Slurm does with what it stops, and Ray with what was killed."""
    sweep, run_job = tmp_path / "sweep", basic_launcher.run_job

    def lose_the_machine(*_):
        raise RuntimeError("the machine is gone")

    def do_twice(**settings):
        with monkeypatch.context() as patch:
            patch.setattr(run, "separate", lose_the_machine)
            assert run_job(**settings).status == JobStatus.FAILED
        return run_job(**settings)

    monkeypatch.setattr(basic_launcher, "run_job", do_twice)
    overrides = ["-m", *tiny_song.overrides, f"hydra.sweep.dir={sweep}"]
    result = run_train(*overrides, "aug=none,paper", "checkpoint_steps=2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for job in "01":
        metrics = json.loads((sweep / job / "metrics.json").read_text())
        assert metrics["resumed_from_step"] > 0
    # The same command once more is another launch, and leaves what there is as it is.
    monkeypatch.setattr(basic_launcher, "run_job", run_job)
    result = run_train(*overrides, "aug=none,paper", "checkpoint_steps=2", cwd=tmp_path)
    assert result.returncode == 2
    assert "already has results" in result.stderr


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("joblib.externals.loky.process_executor", "TerminatedWorkerError"),
        ("submitit.core.utils", "UncompletedJobError"),
    ],
)
def test_a_job_that_was_killed_is_told_in_a_sentence(module, name):
    lost = getattr(pytest.importorskip(module, reason="the extra cluster"), name)
    with (
        pytest.raises(BespokeError, match=r"ended without a result \(Job 3 is gone\)"),
        explained(),
    ):
        raise lost("Job 3 is gone. Its log:\nTraceback ...")


def test_a_search_goes_on_with_the_same_proposals(run_train, tiny_song, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra optuna")
    sweep = tmp_path / "sweep"
    overrides = [
        "-m",
        *tiny_song.overrides,
        f"song.reference={tiny_song.reference}",
        "+experiment=aug_optuna",
        f"hydra.sweep.dir={sweep}",
    ]
    first = run_train(*overrides, "hydra.sweeper.n_trials=1", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    stem = (sweep / "0" / "target.wav").stat().st_mtime_ns
    second = run_train(*overrides, "hydra.sweeper.n_trials=2", "ckpt=last", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert (sweep / "0" / "target.wav").stat().st_mtime_ns == stem
    rows = read_csv(sweep / "sweep.csv")
    assert [row["steps"] for row in rows] == [3, 3]
    assert rows[0]["aug.target.eq.p"] != rows[1]["aug.target.eq.p"]
