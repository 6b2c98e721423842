"""Reading and atomic writing of result files.

A file is first written under a temporary name in the same folder and renamed when it is complete.
A killed process or a full disk therefore never leaves a partial file.
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

from bespoke.utils.errors import BespokeError

SWEEP_FILE = "launch.json"
"""In a sweep's folder: which launch of it this is, and the settings that it varies."""


def existing(path: str | Path, role: str) -> Path:
    """Return `path` if it is a file.

    Args:
        path: absolute, or relative to the folder where the command was started.
        role: what the file is, for the error message.

    Raises:
        BespokeError: there is no such file.
    """
    path = Path(path)
    try:
        is_file = path.is_file()
    except OSError:  # the name is too long, or the folder cannot be searched
        is_file = False
    if not is_file:
        raise BespokeError(
            f"The {role} {path} does not exist: check the path; "
            "a relative path starts at the folder where the command was started."
        )
    return path


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block succeeds.

    If the block raises an exception, the temporary file is removed and `path` stays as it was.

    Raises:
        BespokeError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "r+b") as file:  # Windows can only sync files open for writing
            os.fsync(file.fileno())
        mode = os.umask(0)
        os.umask(mode)
        os.chmod(temporary, 0o666 & ~mode)  # mkstemp makes private files
        os.replace(temporary, path)
    except OSError as error:
        raise BespokeError(
            f"{path} cannot be written ({error.strerror or error}): "
            "free some space or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a JSON file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file. Returns an empty dict if the file does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_csv(
    path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write a table as CSV with a header, atomically.

    Args:
        path: file to write.
        rows: one mapping from column to value per row.
        columns: columns in order. None: those of the rows, in order of first appearance.
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file,
            columns or list(dict.fromkeys(column for row in rows for column in row)),
            restval="",
        )
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: str | Path) -> list[dict[str, Any]]:
    """Read a CSV table: numbers as floats, empty cells as None.

    Returns an empty list if the file does not exist.
    """

    def value(text: str) -> Any:
        try:
            return float(text) if text else None
        except ValueError:
            return text

    if not Path(path).is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: value(text) for name, text in row.items()} for row in csv.DictReader(file)]
