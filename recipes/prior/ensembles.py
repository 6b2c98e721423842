"""Random synthesized ensembles, on which the network that ships with recipe=auto is pretrained.

No existing piece and no recording of one is used. Harmony, lines and rhythms are drawn at random.
They are played by the soundfonts and the recorded notes that are given, by oscillators, and by a
synthetic voice. Their timbre is changed beyond what any instrument does, so that nothing can be
learned but the relation of a score to a mixture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.signal import butter, istft, oaconvolve, sosfilt, stft

from bespoke.audio.dsp import resample
from bespoke.score.midi import Note, transpose
from bespoke.score.synth import SYNTH_RATE, Player
from recipes.prior.amps import Amps, Rig
from recipes.prior.instruments import Sampler, oscillate, sing
from recipes.prior.pieces import FAST, LONG, MEDIUM, SLOW, Piece

# General MIDI programs by role.
LEADS = (
    0,
    4,
    11,
    12,
    13,
    22,
    *range(24, 31),
    40,
    41,
    42,
    46,
    52,
    53,
    56,
    57,
    59,
    60,
    *range(64, 76),
    78,
    79,
    *range(80, 88),
)
SUSTAINED = (*range(16, 24), *range(40, 44), *range(48, 55), *range(56, 80))
CHORDS, PADS = (
    (0, 1, 2, 4, 5, 6, 7, 11, 16, 17, 18, *range(24, 31), 62, 63),
    (16, 18, 19, *range(48, 55), *range(88, 96)),
)
ARPEGGIOS, BASSES = (0, 4, 11, 12, 24, 25, 45, 46, 80, 81, 82, 84, 87), tuple(range(32, 40))
RIFFS, KITS = (26, 27, 28, 29, 30, 30), (0, 0, 8, 16, 24, 25, 32, 40)
CLEAN = (25, 26, 27, 27, 28)  # guitars before their amplifier
# The recorded instruments that may take the place of a role's programs. An instrument may have
# several folders: `cello`, `cello.loud`.
WINDS_AND_STRINGS = (
    "bass-clarinet",
    "bassoon",
    "cello",
    "clarinet",
    "contrabassoon",
    "english-horn",
    "flute",
    "french-horn",
    "oboe",
    "saxophone",
    "trombone",
    "trumpet",
    "tuba",
    "violin",
)
RECORDED = {
    LEADS: (
        *WINDS_AND_STRINGS,
        *(
            "guitar-acoustic",
            "guitar-electric",
            "guitar-electric",
            "guitar-electric",
            "guitar-nylon",
        ),
        *("piano", "piano-electric", "organ", "xylophone", "saxophone", "trumpet"),
        *("synth-lead", "synth-lead", "synth-brass", "synth-strings"),
    ),
    SUSTAINED: (
        *WINDS_AND_STRINGS,
        *("organ", "harmonium", "contrabass", "synth-brass", "synth-strings", "synth-organ"),
    ),
    CHORDS: (
        *("guitar-acoustic", "guitar-electric", "guitar-electric", "guitar-nylon"),
        *("piano", "piano-electric", "organ", "harmonium", "harp"),
        *("synth-organ", "synth-brass", "synth-pad"),
    ),
    PADS: (
        *("organ", "harmonium", "cello", "violin", "synth-organ"),
        *("synth-pad", "synth-pad", "synth-pad", "synth-strings", "synth-strings"),
    ),
    ARPEGGIOS: ("guitar-acoustic", "guitar-nylon", "harp", "piano", "xylophone"),
    BASSES: ("bass-electric", "contrabass", "contrabass-pizz", "bass-electric", "tuba"),
    RIFFS: ("guitar-electric",),
    CLEAN: ("guitar-electric", "guitar-electric", "guitar-electric", "guitar-muted"),
}
AMPLIFIED = {RIFFS: 0.8, BASSES: 0.25}  # shares, of parts that go through an amplifier as a whole
FAITHFUL, TRACKED = 0.6, 0.5  # shares of the pieces, and of the chords in the others
STYLES = ("band", "band", "rock", "rock", "chorale", "chip", "tracker", "sparse")
TARGET_WEIGHT = {"lead": 1.0, "voice": 0.6, "chords": 0.7, "riff": 0.7, "bass": 0.35, "drums": 0.0}
# What sounds where the score has one note: voices in parallel, or the partials that a pitch tracker
# took for one low note.
DOUBLED = ((0, 12), (0, 7), (0, -12), (0, 7, 12), (0, 4), (0, 3), (0, -5))
SUBHARMONIC = ((12,), (12,), (12, 19), (19,), (24, 28, 31), (24,), (12, 24), (19, 24))
_OCTAVE_STEP = 0.34  # of the random equalizers, above 30 Hz


@dataclass(frozen=True)
class Example:
    """A mix for training.

    Attributes:
        target, background: `[time]`; they add up to a mixture with a peak of 0.9.
        notes: the target's.
        others: those of each other pitched part.
        is_faithful: the notes are those that were played, as in a file from a sequencer, and not
            what a pitch tracker or a careless transcription makes of them.
    """

    target: np.ndarray
    background: np.ndarray
    notes: tuple[Note, ...]
    others: tuple[tuple[Note, ...], ...]
    is_faithful: bool = False


@dataclass(frozen=True)
class _Part:
    role: str
    notes: list[Note]
    waveform: np.ndarray


class Ensembles:
    """Draws pieces and plays them.

    Args:
        players: one for each soundfont.
        sample_rate: of the results, in Hz.
        seconds: length of each piece.
        recorded: instruments of recorded notes by the names of their folders, see `RECORDED`.
        drummers: soundfonts that have drum kits only.
        amps: for guitars and basses; None for a plain clipping one.
    """

    def __init__(
        self,
        players: Sequence[Player],
        sample_rate: int = 22050,
        seconds: float = 20.0,
        recorded: Mapping[str, Sampler] | None = None,
        drummers: Sequence[Player] = (),
        amps: Amps | None = None,
    ):
        self.players, self.sample_rate, self.seconds = list(players), sample_rate, seconds
        self.drummers, self.amps = [*players, *drummers], amps
        self.recorded: dict[str, list[Sampler]] = {}
        for name, sampler in (recorded or {}).items():
            self.recorded.setdefault(name.split(".")[0], []).append(sampler)

    def draw(self, rng: np.random.Generator, targets: int = 2) -> list[Example]:
        """Draw one piece, with as many of its parts as targets, each -15 to 3 dB above the rest."""
        is_faithful = rng.random() < FAITHFUL
        while True:
            parts = self._parts(rng, is_faithful)
            able = [
                index
                for index, part in enumerate(parts)
                if TARGET_WEIGHT[part.role] and len(part.notes) >= 4
            ]
            if len(parts) > 1 and able:
                break
        weights = np.array([TARGET_WEIGHT[parts[index].role] for index in able])
        chosen = rng.choice(
            able, size=min(targets, len(able)), replace=False, p=weights / weights.sum()
        )
        return [
            replace(self._example(parts, index, rng), is_faithful=is_faithful) for index in chosen
        ]

    def _example(self, parts: list[_Part], index: int, rng: np.random.Generator) -> Example:
        gains_db = [rng.normal(0, 4) - 3 * (part.role == "chords") for part in parts]
        others = [
            10 ** (gain / 20) * part.waveform
            for gain, part in zip(gains_db, parts, strict=True)
            if part is not parts[index]
        ]
        background, target = np.sum(others, axis=0), parts[index].waveform
        target = (
            target
            * np.sqrt(np.mean(background**2) / np.mean(target**2))
            * 10 ** (rng.uniform(-15, 3) / 20)
        )
        scale = 0.9 / np.abs(target + background).max()
        return Example(
            (scale * target).astype(np.float32),
            (scale * background).astype(np.float32),
            tuple(parts[index].notes),
            tuple(tuple(part.notes) for part in parts if part.notes and part is not parts[index]),
        )

    def _parts(self, rng: np.random.Generator, is_faithful: bool) -> list[_Part]:
        piece = Piece(rng, self.seconds)
        style = str(rng.choice(STYLES))
        parts = []
        for role, notes, programs in (
            self._chorale(piece, rng)
            if style == "chorale"
            else self._arrangement(piece, style, rng)
        ):
            played = notes if is_faithful else self._what_sounds(notes, role, rng)
            waveform = (
                self._play(played, programs, style, piece.beat_seconds, rng) if played else None
            )
            if waveform is not None:
                tracked = not is_faithful and role in ("chords", "riff") and rng.random() < TRACKED
                parts.append(_Part(role, one_voice(notes) if tracked else notes, waveform))
        if style not in ("chorale", "sparse") and rng.random() < 0.85:
            drums = self._render(
                piece.drums(), int(rng.choice(KITS)), rng, self.drummers, is_drum=True
            )
            if drums is not None:
                drums = self._tone(drums, rng) if rng.random() < 0.5 else drums
                drums = _unit(self._reverb(drums, rng) if rng.random() < 0.5 else drums)
            if drums is not None:
                parts.append(_Part("drums", [], drums))
        return parts

    def _chorale(
        self, piece: Piece, rng: np.random.Generator
    ) -> list[tuple[str, list[Note], Sequence[int]]]:
        semitones = int(rng.integers(-7, 8))
        return [
            ("lead", list(transpose(voice, semitones)), SUSTAINED)
            for voice in piece.chorale(int(rng.integers(3, 5)))
        ]

    def _arrangement(
        self, piece: Piece, style: str, rng: np.random.Generator
    ) -> list[tuple[str, list[Note], Sequence[int]]]:
        """Role, notes and programs of each part but the drums."""
        lengths = (SLOW, MEDIUM, MEDIUM, FAST)
        centre = rng.integers(58, 80) if rng.random() < 0.55 else rng.integers(36, 84)
        lead = piece.line(centre, lengths[rng.integers(4)], rng.uniform(0.05, 0.4))
        of_guitar = style == "rock" and rng.random() < 0.4
        wanted: list[tuple[str, list[Note], Sequence[int]]] = [
            ("lead", lead, RIFFS if of_guitar else LEADS)
        ]
        if style != "sparse" or rng.random() < 0.4:
            wanted.append(("bass", piece.bass(), BASSES))
        if style == "rock" or rng.random() < 0.05:
            riff = piece.riff()
            wanted.append(("riff", riff, RIFFS))
            if rng.random() < 0.5:  # a second guitar: in parallel with the first, or something else
                parallel = list(transpose(riff, int(rng.choice([0, 0, 12, -12, 7, 5, 4, 3]))))
                wanted.append(("riff", parallel if rng.random() < 0.4 else piece.riff(), RIFFS))
        if style in ("band", "rock", "sparse") and rng.random() < 0.35:
            wanted.append(
                (
                    "voice",
                    piece.line(
                        rng.integers(50, 76), lengths[rng.integers(4)], rng.uniform(0.1, 0.5)
                    ),
                    (),
                )
            )
        kinds = ("chords", "pad", "arpeggio", "counter", "parallel")
        for kind in rng.choice(
            kinds, rng.integers(1, 4) - (style == "rock"), p=[0.32, 0.25, 0.15, 0.22, 0.06]
        ):
            if kind == "chords":
                wanted.append(
                    (
                        "chords",
                        piece.chords(rng.integers(52, 68), MEDIUM, rng.integers(2, 5)),
                        CHORDS,
                    )
                )
            elif kind == "pad":
                wanted.append(
                    ("chords", piece.chords(rng.integers(40, 70), LONG, rng.integers(1, 5)), PADS)
                )
            elif kind == "arpeggio":
                wanted.append(("chords", piece.arpeggio(rng.integers(55, 76)), ARPEGGIOS))
            elif kind == "counter":
                wanted.append(
                    (
                        "lead",
                        piece.line(
                            rng.integers(40, 82), lengths[rng.integers(4)], rng.uniform(0.1, 0.5)
                        ),
                        LEADS,
                    )
                )
            else:
                wanted.append(
                    ("lead", list(transpose(lead, int(rng.choice([-12, 0, 12, 4, 3, 7])))), LEADS)
                )
        return wanted

    def _what_sounds(self, notes: list[Note], role: str, rng: np.random.Generator) -> list[Note]:
        """The notes as they are played: at times more or others than the score has."""
        kind = rng.random()
        if role != "lead" or kind > 0.16:
            return notes
        choices = DOUBLED if kind < 0.08 else SUBHARMONIC
        intervals, all_along = choices[rng.integers(len(choices))], rng.random() < 0.6
        played = []
        for note in notes:
            played += transpose([note], intervals[0])
            if all_along or rng.random() < 0.5:
                played += [
                    sounding
                    for semitones in intervals[1:]
                    for sounding in transpose([note], semitones)
                ]
        return played

    def _play(
        self,
        notes: list[Note],
        programs: Sequence[int],
        style: str,
        beat_seconds: float,
        rng: np.random.Generator,
    ) -> np.ndarray | None:
        """A part's waveform with an RMS of 1 while it sounds.

        None if no patch that is drawn can play it.
        """
        for _ in range(4):
            rig = self._rig(programs, rng)
            waveform = self._take(notes, programs, style, rng, rig)
            if waveform is None:
                continue
            if programs is RIFFS and rng.random() < 0.5:  # a rhythm guitar is often played twice
                late = rng.normal(0, 0.012, len(notes))
                again = [
                    replace(n, start_seconds=max(0.0, n.start_seconds + d))
                    for n, d in zip(notes, late, strict=True)
                ]
                second = self._take(
                    [n for n in again if n.end_seconds - n.start_seconds > 0.02],
                    programs,
                    style,
                    rng,
                    rig if rng.random() < 0.6 else self._rig(programs, rng),
                )
                waveform = waveform if second is None else waveform + second
            if rng.random() < 0.12:
                waveform = self._echo(waveform, beat_seconds, rng)
            waveform = _unit(
                self._reverb(waveform, rng)
                if rng.random() < (0.3 if style == "tracker" else 0.75)
                else waveform
            )
            if waveform is not None:
                return waveform
        return None

    def _rig(self, programs: Sequence[int], rng: np.random.Generator) -> Rig | None:
        """An amplifier for a part, if it goes through one; basses less driven."""
        if self.amps is None or rng.random() >= AMPLIFIED.get(programs, 0):
            return None
        return self.amps.draw(rng, (-20, 0) if programs is RIFFS else (-32, -8))

    def _take(
        self,
        notes: list[Note],
        programs: Sequence[int],
        style: str,
        rng: np.random.Generator,
        rig: Rig | None = None,
    ) -> np.ndarray | None:
        """The notes with an expression and a timbre of their own, dry, with an RMS of 1."""
        sources = CLEAN if rig and programs is RIFFS else programs
        waveform = self._perform(notes, sources, style, rng)
        if waveform is not None and rng.random() < 0.1:  # two sounds in layers
            layer = self._perform(notes, sources, style, rng)
            waveform = waveform if layer is None else waveform + rng.uniform(0.2, 1) * layer
        if waveform is None:
            return None
        if rng.random() < 0.4:
            waveform = self._vibrato(waveform, rng)
        if rng.random() < 0.4:
            waveform = self._swell(waveform, rng)
        if rig:
            driven = _unit(rig.play(waveform, self.sample_rate))
            if driven is None:
                return None
            if programs is not RIFFS:  # beside the clean bass, which the cabinet does not pass
                driven = waveform + rng.uniform(0.2, 2) * driven
            return _unit(self._tone(driven, rng) if rng.random() < 0.5 else driven)
        if rng.random() < (0.4 if programs is PADS else 0.08):
            waveform = self._chorus(waveform, rng)
        if rng.random() < (0.3 if programs is PADS else 0.05):
            waveform = self._sweep(waveform, rng)
        timbre = rng.random()
        if timbre < 0.8:
            waveform = self._formants(waveform, rng) if timbre < 0.45 else self._tone(waveform, rng)
        if rng.random() < (0.8 if programs is RIFFS else 0.2):
            waveform = self._overdrive(waveform, rng)
        return _unit(waveform)

    def _perform(
        self, notes: list[Note], programs: Sequence[int], style: str, rng: np.random.Generator
    ) -> np.ndarray | None:
        """The notes on one instrument, drawn from those of a role (no programs: the voice)."""
        if not programs:
            return _unit(
                sing(
                    sorted(notes, key=lambda note: note.start_seconds),
                    self.seconds,
                    self.sample_rate,
                    rng,
                )
            )
        if rng.random() < {"chip": 0.8, "tracker": 0.25}.get(style, 0.12):
            return _unit(oscillate(notes, self.seconds, self.sample_rate, rng))
        names = [name for name in RECORDED.get(programs, ()) if name in self.recorded]
        if names and rng.random() < (0.8 if programs is CLEAN else 0.5):
            samplers = self.recorded[names[rng.integers(len(names))]]
            sampler = samplers[rng.integers(len(samplers))]
            return _unit(sampler.play(notes, self.seconds, rng, single=style == "tracker"))
        return self._render(notes, int(rng.choice(programs)), rng, self.players)

    def _render(
        self,
        notes: list[Note],
        program: int,
        rng: np.random.Generator,
        players: Sequence[Player],
        is_drum: bool = False,
    ) -> np.ndarray | None:
        stereo = players[rng.integers(len(players))].play(notes, program, is_drum, self.seconds)
        return None if stereo is None else _unit(resample(stereo, SYNTH_RATE, self.sample_rate)[0])

    def _vibrato(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        time = np.arange(len(waveform)) / self.sample_rate
        depth_seconds = rng.uniform(5e-5, 6e-4) * np.interp(
            time, np.linspace(0, self.seconds, 20), rng.uniform(0, 1, 20)
        )
        return np.interp(
            time + depth_seconds * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * time), time, waveform
        )

    def _chorus(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Copies of itself whose delays swing slowly, so that they are out of tune by turns."""
        time = np.arange(len(waveform)) / self.sample_rate
        wet = waveform.copy()
        for _ in range(rng.integers(1, 4)):
            swing = np.sin(2 * np.pi * (rng.uniform(0.1, 2) * time + rng.random()))
            delay_seconds = rng.uniform(0.005, 0.025) + rng.uniform(0.0005, 0.004) * swing
            wet += rng.uniform(0.4, 1) * np.interp(time - delay_seconds, time, waveform)
        return wet

    def _sweep(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A resonant low-pass filter whose cutoff rises and falls, as of a synthesizer."""
        hz, times, spectrogram = stft(waveform, self.sample_rate, nperseg=1024)
        octaves = rng.uniform(0.5, 2.5) * np.sin(
            2 * np.pi * (np.exp(rng.uniform(np.log(0.05), np.log(4))) * times + rng.random())
        )
        cutoff_hz = np.exp(rng.uniform(np.log(300), np.log(3000))) * 2**octaves
        ratio = hz[:, None] / cutoff_hz
        gains = 1 / np.sqrt((1 - ratio**2) ** 2 + (ratio / rng.uniform(0.7, 4)) ** 2)
        return istft(spectrogram * gains, self.sample_rate, nperseg=1024)[1][: len(waveform)]

    def _swell(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Louder and softer from one half second to the next, as a player's expression."""
        time, points = np.arange(len(waveform)) / self.sample_rate, int(2 * self.seconds)
        gains_db = np.interp(
            time, np.linspace(0, self.seconds, points), rng.normal(0, rng.uniform(1, 5), points)
        )
        return waveform * 10 ** (gains_db / 20)

    def _overdrive(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A clipping amplifier.

        In half of the draws the lows are cut before it. In most draws it plays through a
        loudspeaker, which passes the middle frequencies only.
        """
        if rng.random() < 0.5:
            cut = butter(1, rng.uniform(100, 800), "high", fs=self.sample_rate, output="sos")
            waveform = sosfilt(cut, waveform) + rng.uniform(0, 0.3) * waveform
        drive = 10 ** (rng.uniform(0, 34) / 20) / 4 / np.sqrt(np.mean(waveform**2))
        waveform = drive * waveform + rng.choice([0, 0.3])
        waveform = np.tanh(waveform) if rng.random() < 0.7 else np.clip(waveform, -1, 1)
        if rng.random() < 0.7:
            edges_hz = (rng.uniform(60, 150), min(rng.uniform(3000, 6500), 0.45 * self.sample_rate))
            waveform = sosfilt(
                butter(
                    int(rng.integers(2, 5)), edges_hz, "band", fs=self.sample_rate, output="sos"
                ),
                waveform,
            )
        return waveform - np.mean(waveform)

    def _tone(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A random equalizer, as of a recording: 4 dB an octave or so."""
        gains_db = rng.normal(0, 4, 9) - 0.6 * rng.uniform(-1, 3) * np.arange(9)
        return self._equalize(waveform, np.arange(9.0), gains_db)

    def _formants(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Another timbre: a tilt and random resonances.

        After this change, no envelope over the partials is typical.
        """
        octaves = _OCTAVE_STEP * np.arange(25)
        gains_db = 1.3 * np.convolve(rng.normal(0, 8, 25), [0.25, 0.5, 0.25], "same") + rng.uniform(
            -3, 6
        ) * np.minimum(octaves, 5)
        for _ in range(rng.integers(0, 3)):
            gains_db += rng.uniform(5, 25) * np.exp(
                -0.5 * ((octaves - rng.uniform(2.5, 6.5)) / rng.uniform(0.2, 0.7)) ** 2
            )
        if rng.random() < 0.25:  # hardly any fundamental
            gains_db -= rng.uniform(6, 24) * np.maximum(rng.uniform(2, 4.5) - octaves, 0)
        return self._equalize(waveform, octaves, gains_db)

    def _equalize(
        self, waveform: np.ndarray, octaves: np.ndarray, gains_db: np.ndarray
    ) -> np.ndarray:
        """Gains at octaves above 30 Hz, joined by lines."""
        frequencies_hz = np.fft.rfftfreq(len(waveform), 1 / self.sample_rate)
        curve_db = np.interp(np.log2(np.maximum(frequencies_hz, 30) / 30), octaves, gains_db)
        return np.fft.irfft(np.fft.rfft(waveform) * 10 ** (curve_db / 20), len(waveform))

    def _reverb(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Decaying noise after a pre-delay, beside the dry signal."""
        length = int(rng.uniform(0.15, 1.8) * self.sample_rate)
        tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
        tail = sosfilt(
            butter(
                1,
                min(rng.uniform(2000, 8000), 0.45 * self.sample_rate),
                fs=self.sample_rate,
                output="sos",
            ),
            tail,
        )
        tail *= 10 ** (rng.uniform(-26, -5) / 20) / np.sqrt(np.sum(tail**2))
        response = np.concatenate([np.zeros(int(rng.uniform(0, 0.03) * self.sample_rate)), tail])
        response[0] += 1
        return oaconvolve(waveform, response)[: len(waveform)]

    def _echo(
        self, waveform: np.ndarray, beat_seconds: float, rng: np.random.Generator
    ) -> np.ndarray:
        delay, feedback = (
            int(beat_seconds * rng.choice([0.5, 0.75, 1]) * self.sample_rate),
            rng.uniform(0.1, 0.45),
        )
        wet = waveform.copy()
        for repeat in range(1, 5):
            if repeat * delay < len(waveform):
                wet[repeat * delay :] += feedback**repeat * waveform[: -repeat * delay]
        return wet


def one_voice(notes: Sequence[Note], lowest: int = 36) -> list[Note]:
    """What a tracker of single pitches takes chords for.

    It hears one note at a time: the highest pitch of which the notes of the chord are roughly
    partials.

    Args:
        notes: of chords.
        lowest: pitch that it can find.

    A fifth is heard as the second and third partial of a lower note:

    >>> [note.pitch for note in one_voice([Note(0, 1, 60), Note(0, 1, 67)])]
    [48]
    """
    edges = sorted(
        {float(round(edge, 2)) for note in notes for edge in (note.start_seconds, note.end_seconds)}
    )
    heard: list[Note] = []
    for start, end in pairwise(edges):
        sounding = [
            note
            for note in notes
            if note.start_seconds <= start + 0.02 and note.end_seconds >= end - 0.02
        ]
        if end - start < 0.05 or not sounding:
            continue
        candidates = np.arange(lowest, max(min(note.pitch for note in sounding), lowest) + 1)
        semitones = np.array([note.pitch for note in sounding]) - candidates[:, None]
        partials = np.maximum(np.round(2 ** (semitones / 12)), 1)
        fits = np.exp(-((np.abs(semitones - 12 * np.log2(partials)) / 0.3) ** 2)).mean(axis=1)
        pitch = int(candidates[np.argmax(np.round(fits, 1) + 1e-3 * candidates)])
        if heard and heard[-1].pitch == pitch and start - heard[-1].end_seconds < 0.02:
            heard[-1] = replace(heard[-1], end_seconds=end)
        else:
            heard.append(Note(start, end, pitch, sounding[0].velocity))
    return heard


def _unit(waveform: np.ndarray | None) -> np.ndarray | None:
    """Scaled to an RMS of 1 while it sounds; None for silence."""
    if waveform is None or not np.isfinite(waveform).all() or np.abs(waveform).max() < 1e-4:
        return None
    sounding = waveform[np.abs(waveform) > 1e-3 * np.abs(waveform).max()]
    return (waveform / np.sqrt(np.mean(sounding**2))).astype(np.float32)
