"""Notes, in from MIDI and out to MIDI."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pretty_midi

from bespoke.audio import atomic_path
from bespoke.errors import BespokeError


@dataclass(frozen=True, order=True)
class Note:
    """One note: start and end in seconds, MIDI pitch 0–127, velocity 1–127."""

    start_seconds: float
    end_seconds: float
    pitch: int
    velocity: int = 90


@dataclass(frozen=True)
class Part:
    """What one instrument plays: its General MIDI program (the kit, for drums) and its notes in order of time."""

    name: str
    program: int
    is_drum: bool
    notes: tuple[Note, ...]


def read_midi(path: str | Path) -> list[Part]:
    """Read every instrument of a MIDI file that has notes.

    Raises:
        BespokeError: the file is missing, is no readable MIDI, or has no notes.
    """
    path = Path(path)
    if not path.is_file():
        raise BespokeError(f"The score {path} does not exist: check the path, which is taken from where the command started.")
    try:
        midi = pretty_midi.PrettyMIDI(str(path))
    except Exception as error:  # the parser raises a dozen kinds on bad bytes, none of its own
        reason = "it ends too early" if isinstance(error, EOFError) else str(error) or type(error).__name__
        raise BespokeError(f"The score {path} cannot be read as MIDI ({reason}): export it again as a .mid file.") from error
    parts = []
    for instrument in midi.instruments:
        notes = sorted(
            Note(float(note.start), float(note.end), int(note.pitch), max(1, int(note.velocity)))
            for note in instrument.notes
            if note.end > note.start
        )
        if notes:
            parts.append(Part(instrument.name.strip(), int(instrument.program), bool(instrument.is_drum), tuple(notes)))
    if not parts:
        raise BespokeError(f"The score {path} has no notes: export the part you want as MIDI again.")
    return parts


def write_midi(path: str | Path, parts: Iterable[Part]) -> None:
    """Write parts as one MIDI file at 120 beats a minute, a track each."""
    midi = pretty_midi.PrettyMIDI(resolution=960)
    for part in parts:
        instrument = pretty_midi.Instrument(part.program, part.is_drum, part.name)
        instrument.notes = [pretty_midi.Note(note.velocity, note.pitch, note.start_seconds, note.end_seconds) for note in part.notes]
        midi.instruments.append(instrument)
    with atomic_path(path) as temporary:
        midi.write(str(temporary))


def choose_part(
    parts: Sequence[Part], instrument: str | int | None, path: str | Path = "the score", setting: str = "song.target.instrument"
) -> Part:
    """Choose one part by its name, General MIDI program name, program number or index.

    Args:
        parts: as `read_midi` gives them.
        instrument: None where there is only one; a name or the beginning or middle of one, in any case; a number, which is
            an index or a program (where that is ambiguous write `index:2` or `program:29`).
        path: the score's file, for messages.
        setting: where `instrument` comes from, for messages.

    Raises:
        BespokeError: none or several parts fit; the message lists all.
    """
    found = [index for index, part in enumerate(parts) if _fits(part, index, instrument)]
    if isinstance(instrument, str):
        exact = [index for index in found if parts[index].name.casefold() == instrument.strip().casefold()]
        found = exact or found
    if len(found) == 1:
        return parts[found[0]]
    listing = "; ".join(f"{index}: {describe(part)}" for index, part in enumerate(parts))
    problem = "has several instruments" if instrument is None else f"has {'no' if not found else 'more than one'} instrument {instrument!r}"
    raise BespokeError(f"{path} {problem}; set {setting} to a name, or to index:N, of one of these: {listing}.")


def _fits(part: Part, index: int, instrument: str | int | None) -> bool:
    if instrument is None:
        return True
    wanted = str(instrument).strip().casefold()
    if wanted.startswith("index:"):
        return wanted.removeprefix("index:").strip() == str(index)
    if wanted.startswith("program:"):
        return not part.is_drum and wanted.removeprefix("program:").strip() == str(part.program)
    if wanted.isdecimal():
        return int(wanted) == index or (not part.is_drum and int(wanted) == part.program)
    return wanted in part.name.casefold() or wanted == program_name(part).casefold()


def program_name(part: Part) -> str:
    """The General MIDI name of the part's sound."""
    return "Drums" if part.is_drum else pretty_midi.program_to_instrument_name(part.program)


def describe(part: Part) -> str:
    """One line for a listing: name, sound, number of notes."""
    return f"{part.name or 'unnamed'} ({program_name(part)}, {len(part.notes)} notes)"


def stretch(notes: Iterable[Note], factor: float) -> tuple[Note, ...]:
    """Multiply all times by `factor`: 2 is half the tempo."""
    return tuple(replace(note, start_seconds=note.start_seconds * factor, end_seconds=note.end_seconds * factor) for note in notes)


def shift(notes: Iterable[Note], seconds: float) -> tuple[Note, ...]:
    """Move notes later (or, by less than 0, earlier)."""
    return tuple(replace(note, start_seconds=note.start_seconds + seconds, end_seconds=note.end_seconds + seconds) for note in notes)


def perturb(notes: Sequence[Note], rng: np.random.Generator) -> tuple[Note, ...]:
    """Give notes the errors of a transcription that was aligned automatically.

    All are shifted together and each by itself (standard deviations of 12 ms and, on the mean, as much), ends are early or late by up
    to a quarter of the note, one in a hundred has a wrong pitch, in half of the draws a few are missing or too many, and in one
    of twelve all are an octave low, as pitch trackers have it.
    """
    together, apart, length = rng.normal(0, 0.012), abs(rng.normal(0, 0.015)), rng.uniform(0.75, 1.15)
    missing, octave = rng.choice([0, 0, 0.03, 0.08]), -12 * (rng.random() < 1 / 12)
    perturbed = []
    for note in notes:
        start = note.start_seconds + together + rng.normal(0, apart)
        seconds = max(0.05, (note.end_seconds - note.start_seconds) * length + rng.normal(0, 0.02))
        pitch = note.pitch + octave + (int(rng.choice([-12, 12, 1, -1, 2])) if rng.random() < 0.01 else 0)
        if rng.random() >= missing:
            perturbed.append(replace(note, start_seconds=start, end_seconds=start + seconds, pitch=min(max(pitch, 0), 127)))
        if rng.random() < missing / 3:
            extra = min(max(note.pitch + octave + int(rng.choice([-12, -3, 2, 4, 5])), 0), 127)
            perturbed.append(replace(note, start_seconds=start + seconds, end_seconds=start + 2 * seconds, pitch=extra))
    return tuple(perturbed)


def transpose(notes: Iterable[Note], semitones: int) -> tuple[Note, ...]:
    """Move all pitches by `semitones`; notes that would leave 0–127 are dropped."""
    moved = (replace(note, pitch=note.pitch + semitones) for note in notes)
    return tuple(note for note in moved if 0 <= note.pitch <= 127)
