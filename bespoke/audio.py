"""Audio and other results, in from files and out to files.

Reading checks all that can be wrong with a user's file. Writing goes to a temporary file beside the
final name and is moved there when complete, so that a killed process or a full disk never leaves half a file.
"""

import contextlib
import csv
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from scipy.io import wavfile

from bespoke.errors import BespokeError


def read_audio(path: str | Path, role: str = "recording") -> tuple[np.ndarray, int]:
    """Read a whole audio file of any format that libsndfile knows (WAV, FLAC, Ogg, Opus, MP3, AIFF, …).

    Args:
        path: the file.
        role: what the file is to the user; named in error messages.

    Returns:
        The waveform, float32 `[channel, time]`, full scale at 1, and its sample rate in Hz.

    Raises:
        BespokeError: the file is missing, is no audio, or is empty, silent or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise BespokeError(f"The {role} {path} does not exist: check the path, which is taken from where the command started.")
    try:
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError, MemoryError) as error:
        raise BespokeError(f"The {role} {path} cannot be read as audio: convert it to WAV or FLAC first (ffmpeg -i IN OUT.wav).") from error
    waveform = np.ascontiguousarray(samples.T)
    if waveform.shape[-1] == 0:
        raise BespokeError(f"The {role} {path} is empty: it has no samples.")
    if not np.isfinite(waveform).all():
        raise BespokeError(f"The {role} {path} contains NaN or infinite samples: export it again.")
    if not waveform.any():
        raise BespokeError(f"The {role} {path} is silent: every sample is zero.")
    return waveform, sample_rate


def write_wav(path: str | Path, waveform: np.ndarray, sample_rate: int) -> None:
    """Write `[channel, time]` as a float32 WAV, atomically and reproducibly.

    SciPy's writer is used because libsndfile stamps the time of day into float WAVs, and the same
    stems have to be the same bytes.

    Raises:
        BespokeError: the folder cannot be written, or the disk is full.
    """
    with atomic_path(path) as temporary:
        wavfile.write(temporary, sample_rate, np.ascontiguousarray(waveform.T, dtype=np.float32))


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place if the block ends well and is removed if not.

    Raises:
        BespokeError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "r+b") as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())
        mode = os.umask(0)
        os.umask(mode)
        os.chmod(temporary, 0o666 & ~mode)  # mkstemp makes private files; results are ordinary ones
        os.replace(temporary, path)
    except OSError as error:
        raise BespokeError(f"{path} cannot be written ({error.strerror or error}): free some space or choose another folder.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write a table with a header, atomically; the columns are those of the rows, in order of appearance, unless they are given."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(dict.fromkeys(column for row in rows for column in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)
