"""Signal processing on waveforms `[channel, time]`: gain, levels and resampling.

Functions import PyTorch and SciPy only where they use them, so that commands that merely inspect
files start fast.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType

import numpy as np

MAX_TERM = 1000


def import_torchaudio() -> ModuleType:
    """Import torchaudio next to a torch that was built for another minor version of CUDA.

    The last torchaudio wheels are built for CUDA 13.0, newer torch wheels for 13.2. The import of
    torchaudio compares the two versions and fails, although Bespoke uses none of its CUDA kernels.
    Hiding torch's CUDA version during the import skips only this comparison.
    """
    import torch

    cuda, torch.version.cuda = torch.version.cuda, None
    try:
        import torchaudio
    finally:
        torch.version.cuda = cuda
    return torchaudio


def gain(waveform: np.ndarray, gain_db: float) -> np.ndarray:
    """Scale a waveform by a gain in dB.

    >>> gain(np.array([[0.5, -0.5]]), 6.0206).round(3).tolist()
    [[1.0, -1.0]]
    """
    return waveform * waveform.dtype.type(10 ** (gain_db / 20))


def peak(waveform: np.ndarray) -> float:
    """Largest absolute sample."""
    return float(np.abs(waveform).max(initial=0.0))


def active_rms(waveform: np.ndarray, sample_rate: int, floor_db: float = -40.0) -> float:
    """Root mean square over the 50 ms frames within `floor_db` of the loudest frame.

    Unlike a plain RMS, it does not depend on how long an instrument rests.
    """
    power = frame_power(waveform, max(1, round(0.05 * sample_rate)))
    loud = power[power >= power.max(initial=0.0) * 10 ** (floor_db / 10)]
    return float(np.sqrt(loud.mean())) if loud.size else 0.0


def frame_power(waveform: np.ndarray, frame_samples: int) -> np.ndarray:
    """Mean power of consecutive frames over all channels: `[channel, time]` to `[frames]`.

    The last frame is padded with zeros.
    """
    power = np.square(waveform, dtype=np.float64).mean(axis=0)
    power = np.pad(power, (0, -len(power) % frame_samples))
    return power.reshape(-1, frame_samples).mean(axis=1)


def resample(waveform: np.ndarray, sample_rate: int, new_rate: int) -> np.ndarray:
    """Resample a waveform with a Kaiser-windowed sinc filter.

    torchaudio's filter bank grows with the terms of the reduced rate ratio. Where the input rate's
    term exceeds `MAX_TERM`, SciPy's polyphase filter is used.

    Args:
        waveform: `[channel, time]`.
        sample_rate, new_rate: in Hz.

    Returns:
        float32 `[channel, ceil(time * new_rate / sample_rate)]`.
    """
    if sample_rate == new_rate:
        return waveform.astype(np.float32, copy=False)
    divisor = math.gcd(sample_rate, new_rate)
    if sample_rate // divisor > MAX_TERM:
        from scipy.signal import resample_poly

        return resample_poly(
            waveform, new_rate // divisor, sample_rate // divisor, axis=-1, window=("kaiser", 14.77)
        ).astype(np.float32)
    import torch

    resampled = import_torchaudio().functional.resample(
        torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32)),
        sample_rate,
        new_rate,
        lowpass_filter_width=32,
        rolloff=0.96,
        resampling_method="sinc_interp_kaiser",
        beta=14.77,
    )
    return resampled.numpy()


def resample_blocks(
    blocks: Iterable[np.ndarray], sample_rate: int, new_rate: int
) -> Iterator[np.ndarray]:
    """Resample a waveform that comes in consecutive blocks.

    The concatenated output equals `resample` of the whole waveform, to rounding: each block is
    resampled with a margin of 50 ms from its neighbours.

    Args:
        blocks: `[channel, time]` each, of any length.
        sample_rate, new_rate: in Hz.

    Yields:
        float32 blocks `[channel, time]` of any length.
    """
    divisor = math.gcd(sample_rate, new_rate)
    step = sample_rate // divisor  # input samples that make a whole number of output samples
    margin = -(-sample_rate // (20 * step)) * step
    # Smaller blocks would cost more time for calls than they save in memory.
    size = -(-2 * sample_rate // step) * step
    # In input samples: `held` begins at `held_start`; the output up to `done` has been yielded.
    held, held_start, done = None, 0, 0
    for block in itertools.chain(blocks, [None]):
        if block is not None:
            held = block if held is None else np.concatenate([held, block], axis=1)
        elif held is None:
            return
        end = held_start + held.shape[1]
        ready = end if block is None else (end - margin) // step * step
        if block is not None and ready - done < size:
            continue
        resampled = resample(
            held if block is None else held[:, : ready + margin - held_start], sample_rate, new_rate
        )
        first, last = (
            (edge - held_start) * (new_rate // divisor) // step for edge in (done, ready)
        )
        yield resampled[:, first:] if block is None else resampled[:, first:last]
        done = ready
        kept = max(done - margin, held_start)
        held, held_start = held[:, kept - held_start :], kept


DIFFERENCE = (0.5, -0.5)
"""The view of a target whose channels are opposite, see `seen`."""


def seen(waveform: np.ndarray, view: Sequence[float] | None = None) -> np.ndarray:
    """The channels as one: their mean, or their sum weighted by a view.

    Args:
        waveform: `[channel, time]`.
        view: a weight for each channel; None, or as many as there are no channels: the mean.

    Returns:
        `[1, time]`.

    >>> seen(np.array([[1.0, 2.0], [-1.0, 0.0]]), (0.5, -0.5))
    array([[1., 1.]])
    """
    if view is None or len(view) != len(waveform):
        return waveform.mean(axis=0, keepdims=True)
    return np.asarray(view, waveform.dtype)[None] @ waveform


def opposed(waveform: np.ndarray) -> tuple[float, float] | None:
    """The view for a recording whose two channels are opposite, as after wrong wiring.

    Args:
        waveform: `[channel, time]`.

    Returns:
        The weights of half the channels' difference, if it has 30 dB more power than their mean;
        None for all other recordings.

    >>> opposed(np.array([[1.0, 2.0], [-1.0, -2.0]]))
    (0.5, -0.5)
    """
    if len(waveform) != 2:
        return None
    mean, difference = (
        np.square(seen(waveform, view), dtype=np.float64).mean() for view in (None, DIFFERENCE)
    )
    return DIFFERENCE if difference > 1e3 * mean else None
