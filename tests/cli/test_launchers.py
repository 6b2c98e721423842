"""The launchers of the extras, where they are installed."""

import json

import pytest
from hydra import compose, initialize_config_dir

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
