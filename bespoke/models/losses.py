"""Losses for mask networks.

The truncated phase-sensitive approximation (tPSA), which the paper trains with, is by Erdogan et
al., "Phase-sensitive and recognition-boosted speech separation using deep recurrent neural
networks" (ICASSP 2015).
"""

import torch
from torch import Tensor, nn


def tpsa_target(target: Tensor, mixture: Tensor) -> Tensor:
    """Truncated phase-sensitive target `clip(|S| cos(angle(S) - angle(X)), 0, |X|)`.

    It is the part of the target that is in phase with the mixture.

    Args:
        target, mixture: complex spectrograms S and X of one shape.

    Returns:
        Real, of that shape, between 0 and the mixture's magnitude.

    >>> target = torch.tensor([1j, 3 + 0j, -1 + 0j, 1 + 1j])
    >>> tpsa_target(target, torch.tensor([2 + 0j] * 4)).tolist()
    [0.0, 2.0, 0.0, 1.0]
    """
    magnitude = mixture.abs()
    in_phase = (target * mixture.conj()).real / magnitude.clamp(min=1e-12)
    return torch.minimum(in_phase.clamp(min=0), magnitude)


class TPSALoss(nn.Module):
    """Mean distance between `mask * |X|` and the tPSA target.

    Args:
        distance: `l1`, mean absolute difference (nussl's default), or `l2`, mean squared difference
            (Erdogan et al.).

    Raises:
        ValueError: `distance` is neither.

    Shape:
        - mask: real, 0 to 1
        - target, mixture: complex spectrograms of the same shape
        - output: scalar
    """

    def __init__(self, distance: str = "l1"):
        super().__init__()
        if distance not in ("l1", "l2"):
            raise ValueError(f"distance must be 'l1' or 'l2', not {distance!r}")
        self.distance = nn.L1Loss() if distance == "l1" else nn.MSELoss()

    def forward(self, mask: Tensor, target: Tensor, mixture: Tensor) -> Tensor:
        return self.distance(mask.float() * mixture.abs(), tpsa_target(target, mixture))


class RelativeErrorLoss(nn.Module):
    """Squared error relative to the target in dB, averaged over examples.

    It is the negative SDR of the masked spectrogram. A target 15 dB below the rest counts as much
    as one above it, while it hardly contributes to an absolute distance.

    Args:
        floor_db: level relative to the mixture's energy that is added to error and target, so that
            a silent target requires a silent estimate and no more. Less than 0.

    Raises:
        ValueError: `floor_db` is not negative.

    Shape:
        - mask: real `[batch, freq, frames]`, 0 to 1
        - target, mixture: complex spectrograms of the same shape
        - output: scalar, in dB

    >>> one = torch.ones(1, 1, 1, dtype=torch.complex64)
    >>> round(RelativeErrorLoss()(torch.full((1, 1, 1), 0.9), one, one).item(), 1)
    -20.0
    """

    def __init__(self, floor_db: float = -40.0):
        super().__init__()
        if not floor_db < 0:
            raise ValueError(f"floor_db must be less than 0, not {floor_db}")
        self.floor = 10 ** (floor_db / 10)

    def forward(self, mask: Tensor, target: Tensor, mixture: Tensor) -> Tensor:
        # abs() is avoided: its gradient is not finite where a decay reaches denormal numbers.
        signals = (mask.float() * mixture - target, target, mixture)
        error, energy, whole = (
            torch.view_as_real(signal).square().sum(dim=(1, 2, 3)) for signal in signals
        )
        floor = self.floor * whole + 1e-12
        return 10 * torch.log10((error + floor) / (energy + floor)).mean()
