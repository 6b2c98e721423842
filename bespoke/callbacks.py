"""What Lightning's trainer is given beside the system: checkpoints that are never half-written, progress
without a terminal, and how good the separation is as training goes on."""

import csv
import io
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

from bespoke.audio import atomic_path, write_csv
from bespoke.evaluate import si_sdr
from bespoke.separate import Separator
from bespoke.song import Song

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name and moves it there: a killed run leaves the one before, whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)  # written straight to a file it hides the OSError of a full disk
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())


class StepLog(Callback):
    """Where there is no terminal for a progress bar: a line now and then."""

    def __init__(self, every_seconds: float = 20.0):
        self.every_seconds = every_seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first_step, self.began = trainer.global_step, time.monotonic()
        self.last = self.began

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.is_global_zero:
            return
        now, step = time.monotonic(), trainer.global_step
        if now - self.last < self.every_seconds and step < trainer.max_steps:
            return
        self.last = now
        rate = (step - self.first_step) / max(now - self.began, 1e-9)
        left = (trainer.max_steps - step) / max(rate, 1e-9)
        log.info("step %d of %d, loss %.5f, %.1f steps/s, %.0f s left", step, trainer.max_steps, outputs["loss"].item(), rate, left)


class LossCurve(Callback):
    """Keeps the loss of every step, and what each validation found, whatever the logger; writes the table when training ends.

    The rows are part of the checkpoint, so that those of a resumed run go on from where it does.

    Args:
        path: the table, with `step` and `loss`, and where there was a validation `val_loss` and `val_si_sdr` in dB.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._plain()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step and (not self.rows or trainer.global_step > self.rows[-1]["step"]):  # no row while gradients accumulate
            # Lightning divides by the number of batches; a tensor becomes a number only when it is wanted, so that no GPU has to wait.
            self.rows.append({"step": trainer.global_step, "loss": outputs["loss"].detach() * trainer.accumulate_grad_batches})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.rows and not trainer.sanity_checking:
            found = {f"val_{name}": trainer.callback_metrics.get(f"val/{name}") for name in ("loss", "si_sdr")}
            self.rows[-1] |= {name: float(value) for name, value in found.items() if value is not None}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            write_csv(self.path, self._plain(), ("step", "loss", "val_loss", "val_si_sdr"))

    def _plain(self) -> list[dict[str, float]]:
        return [{name: value if name == "step" else float(value) for name, value in row.items()} for row in self.rows]


class QualityCurve(Callback):
    """Separates the recording every so many steps and notes how good it is: what shows when training begins to hurt.

    It looks at the reference, and so is for metrics only: nothing that is trained depends on it.

    Args:
        path: the table, with `step`, `seconds` of training (without the scoring) and `si_sdr` in dB.
        song: with its reference.
        every_steps: how often.
        settings: the separator's.
    """

    def __init__(self, path: Path, song: Song, every_steps: int, settings: Mapping[str, Any]):
        self.path, self.song, self.every_steps, self.settings = path, song, every_steps, settings

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rows = list(csv.DictReader(self.path.open(newline=""))) if self.path.is_file() else []
        self.rows = [row for row in rows if int(row["step"]) <= trainer.global_step]
        self.began = time.monotonic() - float(self.rows[-1]["seconds"] if self.rows else 0)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or step == 0 or step % self.every_steps or (self.rows and step <= int(self.rows[-1]["step"])):
            return
        paused = time.monotonic()
        estimate, _ = Separator(pl_module.stft, pl_module.model, **self.settings).separate(self.song.mixture, self.song.sample_rate)
        pl_module.train()
        score = si_sdr(estimate, self.song.reference)
        self.rows.append({"step": step, "seconds": round(paused - self.began, 3), "si_sdr": score})
        write_csv(self.path, self.rows)
        self.began += time.monotonic() - paused
