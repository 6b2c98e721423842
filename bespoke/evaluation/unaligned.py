"""A score as a user has it, made of notes that are in time with a recording.

With it, any data set with aligned notes can serve for methods that take an unaligned score.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bespoke.score.midi import Note

GRID_BEATS = 0.25  # sixteenths
_TEMPO_FACTORS = (0.75, 1.35)
_DRIFT = 0.04  # greatest departure from the score's tempo
_DRIFT_BEATS = (8.0, 64.0)  # periods of its waves
_START_SECONDS = (-2.0, 4.0)
_WRONG_SHARE = 1 / 3  # of the scores
_ERROR_SHARE = 0.03  # of the notes of such a score: wrong, and missing, and extra
_WRONG_SEMITONES = (-12, -3, -2, -1, 1, 2, 3, 12)


@dataclass(frozen=True)
class Distortion:
    """What is done to aligned notes: all that is random is drawn by `sample`.

    Attributes:
        tempo_factor: the score's tempo relative to the recording's.
        drift: waves by which the score's tempo departs from that: weight, period in beats, phase.
        start_seconds: where the target's first note is, relative to its place in the recording, not
            below 0. None: at 0.
        has_errors: whether notes of the target are wrong, missing and added.
        seed: of which notes these are.
    """

    tempo_factor: float
    drift: tuple[tuple[float, float, float], ...]
    start_seconds: float | None
    has_errors: bool
    seed: int

    @classmethod
    def sample(cls, seed: int) -> "Distortion":
        """Draw a distortion."""
        rng = np.random.default_rng(seed)
        waves = zip(
            rng.uniform(0.2, 1.0, 3),
            np.exp(rng.uniform(math.log(_DRIFT_BEATS[0]), math.log(_DRIFT_BEATS[1]), 3)),
            rng.uniform(0, 2 * np.pi, 3),
            strict=True,
        )
        return cls(
            float(rng.uniform(*_TEMPO_FACTORS)),
            tuple((float(weight), float(period), float(phase)) for weight, period, phase in waves),
            None if rng.random() < 0.5 else float(rng.uniform(*_START_SECONDS)),
            bool(rng.random() < _WRONG_SHARE),
            seed,
        )

    def apply(
        self, parts: Sequence[Sequence[Note]], beats_seconds: Sequence[float]
    ) -> tuple[list[tuple[Note, ...]], dict[str, Any]]:
        """Write parts as a score: on a grid of sixteenths, in another tempo that drifts.

        Args:
            parts: notes in seconds of the recording, the target's first.
            beats_seconds: the recording's beats, two at least; beyond them they go on as on the
                whole.

        Returns:
            The parts in seconds of the score, without what is before its start, and what was done.
        """
        beats = np.asarray(beats_seconds, float)
        beat_seconds = float((beats[-1] - beats[0]) / (len(beats) - 1))
        target = self._with_errors(parts[0]) if self.has_errors else tuple(parts[0])
        written = [
            [_on_grid(note, beats, beat_seconds) for note in part] for part in (target, *parts[1:])
        ]
        places = [place for part in written for start, end, _ in part for place in (start, end)]
        first, last = int(np.floor(min(places))), int(np.ceil(max(places)))
        clock = self._clock(first, last, beat_seconds / self.tempo_factor)
        numbers = np.arange(first, last + 1)

        def seconds(place: float) -> float:
            return float(np.interp(place, numbers, clock))

        begins = min(seconds(start) for start, _, _ in written[0])
        place = 0.0
        if self.start_seconds is not None:
            true_start = min(note.start_seconds for note in parts[0])
            place = max(true_start + self.start_seconds, 0.0)
        score = []
        for part in written:
            notes = (
                replace(
                    note,
                    start_seconds=seconds(start) - begins + place,
                    end_seconds=seconds(end) - begins + place,
                )
                for start, end, note in part
            )
            score.append(tuple(sorted(note for note in notes if note.start_seconds >= -1e-9)))
        errors = self._errors(len(parts[0])) if self.has_errors else 0
        written_bpm = 60 / beat_seconds
        facts = {
            "seed": self.seed,
            "tempo_factor": round(self.tempo_factor, 4),
            "drift": f"smooth, +-{100 * _DRIFT:.0f} %",
            "written_bpm": round(written_bpm, 2),
            "score_bpm": round(written_bpm * self.tempo_factor, 2),
            "first_note_seconds": round(place, 2),
            "grid": "1/16",
            "notes": len(score[0]),
            "wrong_missing_extra": [errors] * 3,
        }
        return score, facts

    def _clock(self, first: int, last: int, beat_seconds: float) -> np.ndarray:
        """The seconds of the score at each beat from `first` to `last`."""
        beats = np.arange(first, last)
        waves = sum(
            weight * np.sin(2 * np.pi * beats / period + phase)
            for weight, period, phase in self.drift
        )
        drift = _DRIFT * waves / max(sum(weight for weight, _, _ in self.drift), 1e-9)
        return np.concatenate([[0.0], np.cumsum(beat_seconds / (1 + drift))])

    def _errors(self, count: int) -> int:
        """How many of so many notes are wrong; as many are missing, and as many added."""
        return min(max(round(_ERROR_SHARE * count), 1), count // 3)

    def _with_errors(self, notes: Sequence[Note]) -> tuple[Note, ...]:
        rng = np.random.default_rng((self.seed, 1))
        count = self._errors(len(notes))
        wrong, missing, beside = np.split(rng.permutation(len(notes))[: 3 * count], 3)
        kept = []
        for index, note in enumerate(notes):
            if index in wrong:
                kept.append(_moved(note, rng))
            elif index not in missing:
                kept.append(note)
            if index in beside:  # a wrong note that follows a right one
                length = note.end_seconds - note.start_seconds
                kept.append(
                    replace(
                        _moved(note, rng),
                        start_seconds=note.end_seconds,
                        end_seconds=note.end_seconds + length,
                    )
                )
        return tuple(sorted(kept))


def _moved(note: Note, rng: np.random.Generator) -> Note:
    """The note at another pitch."""
    semitones = [step for step in _WRONG_SEMITONES if 0 <= note.pitch + step <= 127]
    return replace(note, pitch=note.pitch + int(rng.choice(semitones)))


def _on_grid(note: Note, beats: np.ndarray, beat_seconds: float) -> tuple[float, float, Note]:
    """Start and end of a note in beats, on the grid; no note is shorter than its step."""

    def place(seconds: float) -> float:
        beyond = min(seconds - beats[0], 0.0) + max(seconds - beats[-1], 0.0)
        beat = np.interp(seconds, beats, np.arange(len(beats))) + beyond / beat_seconds
        return round(float(beat) / GRID_BEATS) * GRID_BEATS

    start = place(note.start_seconds)
    return start, max(place(note.end_seconds), start + GRID_BEATS), note
