"""Runs that are extended or stopped early, optimizers and schedules."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from bespoke.training import build, preflight
from bespoke.training.callbacks import EarlyStop
from bespoke.training.schedules import Constant, Cosine, Exponential, Linear
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import read_csv
from conftest import ROOT

OPTIMIZERS = sorted(file.stem for file in (ROOT / "conf" / "optimizer").glob("*.yaml"))


def checkpoint(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def facts(folder):
    return json.loads((folder / "metrics.json").read_text())


def same_weights(one, other):
    first, second = (checkpoint(folder)["state_dict"] for folder in (one, other))
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_a_finished_run_is_extended_to_the_same_weights_as_a_long_one(
    run_train, tiny_song, tmp_path
):
    overrides = [
        *tiny_song.overrides,
        "scheduler=warmup",
        "scheduler.warmup_steps=2",
        "trainer.val_check_interval=2",
        "curve_steps=2",
    ]

    def run(name, steps, *more):
        folder = tmp_path / name
        given = [*overrides, f"trainer.max_steps={steps}", f"hydra.run.dir={folder}", *more]
        return folder, run_train(*given, cwd=tmp_path)

    whole, done = run("whole", 7)
    assert done.returncode == 0, done.stderr
    folder, done = run("short", 4)
    assert done.returncode == 0, done.stderr
    before = (folder / "target.wav").read_bytes()
    assert facts(folder)["steps"] == 4

    _, fewer = run("short", 3, "ckpt=last")
    assert fewer.returncode == 2
    assert "trainer.max_steps: 4 there, 3 now" in fewer.stderr
    _, other = run("short", 7, "ckpt=last", "seed=1")
    assert other.returncode == 2
    assert "(seed: 0 there, 1 now)" in other.stderr
    assert (folder / "target.wav").read_bytes() == before

    _, more = run("short", 7, "ckpt=last")
    assert more.returncode == 0, more.stderr
    assert (facts(folder)["steps"], facts(folder)["resumed_from_step"]) == (7, 4)
    assert same_weights(folder, whole)
    assert (folder / "target.wav").read_bytes() == (whole / "target.wav").read_bytes() != before
    assert read_csv(folder / "training.csv") == read_csv(whole / "training.csv")
    assert [row["step"] for row in read_csv(folder / "curve.csv")] == [2, 4, 6]
    assert OmegaConf.load(folder / "config.yaml").trainer.max_steps == 7


@pytest.mark.slow
def test_a_sweep_extends_its_runs_and_does_no_finished_one_again(run_train, tiny_song, tmp_path):
    overrides = ["-m", *tiny_song.overrides, "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    folders = [tmp_path / "sweep" / str(job) for job in (0, 1)]
    for steps, again in ((1, []), (2, ["ckpt=last"])):
        done = run_train(*overrides, f"trainer.max_steps={steps}", *again, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert [facts(folder)["steps"] for folder in folders] == [steps, steps]
    made = [(folder / "metrics.json").stat().st_mtime_ns for folder in folders]
    run_train(*overrides, "trainer.max_steps=2", "ckpt=last", cwd=tmp_path)
    assert [(folder / "metrics.json").stat().st_mtime_ns for folder in folders] == made


@pytest.mark.slow
def test_training_stops_when_a_metric_no_longer_gets_better(run_train, tiny_song, tmp_path):
    # Nothing gets better by so much than the first measurement.
    folder = tmp_path / "run"
    overrides = [
        *tiny_song.overrides,
        "early_stopping.min_delta=100",
        "trainer.max_steps=20",
        "early_stopping.patience=2",
        f"hydra.run.dir={folder}",
    ]
    by_loss = [*overrides, "early_stopping.metric=val_loss", "trainer.val_check_interval=3"]
    done = run_train(*by_loss, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert facts(folder)["steps"] == checkpoint(folder)["global_step"] == 9  # after 3, 6 and 9
    assert facts(folder)["stopped_early"]["best_step"] == 3
    assert (folder / "target.wav").is_file()
    assert len(read_csv(folder / "training.csv")) == 9

    again = run_train(*by_loss, "ckpt=last", cwd=tmp_path)  # it has stopped
    assert again.returncode == 0, again.stderr
    assert facts(folder)["steps"] == 9
    longer = [*by_loss, "trainer.max_steps=40", "ckpt=last"]  # it is given its patience again
    again = run_train(*longer, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert facts(folder)["steps"] == 15

    agreement = ["early_stopping.metric=agreement", "curve_steps=4"]
    other = [*overrides, *agreement, f"hydra.run.dir={tmp_path / 'other'}"]
    done = run_train(*other, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert facts(tmp_path / "other")["steps"] == 12  # after 4, 8 and 12
    rows = read_csv(tmp_path / "other" / "curve.csv")
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert facts(tmp_path / "other")["stopped_early"]["best"] == pytest.approx(rows[0]["agreement"])


class Trainer:
    """As much of a trainer as early stopping looks at."""

    max_steps, global_step, should_stop, sanity_checking = 100, 0, False, False

    def __init__(self):
        self.callback_metrics = {}
        self.strategy = self

    def broadcast(self, value):
        return value


@pytest.mark.parametrize(
    ("metric", "values", "min_delta", "stopped"),
    [
        ("val_loss", [3, 2, 1, 1.5, 1.2, 0.5, 2, 2], 0, None),
        ("val_loss", [3, 2, 1, 1.5, 1.2, 1.1, 0], 0, 6),
        ("val_loss", [3, 2.9, 2.8, 2.7, 1], 0.5, 4),
        ("val_loss", [float("nan"), 1, 2, float("nan"), 3], 0, 5),
        ("val_si_sdr", [1, 2, 3, 2, 2, 2], 0, 6),
        ("val_si_sdr", [1, None, 0, None, 0, 0], 0, 6),
    ],
)
def test_early_stopping_waits_as_long_as_it_says(metric, values, min_delta, stopped):
    trainer, stop = Trainer(), EarlyStop(metric, 3, min_delta)
    stop.on_train_start(trainer, None)
    for step, value in enumerate(values, 1):
        # A resumed run has the state of the checkpoint alone.
        resumed = EarlyStop(metric, 3, min_delta)
        resumed.load_state_dict(stop.state_dict())
        stop = resumed
        stop.on_train_start(trainer, None)
        trainer.global_step = step
        trainer.callback_metrics = {metric.replace("_", "/", 1): value}
        stop.on_validation_end(trainer, None)
        if trainer.should_stop:
            break
    assert stop.stopped_step == stopped


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["early_stopping.metric=si_sdr"], ["early_stopping.metric=si_sdr", "agreement"]),
        (["early_stopping.patience=0"], ["early_stopping.patience=0"]),
        (["early_stopping.metric=agreement"], ["set curve_steps"]),
        (["early_stopping.metric=val_loss", "data.validation_batches=0"], ["validation_batches"]),
        (["early_stopping.metric=val_loss", "trainer.max_steps=500"], ["every 100 steps"]),
        (
            ["early_stopping.metric=agreement", "curve_steps=5", "callbacks=none"],
            ["callbacks=default"],
        ),
        (["scheduler=warmup", "trainer.max_steps=50"], ["scheduler.warmup_steps=50", "less than"]),
        (["scheduler=cosine", "scheduler.final_factor=2"], ["scheduler.final_factor=2", "to 1"]),
        (["scheduler=cosine", "+scheduler.cycles=2"], ["scheduler.cycles", "final_factor"]),
        (["scheduler._target_=torch.optim.lr_scheduler.StepLR"], ["is not allowed"]),
        (["optimizer=sgd", "optimizer.lr=-1"], ["optimizer.lr=-1", "from 0"]),
        (["optimizer=sgd", "optimizer.momentum=2"], ["optimizer.momentum=2", "to 1"]),
        (["optimizer=sgd", "+optimizer.betas=[0.9,0.99]"], ["optimizer.betas", "SGD takes"]),
    ],
)
def test_a_wrong_setting_of_the_training_is_named(compose_config, overrides, words):
    with pytest.raises(BespokeError) as caught:
        preflight.check(compose_config("recipe=paper", *overrides))
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_lowers_the_loss_at_the_rate_it_comes_with(compose_config, name):
    small = ["recipe=quick", "model.hidden_size=8", "model.layers=1", f"optimizer={name}"]
    system = build._system(compose_config(*small))
    optimizer = system.configure_optimizers()
    assert type(optimizer).__name__.lower() == name
    generator = torch.Generator().manual_seed(0)
    target, noise = torch.randn(2, 4, 1, 8000, generator=generator)
    target = torch.cumsum(target, -1) * 0.01  # its spectrum differs from the noise's
    batch = {"mixture": 0.3 * (target + noise), "target": 0.3 * target, "index": 0}
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = system.loss_of(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9999 * losses[0]


def test_schedules_begin_and_end_where_they_say():
    for schedule in (Linear(10, 0.2), Cosine(10, 0.2), Exponential(10, 0.2)):
        factors = [schedule.factor(step, 110) for step in range(112)]
        assert factors[0] == pytest.approx(1 / 11)
        assert factors[10] == 1
        assert factors[110] == factors[111] == pytest.approx(0.2)
        assert factors[10:] == sorted(factors[10:], reverse=True)
    halfway = [kind(0, 0.04).factor(50, 100) for kind in (Linear, Cosine, Exponential)]
    assert halfway == pytest.approx([0.52, 0.52, 0.2])
    assert {Constant().factor(step, 5) for step in range(5)} == {1.0}


@pytest.mark.slow
def test_the_rate_follows_the_schedule_also_after_an_extension(run_train, tiny_song, tmp_path):
    def rates(steps, *more):
        overrides = [*tiny_song.overrides, "scheduler=cosine", "optimizer.lr=1e-3", "logger=csv"]
        overrides += [f"trainer.max_steps={steps}", "trainer.log_every_n_steps=1"]
        done = run_train(*overrides, f"hydra.run.dir={tmp_path / 'run'}", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        file = sorted(tmp_path.glob("run/csv/version_*/metrics.csv"))[-1]
        found = [row["train/learning_rate"] for row in read_csv(file)]
        return [rate for rate in found if rate is not None]

    assert rates(2) == pytest.approx([1e-3 * Cosine().factor(step, 2) for step in range(2)])
    extended = rates(4, "ckpt=last")
    assert extended == pytest.approx([1e-3 * Cosine().factor(step, 4) for step in (2, 3)])
    warnings = facts(tmp_path / "run")["warnings"]
    assert any("schedule has now 4 steps" in warning for warning in warnings)


def test_a_run_of_before_schedules_and_early_stopping_goes_on(compose_config, tmp_path):
    cfg = compose_config("recipe=paper")
    preflight.write_config(cfg, tmp_path, {})
    written = OmegaConf.load(tmp_path / "config.yaml")
    assert not {"scheduler", "early_stopping"} & set(written)
    assert preflight.changes(cfg, tmp_path) == []
    other = compose_config("recipe=paper", "scheduler=cosine")
    assert preflight.changes(other, tmp_path) != []
    longer = compose_config("recipe=paper", "trainer.max_steps=2001")
    assert preflight.changes(longer, tmp_path) == ["trainer.max_steps: 2000 there, 2001 now"]
    assert preflight.changes(longer, tmp_path, may_extend=True) == []
