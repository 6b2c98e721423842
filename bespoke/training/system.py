"""Lightning module that combines STFT, network, loss and optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from bespoke.audio.stft import STFT
from bespoke.models.networks import MaskNetwork


class BespokeSystem(pl.LightningModule):
    """Train a mask network on batches of mixes.

    A batch is a dictionary of `mixture` and `target`, each `[batch, 1, time]`, the batch's `index`,
    and `features` for a network that uses the score. The module logs `train/loss`, `val/loss` and
    `val/si_sdr` (dB).

    Args:
        stft: the transform, which becomes part of the checkpoint.
        model: takes magnitudes `[batch, freq, frames]` (and features if it uses the score, see
            `bespoke.models.features`) and returns a mask of the same shape.
        loss: takes mask, target spectrogram and mixture spectrogram, and returns a scalar.
        optimizer: takes the parameters and returns the optimizer.
        seed: seed of the dropout, together with the batch index.
        separate: settings of `Separator`, notes included, stored in the checkpoint.
        schedule: takes the index of the step, from 0, and returns what the optimizer's learning
            rate is multiplied by. None: always the same rate.
    """

    def __init__(
        self,
        stft: STFT,
        model: MaskNetwork,
        loss: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        seed: int = 0,
        separate: dict[str, Any] | None = None,
        schedule: Callable[[int], float] | None = None,
    ):
        super().__init__()
        self.schedule = schedule
        self.stft, self.model, self.loss, self.optimizer, self.seed = (
            stft,
            model,
            loss,
            optimizer,
            seed,
        )
        # Everything that separation needs besides the weights, as plain values, so that the
        # checkpoint loads without unpickling code.
        self.save_hyperparameters(
            {
                "stft": dict(stft.hyperparameters),
                "model": {"name": type(model).__name__, **model.hyperparameters},
                "separate": dict(separate or {}),
                "seed": seed,
            }
        )

    def forward(self, waveform: Tensor, *features: Tensor) -> Tensor:
        """Separate a mixture.

        Args:
            waveform: mixture, `[batch, 1, time]`.
            *features: further inputs of the network.

        Returns:
            Estimate of the target, of the mixture's shape.
        """
        spectrogram = self.stft(waveform)
        mask = self.model(spectrogram[:, 0].abs(), *features)[:, None]
        return self.stft.inverse(mask.float() * spectrogram, waveform.shape[-1])

    def on_train_start(self) -> None:
        # The rate that a checkpoint holds for the next step is of the length that the training was
        # to have then.
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler) and self.schedule:
            for group, rate in zip(
                scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True
            ):
                group["lr"] = rate * self.schedule(scheduler.last_epoch)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        # Lightning does not store the random state in checkpoints. With a seed per batch, a resumed
        # run equals an uninterrupted one.
        torch.manual_seed((self.seed << 32) + batch["index"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss_of(batch)
        self.log("train/loss", loss, batch_size=len(batch["mixture"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        size = len(batch["mixture"])
        self.log("val/loss", self.loss_of(batch), batch_size=size)
        estimate = self(batch["mixture"], *self._features(batch))
        # SI-SDR is undefined where the target is silent.
        sounding = batch["target"].square().mean(dim=(1, 2)) > 1e-8
        if sounding.any():
            si_sdr = scale_invariant_signal_distortion_ratio(
                estimate[sounding], batch["target"][sounding]
            )
            self.log("val/si_sdr", si_sdr.mean(), batch_size=int(sounding.sum()))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.model.parameters())
        if self.schedule is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _features(self, batch: dict[str, Any]) -> list[Tensor]:
        return [batch["features"]] if self.model.uses_score else []

    def loss_of(self, batch: dict[str, Any]) -> Tensor:
        """Loss of a batch, a scalar."""
        # Transform and loss stay in float32 under mixed precision: the range of 16 bits is too
        # small for a spectrogram.
        with torch.autocast(self.device.type, enabled=False):
            mixture, target = self.stft(batch["mixture"]), self.stft(batch["target"])
            magnitude = mixture[:, 0].abs()
        mask = self.model(magnitude, *self._features(batch))
        with torch.autocast(self.device.type, enabled=False):
            return self.loss(mask, target[:, 0], mixture[:, 0])
