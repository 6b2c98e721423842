"""Multichannel Wiener filter: uses the target's position in the stereo image as a cue."""

from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor

_SHARPNESS = 8.0  # exponent of the mask: covariances are of bins dominated by one signal
_BAND_OCTAVES = 1 / 3  # width of the bands, each of which has its covariances
_DIFFUSE = 0.01  # share of either signal's power that is assumed to be spatially uniform
_NO_EVIDENCE = 1e-6  # weight of the whole mixture in both covariances


def multichannel_wiener(mask: Tensor, spectrogram: Tensor) -> Tensor:
    """Apply the mask of a channel mean to all channels, depending on position in the stereo image.

    This is a multichannel Wiener filter with a spatial covariance per third-octave band (Duong,
    Vincent & Gribonval, "Under-Determined Reverberant Audio Source Separation Using a Full-Rank
    Spatial Covariance Model", IEEE TASLP 18(7), 2010). With the mask m as the target's share of the
    power, and covariances S of the target and N of the rest with equal traces, the filter is
    `m S (m S + (1 - m) N)^-1`.

    Both covariances are estimated from the mixture, weighted by powers of `m` and of `1 - m`, so
    one pass suffices. Along each of their common axes, the odds of the mask are multiplied by the
    ratio of the target's power to that of the rest. If both have the same position, as in a mono
    mix, all factors are 1 and the output is `m` times the mixture.

    Args:
        mask: the target's share, `[freq, frames]`, from 0 to 1.
        spectrogram: mixture, complex `[channel, freq, frames]`, with bins in equal steps from 0 Hz.

    Returns:
        Spectrogram of the target, complex `[channel, freq, frames]`: 0 where the mask is 0, the
        mixture where it is 1.

    >>> mask, mono = torch.rand(5, 40), torch.randn(1, 5, 40, dtype=torch.cfloat)
    >>> torch.allclose(multichannel_wiener(mask, mono.expand(2, 5, 40)), mask * mono, atol=1e-5)
    True
    """
    # Same memory layout as the mask. An STFT's result is strided by frames, which takes twice the
    # time.
    spectrogram = spectrogram.contiguous()
    signal = spectrogram.transpose(0, 1)  # [freq, channel, frames]: one matrix per frequency
    band = _band(len(signal))
    target, rest = _covariances(
        spectrogram, [share**_SHARPNESS + _NO_EVIDENCE for share in (mask, 1 - mask)], band
    )
    # Common axes are the columns of `back`, with inverse `forth`: N = back back^H and
    # S = back diag(factors) back^H.
    root = torch.linalg.cholesky(rest)
    whitened = torch.linalg.solve_triangular(root, target, upper=False)
    whitened = torch.linalg.solve_triangular(root, whitened.mH, upper=False)
    factors, axes = torch.linalg.eigh((whitened + whitened.mH) / 2)
    back, forth = root @ axes, torch.linalg.solve_triangular(root.mH, axes, upper=True).mH
    back, forth = (matrix[band].to(signal.device, signal.dtype) for matrix in (back, forth))
    axes_signal = forth @ signal
    favoured = mask[:, None] * factors.clamp(min=1e-6)[band, :, None].to(mask.device, mask.dtype)
    axes_signal *= favoured / (favoured + (1 - mask[:, None]))
    return (back @ axes_signal).transpose(0, 1)


def project(estimate: Tensor, spectrogram: Tensor) -> Tensor:
    """The image in all channels of a target that was estimated in one view of them.

    What is coherent with the estimate is the target's: for each third of an octave the least
    squares of the channels given the estimate.

    Args:
        estimate: of the target, complex `[freq, frames]`.
        spectrogram: mixture, complex `[channel, freq, frames]`, with bins in equal steps from 0 Hz.

    Returns:
        Spectrogram of the target, complex `[channel, freq, frames]`.

    >>> target, rest = torch.randn(2, 40, 2000, dtype=torch.cfloat)
    >>> image = project(target, torch.stack([target + rest, rest - target]))
    >>> torch.allclose(image, torch.stack([target, -target]), atol=0.5)
    True
    """
    band = _band(len(estimate)).to(estimate.device)
    products = torch.stack([*spectrogram, estimate]) * estimate.conj()
    sums = torch.zeros(len(products), int(band[-1]) + 1, dtype=products.dtype, device=band.device)
    sums.index_add_(1, band, products.sum(dim=2))
    gains = sums[:-1] / sums[-1].real.clamp(min=1e-20)
    return gains[:, band, None] * estimate


def _band(bins: int) -> Tensor:
    """The third of an octave that each frequency lies in, `[freq]`."""
    return (torch.arange(bins).clamp(min=1).log2() / _BAND_OCTAVES).round().long()


def _covariances(spectrogram: Tensor, weights: Sequence[Tensor], band: Tensor) -> list[Tensor]:
    """Covariances of the channels per band, one for each weight.

    Computed on the CPU in double precision, which not every device supports.

    Args:
        spectrogram: complex `[channel, freq, frames]`.
        weights: each `[freq, frames]`.
        band: band of each frequency, `[freq]`.

    Returns:
        Complex `[band, channel, channel]` each, with the trace of the identity.
    """
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
