"""What Lightning's trainer is given beside the system: checkpoints that are never half-written, and progress without a terminal."""

import io
import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

from bespoke.audio import atomic_path

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
