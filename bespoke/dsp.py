"""Signal processing on waveforms `[channel, time]`: gain, equalizer, peak normalization, resampling and the compressor."""

import math
from collections.abc import Sequence

import numba
import numpy as np
import torch
from scipy.signal import fftconvolve, firwin2, resample_poly

MAX_TERM = 1000
OCTAVES_HZ = tuple(62.5 * 2**octave for octave in range(8))  # of the equalizer, up to 8 kHz


def _import_torchaudio():
    """Import torchaudio beside a torch that was built for another minor version of CUDA.

    torchaudio is in maintenance and its last wheels are built for CUDA 13.0, while newer torch wheels are built for 13.2; its
    import compares the two and refuses, though nothing here runs its CUDA kernels. Hiding torch's version for the import skips that
    comparison and nothing else.
    """
    cuda, torch.version.cuda = torch.version.cuda, None
    try:
        import torchaudio
    finally:
        torch.version.cuda = cuda
    return torchaudio


torchaudio = _import_torchaudio()


def gain(waveform: np.ndarray, gain_db: float) -> np.ndarray:
    """Scale by a gain in dB.

    >>> gain(np.array([[0.5, -0.5]]), 6.0206).round(3).tolist()
    [[1.0, -1.0]]
    """
    return waveform * waveform.dtype.type(10 ** (gain_db / 20))


def equalize(waveform: np.ndarray, sample_rate: int, gains_db: Sequence[float]) -> np.ndarray:
    """Filter `[channel, time]` with gains in dB at `OCTAVES_HZ`, straight between them over the logarithm of frequency, flat beyond.

    The filter has linear phase, no delay and a length of 24 ms, so that the curve is blurred below 100 Hz.
    """
    frequencies_hz = np.linspace(0, sample_rate / 2, 2049)
    curve_db = np.interp(np.log2(np.maximum(frequencies_hz, 1)), np.log2(OCTAVES_HZ), gains_db)
    taps = firwin2(2 * round(0.012 * sample_rate) + 1, frequencies_hz, 10 ** (curve_db / 20), fs=sample_rate)
    half = len(taps) // 2
    return fftconvolve(waveform, taps[None], axes=-1)[:, half : half + waveform.shape[-1]].astype(np.float32)


def peak(waveform: np.ndarray) -> float:
    """The largest absolute sample."""
    return float(np.abs(waveform).max(initial=0.0))


def active_rms(waveform: np.ndarray, sample_rate: int, floor_db: float = -40.0) -> float:
    """Root mean square over the 50 ms frames that are within `floor_db` of the loudest one.

    Unlike a plain RMS it does not depend on how long an instrument rests.
    """
    power = frame_power(waveform, max(1, round(0.05 * sample_rate)))
    loud = power[power >= power.max(initial=0.0) * 10 ** (floor_db / 10)]
    return float(np.sqrt(loud.mean())) if loud.size else 0.0


def frame_power(waveform: np.ndarray, frame_samples: int) -> np.ndarray:
    """Mean power over channels of consecutive frames, the last one padded with zeros: `[channel, time]` to `[frames]`."""
    power = np.square(waveform, dtype=np.float64).mean(axis=0)
    power = np.pad(power, (0, -len(power) % frame_samples))
    return power.reshape(-1, frame_samples).mean(axis=1)


def resample(waveform: np.ndarray, sample_rate: int, new_rate: int) -> np.ndarray:
    """Band-limited resampling by a Kaiser-windowed sinc of `[channel, time]`, float32.

    The length becomes `ceil(time * new_rate / sample_rate)`. torchaudio's filter bank grows with the rates' smallest terms; for rates that
    have hardly a factor in common SciPy's polyphase filter takes its place.
    """
    if sample_rate == new_rate:
        return waveform.astype(np.float32, copy=False)
    divisor = math.gcd(sample_rate, new_rate)
    if sample_rate // divisor > MAX_TERM:
        return resample_poly(waveform, new_rate // divisor, sample_rate // divisor, axis=-1, window=("kaiser", 14.77)).astype(np.float32)
    resampled = torchaudio.functional.resample(
        torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32)),
        sample_rate,
        new_rate,
        lowpass_filter_width=32,
        rolloff=0.96,
        resampling_method="sinc_interp_kaiser",
        beta=14.77,
    )
    return resampled.numpy()


def compressor_gain(
    waveform: np.ndarray,
    sample_rate: int,
    ratio: float,
    threshold_db: float = -18.0,
    attack_ms: float = 20.0,
    release_ms: float = 250.0,
    knee_db: float = 9.03,
) -> np.ndarray:
    """The gain curve of a feed-forward compressor with RMS detection and a soft knee (PAPER section 3, "dynamic range compression").

    The detector smooths the mean power over channels with one pole, of one time constant where the power rises and another where it falls;
    attack and release are the times to 98 % (four time constants). The static curve is the quadratic knee of Giannoulis, Massberg and
    Reiss, "Digital Dynamic Range Compressor Design" (JAES 2012), eq. 4. With the default values this is
    FFmpeg's `acompressor` (knee 2.83 times, which is 9.03 dB wide), against which it is tested.

    Args:
        waveform: `[channel, time]`, full scale at 1.
        sample_rate: in Hz.
        ratio: dB in for one dB out above the threshold, at least 1.
        threshold_db: dB relative to full scale, of the RMS.
        attack_ms, release_ms: in milliseconds.
        knee_db: the whole width of the knee.

    Returns:
        The linear gain, float32 `[time]`, at most 1; multiply the waveform, or the sources it is the sum of, by it.
    """
    power = np.square(waveform, dtype=np.float32).mean(axis=0)
    attack = min(1.0, 4000.0 / (attack_ms * sample_rate)) if attack_ms > 0 else 1.0
    release = min(1.0, 4000.0 / (release_ms * sample_rate)) if release_ms > 0 else 1.0
    return _gain_curve(power, attack, release, 1.0 / ratio - 1.0, threshold_db, knee_db)


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _gain_curve(power, attack, release, slope, threshold_db, knee_db):
    curve = np.ones_like(power)
    knee_start = 10.0 ** ((threshold_db - knee_db / 2) / 10)
    to_gain = math.log(10.0) / 20
    smooth = 0.0
    for index in range(power.size):
        rise = power[index] - smooth
        smooth += rise * (attack if rise > 0 else release)
        if smooth > knee_start:  # below the knee the gain is 1, and most samples need no logarithm
            over_db = 10 * math.log10(smooth) - threshold_db
            if 2 * over_db < knee_db:
                over_db = (over_db + knee_db / 2) ** 2 / (2 * knee_db)
            curve[index] = math.exp(slope * over_db * to_gain)
    return curve
