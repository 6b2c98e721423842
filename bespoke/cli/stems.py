"""Stems under their final names: several parts share out what they claim together, and a file is there whole or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from bespoke.audio.io import WRITABLE, Recording, wav_writer, write_like
from bespoke.audio.stft import STFT
from bespoke.evaluation.metrics import ORACLE_WINDOW_SECONDS
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import atomic_path, file_hash, write_json

_LIMITS = {".flac": (655350, 8), ".mp3": (48000, 2)}  # the highest rate in Hz, the most channels
_BLOCK_SECONDS = 30


def suffix_for(kind: str, recording: Recording) -> str:
    """What a stem's file name ends in; found before the work whether it can hold the recording.

    Raises:
        BespokeError: it cannot, or nothing can write this format.
    """
    suffix = recording.path.suffix.lower() if kind == "same" else f".{kind}"
    highest, most = _LIMITS.get(suffix, (recording.sample_rate, recording.channels))
    if recording.sample_rate > highest or recording.channels > most:
        raise BespokeError(
            f"{suffix[1:].upper()} holds at most {most} channels at {highest} Hz, the recording has {recording.channels} at"
            f" {recording.sample_rate} Hz: choose another --format."
        )
    if suffix not in WRITABLE:
        raise BespokeError(
            f"Stems cannot be written as {suffix or 'a file without an ending'}: choose --format wav or flac."
        )
    return suffix


def check_free(files: Sequence[Path], force: bool, changed: Sequence[Path] = ()) -> None:
    """Replace nothing unasked.

    Args:
        files: that are to be written.
        force: whether they may be replaced.
        changed: those of them that are ours, and were changed since.

    Raises:
        BespokeError: some of the files are there, and `force` is not set.
    """
    there = [str(file) for file in files if file.exists()]
    if there and not force:
        is_ = "is" if len(there) == 1 else "are"
        edited = [str(file) for file in changed if file.exists()]
        why = f" ({' and '.join(edited)} changed since this command made it)" if edited else ""
        raise BespokeError(
            f"{' and '.join(there)} {is_} already there{why}: choose another --out, or replace with --force."
        )


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
        estimates = [
            stack.enter_context(soundfile.SoundFile(run / "target.wav")) for run in runs.values()
        ]
        residual = stack.enter_context(
            soundfile.SoundFile(next(iter(runs.values())) / "residual.wav")
        )
        shape = (residual.samplerate, residual.channels, residual.frames)
        writers = [
            stack.enter_context(wav_writer(folder / f"{label}.wav", *shape)) for label in labels
        ]
        stft = STFT(residual.samplerate, ORACLE_WINDOW_SECONDS, ORACLE_WINDOW_SECONDS / 4)
        for block, kept in stft.blocks(residual.frames, round(_BLOCK_SECONDS * stft.sample_rate)):
            signals = [_read(file, block.start, block.stop) for file in (*estimates, residual)]
            mixture = signals[0].astype(np.float64) + signals[-1]
            stems = share(
                torch.from_numpy(np.stack(signals[:-1])), torch.from_numpy(mixture), stft
            ).numpy()
            rest = mixture - stems.sum(axis=0, dtype=np.float64)
            for write, stem in zip(writers, (*stems, rest), strict=True):
                write(stem[:, kept])
    return {label: folder / f"{label}.wav" for label in labels}


def _read(file: soundfile.SoundFile, start: int, end: int) -> np.ndarray:
    file.seek(start)
    return np.ascontiguousarray(file.read(end - start, dtype="float32", always_2d=True).T)


def publish(
    sources: Sequence[Path],
    finals: Sequence[Path],
    recording: Path,
    exact: bool,
    done: Callable[[Path, float], None] = lambda final, gain: None,
) -> float:
    """Put float WAV stems under their final names: all of them, or, if one cannot be written,
    none that was not there.

    What is no float file holds nothing above full scale: where a stem goes above it, all are made
    softer alike, so that they still add up.

    Args:
        sources: the stems.
        finals: what they will be called, in the same order.
        recording: that they are of; its bit depth and tags are theirs.
        exact: leave them float WAV.
        done: is told each file that is there, and the gain.

    Returns:
        The gain that all were given.

    Raises:
        BespokeError: the folder cannot be written, or the disk is full.
    """
    new = [final for final in finals if not final.exists()]
    try:
        return _publish(sources, finals, recording, exact, done)
    except BaseException:
        for final in new:
            final.unlink(missing_ok=True)
        raise


def _publish(
    sources: Sequence[Path],
    finals: Sequence[Path],
    recording: Path,
    exact: bool,
    done: Callable[[Path, float], None],
) -> float:
    gain = 1.0
    if not exact:
        highest = max(float(np.abs(block).max()) for source in sources for block in _blocks(source))
        gain = min(1.0, 1 / max(highest, 1e-12))
    for source, final in zip(sources, finals, strict=True):
        if exact:
            place(source, final)
        elif gain == 1:
            write_like(final, source, recording)
        else:
            info, softer = soundfile.info(source), source.with_name(f".softer.{source.name}")
            try:
                with wav_writer(softer, info.samplerate, info.channels, info.frames) as write:
                    for block in _blocks(source):
                        write(gain * block.T)
                write_like(final, softer, recording)
            finally:
                softer.unlink(missing_ok=True)
        done(final, gain)
    return gain


def place(source: Path, final: Path) -> None:
    """Give a file a second name, whole or not at all: a hard link, which takes no room, or a copy
    where the file system has none or the other folder is on another one."""
    with atomic_path(final) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


class Published:
    """What was put under final names, with the hash of each and what it was made of: so that a
    request knows its own files again, and those that somebody has changed since.

    Args:
        path: of the JSON file that keeps it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.files: dict[str, dict[str, Any]] = {}
        if path.is_file():
            self.files = json.loads(path.read_text(encoding="utf-8"))

    def note(self, file: Path, gain: float = 1.0, *, of: str, links: Sequence[str] = ()) -> None:
        """Keep that this file, as it is now, was made of these stems, with this gain, and with these
        links to others."""
        self.files[file.name] = {
            "sha256": file_hash(file),
            "of": of,
            "gain": gain,
            "links": [*links],
        }
        write_json(self.path, self.files)

    def is_unchanged(self, file: Path) -> bool:
        """Whether the file is there as it was made."""
        known = self.files.get(file.name)
        return known is not None and file.is_file() and known["sha256"] == file_hash(file)

    def is_current(self, file: Path, of: str | None) -> bool:
        """Whether the file is there as it was made, of these stems."""
        return self.files.get(file.name, {}).get("of") == of and self.is_unchanged(file)


def _blocks(path: Path) -> Iterator[np.ndarray]:
    return soundfile.blocks(path, blocksize=1 << 20, dtype="float32", always_2d=True)
