"""Stems under their final names: several parts share out what they claim together, and a file is there whole or not at all."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from bespoke.audio import atomic_path
from bespoke.errors import BespokeError
from bespoke.evaluate import ORACLE_WINDOW_SECONDS
from bespoke.stft import STFT

FORMATS = {"wav": "FLOAT", "flac": "PCM_24", "mp3": "MPEG_LAYER_III"}
"""How libsndfile is asked to write each."""
_LIMITS = {"wav": (2**31, 1024), "flac": (655350, 8), "mp3": (48000, 2)}  # the highest rate in Hz, the most channels
_BLOCK_SECONDS = 30


def check_format(kind: str, sample_rate: int, channels: int) -> None:
    """Find before the work what no file of this kind can hold.

    Raises:
        BespokeError: the rate is too high, or there are too many channels.
    """
    highest, most = _LIMITS[kind]
    if sample_rate > highest or channels > most:
        raise BespokeError(
            f"{kind.upper()} holds at most {most} channels at {highest} Hz, the recording has {channels} at {sample_rate} Hz: choose"
            " another --format."
        )


def check_free(files: Sequence[Path], force: bool) -> None:
    """Replace nothing unasked.

    Raises:
        BespokeError: some of the files are there, and `force` is not set.
    """
    there = [str(file) for file in files if file.exists()]
    if there and not force:
        is_ = "is" if len(there) == 1 else "are"
        raise BespokeError(f"{' and '.join(there)} {is_} already there: choose another --out, or replace with --force.")


def share(estimates: Tensor, mixture: Tensor, stft: STFT) -> Tensor:
    """Make separate estimates of the parts of one mixture consistent: together they claim at most what is there.

    Where their magnitudes add up to more than the mixture's, all give way in proportion; elsewhere they stay as they are.

    Args:
        estimates: `[part, channel, time]`.
        mixture: `[channel, time]`.
        stft: at the signals' rate.

    Returns:
        The stems, `[part, channel, time]`; what is left of the mixture is the rest.

    >>> stft, mixture = STFT(16000), torch.randn(1, 16000)
    >>> stems = share(torch.stack([mixture, mixture, 0 * mixture]), mixture, stft)    # two want all of it, one nothing
    >>> torch.allclose(stems, torch.stack([mixture / 2, mixture / 2, 0 * mixture]), atol=1e-5)
    True
    """
    claims = stft(estimates)
    gain = (stft(mixture[None])[0].abs() / claims.abs().sum(0).clamp(min=1e-12)).clamp(max=1)
    return stft.inverse(gain * claims, mixture.shape[-1])


def write_shared(runs: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """From the runs of several parts of one recording to stems that add up to it, in blocks, so that length costs no memory.

    Args:
        runs: the run's folder of each part, with its `target.wav` and `residual.wav`.
        folder: for `LABEL.wav` of each part, and for `residual.wav`, which is what they leave of the recording.

    Returns:
        The files, by label; `residual` is the last.
    """
    labels = [*runs, "residual"]
    with contextlib.ExitStack() as stack:
        estimates = [stack.enter_context(soundfile.SoundFile(run / "target.wav")) for run in runs.values()]
        residual = stack.enter_context(soundfile.SoundFile(next(iter(runs.values())) / "residual.wav"))
        files = {label: stack.enter_context(atomic_path(folder / f"{label}.wav")) for label in labels}
        writers = [
            stack.enter_context(soundfile.SoundFile(file, "w", residual.samplerate, residual.channels, FORMATS["wav"], format="WAV"))
            for file in files.values()
        ]
        stft = STFT(residual.samplerate, ORACLE_WINDOW_SECONDS, ORACLE_WINDOW_SECONDS / 4)
        # Blocks that begin on a frame and overlap by more than a window give what the whole would give.
        block, margin = (stft.hop_samples * -(-round(seconds * stft.sample_rate) // stft.hop_samples) for seconds in (_BLOCK_SECONDS, 0.2))
        for start in range(0, residual.frames, block):
            first = max(0, start - margin)
            signals = [_read(file, first, start + block + margin) for file in (*estimates, residual)]
            mixture = signals[0].astype(np.float64) + signals[-1]
            stems = share(torch.from_numpy(np.stack(signals[:-1])), torch.from_numpy(mixture), stft).numpy()
            wanted = slice(start - first, start - first + block)
            rest = mixture - stems.sum(axis=0, dtype=np.float64)
            for writer, stem in zip(writers, (*stems, rest), strict=True):
                writer.write(stem[:, wanted].T)
    return {label: folder / f"{label}.wav" for label in labels}


def _read(file: soundfile.SoundFile, start: int, end: int) -> np.ndarray:
    file.seek(start)
    return np.ascontiguousarray(file.read(end - start, dtype="float32", always_2d=True).T)


def publish(sources: Sequence[Path], finals: Sequence[Path], kind: str) -> float:
    """Put float WAV stems under their final names, each whole or not at all.

    FLAC and MP3 hold nothing above full scale: where a stem goes above it, all are made softer alike, so that they still add up.

    Args:
        sources: the stems.
        finals: what they will be called, in the same order.
        kind: of `FORMATS`.

    Returns:
        The gain that all were given; 1 for WAV.

    Raises:
        BespokeError: the folder cannot be written, or the disk is full.
    """
    if kind == "wav":
        for source, final in zip(sources, finals, strict=True):
            copy(source, final)
        return 1.0
    gain = min(1.0, 1 / max(float(np.abs(block).max()) for source in sources for block in _blocks(source)))
    for source, final in zip(sources, finals, strict=True):
        info = soundfile.info(source)
        with (
            atomic_path(final) as temporary,
            _disk_errors(),
            soundfile.SoundFile(temporary, "w", info.samplerate, info.channels, FORMATS[kind], format=kind.upper()) as file,
        ):
            for block in _blocks(source):
                file.write(gain * block)
    return gain


def copy(source: Path, final: Path) -> None:
    """Copy a file, whole or not at all."""
    with atomic_path(final) as temporary:
        shutil.copyfile(source, temporary)


def _blocks(path: Path) -> Iterator[np.ndarray]:
    return soundfile.blocks(path, blocksize=1 << 20, dtype="float32", always_2d=True)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """libsndfile's failure to write as the OSError that it comes from."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise OSError(str(error)) from error
