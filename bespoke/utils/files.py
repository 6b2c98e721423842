"""Files of results: written whole or not at all.

Writing goes to a temporary file beside the final name and is moved there when complete, so that a killed process or a full disk never
leaves half a file.
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


def existing(path: str | Path, role: str) -> Path:
    """The path, if there is a file.

    Raises:
        BespokeError: there is none.
    """
    path = Path(path)
    try:
        is_file = path.is_file()
    except OSError:  # a name that is too long, a folder that may not be looked into
        is_file = False
    if not is_file:
        raise BespokeError(
            f"The {role} {path} does not exist: check the path, which is taken from where the command started."
        )
    return path


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
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent
        )
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
        raise BespokeError(
            f"{path} cannot be written ({error.strerror or error}): free some space or choose another folder."
        ) from error
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


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a JSON file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_csv(
    path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write a table with a header, atomically; the columns are those of the rows, in order of appearance, unless they are given."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file,
            columns or list(dict.fromkeys(column for row in rows for column in row)),
            restval="",
        )
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: str | Path) -> list[dict[str, Any]]:
    """A table: numbers as numbers, empty cells as None; no rows where there is no file."""

    def value(text: str) -> Any:
        try:
            return float(text) if text else None
        except ValueError:
            return text

    if not Path(path).is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: value(text) for name, text in row.items()} for row in csv.DictReader(file)]
