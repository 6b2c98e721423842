"""Excerpts of long songs for training: at most so many minutes, where the target plays."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from bespoke.score.midi import Note

WINDOW_SECONDS = 20.0
_FADE_SECONDS = 0.01  # at each join, against clicks
Span = tuple[float, float]
"""Start and end in seconds."""


def choose_spans(notes: Sequence[Note], seconds: float, limit_seconds: float) -> list[Span]:
    """Choose spans of a recording, or of a score, for training.

    Whatever lies more than a window before the first note or after the last is left out, because
    the score may cover only part of the song. If the rest exceeds the limit, the windows of 20 s in
    which the target plays most are chosen. Windows with about as much are chosen at random, with a
    fixed seed.

    Args:
        notes: notes of the target, in seconds. Without notes, windows are chosen from anywhere.
        seconds: length of the whole.
        limit_seconds: total length of the spans. At least one window is chosen.

    Returns:
        Spans in order of time. They do not touch each other.

    >>> choose_spans([Note(100.0, 130.0, 60)], 200.0, 180.0)
    [(90.0, 140.0)]
    >>> choose_spans([Note(0.0, 25.0, 60), Note(60.0, 100.0, 60)], 100.0, 40.0)
    [(60.0, 100.0)]
    """
    first, last = 0.0, seconds
    if notes:
        margin = WINDOW_SECONDS / 2
        earliest = min(note.start_seconds for note in notes) - margin
        latest = max(note.end_seconds for note in notes) + margin
        first, last = (
            earliest if earliest > margin else 0.0,
            latest if seconds - latest > margin else seconds,
        )
    if last - first <= limit_seconds:
        return [(first, last)]
    windows = int((last - first) / WINDOW_SECONDS)
    playing = np.zeros(windows)
    grid = np.zeros(int((last - first) * 10) + 1, bool)  # in steps of 0.1 s
    for note in notes:
        grid[
            max(0, int((note.start_seconds - first) * 10)) : max(
                0, int(np.ceil((note.end_seconds - first) * 10))
            )
        ] = True
    for index in range(windows):
        begin = int(index * WINDOW_SECONDS * 10)
        playing[index] = np.round(grid[begin : begin + int(WINDOW_SECONDS * 10)].mean() * 5)
    order = np.lexsort((np.random.default_rng(0).permutation(windows), -playing))
    spans: list[Span] = []
    for index in sorted(order[: max(1, int(limit_seconds / WINDOW_SECONDS))].tolist()):
        begin = first + index * WINDOW_SECONDS
        if spans and spans[-1][1] == begin:
            spans[-1] = (spans[-1][0], begin + WINDOW_SECONDS)
        else:
            spans.append((begin, begin + WINDOW_SECONDS))
    return spans


def take_notes(notes: Iterable[Note], spans: Sequence[Span]) -> tuple[Note, ...]:
    """The notes inside the spans, cut at their ends, as if the spans followed each other."""
    notes, taken, place = list(notes), [], 0.0
    for first, last in spans:
        for note in notes:
            start, end = max(note.start_seconds, first), min(note.end_seconds, last)
            if end > start:
                taken.append(
                    replace(
                        note, start_seconds=start - first + place, end_seconds=end - first + place
                    )
                )
        place += last - first
    return tuple(taken)


def take_audio(waveform: np.ndarray, sample_rate: int, spans: Sequence[Span]) -> np.ndarray:
    """Concatenate spans of a waveform `[channel, time]`, with fades of 10 ms where they join."""
    fade = np.linspace(0, 1, max(2, round(_FADE_SECONDS * sample_rate)), dtype=np.float32)
    parts = [
        waveform[:, round(first * sample_rate) : round(last * sample_rate)].copy()
        for first, last in spans
    ]
    for before, after in pairwise(parts):
        before[:, -len(fade) :] *= fade[::-1][-before.shape[1] :]
        after[:, : len(fade)] *= fade[: after.shape[1]]
    return np.concatenate(parts, axis=1)
