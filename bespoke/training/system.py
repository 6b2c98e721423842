"""The Lightning module that ties STFT, network, loss and optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from bespoke.audio.stft import STFT
from bespoke.models.networks import MaskNetwork


class BespokeSystem(pl.LightningModule):
    """Trains a mask network on batches of mixes.

    Args:
        stft: the transform, kept with the network.
        model: magnitude `[batch, freq, frames]` (and features, see `bespoke.models.features`, if it uses
            the score) to mask of the same shape.
        loss: (mask, target spectrogram, mixture spectrogram) to scalar.
        optimizer: parameters to optimizer.
        seed: of everything random in a training step (the dropout), together with the batch's index.
        separate: the `Separator`'s settings (and notes), kept for it in the checkpoint.

    A batch is a dictionary with `mixture` and `target`, each `[batch, 1, time]`, its `index` and, for a network that uses the
    score, `features`.
    Logs `train/loss`, `val/loss`, `val/si_sdr` (dB).
    """

    def __init__(
        self,
        stft: STFT,
        model: MaskNetwork,
        loss: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        seed: int = 0,
        separate: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.stft, self.model, self.loss, self.optimizer, self.seed = (
            stft,
            model,
            loss,
            optimizer,
            seed,
        )
        # All that separation needs beside the weights, as plain values: the checkpoint loads without unpickling code.
        self.save_hyperparameters(
            {
                "stft": dict(stft.hyperparameters),
                "model": {"name": type(model).__name__, **model.hyperparameters},
                "separate": dict(separate or {}),
                "seed": seed,
            }
        )

    def forward(self, waveform: Tensor, *features: Tensor) -> Tensor:
        """Separate: mixture `[batch, 1, time]`, and what else the network wants, to an estimate of the mixture's shape."""
        spectrogram = self.stft(waveform)
        mask = self.model(spectrogram[:, 0].abs(), *features)[:, None]
        return self.stft.inverse(mask.float() * spectrogram, waveform.shape[-1])

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        # Lightning keeps no random state in a checkpoint; a seed for each batch makes a resumed run the same as one that never stopped.
        torch.manual_seed((self.seed << 32) + batch["index"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss_of(batch)
        self.log("train/loss", loss, batch_size=len(batch["mixture"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        size = len(batch["mixture"])
        self.log("val/loss", self.loss_of(batch), batch_size=size)
        estimate = self(batch["mixture"], *self._features(batch))
        # Where the target rests SI-SDR means nothing.
        sounding = batch["target"].square().mean(dim=(1, 2)) > 1e-8
        if sounding.any():
            si_sdr = scale_invariant_signal_distortion_ratio(
                estimate[sounding], batch["target"][sounding]
            )
            self.log("val/si_sdr", si_sdr.mean(), batch_size=int(sounding.sum()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.model.parameters())

    def _features(self, batch: dict[str, Any]) -> list[Tensor]:
        return [batch["features"]] if self.model.uses_score else []

    def loss_of(self, batch: dict[str, Any]) -> Tensor:
        """The loss of a batch, a scalar."""
        # The transform and the loss stay in 32 bits under mixed precision: 16 bits cannot hold a spectrogram's range.
        with torch.autocast(self.device.type, enabled=False):
            mixture, target = self.stft(batch["mixture"]), self.stft(batch["target"])
            magnitude = mixture[:, 0].abs()
        mask = self.model(magnitude, *self._features(batch))
        with torch.autocast(self.device.type, enabled=False):
            return self.loss(mask, target[:, 0], mixture[:, 0])
