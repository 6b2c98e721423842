"""Mask networks, from magnitude to mask; plain PyTorch."""

import torch
from torch import Tensor, nn


class MaskBLSTM(nn.Module):
    """The paper's network: BLSTM layers and a fully connected layer with a sigmoid (section 2).

    The input is the log magnitude in dB, batch-normalized over frequency, as in nussl, the authors' library. The
    30 % dropout "applied to the second layer" is `nn.LSTM`'s between the two layers, nussl's convention.

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

    def __init__(self, bins: int, hidden_size: int = 300, layers: int = 2, dropout: float = 0.3, floor_db: float = -80.0):
        super().__init__()
        self.hyperparameters = {"bins": bins, "hidden_size": hidden_size, "layers": layers, "dropout": dropout, "floor_db": floor_db}
        self.floor = 10 ** (floor_db / 20)
        self.norm = nn.BatchNorm1d(bins)
        self.lstm = nn.LSTM(bins, hidden_size, layers, batch_first=True, bidirectional=True, dropout=dropout if layers > 1 else 0.0)
        self.linear = nn.Linear(2 * hidden_size, bins)

    def forward(self, magnitude: Tensor) -> Tensor:
        level_db = 20 * torch.log10(magnitude.float().clamp(min=self.floor))
        hidden, _ = self.lstm(self.norm(level_db).transpose(1, 2))
        return torch.sigmoid(self.linear(hidden)).transpose(1, 2)


MODELS = {model.__name__: model for model in (MaskBLSTM,)}
"""The networks that a checkpoint may name."""
