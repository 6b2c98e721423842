"""Trainer callbacks: atomic checkpoints, progress, logged figures, and training curves."""

import io
import logging
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

from bespoke.data.song import Song
from bespoke.evaluation.agreement import Agreement
from bespoke.evaluation.metrics import si_sdr
from bespoke.models.separator import Separator
from bespoke.training import logs
from bespoke.training.system import BespokeSystem
from bespoke.utils import progress
from bespoke.utils.files import atomic_path, read_csv, write_csv

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically, so that a killed run leaves the previous one intact."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        # Saving to a file directly would hide the OSError of a full disk.
        torch.save(checkpoint, buffer)
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())


def keep_network(system: pl.LightningModule, step: int, path: Path, **more: Any) -> None:
    """Write what `bespoke.models.separator.load_separator` needs, without the trainer's state.

    Args:
        system: the network.
        step: of its training.
        path: of the checkpoint.
        **more: further content.
    """
    kept = {
        "state_dict": system.state_dict(),
        "hyper_parameters": dict(system.hparams),
        "global_step": step,
        **more,
    }
    AtomicCheckpointIO().save_checkpoint(kept, path)


class StepLog(Callback):
    """Report progress: in the stage's line on a terminal, else as a log line now and then."""

    def __init__(self, every_seconds: float = 20.0):
        self.every_seconds = every_seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first_step, self.began = trainer.global_step, time.monotonic()
        self.last = self.began
        progress.advance(trainer.global_step, trainer.max_steps)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not trainer.is_global_zero:
            return
        now, step = time.monotonic(), trainer.global_step
        on_terminal = progress.on_terminal()
        if (
            now - self.last < (0.5 if on_terminal else self.every_seconds)
            and step < trainer.max_steps
        ):
            return
        self.last = now
        loss = outputs["loss"].item()
        if on_terminal:
            progress.advance(
                step, trainer.max_steps, f"step {step} of {trainer.max_steps}, loss {loss:.4f}"
            )
            return
        rate = (step - self.first_step) / max(now - self.began, 1e-9)
        left_seconds = (trainer.max_steps - step) / max(rate, 1e-9)
        # After the last step there is no time left to state, since other stages follow.
        left = f", {left_seconds:.0f} s of training left" if step < trainer.max_steps else ""
        log.info(
            "Step %d of %d%s (loss %.5f, %.1f steps/s)", step, trainer.max_steps, left, loss, rate
        )


class TrainingFigures(Callback):
    """Log gradient norm (before clipping), learning rate, throughput, and CPU and memory use."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.times: deque[tuple[float, float]] = deque(
            [(time.monotonic(), time.process_time())], _log_every(trainer) + 1
        )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.times.append((time.monotonic(), time.process_time()))
        # Only at steps that Lightning logs, since computing the norm makes a GPU wait.
        every = _log_every(trainer)
        if not trainer.loggers or not every or (trainer.global_step + 1) % every:
            return
        gradients = [
            parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None
        ]
        wall_seconds, cpu_seconds = (
            last - first for first, last in zip(self.times[0], self.times[-1], strict=True)
        )
        figures = {
            "train/gradient_norm": torch.nn.utils.get_total_norm(gradients),
            "train/learning_rate": optimizer.param_groups[0]["lr"],
            "train/steps_per_second": (len(self.times) - 1) / max(wall_seconds, 1e-9),
            "system/cpu_cores": cpu_seconds / max(wall_seconds, 1e-9),
        }
        if (memory := peak_memory_mb()) is not None:
            figures["system/peak_memory_mb"] = memory
        if pl_module.device.type == "cuda":
            figures["system/peak_gpu_memory_mb"] = (
                torch.cuda.max_memory_allocated(pl_module.device) / 1e6
            )
        pl_module.log_dict(
            {name: float(value) for name, value in figures.items()},
            on_step=True,
            on_epoch=False,
            batch_size=1,
        )


def _log_every(trainer: pl.Trainer) -> int:
    return trainer.log_every_n_steps  # type: ignore[attr-defined]  # a connector sets it


def peak_memory_mb() -> float | None:
    """Peak memory of this process, in MB. None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


class Listening(Callback):
    """Separate the recording at the start of training and regularly after, for loggers with audio.

    Args:
        song: with its reference, if it has one, for comparison.
        every_steps: interval in steps. 0: only at the start.
        settings: settings of `Separator`.
    """

    def __init__(self, song: Song, every_steps: int, settings: Mapping[str, Any]):
        self.song, self.every_steps, self.settings, self.last_step = song, every_steps, settings, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last_step = trainer.global_step
        if self.last_step == 0:
            self._log(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        # The final step is logged with the results.
        if (
            self.every_steps
            and self.last_step < step < trainer.max_steps
            and step % self.every_steps == 0
        ):
            self.last_step = step
            self._log(trainer, pl_module)

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and logs.can_play(trainer.loggers):
            estimate = _separate(pl_module, self.song, self.settings)
            step, song = trainer.global_step, self.song
            logs.log_separation(
                trainer.loggers,
                song.mixture,
                estimate,
                song.sample_rate,
                step,
                song.reference,
                again=step > 0,
            )


def _separate(system: pl.LightningModule, song: Song, settings: Mapping[str, Any]) -> np.ndarray:
    """The target as the network separates it now, `[channel, time]`."""
    system = cast(BespokeSystem, system)
    return Separator(system.stft, system.model, **settings).separate(*song.recording)[0]


class LossCurve(Callback):
    """Record the loss of every step and the results of each validation, for any logger.

    The rows are stored in the checkpoint, so a resumed run continues them. The table is written
    when training ends.

    Args:
        path: CSV file with `step` and `loss` and, at validations, `val_loss` and `val_si_sdr` (dB).
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._plain()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # No row while gradients accumulate.
        if trainer.global_step and (not self.rows or trainer.global_step > self.rows[-1]["step"]):
            # Lightning has divided the loss by the number of batches. It stays a tensor until it is
            # written, so that no GPU has to wait.
            self.rows.append(
                {
                    "step": trainer.global_step,
                    "loss": outputs["loss"].detach() * trainer.accumulate_grad_batches,
                }
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.rows and not trainer.sanity_checking:
            found = {
                f"val_{name}": trainer.callback_metrics.get(f"val/{name}")
                for name in ("loss", "si_sdr")
            }
            self.rows[-1] |= {
                name: float(value) for name, value in found.items() if value is not None
            }

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            write_csv(self.path, self._plain(), ("step", "loss", "val_loss", "val_si_sdr"))

    def _plain(self) -> list[dict[str, float]]:
        return [
            {name: value if name == "step" else float(value) for name, value in row.items()}
            for row in self.rows
        ]


class QualityCurve(Callback):
    """Separate the recording at regular steps and record the quality, to show when training hurts.

    The reference is for metrics only: which checkpoint is kept does not depend on it, but may
    depend on the agreement with the score.

    Args:
        path: CSV file with `step`, `seconds` of training (without evaluation) and, in dB, `si_sdr`
            if the song has a reference and `agreement` if `agreement` is given.
        song: the recording.
        every_steps: interval in steps; 0: never.
        settings: settings of `Separator`.
        agreement: the metric without a reference.
        best: file for the checkpoint of highest agreement so far, for
            `bespoke.models.separator.load_separator`.
    """

    def __init__(
        self,
        path: Path,
        song: Song,
        every_steps: int,
        settings: Mapping[str, Any],
        agreement: Agreement | None = None,
        best: Path | None = None,
    ):
        self.path, self.song, self.every_steps, self.settings = path, song, every_steps, settings
        self.agreement, self.best, self.highest = agreement, best, -np.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rows = [row for row in read_csv(self.path) if row["step"] <= trainer.global_step]
        self.rows = [{**row, "step": int(row["step"])} for row in rows]
        self.began = time.monotonic() - (self.rows[-1]["seconds"] if self.rows else 0)
        if self.best and self.best.is_file() and trainer.global_step:
            self.highest = torch.load(self.best, weights_only=True, map_location="cpu")["agreement"]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if (
            not trainer.is_global_zero
            or not self.every_steps
            or (self.song.reference is None and self.agreement is None)
            or step == 0
            or step % self.every_steps
            or (self.rows and step <= self.rows[-1]["step"])
        ):
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # count unfinished work as training
        paused = time.monotonic()
        estimate = _separate(pl_module, self.song, self.settings)
        row: dict[str, Any] = {"step": step, "seconds": round(paused - self.began, 3)}
        if self.song.reference is not None:
            row["si_sdr"] = si_sdr(estimate, self.song.reference)
        if self.agreement is not None:
            row["agreement"] = self.agreement(estimate)
            if self.best and row["agreement"] is not None and row["agreement"] > self.highest:
                self.highest = row["agreement"]
                keep_network(pl_module, step, self.best, agreement=self.highest)
        self.rows.append(row)
        write_csv(self.path, self.rows)
        self.began += time.monotonic() - paused

    def found(self, step: int) -> dict[str, Any]:
        """What was measured at a step; empty if nothing was."""
        return next((row for row in reversed(self.rows) if row["step"] == step), {})


class EarlyStop(Callback):
    """End training when a metric has not got better for some measurements in a row.

    The state is part of the checkpoint, so that a resumed run stops where it would have.

    Args:
        metric: `val_loss` (lower is better), `val_si_sdr` or `agreement`. The reference is for
            metrics only: no figure that depends on it may end training.
        patience: so many measurements without a better one end it.
        min_delta: by how much a measurement has to be better than the best, in the metric's unit.
        curve: where the agreement is measured.

    Attributes:
        best, best_step: the best measurement and its step.
        stopped_step: the step at which training ended, or None.
    """

    def __init__(
        self, metric: str, patience: int, min_delta: float, curve: QualityCurve | None = None
    ):
        self.metric, self.patience, self.min_delta, self.curve = metric, patience, min_delta, curve
        self.best: float | None = None
        self.best_step, self.waited, self.judged = 0, 0, 0
        self.stopped_step: int | None = None
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        names = ("best", "best_step", "waited", "judged", "stopped_step", "steps")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if 0 < self.steps < trainer.max_steps:  # a run that is extended has its patience again
            self.waited, self.stopped_step = 0, None
        self.steps = trainer.max_steps
        trainer.should_stop = trainer.should_stop or self.stopped_step is not None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.metric != "agreement" and not trainer.sanity_checking:
            value = trainer.callback_metrics.get(self.metric.replace("_", "/", 1))
            self._judge(trainer, None if value is None else float(value))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.metric == "agreement" and self.curve is not None:
            step, every = trainer.global_step, self.curve.every_steps
            if step and every and step % every == 0:
                found = self.curve.found(step)  # of several devices only the first one measures
                self._judge(trainer, found.get("agreement"))

    def _judge(self, trainer: pl.Trainer, value: float | None) -> None:
        step = trainer.global_step
        if step <= self.judged:
            return
        self.judged = step
        if value is not None and self._is_better(value):
            self.best, self.best_step, self.waited = value, step, 0
        elif value is not None:
            self.waited += 1
        if trainer.strategy.broadcast(self.waited >= self.patience):
            self.stopped_step, trainer.should_stop = step, True

    def _is_better(self, value: float) -> bool:
        if not np.isfinite(value) or self.best is None:
            return bool(np.isfinite(value))
        gain = self.best - value if self.metric == "val_loss" else value - self.best
        return gain > self.min_delta
