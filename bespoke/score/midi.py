"""Notes, in from MIDI, or from what can be played out to MIDI, and out to MIDI."""

import logging
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np
import pretty_midi

from bespoke.score import notation, smf
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import atomic_path, existing

log = logging.getLogger(__name__)

MAX_BYTES, MAX_NOTES, MAX_HOURS = 2_000_000, 100_000, 12
_DRUM_CHANNEL = 9
_SUSTAIN_PEDAL, _MONO_MODE = 64, 126  # controllers
_MPE_ZONE = ((101, 0), (100, 6))  # controllers and values after which the next tells a zone's size
_FEWEST_STRINGS = 5  # channels in a row, each of one voice, that are told to be one instrument
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
    """What one instrument plays.

    `program` is its General MIDI program, or the kit of drums. `notes` are in order of time.
    """

    name: str
    program: int
    is_drum: bool
    notes: tuple[Note, ...]


def read_score(path: str | Path) -> list[Part]:
    """Read every instrument of a score that has notes.

    The score is a MIDI file of type 0, 1 or 2, or a score that `bespoke.score.notation` converts to
    MIDI.

    An instrument is what a track plays on a channel, whatever programs it goes through, or on
    several channels, where each is a string of a guitar or (MPE) a note that is bent by itself. A
    program of another track of the same channel is the instrument's where it has none itself.

    Of a key that is struck again while it sounds, the first end is the first note's. A note lasts
    as long as the sustain pedal holds it, or until its key is struck again. One that is never ended
    lasts to the track's end. Pitch bends and other controllers are not read.

    Returns:
        The parts, in the order in which their first notes end. A part's program is the one that
        most of its notes have.

    Raises:
        BespokeError: the file is missing, is no readable score, has no notes, or is larger than any
            song.
    """
    path = existing(path, "score")
    size = path.stat().st_size
    content = path.read_bytes() if size <= notation.MAX_BYTES else b""
    played = notation.to_midi(path, content)
    content = smf.unwrapped(content)
    if played is None and (len(content) or size) > MAX_BYTES:
        raise BespokeError(
            f"The score {path} has {size / 1e6:.1f} MB, which no MIDI file of a song has: give a"
            f" .mid file below {MAX_BYTES / 1e6:g} MB."
        )
    try:
        midi = smf.read(content if played is None else played)
    except ValueError as error:
        raise BespokeError(
            f"The score {path} cannot be read as MIDI ({error}): export it again as a .mid file."
        ) from error
    for notice in midi.notices:
        log.warning("The score %s is damaged: %s.", path, notice)
    parts = _parts(midi)
    if not parts:
        raise BespokeError(
            f"The score {path} has no notes: export the part you want as MIDI again."
        )
    count = sum(len(part.notes) for part in parts)
    if count > MAX_NOTES:
        raise BespokeError(
            f"The score {path} has {count} notes, {MAX_NOTES} are possible: export only the part"
            " you want."
        )
    hours = max(note.end_seconds for part in parts for note in part.notes) / 3600
    if hours > MAX_HOURS:
        raise BespokeError(
            f"The score {path} lasts {hours:.0f} hours, {MAX_HOURS} are possible: is a note or a"
            " rest in it too long?"
        )
    return parts


@dataclass
class _Voice:
    """What a track plays on a channel.

    Attributes:
        track: its number.
        channel: the channel.
        notes: with the program of each, in the order in which they end.
        has_program: whether a program is named for the channel.
        has_expression: whether it has bends, or is told to play one note at a time.
    """

    track: int
    channel: int
    notes: list[tuple[Note, int]]
    has_program: bool
    has_expression: bool

    @property
    def program(self) -> int:
        """The one that most notes have."""
        return Counter(program for _, program in self.notes).most_common(1)[0][0]

    @property
    def is_single(self) -> bool:
        """Whether hardly ever two notes sound at once."""
        notes = sorted(note for note, _ in self.notes)
        together = sum(later.start_seconds < note.end_seconds for note, later in pairwise(notes))
        return 10 * together <= len(notes)


def _parts(midi: smf.MidiFile) -> list[Part]:
    voices = _voices(midi)
    count = len({voice.track for voice in voices})
    parts = []
    for number, track in enumerate(midi.tracks):
        own = [voice for voice in voices if voice.track == number]
        for group in _instruments(own, _zones(track), midi.kind == 1, count > 1):
            notes = [pair for voice in group for pair in voice.notes]
            program = Counter(program for _, program in notes).most_common(1)[0][0]
            is_drum = [voice.channel for voice in group] == [_DRUM_CHANNEL]
            parts.append(
                Part(track.name, program, is_drum, tuple(sorted(note for note, _ in notes)))
            )
    return parts


def _voices(midi: smf.MidiFile) -> list[_Voice]:
    """All that is played, by track and channel, in the order in which the first notes end."""
    to_seconds = _clock(midi)
    changes: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    pedals: dict[tuple[int, int], list[tuple[int, int, bool]]] = defaultdict(list)
    expressive = set()
    for number, track in enumerate(midi.tracks):
        for index, (tick, kind, channel, first, second) in enumerate(track.events):
            if kind == smf.PROGRAM:
                changes[number, channel].append((tick, first))
            elif kind == smf.CONTROL and first == _SUSTAIN_PEDAL:
                pedals[number, channel].append((tick, index, second >= 64))
            elif kind == smf.BEND or (kind == smf.CONTROL and first == _MONO_MODE):
                expressive.add((number, channel))
    speakers: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, channel in sorted({*changes, *pedals}):
        speakers[channel].append((number, channel))
    voices = []
    for number, track in enumerate(midi.tracks):
        ended = _pair(track)
        for channel in dict.fromkeys(channel for _, _, channel, _, _ in ended):
            place = (number, channel)
            # What another track says of the channel holds for one that says nothing itself.
            others = speakers[channel] if midi.kind != 2 else ()
            programs = changes.get(place) or sorted(
                change for other in others for change in changes[other]
            )
            first = programs[0][1] if programs else 0
            held = list(pedals[place])
            for other in others:
                theirs = changes[other]
                if other != place and (not theirs or theirs[0][1] == first):
                    held += [(tick, -1, is_down) for tick, _, is_down in pedals[other]]
            notes = [note for note in ended if note[2] == channel]
            if channel != _DRUM_CHANNEL:
                notes = _sustained(notes, sorted(held), track.ticks)
            ticks = [tick for tick, _ in programs]
            found = []
            for start, end, _, pitch, velocity in notes:
                note = Note(to_seconds(start[0]), to_seconds(end[0]), pitch, velocity)
                at = bisect_right(ticks, start[0]) - 1
                if note.end_seconds > note.start_seconds:
                    found.append((note, programs[at][1] if at >= 0 else 0))
            if found:
                voices.append(_Voice(number, channel, found, bool(programs), place in expressive))
    return voices


_Place = tuple[int, int]  # in a track: ticks, and the number of the event
_Held = tuple[_Place, _Place, int, int, int]  # start, end, channel, pitch, velocity


def _pair(track: smf.Track) -> list[_Held]:
    """A track's notes, in the order in which they end.

    The first end of a key is its first note's. Where a key has fewer ends than notes, the track
    leaves out the end of a note whose key is struck again: there it ends.
    """
    struck: Counter[tuple[int, int]] = Counter()
    released: Counter[tuple[int, int]] = Counter()
    for _, kind, channel, pitch, velocity in track.events:
        if kind == smf.NOTE_ON and velocity > 0:
            struck[channel, pitch] += 1
        elif kind in (smf.NOTE_ON, smf.NOTE_OFF):
            released[channel, pitch] += 1
    sounding: dict[tuple[int, int], deque[tuple[_Place, int]]] = defaultdict(deque)
    ended: list[_Held] = []

    def end(key: tuple[int, int], place: _Place) -> None:
        start, velocity = sounding[key].popleft()
        if start[0] < place[0]:
            ended.append((start, place, *key, velocity))

    for index, (tick, kind, channel, pitch, velocity) in enumerate(track.events):
        key, place = (channel, pitch), (tick, index)
        if kind == smf.NOTE_ON and velocity > 0:
            if sounding[key] and released[key] < struck[key]:
                end(key, place)
            sounding[key].append((place, velocity))
        elif kind in (smf.NOTE_ON, smf.NOTE_OFF) and sounding[key]:
            end(key, place)
    for key, notes in sounding.items():
        while notes:
            end(key, (track.ticks, len(track.events)))
    return ended


def _sustained(
    notes: Sequence[_Held], pedal: Sequence[tuple[int, int, bool]], last_tick: int
) -> list[_Held]:
    """The notes of a channel as long as the pedal holds them, or until their key is struck again.

    Args:
        notes: with the ends that their keys have.
        pedal: where it goes down (True) or up.
        last_tick: the track's end.
    """
    if not any(is_down for _, _, is_down in pedal):
        return list(notes)
    places = [(tick, index) for tick, index, _ in pedal]
    ups = [place for place, (_, _, is_down) in zip(places, pedal, strict=True) if not is_down]
    strikes: dict[int, list[_Place]] = defaultdict(list)
    for start, _, _, pitch, _ in notes:
        strikes[pitch].append(start)
    for of_key in strikes.values():
        of_key.sort()
    held = []
    for start, end, channel, pitch, velocity in notes:
        at = bisect_right(places, end) - 1
        if at >= 0 and pedal[at][2]:
            up = bisect_right(ups, end)
            release = ups[up] if up < len(ups) else (max(last_tick, end[0]), 0)
            again = bisect_right(strikes[pitch], end)
            following = strikes[pitch][again : again + 1]
            end = max(end, min([release, *following]))
        held.append((start, end, channel, pitch, velocity))
    return held


def _zones(track: smf.Track) -> list[set[int]]:
    """The channels that a track says are one instrument's (MPE): a master's and its members'."""
    zones: list[set[int]] = []
    told: defaultdict[int, dict[int, int]] = defaultdict(dict)
    for _, kind, channel, first, second in track.events:
        if kind != smf.CONTROL or channel not in (0, 15):
            continue
        told[channel][first] = second
        if first == 6 and all(told[channel].get(name) == value for name, value in _MPE_ZONE):
            size = min(second, 15)
            members = range(size + 1) if channel == 0 else range(15 - size, 16)
            zones += [set(members)] if size else []
    return zones


def _instruments(
    voices: Sequence[_Voice], zones: Sequence[set[int]], is_tracks: bool, are_several: bool
) -> list[list[_Voice]]:
    """A track's channels, those of one instrument together.

    Args:
        voices: of the track.
        zones: of channels that it says belong together.
        is_tracks: whether the file is of tracks that play together (type 1).
        are_several: whether several tracks have notes, so that each is a part of its own.
    """
    groups: list[list[_Voice]] = []
    left = list(voices)
    for zone in zones:
        members = [voice for voice in left if voice.channel in zone]
        left = [voice for voice in left if voice.channel not in zone]
        groups += [members] if members else []
    drums = [voice for voice in left if voice.channel == _DRUM_CHANNEL]
    left = [voice for voice in left if voice.channel != _DRUM_CHANNEL]
    for program in dict.fromkeys(voice.program for voice in left):
        same = [voice for voice in left if voice.program == program]
        with_drums = [*same, *drums]
        if drums and len(same) > 2 and _are_strings(with_drums, is_tracks):
            groups.append(with_drums)
            drums = []
        elif len(same) > 1 and (
            (is_tracks and (are_several or all(voice.has_program for voice in same)))
            or _are_strings(same, is_tracks)
        ):
            groups.append(same)
        else:
            groups += [[voice] for voice in same]
    groups += [[voice] for voice in drums]
    order = {id(voice): index for index, voice in enumerate(voices)}
    ordered = [sorted(group, key=lambda voice: order[id(voice)]) for group in groups]
    return sorted(ordered, key=lambda group: order[id(group[0])])


def _are_strings(voices: Sequence[_Voice], is_tracks: bool) -> bool:
    """Whether channels look like the strings of one guitar, or the notes of one MPE instrument:
    they lie side by side, each plays one note at a time, all with the same sound, and all are bent
    or told to do so, or there are many."""
    channels = sorted(voice.channel for voice in voices)
    if channels != list(range(channels[0], channels[0] + len(channels))):
        return False
    if len({voice.program for voice in voices}) > 1 or not all(v.is_single for v in voices):
        return False
    if all(voice.has_expression for voice in voices):
        return len(voices) > 2
    if is_tracks and all(voice.has_program for voice in voices):
        return True
    return len(voices) >= _FEWEST_STRINGS


def _clock(midi: smf.MidiFile) -> Callable[[int], float]:
    """A function from ticks to seconds.

    It follows the tempo map, which is that of all tracks. A division in frames of film time has no
    tempo map.
    """
    if midi.division < 0:
        frames, parts = -(midi.division >> 8), midi.division & 0xFF
        return lambda tick: tick / (frames * parts)
    tempos = {0: 500_000} | {tick: tempo for track in midi.tracks for tick, tempo in track.tempos}
    ticks = sorted(tempos)
    scales = [60 / (6e7 / tempos[tick] * midi.division) for tick in ticks]
    seconds = [0.0]
    for index in range(1, len(ticks)):
        seconds.append(seconds[-1] + scales[index - 1] * (ticks[index] - ticks[index - 1]))

    def to_seconds(tick: int) -> float:
        index = bisect_right(ticks, tick) - 1
        return seconds[index] + scales[index] * (tick - ticks[index])

    return to_seconds


def without_key_switches(notes: Sequence[Note]) -> tuple[Note, ...]:
    """The notes without key switches, which tell a sampler how to play.

    Key switches are a few very low notes, far below all others: notes below C2, with at least 17
    semitones between them and the next higher pitch, and at most a fifth of all notes. The low
    notes of a bass are therefore kept.

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
    midi = pretty_midi.PrettyMIDI(resolution=960, charset="utf-8")
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
    instrument: str | int | Sequence[str | int] | None,
    path: str | Path = "the score",
    setting: str = "song.target.instrument",
) -> Part:
    """The part that `choose_parts` chooses, or several as one.

    Raises:
        BespokeError: as of `choose_parts`.
    """
    return merged(choose_parts(parts, instrument, path, setting))


def choose_parts(
    parts: Sequence[Part],
    instrument: str | int | Sequence[str | int] | None,
    path: str | Path = "the score",
    setting: str = "song.target.instrument",
) -> list[Part]:
    """Choose parts by name, General MIDI program name, program number or index.

    Args:
        parts: as `read_score` gives them.
        instrument: a name, or the beginning or middle of one, in any case; a number, which is an
            index or a program (write `index:2` or `program:29` where that is ambiguous); or None,
            which is possible where there is only one part. Give several that are one target as a
            list, or separated by commas.
        path: the score's file, for messages.
        setting: where `instrument` comes from, for messages.

    Raises:
        BespokeError: none or several parts fit one of what is wanted (the message lists all), or
            those chosen are pitched parts and drums.
    """
    if isinstance(instrument, str) and "," in instrument and not _found(parts, instrument):
        instrument = [word for word in instrument.split(",") if word.strip()]
    if instrument is None or isinstance(instrument, str | int):
        return [_choose(parts, instrument, path, setting)]
    chosen: list[Part] = []
    for one in instrument:
        part = _choose(parts, one, path, setting)
        chosen += [] if any(part is other for other in chosen) else [part]
    if not chosen:
        return [_choose(parts, None, path, setting)]
    if len({part.is_drum for part in chosen}) > 1:
        names = " and ".join(part.name or program_name(part) for part in chosen)
        raise BespokeError(
            f"{path}: {names} cannot be one target, as drums have no pitches: set {setting} to"
            " either."
        )
    return chosen


def merged(parts: Sequence[Part]) -> Part:
    """Parts as one, with the program that most notes have.

    Notes that two parts play at once become one note.
    """
    if len(parts) == 1:
        return parts[0]
    notes: dict[tuple[float, int], Note] = {}
    for note in sorted(note for part in parts for note in part.notes):
        notes[note.start_seconds, note.pitch] = note  # sorted: the longest of them
    programs: Counter[int] = Counter()
    for part in parts:
        programs[part.program] += len(part.notes)
    name = ", ".join(part.name or program_name(part) for part in parts)
    return Part(name, programs.most_common(1)[0][0], parts[0].is_drum, tuple(notes.values()))


def _choose(
    parts: Sequence[Part], instrument: str | int | None, path: str | Path, setting: str
) -> Part:
    found = _found(parts, instrument)
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


def _found(parts: Sequence[Part], instrument: str | int | None) -> list[int]:
    """The parts that fit; where some have just this name, those alone."""
    found = [index for index, part in enumerate(parts) if _fits(part, index, instrument)]
    if isinstance(instrument, str):
        exact = [index for index in found if _plain(parts[index].name) == _plain(instrument)]
        found = exact or found
    return found


def _plain(text: str) -> str:
    """A name without what two ways of writing it differ in: case, width, how accents are put on."""
    return unicodedata.normalize("NFKC", text).casefold().strip()


def _fits(part: Part, index: int, instrument: str | int | None) -> bool:
    if instrument is None:
        return True
    wanted = _plain(str(instrument))
    if wanted.startswith("index:"):
        return wanted.removeprefix("index:").strip() == str(index)
    if wanted.startswith("program:"):
        return not part.is_drum and wanted.removeprefix("program:").strip() == str(part.program)
    if wanted.isdecimal():
        return int(wanted) == index or (not part.is_drum and int(wanted) == part.program)
    return wanted in _plain(part.name) or wanted == program_name(part).casefold()


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
    """The frequency in Hz of a MIDI pitch or of an array of them.

    The tuning is equal temperament with A4 at 440 Hz.

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

    The errors are:

    - All notes are shifted together (standard deviation 12 ms), and each by itself (standard
      deviation 12 ms on average over the draws).
    - Ends are early or late by up to a quarter of the note.
    - One pitch in a hundred is wrong.
    - In half of the draws, a few notes are missing or added.
    - In one draw of twelve, all notes are an octave too low, as pitch trackers may place them.
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
