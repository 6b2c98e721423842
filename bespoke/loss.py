"""The truncated phase-sensitive approximation (tPSA) of Erdogan et al., "Phase-sensitive and recognition-boosted speech separation
using deep recurrent neural networks" (ICASSP 2015), which the paper trains with."""

import torch
from torch import Tensor, nn


def tpsa_target(target: Tensor, mixture: Tensor) -> Tensor:
    """The part of the target in phase with the mixture, truncated: `clip(|S| cos(angle(S) - angle(X)), 0, |X|)`.

    Args:
        target, mixture: complex spectrograms S and X of one shape.

    Returns:
        Real, of that shape, between 0 and the mixture's magnitude.

    >>> tpsa_target(torch.tensor([1j, 3 + 0j, -1 + 0j, 1 + 1j]), torch.tensor([2 + 0j] * 4)).tolist()
    [0.0, 2.0, 0.0, 1.0]
    """
    magnitude = mixture.abs()
    in_phase = (target * mixture.conj()).real / magnitude.clamp(min=1e-12)
    return torch.minimum(in_phase.clamp(min=0), magnitude)


class TPSALoss(nn.Module):
    """Mean distance between `mask * |X|` and the tPSA target.

    Args:
        distance: `l1`, mean absolute difference (nussl's default), or `l2`, mean squared difference (Erdogan et al.).

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
