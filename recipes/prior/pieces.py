"""Random pieces of music, as notes.

Their harmony, lines, chords, basses and drums keep to one key and tempo.
"""

from collections.abc import Sequence

import numpy as np

from bespoke.score.midi import Note

SCALES = (
    (0, 2, 4, 5, 7, 9, 11),
    (0, 2, 3, 5, 7, 8, 10),
    (0, 2, 3, 5, 7, 9, 10),
    (0, 2, 4, 5, 7, 9, 10),
    (0, 2, 3, 5, 7, 8, 11),
)
# Probabilities of the lengths .25, .5, 1, 1.5, 2, 3 and 4 beats.
BEATS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
SLOW, MEDIUM = (0, 0.05, 0.3, 0.15, 0.3, 0.1, 0.1), (0.08, 0.4, 0.3, 0.1, 0.1, 0.02, 0)
FAST, LONG = (0.4, 0.4, 0.15, 0.05, 0, 0, 0), (0, 0, 0.1, 0.1, 0.3, 0.2, 0.3)


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
        self.progression = [
            int(rng.choice([0, 0, 0, 3, 5])),
            *rng.integers(0, 7, rng.choice([1, 3, 3, 7])),
        ]
        self.chord_beats, self.swing, self.lead_in_seconds = (
            int(rng.choice([2, 4, 4, 4])),
            rng.random() < 0.2,
            rng.uniform(0, 0.5),
        )
        self.repeats = rng.random() < 0.6

    def line(self, centre: int, lengths: Sequence[float], rest: float) -> list[Note]:
        """A melody within nine semitones of a pitch.

        If the piece repeats, the melody comes back over the same chords.
        """
        rng, notes, remembered, pitch = self.rng, [], {}, int(centre)
        articulation = rng.choice([0.5, 0.8, 0.95, 1.0])
        for beat, beats, _ in self._rhythm(lengths):
            if rng.random() < rest:
                continue
            chord = self._chord(beat)
            if self.repeats and (beat % 8, chord) in remembered and rng.random() < 0.7:
                pitch = remembered[beat % 8, chord]
            elif rng.random() < 0.6:
                pitch = _nearest(
                    self._degree(chord + rng.choice([0, 2, 4, 6], p=[0.3, 0.3, 0.35, 0.05])),
                    pitch + rng.normal(0, 3),
                )
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
            pitches = [
                _nearest(self._degree(chord + 2 * voice), centre + 4 * voice - 4)
                for voice in range(size)
            ]
            notes += [self._note(beat, beats, pitch, 75, articulation) for pitch in pitches]
        return _present(notes)

    def riff(self) -> list[Note]:
        """Power chords, as of a distorted guitar.

        A low root that is struck again and again, its fifth, and sometimes its octave.
        """
        rng, notes, octave = self.rng, [], self.rng.random() < 0.4
        muted, lengths = rng.choice([0.4, 0.8, 1.0]), (FAST, MEDIUM, LONG)[rng.integers(3)]
        for beat, beats, _ in self._rhythm(lengths):
            if rng.random() < 0.12:
                continue
            root = _nearest(self._degree(self._chord(beat)), 45)
            above = (0, 7, 12) if octave else (0, 7)
            notes += [self._note(beat, beats, root + semitones, 95, muted) for semitones in above]
        return _present(notes)

    def arpeggio(self, centre: int) -> list[Note]:
        beats, articulation = self.rng.choice([0.25, 0.5]), self.rng.choice([0.5, 0.95, 1.5])
        pattern = self.rng.permutation(4) if self.rng.random() < 0.5 else np.arange(4)
        notes = []
        for index in range(int(self.beats / beats)):
            step = pattern[index % 4]
            pitch = _nearest(
                self._degree(self._chord(index * beats) + 2 * (step % 3)), centre
            ) + 12 * (step == 3)
            notes.append(self._note(index * beats, beats, pitch, 80, articulation))
        return _present(notes)

    def bass(self) -> list[Note]:
        rng, notes, beat = self.rng, [], 0.0
        style, articulation = (
            rng.choice(["long", "walking", "eighths", "octaves"]),
            rng.choice([0.6, 0.95]),
        )
        root_share = {"long": 0.95, "walking": 0.4, "eighths": 0.85, "octaves": 0.97}[style]
        while beat < self.beats:
            beats = {"long": rng.choice([1, 2, 4]), "walking": 1}.get(style, 0.5)
            degree = 0 if rng.random() < root_share else rng.choice([2, 4])
            pitch = _nearest(self._degree(self._chord(beat) + degree), 40) + 12 * (
                style == "octaves" and int(2 * beat) % 2
            )
            if rng.random() < 0.93:
                notes.append(self._note(beat, beats, pitch, 95, articulation))
            beat += beats
        return _present(notes)

    def drums(self) -> list[Note]:
        rng, notes = self.rng, []
        hat, step = int(rng.choice([42, 42, 51, 46])), rng.choice([0.25, 0.5, 0.5, 1])
        kicks = {0.0, *(rng.choice(16, rng.integers(2, 6), replace=False) / 4)}
        for bar in range(0, self.beats, 4):
            notes += [
                self._note(bar + index * step, 0.2, hat, 70 if index % 2 else 90, 1.0)
                for index in range(int(4 / step))
            ]
            notes += [self._note(bar + beat, 0.2, 36, 105, 1.0) for beat in sorted(kicks)]
            notes += [
                self._note(bar + beat, 0.2, int(rng.choice([38, 38, 40, 39])), 105, 1.0)
                for beat in (1, 3)
            ]
            if rng.random() < 0.3:
                notes.append(self._note(bar, 0.5, 49, 100, 1.0))
            if rng.random() < 0.3:
                notes += [
                    self._note(bar + 3 + index / 4, 0.2, int(rng.choice([38, 45, 47, 50])), 95, 1.0)
                    for index in range(4)
                ]
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
                pitch = _nearest(
                    self._degree(chord + degree), pitches[voice] + 0.3 * (centre - pitches[voice])
                )
                pitches[voice] = pitch if abs(pitch - centre) <= 8 else _nearest(pitch, centre)
                if beats >= 1 and rng.random() < 0.12:
                    parts[voice].append(
                        self._note(beat, beats / 2, pitches[voice], 85, 0.98, 0.012)
                    )
                    pitches[voice] = self._step(pitches[voice], 3)
                    parts[voice].append(
                        self._note(beat + beats / 2, beats / 2, pitches[voice], 85, 0.98, 0.012)
                    )
                else:
                    parts[voice].append(self._note(beat, beats, pitches[voice], 85, 0.98, 0.012))
            beat += beats
        return [_present(part) for part in parts]

    def _rhythm(self, lengths: Sequence[float]) -> list[tuple[float, float, int]]:
        """The beats and lengths of a pattern of one, two or four bars, again and again.

        Now and then a new pattern is drawn.
        """
        rng, bars = self.rng, int(self.rng.choice([1, 2, 4]))
        rhythm, pattern = [], []
        for start in range(0, self.beats, 4 * bars):
            if not pattern or rng.random() < 0.3:
                pattern, beat = [], 0.0
                while beat < 4 * bars:
                    beats = min(float(rng.choice(BEATS, p=lengths)), 4 * bars - beat)
                    pattern.append((beat, beats))
                    beat += beats
            rhythm += [
                (start + beat, beats, bars) for beat, beats in pattern if start + beat < self.beats
            ]
        return rhythm

    def _chord(self, beat: float) -> int:
        return self.progression[int(beat // self.chord_beats) % len(self.progression)]

    def _degree(self, degree: int) -> int:
        return self.key + 12 * (int(degree) // 7) + self.scale[int(degree) % 7]

    def _step(self, pitch: int, most: int) -> int:
        near = [
            other
            for other in range(pitch - most, pitch + most + 1)
            if (other - self.key) % 12 in self.scale and other != pitch
        ]
        return int(self.rng.choice(near))

    def _seconds(self, beat: float) -> float:
        whole, part = divmod(beat, 1)
        if self.swing:
            part = part * 4 / 3 if part < 0.5 else (2 * part + 1) / 3
        return self.lead_in_seconds + (whole + part) * self.beat_seconds

    def _note(
        self,
        beat: float,
        beats: float,
        pitch: int,
        velocity: int,
        articulation: float,
        loose_seconds: float = 0.006,
    ) -> Note | None:
        rng, start = self.rng, self._seconds(beat)
        length = (self._seconds(beat + beats) - start) * articulation + rng.normal(0, loose_seconds)
        start += rng.normal(0, loose_seconds)
        if not 0 <= start <= self.seconds - 0.1:
            return None
        end = min(start + max(length, 0.04), self.seconds - 0.01)
        return Note(
            start,
            end,
            int(np.clip(pitch, 21, 108)),
            int(np.clip(velocity + rng.normal(0, 12), 25, 127)),
        )


def _present(notes: Sequence[Note | None]) -> list[Note]:
    return [note for note in notes if note]


def _nearest(pitch: float, centre: float) -> int:
    """The pitch of the same class that is nearest to another."""
    return int(pitch % 12 + 12 * round((centre - pitch % 12) / 12))
