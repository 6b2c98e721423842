"""Networks that estimate a mask from a magnitude and, where they use it, the score."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from bespoke.models.features import AROUND, CHANNELS, FACTORIZATIONS, TOLD
from bespoke.utils import processor

PRIOR = Path(__file__).with_name("prior.pt")


class MaskNetwork(nn.Module):
    """What every mask network says of itself, for what trains and applies it.

    A network takes a magnitude `[batch, freq, frames]` and, if it `uses_score`, the channels of
    `bespoke.models.features`; it gives a mask of the magnitude's shape, from 0 to 1.

    Attributes:
        uses_score: it wants to know where the target's notes are.
        takes_any_bins: it works for any number of frequencies, not just that of its training.
        trained_in_bfloat16: it can be computed in bfloat16 with the same result.
        hyperparameters: plain values that make it again, for the checkpoint.
    """

    uses_score = False
    takes_any_bins = False
    trained_in_bfloat16 = False
    hyperparameters: dict[str, Any]


class MaskBLSTM(MaskNetwork):
    """The paper's network: BLSTM layers and a fully connected layer with a sigmoid (section 2).

    The input is the log magnitude in dB, batch-normalized over frequency, as in nussl, the authors'
    library. The 30 % dropout "applied to the second layer" is that of `nn.LSTM` between the two
    layers, nussl's convention.

    Args:
        bins: number of frequencies.
        hidden_size: units of each layer in each direction.
        layers: number of BLSTM layers.
        dropout: probability, between the layers.
        floor_db: magnitudes below this level re full scale count as this level.

    Shape:
        - magnitude: `[batch, freq, frames]`, from 0
        - mask: the same, from 0 to 1

    >>> MaskBLSTM(bins=257)(torch.rand(2, 257, 10)).shape
    torch.Size([2, 257, 10])
    """

    def __init__(
        self,
        bins: int,
        hidden_size: int = 300,
        layers: int = 2,
        dropout: float = 0.3,
        floor_db: float = -80.0,
    ):
        super().__init__()
        if not floor_db < 0:
            raise ValueError(f"floor_db must be less than 0, not {floor_db}")
        self.hyperparameters = {
            "bins": bins,
            "hidden_size": hidden_size,
            "layers": layers,
            "dropout": dropout,
            "floor_db": floor_db,
        }
        self.floor = 10 ** (floor_db / 20)
        self.norm = nn.BatchNorm1d(bins)
        self.lstm = nn.LSTM(
            bins,
            hidden_size,
            layers,
            batch_first=True,
            bidirectional=True,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.linear = nn.Linear(2 * hidden_size, bins)

    def forward(self, magnitude: Tensor) -> Tensor:
        level_db = 20 * torch.log10(magnitude.float().clamp(min=self.floor))
        # Under autocast cuDNN's LSTM computes in float16 even where bfloat16 is asked for, and
        # nothing scales the gradients then.
        is_bfloat16 = level_db.is_cuda and torch.get_autocast_dtype("cuda") == torch.bfloat16
        with torch.autocast("cuda", enabled=False) if is_bfloat16 else nullcontext():
            hidden, _ = self.lstm(self.norm(level_db).transpose(1, 2))
        return torch.sigmoid(self.linear(hidden)).transpose(1, 2)


class ScoreUNet(MaskNetwork):
    """A small U-Net over frequency and time that corrects score-informed factorizations.

    The network sees neither frequencies nor the numbers of partials: what it learns of masks from
    synthesized instruments has to hold for timbres that it never heard. The timbre and dynamics of
    the song come in through `_Context`. The output is added to the log-odds of the factorizations'
    mean mask, so that an untrained network gives that mask.

    Args:
        bins: any number; the network works for all.
        channels: of each level; every level has half the frequencies and frames of the one before.
        doubt_db: in evaluation the mask goes over to the factorizations' mean as the network's
            doubt (see `doubt`) rises from the first value to the second, in as far as the mean has
            no such doubt itself. The network's is high for songs that are like nothing in the
            training.
        factorization_share: where the other parts are known, the factorizations' mean has at least
            this share of the mask in evaluation, 0 to 1.

    Shape:
        - magnitude: `[batch, freq, frames]`, from 0
        - features: `[batch, CHANNELS, freq, frames]`, see `bespoke.models.features`
        - mask: as magnitude, from 0 to 1

    >>> ScoreUNet()(torch.rand(2, 257, 10), torch.rand(2, CHANNELS, 257, 10)).shape
    torch.Size([2, 257, 10])
    """

    uses_score, takes_any_bins = True, True
    trained_in_bfloat16 = (
        True  # the prior was, by recipes/prior/train_prior.py: its masks move by 0.001 on the mean
    )
    is_pretrained = False

    def __init__(
        self,
        bins: int | None = None,
        channels: Sequence[int] = (16, 32, 48, 64),
        doubt_db: Sequence[float] = (-4.0, 0.0),
        factorization_share: float = 0.0,
    ):
        super().__init__()
        channels, doubt_db = list(channels), list(doubt_db)
        if not (len(doubt_db) == 2 and doubt_db[0] < doubt_db[1]):
            raise ValueError(f"doubt_db must be two numbers, the lower first, not {doubt_db}")
        if not channels or min(channels) < 1:
            raise ValueError(f"channels must be whole numbers from 1, not {channels}")
        if not 0 <= factorization_share <= 1:
            raise ValueError(f"factorization_share must be from 0 to 1, not {factorization_share}")
        self.hyperparameters = {
            "channels": channels,
            "doubt_db": doubt_db,
            "factorization_share": factorization_share,
        }
        self.doubt_db, self.factorization_share = doubt_db, factorization_share
        pairs = list(pairwise(channels))
        self.first = _Convolution(2 + CHANNELS, channels[0])
        self.down = nn.ModuleList(
            nn.Sequential(_Convolution(fine, coarse), _Convolution(coarse, coarse))
            for fine, coarse in pairs
        )
        self.context = nn.ModuleList(
            [nn.Identity(), *(_Context(coarse) for _, coarse in pairs[1:])]
        )  # costs too much where it is fine
        self.middle = nn.Sequential(
            _Convolution(channels[-1], channels[-1], (1, 2)),
            _Convolution(channels[-1], channels[-1], (2, 4)),
        )
        self.narrow = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairs)
        self.up = nn.ModuleList(_Convolution(fine, fine) for fine, _ in pairs)
        self.last = nn.Conv2d(channels[0], 1, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        """Take weights of a network that saw fewer channels, too: the new ones count nothing."""
        name = f"{prefix}first.0.weight"
        if name in state_dict and state_dict[name].ndim == 4:
            missing = 2 + CHANNELS - state_dict[name].shape[1]
            if missing > 0:
                state_dict[name] = functional.pad(state_dict[name], (0, 0, 0, 0, 0, missing))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def train(self, mode: bool = True) -> "ScoreUNet":
        super().train(mode)
        if self.is_pretrained:  # batches of one song are no measure of all
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, magnitude: Tensor, features: Tensor) -> Tensor:
        bins, frames = magnitude.shape[1:]
        features = features.float()
        masks, bands, short = (
            features[:, :FACTORIZATIONS],
            features[:, FACTORIZATIONS:-1],
            features[:, -1],
        )
        level, odds = _level(magnitude.float()), torch.log((masks + 0.02) / (1.02 - masks)) / 4
        changes = level - level.mean(dim=2, keepdim=True)  # at each frequency
        hidden = torch.cat(
            [level[:, None], _level(short)[:, None], changes[:, None], odds, bands], dim=1
        )
        if not (torch.is_grad_enabled() and processor.trains_contiguous()):
            hidden = hidden.contiguous(
                memory_format=torch.channels_last
            )  # else CPUs convolve at half the speed
        size = 2 ** len(self.down)
        padding = (0, -frames % size, 0, -bins % size)
        hidden, sounding = (
            functional.pad(signal, padding, mode="replicate")
            for signal in (hidden, features[:, AROUND : AROUND + 1])
        )
        hidden, skipped = self.first(hidden), []
        for down, context in zip(self.down, self.context, strict=True):
            skipped.append(hidden)
            hidden, sounding = (
                down(functional.max_pool2d(hidden, 2)),
                functional.max_pool2d(sounding, 2),
            )
            hidden = context(hidden, sounding) if isinstance(context, _Context) else hidden
        hidden = self.middle(hidden)
        for narrow, up in zip(reversed(self.narrow), reversed(self.up), strict=True):
            hidden = up(
                functional.interpolate(narrow(hidden), scale_factor=2.0) + skipped.pop()
            )  # none is held longer than needed
        correction = self.last(hidden)[:, 0, :bins, :frames].float()
        mean = masks.mean(dim=1)
        mask = torch.sigmoid(torch.logit(mean, eps=0.02) + correction)
        if self.training:
            return mask
        trusted_db, mistrusted_db = self.doubt_db
        mistrust, mistrust_of_mean = (
            ((doubt(kept, magnitude) - trusted_db) / (mistrusted_db - trusted_db)).clamp(0, 1)
            for kept in (mask, mean)
        )
        weight = mistrust * (1 - mistrust_of_mean)
        weight = weight.maximum(self.factorization_share * features[:, TOLD, 0, 0])
        return torch.lerp(mask, mean, weight[:, None, None])


def doubt(mask: Tensor, magnitude: Tensor) -> Tensor:
    """How unsure a mask is, in dB: the energy that it neither keeps nor leaves,
    `mask (1 - mask) |X|^2`, relative to the energy that it keeps.

    Shape:
        - mask, magnitude: `[batch, freq, frames]`
        - output: `[batch]`; near minus infinity for masks of zeros and ones

    >>> magnitude = torch.ones(1, 1, 1)
    >>> [round(float(doubt(value * magnitude, magnitude))) for value in (0.5, 0.9)]
    [0, -10]
    """
    energy = magnitude.float().square()
    undecided, kept = (
        (part * energy).sum(dim=(1, 2)) for part in (mask * (1 - mask), mask.square())
    )
    return 10 * torch.log10((undecided + 1e-12) / (kept + 1e-12))


class _Context(nn.Module):
    """Pools over time at each frequency, and over frequency at each frame.

    Places where the score's notes sound and places where they do not are pooled apart. The pools
    over time tell of the target's timbre, those over frequency of its dynamics.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.over_time, self.over_frequency = (
            nn.Sequential(
                nn.Conv1d(2 * channels, 2 * channels, 5, padding=2),
                nn.ReLU(),
                nn.Conv1d(2 * channels, channels, 5, padding=2),
            )
            for _ in range(2)
        )

    def forward(self, hidden: Tensor, sounding: Tensor) -> Tensor:
        """Add the pools to `hidden`.

        Args:
            hidden: `[batch, channel, freq, frames]`.
            sounding: how far each place belongs to the notes, `[batch, 1, freq, frames]`, 0 to 1.
        """
        shares = (sounding[:, 0].to(hidden.dtype), 1 - sounding[:, 0].to(hidden.dtype))
        frequencies, frames = (
            torch.cat(
                [
                    torch.einsum(f"bcft,bft->bc{kept}", hidden, s).float()
                    / (s.float().sum(dim) + 0.5)[:, None]
                    for s in shares
                ],
                dim=1,
            )
            for kept, dim in (("f", 2), ("t", 1))
        )
        return (
            hidden
            + self.over_time(frequencies)[..., None].to(hidden.dtype)
            + self.over_frequency(frames)[:, :, None].to(hidden.dtype)
        )


def _level(magnitude: Tensor) -> Tensor:
    """Base-10 logarithm of magnitudes relative to the RMS of each example, limited to -3."""
    return torch.log10(
        magnitude / magnitude.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-9) + 1e-3
    )


def pretrained_score_unet(
    bins: int | None = None,
    doubt_db: tuple[float, float] = (-4.0, 0.0),
    factorization_share: float = 0.2,
) -> ScoreUNet:
    """`ScoreUNet` as recipes/prior/train_prior.py left it, trained on synthesized ensembles.

    Args:
        bins, doubt_db, factorization_share: as of `ScoreUNet`.
    """
    prior = torch.load(PRIOR, weights_only=True, map_location="cpu")
    model = ScoreUNet(bins, prior["channels"], doubt_db, factorization_share)
    model.load_state_dict(
        {
            name: value.float() if value.is_floating_point() else value
            for name, value in prior["weights"].items()
        }
    )
    model.is_pretrained = True
    return model.train()


class _Convolution(nn.Sequential):
    """3 by 3, normalized over the batch, or where the statistics are fixed by them.

    Fixed statistics are a factor and an offset for each channel. They are multiplied into the
    convolution, which saves several passes over all frequencies and frames, forward and backward.
    """

    def __init__(self, channels_in: int, channels_out: int, dilation: tuple[int, int] = (1, 1)):
        convolution = nn.Conv2d(
            channels_in, channels_out, 3, padding=dilation, dilation=dilation, bias=False
        )
        super().__init__(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())

    def forward(self, hidden: Tensor) -> Tensor:
        convolution, norm = cast(nn.Conv2d, self[0]), cast(nn.BatchNorm2d, self[1])
        if norm.training:
            return super().forward(hidden)
        mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        factor = norm.weight * torch.rsqrt(variance + norm.eps)
        weight, bias = (
            convolution.weight * factor[:, None, None, None],
            norm.bias - mean * factor,
        )
        hidden = functional.conv2d(
            hidden, weight, bias, padding=convolution.padding, dilation=convolution.dilation
        )
        return functional.relu_(hidden)


MODELS = {model.__name__: model for model in (MaskBLSTM, ScoreUNet)}
"""The networks that a checkpoint may name."""
