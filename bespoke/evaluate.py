"""Metrics on waveforms, and the oracle mask. All on the channel mean, in dB."""

import numpy as np
import torch
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from bespoke.loss import tpsa_target
from bespoke.stft import STFT

# DESIGN: one STFT for the oracle of every recipe, so that its figure can be compared.
ORACLE_WINDOW_SECONDS = 2048 / 44100


def si_sdr(estimate: np.ndarray, reference: np.ndarray) -> float | None:
    """Scale-invariant signal-to-distortion ratio of the channel means (Le Roux et al., ICASSP 2019), by torchmetrics.

    Args:
        estimate, reference: `[channel, time]`.

    Returns:
        dB, or None where the reference is silent, so that there is nothing to measure.

    >>> reference = np.array([[1.0, 1.0, -1.0, -1.0]], np.float32)
    >>> noise = np.array([[0.1, -0.1, 0.1, -0.1]], np.float32)
    >>> round(si_sdr(3 * (reference + noise), reference), 3)
    20.0
    """
    estimate, reference = _mono(estimate), _mono(reference)
    if not reference.any():
        return None
    return float(scale_invariant_signal_distortion_ratio(estimate, reference))


def oracle(mixture: np.ndarray, reference: np.ndarray, sample_rate: int) -> np.ndarray:
    """What the tPSA mask of the true target makes of the mixture's channel mean: the ceiling of masking, `[1, time]`.

    Args:
        mixture, reference: `[channel, time]`.
        sample_rate: in Hz.
    """
    stft = STFT(sample_rate, ORACLE_WINDOW_SECONDS, ORACLE_WINDOW_SECONDS / 4)
    mixture_spectrogram, reference_spectrogram = (stft(_mono(signal).float()[None, None]) for signal in (mixture, reference))
    mask = tpsa_target(reference_spectrogram, mixture_spectrogram) / mixture_spectrogram.abs().clamp(min=1e-12)
    return stft.inverse(mask * mixture_spectrogram, mixture.shape[-1])[0].numpy()


def evaluate(estimate: np.ndarray, mixture: np.ndarray, reference: np.ndarray, sample_rate: int) -> dict[str, float | None]:
    """The figures of a run's metrics.json that need a reference.

    Args:
        estimate, mixture, reference: `[channel, time]` of one shape.
        sample_rate: in Hz.

    Returns:
        `si_sdr`, `si_sdr_mixture`, `si_sdr_improvement`, `si_sdr_oracle` in dB; None where the reference is silent.
    """
    score, baseline = si_sdr(estimate, reference), si_sdr(mixture, reference)
    return {
        "si_sdr": score,
        "si_sdr_mixture": baseline,
        "si_sdr_improvement": None if score is None else score - baseline,
        "si_sdr_oracle": None if score is None else si_sdr(oracle(mixture, reference, sample_rate), reference),
    }


def _mono(waveform: np.ndarray) -> torch.Tensor:
    # In 64 bits: the metric of a very good estimate is the difference of nearly equal numbers.
    return torch.from_numpy(waveform.mean(axis=0, dtype=np.float64))
