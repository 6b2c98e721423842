"""Notes, in from MIDI, or from what can be played out to MIDI, and out to MIDI."""

import io
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import overload

import mido
import numpy as np
import pretty_midi

from bespoke.score import notation
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import atomic_path, existing

MAX_BYTES, MAX_NOTES, MAX_HOURS = 2_000_000, 100_000, 12
# A number of MIDI goes on as long as its bytes are from 128. The parser would take minutes for one as long as the file.
_ENDLESS_NUMBER = re.compile(rb"[\x80-\xff]{4096}")
_DRUM_CHANNEL = 9
_HIGHEST_KEY_SWITCH, _KEY_SWITCH_GAP = 36, 17


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


def read_score(path: str | Path) -> list[Part]:
    """Read every instrument that has notes of a MIDI file (type 0, 1 or 2), or of a score that `bespoke.score.notation` plays out to MIDI.

    An instrument is what a track plays on a channel, whatever programs it goes through. Pitch bends and controllers are not read. A note
    that is never ended lasts to the track's end.

    Returns:
        The parts, in the order in which their first notes end. A part's program is the one that most of its notes have.

    Raises:
        BespokeError: the file is missing, is no readable score, has no notes, or is larger than any song.
    """
    path = existing(path, "score")
    size = path.stat().st_size
    content = path.read_bytes() if size <= notation.MAX_BYTES else b""
    played = notation.to_midi(path, content)
    if played is None and size > MAX_BYTES:
        raise BespokeError(
            f"The score {path} has {size / 1e6:.1f} MB, which no MIDI file of a song has: give a .mid file below {MAX_BYTES / 1e6:g} MB."
        )
    content = content if played is None else played
    if _ENDLESS_NUMBER.search(content):
        raise BespokeError(
            f"The score {path} cannot be read as MIDI (a number in it has no end): export it again as a .mid file."
        )
    try:
        midi = mido.MidiFile(file=io.BytesIO(content), clip=True)
        parts = _parts(midi)
    except Exception as error:  # the parser raises a dozen kinds on bad bytes, none of its own
        reason = (
            "it ends too early"
            if isinstance(error, EOFError)
            else str(error) or type(error).__name__
        )
        raise BespokeError(
            f"The score {path} cannot be read as MIDI ({reason}): export it again as a .mid file."
        ) from error
    if not parts:
        raise BespokeError(
            f"The score {path} has no notes: export the part you want as MIDI again."
        )
    count = sum(len(part.notes) for part in parts)
    if count > MAX_NOTES:
        raise BespokeError(
            f"The score {path} has {count} notes, {MAX_NOTES} are possible: export only the part you want."
        )
    hours = max(note.end_seconds for part in parts for note in part.notes) / 3600
    if hours > MAX_HOURS:
        raise BespokeError(
            f"The score {path} lasts {hours:.0f} hours, {MAX_HOURS} are possible: is a note or a rest in it too long?"
        )
    return parts


def _parts(midi: mido.MidiFile) -> list[Part]:
    to_seconds = _clock(midi)
    found: dict[
        tuple[int, int], list[tuple[Note, int]]
    ] = {}  # by track and channel: notes with their programs
    names = []
    for number, track in enumerate(midi.tracks):
        names.append("")
        tick, programs = 0, [0] * 16
        sounding: dict[
            tuple[int, int], list[tuple[int, int]]
        ] = {}  # by channel and pitch: ticks and velocities

        def end(
            key: tuple[int, int], tick: int, number=number, programs=programs, sounding=sounding
        ) -> None:
            channel, pitch = key
            started = sounding.pop(key, [])
            ended = [(start, velocity) for start, velocity in started if start < tick]
            if ended and len(ended) < len(
                started
            ):  # the end of one note and the start of the next at one tick, in the wrong order
                sounding[key] = [(start, velocity) for start, velocity in started if start == tick]
            for start, velocity in ended:
                note = Note(to_seconds(start), to_seconds(tick), pitch, velocity)
                if note.end_seconds > note.start_seconds:
                    found.setdefault((number, channel), []).append((note, programs[channel]))

        for message in track:
            tick += message.time
            if message.type == "track_name":
                names[number] = message.name.strip()
            elif message.type == "program_change":
                programs[message.channel] = message.program
            elif message.type == "note_on" and message.velocity > 0:
                sounding.setdefault((message.channel, message.note), []).append(
                    (tick, message.velocity)
                )
            elif message.type in ("note_on", "note_off"):
                end((message.channel, message.note), tick)
        for key in list(sounding):
            end(key, tick)
    parts = []
    for (number, channel), notes in found.items():
        program = Counter(program for _, program in notes).most_common(1)[0][0]
        parts.append(
            Part(
                names[number],
                program,
                channel == _DRUM_CHANNEL,
                tuple(sorted(note for note, _ in notes)),
            )
        )
    return parts


def _clock(midi: mido.MidiFile) -> Callable[[int], float]:
    """Ticks to seconds, by the tempo map, which is that of all tracks; a division in frames of film time has none."""
    if midi.ticks_per_beat < 0:
        frames, ticks = -(midi.ticks_per_beat >> 8), midi.ticks_per_beat & 0xFF
        return lambda tick: tick / (frames * ticks)
    tempos = {0: 500_000}
    for track in midi.tracks:
        tick = 0
        for message in track:
            tick += message.time
            if message.type == "set_tempo":
                tempos[tick] = message.tempo
    ticks = sorted(tempos)
    scales = [60 / (6e7 / tempos[tick] * midi.ticks_per_beat) for tick in ticks]
    seconds = [0.0]
    for index in range(1, len(ticks)):
        seconds.append(seconds[-1] + scales[index - 1] * (ticks[index] - ticks[index - 1]))

    def to_seconds(tick: int) -> float:
        index = bisect_right(ticks, tick) - 1
        return seconds[index] + scales[index] * (tick - ticks[index])

    return to_seconds


def without_key_switches(notes: Sequence[Note]) -> tuple[Note, ...]:
    """The notes without those that tell a sampler how to play: a few very low ones, far below all others.

    Such are notes below C2 with at least 17 semitones between them and the next higher pitch, if they are at most a fifth of all. A bass
    keeps its notes.

    >>> melody = [Note(0.5 * index, 0.5 * index + 0.4, 60 + index % 5) for index in range(20)]
    >>> without_key_switches([Note(0.0, 0.1, 24), *melody]) == tuple(melody)
    True
    """
    pitches = sorted({note.pitch for note in notes})
    for low, high in reversed(list(pairwise(pitches))):
        if (
            low < _HIGHEST_KEY_SWITCH
            and high - low >= _KEY_SWITCH_GAP
            and 5 * sum(note.pitch <= low for note in notes) <= len(notes)
        ):
            return tuple(note for note in notes if note.pitch > low)
    return tuple(notes)


def write_midi(path: str | Path, parts: Iterable[Part]) -> None:
    """Write parts as one MIDI file at 120 beats a minute, a track each."""
    midi = pretty_midi.PrettyMIDI(resolution=960)
    for part in parts:
        instrument = pretty_midi.Instrument(part.program, part.is_drum, part.name)
        instrument.notes = [
            pretty_midi.Note(note.velocity, note.pitch, note.start_seconds, note.end_seconds)
            for note in part.notes
        ]
        midi.instruments.append(instrument)
    with atomic_path(path) as temporary:
        midi.write(str(temporary))


def choose_part(
    parts: Sequence[Part],
    instrument: str | int | None,
    path: str | Path = "the score",
    setting: str = "song.target.instrument",
) -> Part:
    """Choose one part by its name, General MIDI program name, program number or index.

    Args:
        parts: as `read_score` gives them.
        instrument: None where there is only one; a name or the beginning or middle of one, in any case; a number, which is
            an index or a program (where that is ambiguous write `index:2` or `program:29`).
        path: the score's file, for messages.
        setting: where `instrument` comes from, for messages.

    Raises:
        BespokeError: none or several parts fit; the message lists all.
    """
    found = [index for index, part in enumerate(parts) if _fits(part, index, instrument)]
    if isinstance(instrument, str):
        exact = [
            index
            for index in found
            if parts[index].name.casefold() == instrument.strip().casefold()
        ]
        found = exact or found
    if len(found) == 1:
        return parts[found[0]]
    listing = "; ".join(f"{index}: {describe(part)}" for index, part in enumerate(parts))
    problem = (
        "has several instruments"
        if instrument is None
        else f"has {'no' if not found else 'more than one'} instrument {instrument!r}"
    )
    raise BespokeError(
        f"{path} {problem}; set {setting} to a name, or to index:N, of one of these: {listing}."
    )


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
    return tuple(
        replace(
            note, start_seconds=note.start_seconds * factor, end_seconds=note.end_seconds * factor
        )
        for note in notes
    )


@overload
def pitch_hz(pitch: float) -> float: ...
@overload
def pitch_hz(pitch: np.ndarray) -> np.ndarray: ...
def pitch_hz(pitch: float | np.ndarray) -> float | np.ndarray:
    """The frequency of a MIDI pitch, or of an array of them, in equal temperament with A4 at 440 Hz.

    >>> pitch_hz(69), round(pitch_hz(60), 1)
    (440.0, 261.6)
    """
    return 440.0 * 2 ** ((pitch - 69) / 12)


def shift(notes: Iterable[Note], seconds: float) -> tuple[Note, ...]:
    """Move notes later (or, by less than 0, earlier)."""
    return tuple(
        replace(
            note, start_seconds=note.start_seconds + seconds, end_seconds=note.end_seconds + seconds
        )
        for note in notes
    )


def perturb(notes: Sequence[Note], rng: np.random.Generator) -> tuple[Note, ...]:
    """Give notes the errors of a transcription that was aligned automatically.

    All are shifted together and each by itself (standard deviations of 12 ms and, on the mean, as much), ends are early or late by up
    to a quarter of the note, one in a hundred has a wrong pitch, in half of the draws a few are missing or too many, and in one
    of twelve all are an octave low, as pitch trackers have it.
    """
    together, apart, length = (
        rng.normal(0, 0.012),
        abs(rng.normal(0, 0.015)),
        rng.uniform(0.75, 1.15),
    )
    missing, octave = rng.choice([0, 0, 0.03, 0.08]), -12 * (rng.random() < 1 / 12)
    perturbed = []
    for note in notes:
        start = note.start_seconds + together + rng.normal(0, apart)
        seconds = max(0.05, (note.end_seconds - note.start_seconds) * length + rng.normal(0, 0.02))
        pitch = (
            note.pitch
            + octave
            + (int(rng.choice([-12, 12, 1, -1, 2])) if rng.random() < 0.01 else 0)
        )
        if rng.random() >= missing:
            perturbed.append(
                replace(
                    note,
                    start_seconds=start,
                    end_seconds=start + seconds,
                    pitch=min(max(pitch, 0), 127),
                )
            )
        if rng.random() < missing / 3:
            extra = min(max(note.pitch + octave + int(rng.choice([-12, -3, 2, 4, 5])), 0), 127)
            perturbed.append(
                replace(
                    note,
                    start_seconds=start + seconds,
                    end_seconds=start + 2 * seconds,
                    pitch=extra,
                )
            )
    return tuple(perturbed)


def transpose(notes: Iterable[Note], semitones: int) -> tuple[Note, ...]:
    """Move all pitches by `semitones`; notes that would leave 0–127 are dropped."""
    moved = (replace(note, pitch=note.pitch + semitones) for note in notes)
    return tuple(note for note in moved if 0 <= note.pitch <= 127)
