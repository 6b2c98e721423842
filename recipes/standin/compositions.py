"""Two original pieces.

They have the arrangements of the paper's two demonstrations and none of their music. The recordings
of section 3 may not be shipped. What makes them useful as tests is which instruments play together,
and in which roles. Only this is kept: `take_on_me` has a lead synth, a countermelody, a pad, bass
and drums; `reelin_in_the_years` has two lead guitars in diatonic thirds, piano, rhythm guitar, bass
and drums. Melodies, chords and rhythms are our own.

Two notations are used. A line consists of words `pitch:beats`, with `r` for a rest, `!` after a
pitch for an accent, and `|` between bars of four beats each. A grid has one character for each
equal step of a bar: `X` accented, `x` normal, `o` soft, `.` nothing, and `-` the previous one held.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from bespoke.score.midi import Note, Part
from bespoke.utils.errors import BespokeError

BEATS = 4  # in a bar, in both pieces
GRID_VELOCITY = {"X": 112, "x": 92, "o": 64}
DRUMS = {
    "kick": 36,
    "snare": 38,
    "clap": 39,
    "low": 41,
    "closed": 42,
    "open": 46,
    "high": 48,
    "crash": 49,
    "ride": 51,
}


@dataclass(frozen=True)
class Composition:
    """A piece as its score has it.

    Attributes:
        name: of the song it stands in for.
        bpm: beats a minute; the notes are in seconds at this tempo.
        target: the name of the part to separate.
        parts: all parts, the target among them.
    """

    name: str
    bpm: float
    target: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Clock:
    """From beats to seconds. With swing, the off-beat eighth comes at two thirds of its beat."""

    bpm: float
    swing: bool = False

    def seconds(self, beat: float) -> float:
        whole, part = divmod(beat, 1)
        if self.swing:  # piecewise linear, so that lengths of .25 .25 .5 make a triplet
            part = part * 4 / 3 if part < 0.5 else (part * 2 + 1) / 3
        return (whole + part) * 60 / self.bpm

    def note(self, beat: float, beats: float, midi_pitch: int, velocity: int) -> Note:
        return Note(
            self.seconds(beat), self.seconds(beat + beats), midi_pitch, max(1, min(127, velocity))
        )


def pitch(name: str) -> int:
    """The MIDI number of a name like `C4` (60), `F#3` or `Eb5`."""
    letter, accidental, octave = name[0], name[1:-1], int(name[-1])
    return (
        12 * (octave + 1)
        + "C D EF G A B".index(letter)
        + accidental.count("#")
        - accidental.count("b")
    )


def play_line(
    text: str, clock: Clock, velocity: int = 90, articulation: float = 0.92
) -> tuple[Note, ...]:
    """The notes of a line.

    Notes on a beat are a little louder, and accents are louder still. Each note sounds for
    `articulation` times its beats.

    Raises:
        ValueError: a bar does not have four beats.
    """
    notes, beat = [], 0.0
    for number, bar in enumerate(text.split("|")):
        for word in bar.split():
            name, beats = word.split(":")
            if name != "r":
                loudness = velocity + 6 * (beat % 1 == 0) + 12 * name.endswith("!")
                notes.append(
                    clock.note(beat, float(beats) * articulation, pitch(name.rstrip("!")), loudness)
                )
            beat += float(beats)
        if beat != BEATS * (number + 1):
            raise ValueError(
                f"bar {number + 1} ends at beat {beat}, not {BEATS * (number + 1)}: {bar}"
            )
    return tuple(notes)


def play_chords(
    bars: Iterable[tuple[str, str]], clock: Clock, loudness: float = 1.0, articulation: float = 0.95
) -> tuple[Note, ...]:
    """The notes of bars of (pitches, grid): all pitches sound at each hit of the grid."""
    notes = []
    for bar, (pitches, grid) in enumerate(bars):
        step = BEATS / len(grid)
        for index, mark in enumerate(grid):
            if mark in GRID_VELOCITY:
                held = 1 + len(grid[index + 1 :]) - len(grid[index + 1 :].lstrip("-"))
                for number, name in enumerate(pitches.split()):
                    velocity = round(loudness * GRID_VELOCITY[mark]) - 2 * number
                    notes.append(
                        clock.note(
                            BEATS * bar + index * step,
                            held * step * articulation,
                            pitch(name),
                            velocity,
                        )
                    )
    return tuple(sorted(notes))


def play_drums(bars: Iterable[dict[str, str]], clock: Clock) -> tuple[Note, ...]:
    """The notes of bars of {drum: grid}."""
    notes = []
    for bar, drums in enumerate(bars):
        for drum, grid in drums.items():
            step = BEATS / len(grid)
            for index, mark in enumerate(grid):
                if mark in GRID_VELOCITY:
                    notes.append(
                        clock.note(
                            BEATS * bar + index * step, 0.25, DRUMS[drum], GRID_VELOCITY[mark]
                        )
                    )
    return tuple(sorted(notes))


def take_on_me() -> Composition:
    """Synth-pop in C minor, 11 bars: lead synth (the target), countermelody, pad, bass, drums."""
    clock = Clock(bpm=138)
    lead = """r:.5 G4:.5 C5!:.75 D5:.25 Eb5:1 D5:.5 C5:.5 | Eb5!:1.5 C5:.5 Ab4:1 r:1
        | r:.5 F5!:.5 Eb5:.25 D5:.25 C5:.5 D5:.75 Eb5:.25 F5:1 | G5!:1 F5:.5 D5:1 Bb4:.5 r:1
        | G5!:.75 Bb5:.75 G5:.5 F5:.5 Eb5:.5 r:1
        | Ab5:.5 F5:.25 Ab5:.25 C6!:.5 Ab5:.5 F5:1 Eb5:.5 Db5:.5
        | C5!:1.5 r:.5 Ab4:.25 C5:.25 F5:.25 G5:.25 Ab5!:1 | G5!:1.5 C5:.5 B4:.5 r:1.5
        | r:.5 C6!:.5 Bb5:.5 Ab5:.25 G5:.25 Eb5:.75 F5:.75 C5:.5
        | Bb5!:.5 F5:.5 D5:.5 F5:.25 G5:.25 Bb5:.5 C6:.5 r:1
        | D5:.5 G5:.5 C6!:2 r:1"""
    counter = """C4:1.5 D4:.5 Eb4:1 G4:1 | r:2.5 Eb4:.5 G4:.5 Bb4:.5
        | Ab4!:1.5 G4:.5 F4:1 r:1 | r:2 G4:.5 F4:.25 G4:.25 Bb4!:.5 D5:.5
        | Eb4:1 r:1.5 Bb4:.5 C5:.5 D5!:.5 | F4:1.5 Ab4:.5 r:2
        | C5:.5 Bb4:.5 Ab4!:1 r:2 | r:1.5 D4:.25 F4:.25 G4:.5 B4:.5 D5:.5 F5!:.5
        | Eb5!:1.5 C5:.5 Ab4:1 r:1 | r:1 D5:1.5 Bb4:.5 F4:1
        | Eb4:.5 D4:.5 C4!:2 r:1"""
    held, pushed = "o---------------", "o---------o-----"
    pad = [
        ("G3 C4 D4 Eb4", held), ("Ab3 C4 Eb4 G4", held),
        ("F3 Ab3 C4 Eb4", held), ("G3 Bb3 D4 F4", pushed),
        ("G3 Bb3 D4 Eb4", held), ("F3 Ab3 C4 Db4", held),
        ("Ab3 C4 Eb4 F4", held), ("G3 B3 D4 F4", pushed),
        ("Ab3 C4 Eb4 G4", held), ("Bb3 D4 F4 G4", held), ("G3 C4 Eb4 G4", "o-----------...."),
    ]  # fmt: skip
    bass = """C2!:.5 C3:.5 C2:.5 C3:.25 C2:.5 G2:.25 C3:.5 Bb2:.5 G2:.5
        | Ab1!:.5 Ab2:.5 Ab1:.5 Ab2:.25 Ab1:.5 Eb2:.25 Ab2:.5 G2:.5 Eb2:.5
        | F1!:.5 F2:.5 F1:.5 F2:.25 F1:.5 C2:.25 F2:.5 Eb2:.5 C2:.5
        | G1!:.5 G2:.5 G1:.5 G2:.25 G1:.5 D2:.25 G2:.5 F2:.5 D2:.5
        | Eb2!:.5 Eb3:.5 Eb2:.5 Eb3:.25 Eb2:.5 Bb2:.25 Eb3:.5 D3:.5 Bb2:.5
        | Db2!:.5 Db3:.5 Db2:.5 Db3:.25 Db2:.75 Ab2:.5 Bb2:.5 Ab2:.5
        | F1!:.5 F2:.5 F1:.5 F2:.25 F1:.5 C2:.25 Eb2:.5 F2:.5 Ab2:.5
        | G1!:.5 G2:.5 G1:.5 G2:.25 G1:.75 D2:.25 F2:.25 G2:.5 B2:.5
        | Ab1!:.5 Ab2:.5 Ab1:.5 Ab2:.25 Ab1:.5 Eb2:.25 Ab2:.5 C3:.5 Ab2:.5
        | Bb1!:.5 Bb2:.5 Bb1:.5 Bb2:.25 Bb1:.5 F2:.25 Bb2:.5 D3:.5 Bb2:.5
        | C2!:.5 G2:.5 C2:2 r:1"""
    beat = {"kick": "X...x..xX...x...", "snare": "....X.......X...", "closed": "x.xox.xox.xox.xo"}
    lift = {
        "kick": "X...x...X..xx...",
        "snare": "....X.......X..o",
        "clap": "....x.......x...",
        "closed": "x.xox.xox.xo..xo",
    }
    lift["open"] = "............x..."
    fill = {"kick": "X...x...X.......", "snare": "....X.....xxX...", "closed": "x.xox.xo........"}
    fill |= {"high": "........xx......", "low": ".............xxX"}
    crash = {"crash": "X..............."}
    end = {"kick": "X.x.X...........", "snare": "x.x.X...........", "crash": "....X..........."}
    drums = [beat | crash, beat, lift, beat, beat, lift, beat, fill, lift | crash, lift, end]
    return Composition(
        "take_on_me",
        clock.bpm,
        "Lead Synth",
        (
            Part("Lead Synth", 81, False, play_line(lead, clock, 94)),
            Part("Counter Synth", 80, False, play_line(counter, clock, 82, 0.8)),
            Part("Pad", 89, False, play_chords(pad, clock, articulation=0.98)),
            Part("Bass", 38, False, play_line(bass, clock, 92, 0.75)),
            Part("Drums", 0, True, play_drums(drums, clock)),
        ),
    )


def third_above(notes: Iterable[Note], scale: str) -> tuple[Note, ...]:
    """The same rhythm, with each note moved up by two degrees of the scale.

    This is 3 or 4 semitones in a major scale or a mode of one.
    """
    degrees = [pitch(f"{name}4") % 12 for name in scale.split()]
    steps = [number for number in range(128) if number % 12 in degrees]
    return tuple(
        Note(
            note.start_seconds, note.end_seconds, steps[steps.index(note.pitch) + 2], note.velocity
        )
        for note in notes
    )


def reelin_in_the_years() -> Composition:
    """A rock shuffle in F mixolydian, 12 bars.

    Two lead guitars in thirds (the target is the lower), piano, rhythm guitar, bass, drums.
    """
    clock = Clock(bpm=130, swing=True)
    lead = """r:1 C5:.25 Bb4:.25 A4:.5 F4:.5 A4:.5 C5!:1
        | Eb5!:.5 D5:.5 C5:.5 G4:1 Bb4:.5 C5:.5 r:.5
        | r:.5 G4:.5 Bb4:.5 C5:.25 D5:.25 Eb5!:1 D5:.5 Bb4:.5 | F4:1.5 G4:.5 Bb4!:1 r:1
        | D5!:.5 D5:.25 C5:.25 Bb4:.5 G4:.5 Bb4:.5 A4:.5 G4:.5 F4:.5
        | A4!:2 r:.5 F4:.5 A4:.25 C5:.25 D5:.5
        | Eb5!:1 D5:.25 C5:.25 Bb4:.5 G4:.5 Bb4:.5 Eb4:1 | F4!:1 r:2 F4:.25 G4:.25 A4:.5
        | Bb4:.5 D5!:1 C5:.5 Bb4:1 r:1 | r:.5 A4:.5 D5:.5 F5!:.5 Eb5:.25 D5:.25 C5:.5 A4:1
        | G4:.5 Bb4:.5 Eb5:.25 F5:.25 G5!:.5 F5:.5 Eb5:.5 D5:.5 Bb4:.5 | C5!:3 r:1"""
    chords = {
        "F": ("F3 A3 C4 F4", "F3 C4 F4"), "Cm": ("Eb3 G3 Bb3 C4", "C3 G3 Bb3"),
        "Eb": ("G3 Bb3 Eb4", "Eb3 Bb3 Eb4"), "Bb": ("F3 Bb3 D4", "Bb2 F3 Bb3"),
        "Gm": ("F3 G3 Bb3 D4", "G2 D3 G3"), "Dm": ("F3 A3 D4", "D3 A3 D4"),
    }  # fmt: skip
    loop = ["F", "Cm", "Eb", "Bb", "Gm", "Dm", "Eb", "F", "Gm", "Dm", "Eb", "F"]
    stabs, push, rest, last = "X-.xo-.x", "X-.x.xx-", "X---....", "X-----.."
    chugs, sparse = "XxoxXxox", "..X-..Xo"
    piano_grids = [stabs, push, stabs, push, stabs, push, stabs, rest, push, stabs, push, last]
    rhythm_grids = [sparse] * 4 + [chugs, chugs, sparse, rest, chugs, chugs, chugs, last]
    piano = [(chords[name][0], grid) for name, grid in zip(loop, piano_grids, strict=True)]
    rhythm = [(chords[name][1], grid) for name, grid in zip(loop, rhythm_grids, strict=True)]
    bass = """F2!:1 A2:1 C3:1 D3:.5 Eb3:.5 | C3!:1 Bb2:.5 C3:.5 G2:1 Eb2:1
        | Eb2!:1.5 Eb2:.5 G2:1 Bb2:1 | Bb2!:1 F2:1 D2:.5 F2:.5 Bb2:1
        | G2!:1 G2:.5 Bb2:.5 D3:1 C3:1 | D3!:1 A2:1 F2:.5 A2:.5 D2:1
        | Eb2!:1 Eb2:.5 F2:.5 G2:1 Bb2:1 | F2!:1 r:1 F2:.5 F2:.5 A2:.5 F2:.5
        | G2!:1 Bb2:1 D3:.5 Bb2:.5 G2:1 | D2!:1 F2:1 A2:1 D3:.5 A2:.5
        | Eb2!:1 G2:1 Bb2:1 G2:.5 Eb2:.5 | F2!:3 r:1"""
    beat = {"kick": "X..xx..x", "snare": "..X...X.", "closed": "XoxoXoxo"}
    ghost = {"kick": "X..x.xx.", "snare": "..X..oX.", "closed": "XoxoXox.", "open": ".......x"}
    ride = {"kick": "X..xx..x", "snare": "..X..oX.", "ride": "XoxoXoxo"}
    fill = {
        "kick": "X.......",
        "crash": "X.......",
        "snare": "....xxx.X.......",
        "high": ".........xx.....",
        "low": "............Xxx.",
    }
    end = {"kick": "X.......", "crash": "X.......", "snare": "X......."}
    crash = {"crash": "X......."}
    drums = [
        beat | crash,
        beat,
        beat,
        ghost,
        beat,
        beat,
        ghost,
        fill,
        ride | crash,
        ride,
        ride,
        end,
    ]
    lower = play_line(lead, clock, 92, 0.95)
    return Composition(
        "reelin_in_the_years",
        clock.bpm,
        "Lead Guitar 2",
        (
            Part("Lead Guitar 1", 29, False, third_above(lower, "Bb C D Eb F G A")),
            Part("Lead Guitar 2", 29, False, lower),
            Part("Piano", 0, False, play_chords(piano, clock, 0.9)),
            Part("Rhythm Guitar", 27, False, play_chords(rhythm, clock, 0.85, 0.7)),
            Part("Bass", 33, False, play_line(bass, clock, 92, 0.9)),
            Part("Drums", 0, True, play_drums(drums, clock)),
        ),
    )


def compose(name: str) -> Composition:
    """The composition that stands in for a song.

    Raises:
        BespokeError: there is none of that name.
    """
    pieces = {piece.__name__: piece for piece in (take_on_me, reelin_in_the_years)}
    if name not in pieces:
        raise BespokeError(
            f"There is no stand-in for the song {name}: choose one of {', '.join(pieces)}, or give"
            " your own recording."
        )
    return pieces[name]()
