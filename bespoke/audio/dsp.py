"""Signal processing on waveforms `[channel, time]`: gain, levels and resampling.

PyTorch and SciPy are imported by the functions that use them: commands that only look at files start
without.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from types import ModuleType

import numpy as np

MAX_TERM = 1000


def import_torchaudio() -> ModuleType:
    """Import torchaudio beside a torch that was built for another minor version of CUDA.

    torchaudio is in maintenance and its last wheels are built for CUDA 13.0, while newer torch wheels
    are built for 13.2; its import compares the two and refuses, though nothing here runs its CUDA
    kernels. Hiding torch's version for the import skips that comparison and nothing else.
    """
    import torch

    cuda, torch.version.cuda = torch.version.cuda, None
    try:
        import torchaudio
    finally:
        torch.version.cuda = cuda
    return torchaudio


def gain(waveform: np.ndarray, gain_db: float) -> np.ndarray:
    """Scale by a gain in dB.

    >>> gain(np.array([[0.5, -0.5]]), 6.0206).round(3).tolist()
    [[1.0, -1.0]]
    """
    return waveform * waveform.dtype.type(10 ** (gain_db / 20))


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
    """`resample` for a waveform that comes in consecutive blocks `[channel, time]` of any length, and goes on in such blocks.

    Joined they are what `resample` makes of the whole, to rounding: each block is resampled with 50 ms of its neighbours.
    """
    divisor = math.gcd(sample_rate, new_rate)
    step = sample_rate // divisor  # so many samples in are a whole number of samples out
    margin = -(-sample_rate // (20 * step)) * step
    size = -(-2 * sample_rate // step) * step  # more calls would cost more than they save in memory
    held, held_start, done = None, 0, 0  # samples in; up to `done` all has been given out
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
