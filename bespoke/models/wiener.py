"""Panning as a cue: what comes from where the target is counts for the target, what comes from elsewhere for the rest."""

from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor

_SHARPNESS = 8.0  # power of the mask in the covariances: what is nearly all target's, or all the rest's, tells most of their places
_BAND_OCTAVES = 1 / 3  # of a band, for which there is one covariance
_DIFFUSE = 0.01  # share of either signal's power that is taken to come from everywhere alike
_NO_EVIDENCE = 1e-6  # weight of the whole mixture in both covariances


def multichannel_wiener(mask: Tensor, spectrogram: Tensor) -> Tensor:
    """Apply the mask of a channel mean to all channels, in each place between them as far as the target is there.

    A multichannel Wiener filter with a spatial covariance for each third of an octave (Duong, Vincent & Gribonval, "Under-Determined
    Reverberant Audio Source Separation Using a Full-Rank Spatial Covariance Model", IEEE TASLP 18(7), 2010). With the mask m as the
    target's share of the power, and the covariances S of the target and N of the rest, of equal traces, it is `m S (m S + (1 - m) N)^-1`.
    Both covariances are of the mixture, weighted by powers of `m` and of `1 - m`, so that one pass is enough. Along each of their common
    axes the odds of the mask are multiplied by how much more of the target's power lies there than of the rest's. Where the two come
    from the same place, as in a mono mix, all these factors are 1, and what comes out is `m` times the mixture.

    Args:
        mask: the target's share, `[freq, frames]`, from 0 to 1.
        spectrogram: of the mixture, complex `[channel, freq, frames]`, from 0 Hz on in equal steps.

    Returns:
        The target's spectrogram, complex `[channel, freq, frames]`: 0 where the mask is 0, the mixture where it is 1.

    >>> mask, mono = torch.rand(5, 40), torch.randn(1, 5, 40, dtype=torch.cfloat)
    >>> torch.allclose(multichannel_wiener(mask, mono.expand(2, 5, 40)), mask * mono, atol=1e-5)
    True
    """
    spectrogram = (
        spectrogram.contiguous()
    )  # a transform's frames lie one after the other, the mask's frequencies do: half the time
    signal = spectrogram.transpose(0, 1)  # [freq, channel, frames]: a matrix for each frequency
    band = (torch.arange(len(signal)).clamp(min=1).log2() / _BAND_OCTAVES).round().long()
    target, rest = _covariances(
        spectrogram, [share**_SHARPNESS + _NO_EVIDENCE for share in (mask, 1 - mask)], band
    )
    # The axes: the columns of `back`, whose inverse is `forth`, with N = back back^H and S = back diag(factors) back^H.
    root = torch.linalg.cholesky(rest)
    whitened = torch.linalg.solve_triangular(root, target, upper=False)
    whitened = torch.linalg.solve_triangular(root, whitened.mH, upper=False)
    factors, axes = torch.linalg.eigh((whitened + whitened.mH) / 2)
    back, forth = root @ axes, torch.linalg.solve_triangular(root.mH, axes, upper=True).mH
    back, forth = (matrix[band].to(signal.device, signal.dtype) for matrix in (back, forth))
    places = forth @ signal
    favoured = mask[:, None] * factors.clamp(min=1e-6)[band, :, None].to(mask.device, mask.dtype)
    places *= favoured / (favoured + (1 - mask[:, None]))
    return (back @ places).transpose(0, 1)


def _covariances(spectrogram: Tensor, weights: Sequence[Tensor], band: Tensor) -> list[Tensor]:
    """The channels' covariances in each band by each weight, `[band, channel, channel]`, with the trace of the identity; on the CPU, in
    double precision, which not every device has."""
    channels = len(spectrogram)
    found = [
        torch.zeros(int(band[-1]) + 1, channels, channels, dtype=torch.complex128) for _ in weights
    ]
    for one, other in combinations_with_replacement(range(channels), 2):
        product = spectrogram[one] * spectrogram[other].conj()
        for covariance, weight in zip(found, weights, strict=True):
            entry = (product * weight).sum(dim=1).cpu().to(covariance.dtype)
            covariance[:, one, other].index_add_(0, band, entry)
            covariance[:, other, one] = covariance[:, one, other].conj()
    everywhere = torch.eye(channels, dtype=torch.complex128)
    power = [
        covariance.diagonal(dim1=1, dim2=2).real.mean(-1)[:, None, None] for covariance in found
    ]
    return [
        (1 - _DIFFUSE) * torch.where(loud > 0, covariance / loud.clamp(min=1e-300), everywhere)
        + _DIFFUSE * everywhere
        for covariance, loud in zip(found, power, strict=True)
    ]
