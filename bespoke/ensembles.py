"""Random synthesized ensembles: what the network that ships with recipe=auto is trained on beforehand.

No recording and no existing piece goes in: harmony, lines and rhythms are drawn, played by the soundfonts that are given and by
oscillators, and changed in timbre beyond what any instrument does, so that nothing but the relation of a score to a mixture can be learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, oaconvolve, sosfilt

from bespoke.dsp import resample
from bespoke.score import Note, transpose
from bespoke.synth import SYNTH_RATE, Player

SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 3, 5, 7, 9, 10), (0, 2, 4, 5, 7, 9, 10), (0, 2, 3, 5, 7, 8, 11))
# Probabilities of the lengths .25, .5, 1, 1.5, 2, 3 and 4 beats.
BEATS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
SLOW, MEDIUM = (0, 0.05, 0.3, 0.15, 0.3, 0.1, 0.1), (0.08, 0.4, 0.3, 0.1, 0.1, 0.02, 0)
FAST, LONG = (0.4, 0.4, 0.15, 0.05, 0, 0, 0), (0, 0, 0.1, 0.1, 0.3, 0.2, 0.3)
# General MIDI programs by role.
LEADS = (0, 4, 11, 12, 13, 22, *range(24, 31), 40, 41, 42, 46, 52, 53, 56, 57, 59, 60, *range(64, 76), 78, 79, *range(80, 88))
SUSTAINED = (*range(16, 24), *range(40, 44), *range(48, 55), *range(56, 80))
CHORDS, PADS = (0, 1, 2, 4, 5, 6, 7, 11, 16, 17, 18, *range(24, 31), 62, 63), (16, 18, 19, *range(48, 55), *range(88, 96))
ARPEGGIOS, BASSES = (0, 4, 11, 12, 24, 25, 45, 46, 80, 81, 82, 84, 87), tuple(range(32, 40))
KITS = (0, 0, 8, 16, 24, 25, 32, 40)
TARGET_WEIGHT = {"lead": 1.0, "chords": 0.4, "bass": 0.35, "drums": 0.0}
_OCTAVE_STEP = 0.34  # of the random equalizers, above 30 Hz


@dataclass(frozen=True)
class Example:
    """A mix for training: target and background, `[time]`, which add up to a mixture with a peak of 0.9, and the target's notes."""

    target: np.ndarray
    background: np.ndarray
    notes: tuple[Note, ...]


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
    """

    def __init__(self, players: Sequence[Player], sample_rate: int = 22050, seconds: float = 20.0):
        self.players, self.sample_rate, self.seconds = list(players), sample_rate, seconds

    def draw(self, rng: np.random.Generator, targets: int = 2) -> list[Example]:
        """Draw one piece, with as many of its parts as targets, each -15 to 2 dB above the rest."""
        while True:
            parts = self._parts(rng)
            able = [index for index, part in enumerate(parts) if TARGET_WEIGHT[part.role] and len(part.notes) >= 4]
            if len(parts) > 1 and able:
                break
        weights = np.array([TARGET_WEIGHT[parts[index].role] for index in able])
        chosen = rng.choice(able, size=min(targets, len(able)), replace=False, p=weights / weights.sum())
        return [self._example(parts, index, rng) for index in chosen]

    def _example(self, parts: list[_Part], index: int, rng: np.random.Generator) -> Example:
        gains_db = [rng.normal(0, 4) - 3 * (part.role == "chords") for part in parts]
        others = [10 ** (gain / 20) * part.waveform for gain, part in zip(gains_db, parts, strict=True) if part is not parts[index]]
        background, target = np.sum(others, axis=0), parts[index].waveform
        target = target * np.sqrt(np.mean(background**2) / np.mean(target**2)) * 10 ** (rng.uniform(-15, 2) / 20)
        scale = 0.9 / np.abs(target + background).max()
        return Example((scale * target).astype(np.float32), (scale * background).astype(np.float32), tuple(parts[index].notes))

    def _parts(self, rng: np.random.Generator) -> list[_Part]:
        piece = Piece(rng, self.seconds)
        style = rng.choice(["band", "band", "chorale", "chip", "sparse", "jazz"])
        wanted: list[tuple[str, list[Note], Sequence[int]]] = []
        if style == "chorale":
            semitones = int(rng.integers(-7, 8))
            wanted += [("lead", list(transpose(voice, semitones)), SUSTAINED) for voice in piece.chorale(int(rng.integers(3, 5)))]
        else:
            lengths = (SLOW, MEDIUM, MEDIUM, FAST)
            centre = rng.integers(58, 80) if rng.random() < 0.55 else rng.integers(36, 84)
            lead = piece.line(centre, lengths[rng.integers(4)], rng.uniform(0.05, 0.4))
            wanted.append(("lead", lead, LEADS))
            if style != "sparse" or rng.random() < 0.4:
                wanted.append(("bass", piece.bass(), BASSES))
            for kind in rng.choice(
                ["chords", "pad", "arpeggio", "counter", "parallel"], rng.integers(1, 4), p=[0.32, 0.25, 0.15, 0.22, 0.06]
            ):
                if kind == "chords":
                    wanted.append(("chords", piece.chords(rng.integers(52, 68), MEDIUM, rng.integers(2, 5)), CHORDS))
                elif kind == "pad":
                    wanted.append(("chords", piece.chords(rng.integers(40, 70), LONG, rng.integers(1, 5)), PADS))
                elif kind == "arpeggio":
                    wanted.append(("chords", piece.arpeggio(rng.integers(55, 76)), ARPEGGIOS))
                elif kind == "counter":
                    wanted.append(("lead", piece.line(rng.integers(40, 82), lengths[rng.integers(4)], rng.uniform(0.1, 0.5)), LEADS))
                else:
                    wanted.append(("lead", list(transpose(lead, int(rng.choice([-12, 0, 12, 4, 3, 7])))), LEADS))
        parts = [
            _Part(role, notes, waveform)
            for role, notes, programs in wanted
            if (waveform := self._play(notes, programs, style == "chip", piece.beat_seconds, rng)) is not None
        ]
        if style not in ("chorale", "sparse") and rng.random() < 0.85:
            drums = self._render(piece.drums(), int(rng.choice(KITS)), rng, is_drum=True)
            if drums is not None:
                drums = self._tone(drums, rng) if rng.random() < 0.5 else drums
                parts.append(_Part("drums", [], _unit(self._reverb(drums, rng) if rng.random() < 0.5 else drums)))
        return parts

    def _play(
        self, notes: list[Note], programs: Sequence[int], chip: bool, beat_seconds: float, rng: np.random.Generator
    ) -> np.ndarray | None:
        """A part's waveform with an RMS of 1 while it sounds; None if no patch that is drawn can play it."""
        for _ in range(4 if notes else 0):
            if rng.random() < (0.8 if chip else 0.12):
                waveform = _unit(self._oscillate(notes, rng))
            else:
                waveform = self._render(notes, int(rng.choice(programs)), rng)
                if waveform is not None and rng.random() < 0.12:  # two sounds in layers
                    layer = self._render(notes, int(rng.choice(programs)), rng)
                    waveform = waveform if layer is None else waveform + rng.uniform(0.2, 1) * layer
            if waveform is None:
                continue
            if rng.random() < 0.45:
                waveform = self._vibrato(waveform, rng)
            timbre = rng.random()
            if timbre < 0.8:
                waveform = self._formants(waveform, rng) if timbre < 0.5 else self._tone(waveform, rng)
            if rng.random() < 0.2:  # overdrive
                waveform = np.tanh(10 ** (rng.uniform(0, 30) / 20) * waveform / np.sqrt(np.mean(waveform**2)) / 4)
            if rng.random() < 0.12:
                waveform = self._echo(waveform, beat_seconds, rng)
            waveform = _unit(self._reverb(waveform, rng) if rng.random() < 0.75 else waveform)
            if waveform is not None:
                return waveform
        return None

    def _render(self, notes: list[Note], program: int, rng: np.random.Generator, is_drum: bool = False) -> np.ndarray | None:
        player = self.players[rng.integers(len(self.players))]
        stereo = player.play(notes, program, is_drum, self.seconds)
        return None if stereo is None else _unit(resample(stereo, SYNTH_RATE, self.sample_rate)[0])

    def _oscillate(self, notes: list[Note], rng: np.random.Generator) -> np.ndarray:
        """Additive and frequency-modulated sounds with an envelope, as of chips and simple synthesizers."""
        samples = int(self.seconds * self.sample_rate)
        waveform = np.zeros(samples, np.float32)
        kind = rng.choice(["pulse", "saw", "triangle", "fm", "detuned", "drawn"], p=[0.15, 0.15, 0.1, 0.15, 0.1, 0.35])
        duty, cutoff, attack, release = rng.uniform(0.1, 0.5), rng.uniform(2, 24), rng.uniform(0.001, 0.04), rng.uniform(0.01, 0.4)
        decay, sustain = rng.choice([rng.uniform(0.08, 0.5), rng.uniform(0.5, 4)]), rng.uniform(0, 1)
        vibrato, vibrato_hz = rng.uniform(0, 0.2) * (rng.random() < 0.4), rng.uniform(4, 7)  # semitones
        index, ratio, detune = rng.uniform(0.5, 5), rng.choice([0.5, 1, 1.5, 2, 3]), 2 ** (rng.uniform(0, 12) / 1200)
        drawn = rng.uniform(0, 1, 60) * np.arange(1, 61) ** -rng.uniform(0.5, 2)
        drawn[0] += 0.3
        for note in notes:
            held, first = note.end_seconds - note.start_seconds, int(note.start_seconds * self.sample_rate)
            time = np.arange(int((held + 2.5 * release) * self.sample_rate)) / self.sample_rate
            bend = vibrato * np.sin(2 * np.pi * vibrato_hz * time) * np.minimum(time / 0.3, 1)
            pitch_hz = 440 * 2 ** ((note.pitch - 69 + bend) / 12)
            phase = np.cumsum(pitch_hz) / self.sample_rate
            if kind == "fm":
                sound = np.sin(2 * np.pi * phase + index * np.exp(-time / 0.5) * np.sin(2 * np.pi * phase * ratio))
            else:
                number = np.arange(1, max(2, int(min(40, 0.45 * self.sample_rate / pitch_hz.mean()))))
                amplitudes = {"pulse": np.sin(np.pi * number * duty) / number, "triangle": number % 2 / number**2.0}.get(kind, 1 / number)
                amplitudes = drawn[: len(number)] if kind == "drawn" else amplitudes
                amplitudes = amplitudes / np.sqrt(1 + (number / cutoff) ** 4)
                sound = sum(a * np.sin(2 * np.pi * phase * k) for k, a in zip(number, amplitudes, strict=True) if abs(a) > 1e-3)
                if kind == "detuned" and np.ndim(sound):
                    sound = sound + np.interp(np.arange(len(sound)) * detune, np.arange(len(sound)), sound)
            envelope = np.minimum(time / attack, 1) * (sustain + (1 - sustain) * np.exp(-time / decay))
            envelope *= np.where(time > held, np.exp(-2 * (time - held) / release), 1)
            length = max(0, min(samples - first, len(time)))
            waveform[first : first + length] += (np.broadcast_to(sound, time.shape) * envelope)[:length] * note.velocity / 127
        return waveform

    def _vibrato(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        time = np.arange(len(waveform)) / self.sample_rate
        depth_seconds = rng.uniform(5e-5, 6e-4) * np.interp(time, np.linspace(0, self.seconds, 20), rng.uniform(0, 1, 20))
        return np.interp(time + depth_seconds * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * time), time, waveform)

    def _tone(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A random equalizer, as of a recording: 4 dB an octave or so."""
        gains_db = rng.normal(0, 4, 9) - 0.6 * rng.uniform(-1, 3) * np.arange(9)
        return self._equalize(waveform, np.arange(9.0), gains_db)

    def _formants(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Another timbre: a tilt and random resonances, so that no envelope over the partials is typical."""
        octaves = _OCTAVE_STEP * np.arange(25)
        gains_db = 1.3 * np.convolve(rng.normal(0, 8, 25), [0.25, 0.5, 0.25], "same") + rng.uniform(-3, 6) * np.minimum(octaves, 5)
        for _ in range(rng.integers(0, 3)):
            gains_db += rng.uniform(5, 25) * np.exp(-0.5 * ((octaves - rng.uniform(2.5, 6.5)) / rng.uniform(0.2, 0.7)) ** 2)
        if rng.random() < 0.25:  # hardly any fundamental
            gains_db -= rng.uniform(6, 24) * np.maximum(rng.uniform(2, 4.5) - octaves, 0)
        return self._equalize(waveform, octaves, gains_db)

    def _equalize(self, waveform: np.ndarray, octaves: np.ndarray, gains_db: np.ndarray) -> np.ndarray:
        """Gains at octaves above 30 Hz, joined by lines."""
        frequencies_hz = np.fft.rfftfreq(len(waveform), 1 / self.sample_rate)
        curve_db = np.interp(np.log2(np.maximum(frequencies_hz, 30) / 30), octaves, gains_db)
        return np.fft.irfft(np.fft.rfft(waveform) * 10 ** (curve_db / 20), len(waveform))

    def _reverb(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Decaying noise after a pre-delay, beside the dry signal."""
        length = int(rng.uniform(0.15, 1.8) * self.sample_rate)
        tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
        tail = sosfilt(butter(1, min(rng.uniform(2000, 8000), 0.45 * self.sample_rate), fs=self.sample_rate, output="sos"), tail)
        tail *= 10 ** (rng.uniform(-26, -5) / 20) / np.sqrt(np.sum(tail**2))
        response = np.concatenate([np.zeros(int(rng.uniform(0, 0.03) * self.sample_rate)), tail])
        response[0] += 1
        return oaconvolve(waveform, response)[: len(waveform)]

    def _echo(self, waveform: np.ndarray, beat_seconds: float, rng: np.random.Generator) -> np.ndarray:
        delay, feedback = int(beat_seconds * rng.choice([0.5, 0.75, 1]) * self.sample_rate), rng.uniform(0.1, 0.45)
        wet = waveform.copy()
        for repeat in range(1, 5):
            if repeat * delay < len(waveform):
                wet[repeat * delay :] += feedback**repeat * waveform[: -repeat * delay]
        return wet


class Piece:
    """Harmony and tempo of a piece, and parts that keep to them, as notes within its length.

    Args:
        rng: of everything about it.
        seconds: its length.
    """

    def __init__(self, rng: np.random.Generator, seconds: float):
        self.rng, self.seconds = rng, seconds
        self.beat_seconds = 60 / rng.uniform(65, 165)
        self.beats = int(seconds / self.beat_seconds) + 1
        self.key, self.scale = int(rng.integers(12)), SCALES[rng.integers(len(SCALES))]
        self.progression = [int(rng.choice([0, 0, 0, 3, 5])), *rng.integers(0, 7, rng.choice([1, 3, 3, 7]))]
        self.chord_beats, self.swing, self.lead_in_seconds = int(rng.choice([2, 4, 4, 4])), rng.random() < 0.2, rng.uniform(0, 0.5)
        self.repeats = rng.random() < 0.6

    def line(self, centre: int, lengths: Sequence[float], rest: float) -> list[Note]:
        """A melody within nine semitones of a pitch, which comes back over the same chords if the piece repeats."""
        rng, notes, remembered, pitch = self.rng, [], {}, int(centre)
        articulation = rng.choice([0.5, 0.8, 0.95, 1.0])
        for beat, beats, _ in self._rhythm(lengths):
            if rng.random() < rest:
                continue
            chord = self._chord(beat)
            if self.repeats and (beat % 8, chord) in remembered and rng.random() < 0.7:
                pitch = remembered[beat % 8, chord]
            elif rng.random() < 0.6:
                pitch = _nearest(self._degree(chord + rng.choice([0, 2, 4, 6], p=[0.3, 0.3, 0.35, 0.05])), pitch + rng.normal(0, 3))
            else:
                pitch = self._step(pitch, 5)
            pitch = pitch if abs(pitch - centre) <= 9 else _nearest(pitch, centre)
            remembered[beat % 8, chord] = pitch
            notes.append(self._note(beat, beats, pitch, 90, articulation))
        return _present(notes)

    def chords(self, centre: int, lengths: Sequence[float], size: int) -> list[Note]:
        articulation, notes = self.rng.choice([0.4, 0.9, 1.0]), []
        for beat, beats, _ in self._rhythm(lengths):
            chord, beats = self._chord(beat), min(beats, self.chord_beats - beat % self.chord_beats)
            pitches = [_nearest(self._degree(chord + 2 * voice), centre + 4 * voice - 4) for voice in range(size)]
            notes += [self._note(beat, beats, pitch, 75, articulation) for pitch in pitches]
        return _present(notes)

    def arpeggio(self, centre: int) -> list[Note]:
        beats, articulation = self.rng.choice([0.25, 0.5]), self.rng.choice([0.5, 0.95, 1.5])
        pattern = self.rng.permutation(4) if self.rng.random() < 0.5 else np.arange(4)
        notes = []
        for index in range(int(self.beats / beats)):
            step = pattern[index % 4]
            pitch = _nearest(self._degree(self._chord(index * beats) + 2 * (step % 3)), centre) + 12 * (step == 3)
            notes.append(self._note(index * beats, beats, pitch, 80, articulation))
        return _present(notes)

    def bass(self) -> list[Note]:
        rng, notes, beat = self.rng, [], 0.0
        style, articulation = rng.choice(["long", "walking", "eighths", "octaves"]), rng.choice([0.6, 0.95])
        root_share = {"long": 0.95, "walking": 0.4, "eighths": 0.85, "octaves": 0.97}[style]
        while beat < self.beats:
            beats = {"long": rng.choice([1, 2, 4]), "walking": 1}.get(style, 0.5)
            degree = 0 if rng.random() < root_share else rng.choice([2, 4])
            pitch = _nearest(self._degree(self._chord(beat) + degree), 40) + 12 * (style == "octaves" and int(2 * beat) % 2)
            if rng.random() < 0.93:
                notes.append(self._note(beat, beats, pitch, 95, articulation))
            beat += beats
        return _present(notes)

    def drums(self) -> list[Note]:
        rng, notes = self.rng, []
        hat, step = int(rng.choice([42, 42, 51, 46])), rng.choice([0.25, 0.5, 0.5, 1])
        kicks = {0.0, *(rng.choice(16, rng.integers(2, 6), replace=False) / 4)}
        for bar in range(0, self.beats, 4):
            notes += [self._note(bar + index * step, 0.2, hat, 70 if index % 2 else 90, 1.0) for index in range(int(4 / step))]
            notes += [self._note(bar + beat, 0.2, 36, 105, 1.0) for beat in sorted(kicks)]
            notes += [self._note(bar + beat, 0.2, int(rng.choice([38, 38, 40, 39])), 105, 1.0) for beat in (1, 3)]
            if rng.random() < 0.3:
                notes.append(self._note(bar, 0.5, 49, 100, 1.0))
            if rng.random() < 0.3:
                notes += [self._note(bar + 3 + index / 4, 0.2, int(rng.choice([38, 45, 47, 50])), 95, 1.0) for index in range(4)]
        return _present(notes)

    def chorale(self, voices: int) -> list[list[Note]]:
        """Voices in one rhythm, from soprano to bass, with passing notes."""
        rng, centres = self.rng, (71, 65, 58, 50)[:voices]
        parts, pitches, beat = [[] for _ in centres], list(centres), 0.0
        while beat < self.beats:
            beats = rng.choice([0.5, 1, 1, 1, 2])
            chord = self._chord(beat) if rng.random() < 0.6 else int(rng.integers(7))
            for voice, centre in enumerate(centres):
                degree = 0 if voice == 3 else rng.choice([0, 2, 4])
                pitch = _nearest(self._degree(chord + degree), pitches[voice] + 0.3 * (centre - pitches[voice]))
                pitches[voice] = pitch if abs(pitch - centre) <= 8 else _nearest(pitch, centre)
                if beats >= 1 and rng.random() < 0.12:
                    parts[voice].append(self._note(beat, beats / 2, pitches[voice], 85, 0.98, 0.012))
                    pitches[voice] = self._step(pitches[voice], 3)
                    parts[voice].append(self._note(beat + beats / 2, beats / 2, pitches[voice], 85, 0.98, 0.012))
                else:
                    parts[voice].append(self._note(beat, beats, pitches[voice], 85, 0.98, 0.012))
            beat += beats
        return [_present(part) for part in parts]

    def _rhythm(self, lengths: Sequence[float]) -> list[tuple[float, float, int]]:
        """Beats and lengths of a pattern of one, two or four bars, over and over; now and then a new one."""
        rng, bars = self.rng, int(self.rng.choice([1, 2, 4]))
        rhythm, pattern = [], []
        for start in range(0, self.beats, 4 * bars):
            if not pattern or rng.random() < 0.3:
                pattern, beat = [], 0.0
                while beat < 4 * bars:
                    beats = min(float(rng.choice(BEATS, p=lengths)), 4 * bars - beat)
                    pattern.append((beat, beats))
                    beat += beats
            rhythm += [(start + beat, beats, bars) for beat, beats in pattern if start + beat < self.beats]
        return rhythm

    def _chord(self, beat: float) -> int:
        return self.progression[int(beat // self.chord_beats) % len(self.progression)]

    def _degree(self, degree: int) -> int:
        return self.key + 12 * (int(degree) // 7) + self.scale[int(degree) % 7]

    def _step(self, pitch: int, most: int) -> int:
        near = [other for other in range(pitch - most, pitch + most + 1) if (other - self.key) % 12 in self.scale and other != pitch]
        return int(self.rng.choice(near))

    def _seconds(self, beat: float) -> float:
        whole, part = divmod(beat, 1)
        if self.swing:
            part = part * 4 / 3 if part < 0.5 else (2 * part + 1) / 3
        return self.lead_in_seconds + (whole + part) * self.beat_seconds

    def _note(self, beat: float, beats: float, pitch: int, velocity: int, articulation: float, loose_seconds: float = 0.006) -> Note | None:
        rng, start = self.rng, self._seconds(beat)
        length = (self._seconds(beat + beats) - start) * articulation + rng.normal(0, loose_seconds)
        start += rng.normal(0, loose_seconds)
        if not 0 <= start <= self.seconds - 0.1:
            return None
        end = min(start + max(length, 0.04), self.seconds - 0.01)
        return Note(start, end, int(np.clip(pitch, 21, 108)), int(np.clip(velocity + rng.normal(0, 8), 25, 127)))


def _present(notes: Sequence[Note | None]) -> list[Note]:
    return [note for note in notes if note]


def _nearest(pitch: float, centre: float) -> int:
    """The pitch of the same class that is nearest to another."""
    return int(pitch % 12 + 12 * round((centre - pitch % 12) / 12))


def _unit(waveform: np.ndarray | None) -> np.ndarray | None:
    """Scaled to an RMS of 1 while it sounds; None for silence."""
    if waveform is None or np.abs(waveform).max() < 1e-4:
        return None
    sounding = waveform[np.abs(waveform) > 1e-3 * np.abs(waveform).max()]
    return (waveform / np.sqrt(np.mean(sounding**2))).astype(np.float32)
