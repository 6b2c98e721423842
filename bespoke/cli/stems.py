"""Final stem files: several parts share what they claim in common, and files are written whole."""

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

_LIMITS = {".flac": (655350, 8), ".mp3": (48000, 2)}  # highest rate in Hz, most channels
_BLOCK_SECONDS = 30


def suffix_for(kind: str, recording: Recording) -> str:
    """File name extension of the stems. Checks that the format can hold the recording.

    Args:
        kind: an extension without the dot, or `same` for the recording's.
        recording: the recording.

    Raises:
        BespokeError: the format cannot hold the recording, or cannot be written.
    """
    suffix = recording.path.suffix.lower() if kind == "same" else f".{kind}"
    highest, most = _LIMITS.get(suffix, (recording.sample_rate, recording.channels))
    if recording.sample_rate > highest or recording.channels > most:
        raise BespokeError(
            f"{suffix[1:].upper()} holds at most {most} channels at {highest} Hz, the recording "
            f"has {recording.channels} at {recording.sample_rate} Hz: choose another --format."
        )
    if suffix not in WRITABLE:
        raise BespokeError(
            f"Stems cannot be written as {suffix or 'a file without an ending'}: "
            "choose --format wav or flac."
        )
    return suffix


def check_free(files: Sequence[Path], force: bool, changed: Sequence[Path] = ()) -> None:
    """Check that no file is overwritten unless the user asked for it.

    Args:
        files: files to be written.
        force: whether existing files may be replaced.
        changed: those of `files` that this command wrote and somebody has changed since.

    Raises:
        BespokeError: some of the files exist, and `force` is not set.
    """
    there = [str(file) for file in files if file.exists()]
    if there and not force:
        is_ = "is" if len(there) == 1 else "are"
        edited = [str(file) for file in changed if file.exists()]
        why = f" ({' and '.join(edited)} changed since this command made it)" if edited else ""
        raise BespokeError(
            f"{' and '.join(there)} {is_} already there{why}: "
            "choose another --out, or replace with --force."
        )


def share(estimates: Tensor, mixture: Tensor, stft: STFT) -> Tensor:
    """Make separate estimates of the parts of one mixture consistent.

    Where the magnitudes of the estimates add up to more than the mixture's, all are reduced by the
    same factor. Elsewhere they do not change.

    Args:
        estimates: `[part, channel, time]`.
        mixture: `[channel, time]`.
        stft: transform at the signals' rate.

    Returns:
        The stems, `[part, channel, time]`. The mixture minus their sum is the rest.

    Two estimates that claim the whole mixture get half of it each:

    >>> stft, mixture = STFT(16000), torch.randn(1, 16000)
    >>> stems = share(torch.stack([mixture, mixture, 0 * mixture]), mixture, stft)
    >>> torch.allclose(stems, torch.stack([mixture / 2, mixture / 2, 0 * mixture]), atol=1e-5)
    True
    """
    claims = stft(estimates)
    gain = (stft(mixture[None])[0].abs() / claims.abs().sum(0).clamp(min=1e-12)).clamp(max=1)
    return stft.inverse(gain * claims, mixture.shape[-1])


def write_shared(runs: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Combine runs for several parts of one recording into stems that add up to it.

    Works in blocks, so that memory does not depend on the length.

    Args:
        runs: folder of each part's run, with its `target.wav` and `residual.wav`.
        folder: gets `LABEL.wav` for each part, and `residual.wav` with the rest of the recording.

    Returns:
        The files by label, with `residual` last.
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
    """Copy float WAV stems to their final names and format.

    If one file cannot be written, new ones written before are removed.

    Formats other than float WAV cannot exceed full scale. If a stem does, all are attenuated by the
    same gain, so that they still add up.

    Args:
        sources: the stems.
        finals: their final names, in the same order.
        recording: the recording, whose bit depth and tags the files get.
        exact: whether to keep float WAV.
        done: called with each written file and the gain.

    Returns:
        The gain of all stems.

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
    """Link or copy a file to another name, atomically.

    A hard link needs no space. The file is copied if the file system does not support links, or the
    folders are on different ones.
    """
    with atomic_path(final) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


class Published:
    """Record of the files that a request wrote, with hashes and sources.

    It lets the request recognize its own files, and those that somebody has changed since.

    Args:
        path: JSON file of the record.
    """

    def __init__(self, path: Path):
        self.path = path
        self.files: dict[str, dict[str, Any]] = {}
        if path.is_file():
            self.files = json.loads(path.read_text(encoding="utf-8"))

    def note(self, file: Path, gain: float = 1.0, *, of: str, links: Sequence[str] = ()) -> None:
        """Record the current content of a file.

        Args:
            file: the file.
            gain: gain of the stem.
            of: identifies the stems that it was made of.
            links: other files that it links to.
        """
        self.files[file.name] = {
            "sha256": file_hash(file),
            "of": of,
            "gain": gain,
            "links": [*links],
        }
        write_json(self.path, self.files)

    def is_unchanged(self, file: Path) -> bool:
        """Whether the file exists as it was written."""
        known = self.files.get(file.name)
        return known is not None and file.is_file() and known["sha256"] == file_hash(file)

    def is_current(self, file: Path, of: str | None) -> bool:
        """Whether the file exists as it was written, and was made of these stems."""
        return self.files.get(file.name, {}).get("of") == of and self.is_unchanged(file)


def _blocks(path: Path) -> Iterator[np.ndarray]:
    return soundfile.blocks(path, blocksize=1 << 20, dtype="float32", always_2d=True)
