"""Align the notes of one instrument with the recording that it plays in.

`evidence` makes two maps of the recording: how much each pitch sounds, and how much each pitch
starts to sound. `_search` compares the score with these maps at every tempo and offset. It also
tries the score in wrong keys and with shuffled pitches, which shows how well a score fits that does
not belong to the recording. `_warp` then bends the straight line that was found, onset by onset.

There is no second round against an estimate of the target. Tests showed no gain from one, and
hardly any even with the true stem as the estimate.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import torch
from scipy.ndimage import correlate1d, uniform_filter1d
from scipy.optimize import linear_sum_assignment

from bespoke.audio.dsp import DIFFERENCE, opposed, peak, resample, seen
from bespoke.score.midi import Note, shift
from bespoke.utils.errors import BespokeError
from bespoke.utils.progress import track

LOW_CONFIDENCE = 0.5
"""Below it a wrong score is likelier than a right one."""
NO_CONFIDENCE = 0.2
"""Below it the place that was found is not to be used."""
NO_FIT = 3.0
"""Standard deviations. Below it, another part is not where the line puts it: `Alignment.fits`."""

_RATE, _HOP = 22050, 256  # 11.6 ms a frame
_FRAMES = _RATE / _HOP  # a second
_LOWEST_PITCH, _PITCHES = 24, 84  # C1 to B7: MIDI pitches 24 to 107
_BINS = 3  # a semitone
_PARTIALS, _DECAY = 8, 0.7
_RISE_FRAMES = 6  # 70 ms
# Frames that count as one observation: 46 ms, which is about the length of a window and the grid on
# which scores are quantized.
_POOL = 4
_ONSET_WEIGHT = 0.5  # of an onset's evidence against one observation's
_WRONG_KEYS = (-6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6)  # semitones
_SHUFFLES = 6
_EVEN_RATIO, _STEEPNESS = 1.38, 15.0  # of the confidence
# Of the recording that is transformed at once, and 4 s around it.
_BLOCK_SECONDS, _MARGIN_FRAMES = 120.0, 344
_LONG_SCORE_SECONDS, _ANCHOR_SECONDS, _LONG_RECORDING_SECONDS = 300.0, 120.0, 1200.0
_STRAIGHT_SECONDS, _WANDER, _COARSE = (
    60.0,
    0.03,
    8,
)  # scores longer than this may be off a straight line by this share of their length
_LATENESS_SECONDS = 0.015  # energy has risen halfway this long after a note begins
# Of `find_offset`. Chosen on every second of 28 recordings; its docstring reports the other 14.
_ENOUGH_HERE = 3.5  # standard deviations above chance, where the notes are already
_ENOUGH_ELSEWHERE = 2.0  # times the best fit of wrong scores
_BETTER, _SLACK = (
    1.2,
    0.9,
)  # what another place must be to be preferred, and how much less the old one may be to be kept
# Of `_locate_together`.
# Confidence of all parts together. Where parts of another song misled the search, it was lower.
_SURE = 0.95
_BESIDE_SECONDS = 10.0  # around the target: what other parts play elsewhere tells little of it
_MOST_FITTED = 4000  # notes
_SAME_ONSET_SECONDS, _DOUBLED_SHARE = 0.05, 0.8
_DOUBTFUL_TUNING = 0.35  # semitones
# Of two channels, where the target is not found in their mean.
_VIEWS = (DIFFERENCE, (1.0, 0.0), (0.0, 1.0), None)
_AUDIBLE, _CLEARER = 0.01, 1.5  # a view's least share of the peak, and its least gain of fit
_ROLLS = 400  # places that tell what chance gives
# Of the course: its grid, how far around a time notes count, and how many there must be.
_COURSE_SECONDS, _AROUND_SECONDS, _FEWEST_NOTES, _COURSE_ROLLS = 1.0, 4.0, 4, 100
# Chosen on 10 synthesized songs of four parts, the target right or wrong for 12 s. Of 7 others, the
# right targets are nowhere below 3.3, and 6 of the 7 wrong passages are below 2.3.
_EVEN_PASSAGE, _PASSAGE_WIDTH = 2.3, 0.4  # standard deviations
_FIT_WIDTH = 0.6  # standard deviations


@dataclass(frozen=True)
class Alignment:
    """Where a score lies in a recording.

    Attributes:
        notes: the target's, in seconds of the recording, in the score's order; some may lie before
            its start or after its end.
        confidence: 0 to 1: the share of right scores among those that fit as well, if half of all
            are right (see `_confidence`). With other parts, of all parts together.
        tempo_factor: seconds of the recording for a second of the score, on the whole: 2 is half
            the score's tempo.
        offset_seconds: where the straight line of that tempo puts the score's time 0.
        path: the bent line: pairs of seconds in the score and in the recording, one an onset.
        others: the notes of each other part, likewise.
        fit: how well the target fits where it lies: in standard deviations from what it would fit
            elsewhere and in other keys. Below `NO_FIT` it is hardly there.
        fits: the same of each other part. Below `NO_FIT` it is not in the recording.
        tuning_cents: how much sharper than A4 = 440 Hz the recording is, for these notes: from -80
            to 80.
        course: how surely the target is where it is placed, along time: pairs of seconds in the
            recording and a confidence from 0 to 1, one a second where there are notes enough.
        view: weights of the channels in whose sum the target was found, see
            `bespoke.audio.dsp.seen`; None: in their mean.
    """

    notes: tuple[Note, ...]
    confidence: float
    tempo_factor: float
    offset_seconds: float
    path: tuple[tuple[float, float], ...]
    others: tuple[tuple[Note, ...], ...] = ()
    fit: float = 0.0
    fits: tuple[float, ...] = ()
    tuning_cents: float = 0.0
    view: tuple[float, ...] | None = None
    course: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class _Line:
    """A straight line from score to recording, its confidence, and the line bent at each onset."""

    factor: float
    offset_seconds: float
    confidence: float
    onsets: np.ndarray
    times: np.ndarray

    def place(self, seconds: float) -> float:
        """Where a time of the score is in the recording: beyond the ends on a straight line."""
        # np.interp stands still beyond the ends.
        beyond = min(seconds - self.onsets[0], 0.0) + max(seconds - self.onsets[-1], 0.0)
        return float(np.interp(seconds, self.onsets, self.times) + self.factor * beyond)


def within(notes: Sequence[Note], seconds: float) -> tuple[Note, ...]:
    """The notes, or the parts of them, that lie within a recording of this length."""
    cropped = (
        replace(
            note,
            start_seconds=max(note.start_seconds, 0.0),
            end_seconds=min(note.end_seconds, seconds),
        )
        for note in notes
    )
    return tuple(note for note in cropped if note.end_seconds > note.start_seconds)


def anywhere(notes: Sequence[Note], seconds: float) -> tuple[Note, ...]:
    """Each pitch of a score, held for the whole recording.

    This is what a score still tells when the times of its notes are not known.
    """
    return tuple(Note(0.0, seconds, pitch) for pitch in sorted({note.pitch for note in notes}))


def is_anywhere(notes: Sequence[Note]) -> bool:
    """Whether these are notes without a place, as `anywhere` gives them."""
    return {note.start_seconds for note in notes} == {0.0} and len(
        {note.end_seconds for note in notes}
    ) == 1


def align(
    notes: Sequence[Note],
    mixture: np.ndarray,
    sample_rate: int,
    tempo_range: tuple[float, float] = (0.65, 1.5),
    others: Sequence[Sequence[Note]] = (),
) -> Alignment:
    """Align the notes of one instrument to a recording in which it plays among others.

    The score may begin before or after the recording, cover a part of it or be longer, and have a
    few wrong, missing or extra notes. Its key must be the recording's.

    The other parts of the score help: all are laid on one line, unless the target fits much worse
    there than by itself. Parts that do not fit are left out, and the rest is aligned again.

    The channel mean is looked at. Where the target is not found in it, and the channels are two,
    their difference and each by itself are tried: a target with opposite channels has no mean.

    Args:
        notes: in seconds of the score.
        mixture: the recording, `[channel, time]`, of any level.
        sample_rate: in Hz.
        tempo_range: the least and the largest `Alignment.tempo_factor` that is tried.
        others: the notes of each other pitched part, in seconds of the score.

    Returns:
        The alignment. A confidence below `LOW_CONFIDENCE` means that the notes should not be relied
        on. It is calibrated for the default ranges: where little is searched, wrong scores find
        less too.

    Raises:
        BespokeError: there is no note from C1 to B7, or the recording is silent.
    """
    return align_parts([notes], mixture, sample_rate, tempo_range, others)[0]


def align_parts(
    targets: Sequence[Sequence[Note]],
    mixture: np.ndarray,
    sample_rate: int,
    tempo_range: tuple[float, float] = (0.65, 1.5),
    others: Sequence[Sequence[Note]] = (),
) -> list[Alignment]:
    """Align several parts of one score at once: all lie on one line.

    Args:
        targets: the notes of each part, in seconds of the score.
        mixture, sample_rate, tempo_range: as of `align`.
        others: the notes of each other pitched part.

    Returns:
        The alignment of each target. The others of each are the other targets, in their order, and
        then `others`.

    Raises:
        BespokeError: no target has a note from C1 to B7, or the recording is silent.
    """
    check_pitches([note for notes in targets for note in notes])
    usual = opposed(mixture)
    line, first = _align_view(targets, mixture, sample_rate, tempo_range, others, usual)
    best = list(first)
    if len(mixture) == 2 and not all(map(_is_there, first)):
        # One part may be missing in this view because it is not in the recording. Several that lie
        # on a line that is sure need no search of their own.
        known = line if len(targets) > 1 and line.confidence >= _SURE else None
        for view in _VIEWS:
            if peak(seen(mixture, view)) > _AUDIBLE * peak(mixture) and view != usual:
                _, found = _align_view(
                    targets, mixture, sample_rate, tempo_range, others, view, known
                )
                for index, (before, now) in enumerate(zip(first, found, strict=True)):
                    if (
                        not _is_there(before)
                        and _is_there(now)
                        and now.fit > max(best[index].fit, _CLEARER * before.fit)
                    ):
                        best[index] = now
    return best


def check_pitches(notes: Sequence[Note]) -> None:
    """Find that there is nothing to align.

    Raises:
        BespokeError: there is no note from C1 to B7.
    """
    if not _pitched(notes):
        raise BespokeError(
            "The score has no note from C1 to B7 (MIDI pitch 24 to 107) to align:"
            " choose another instrument."
        )


def in_time(
    notes: Sequence[Note],
    mixture: np.ndarray,
    sample_rate: int,
    others: Sequence[Sequence[Note]] = (),
) -> Alignment:
    """The alignment of a score that is in time with the recording already: nothing is searched.

    Args:
        notes: in seconds of the recording.
        mixture: the recording, `[channel, time]`, of any level.
        sample_rate: in Hz.
        others: the notes of each other pitched part, in seconds of the recording.

    Returns:
        The alignment, with full confidence and the recording's tuning.

    Raises:
        BespokeError: the recording is silent.
    """
    view = opposed(mixture)
    heard = seen(mixture, view)
    tuning = estimate_tuning(_mono(heard, sample_rate))
    rows = evidence(heard, sample_rate, tuning)
    fit = _fit_by(rows)
    if abs(tuning) > _DOUBTFUL_TUNING:  # as in `_align_view`
        semitone = -1 if tuning > 0 else 1
        rolled = _fit_by((np.roll(rows[0], -semitone, axis=0), np.roll(rows[1], -semitone, axis=0)))
        if rolled(notes) > fit(notes):
            fit, tuning = rolled, tuning + semitone
    return Alignment(
        tuple(notes),
        1.0,
        1.0,
        0.0,
        tuple((note.start_seconds, note.start_seconds) for note in notes),
        tuple(map(tuple, others)),
        fit(notes),
        tuple(fit(beside(part, notes)) for part in others),
        round(100 * tuning, 1),
        view,
    )


def _is_there(alignment: Alignment) -> bool:
    """Whether the target was found in what was looked at."""
    return alignment.confidence >= LOW_CONFIDENCE and alignment.fit >= NO_FIT


def _align_view(
    targets: Sequence[Sequence[Note]],
    mixture: np.ndarray,
    sample_rate: int,
    tempo_range: tuple[float, float],
    others: Sequence[Sequence[Note]],
    view: tuple[float, ...] | None,
    known: _Line | None = None,
) -> tuple[_Line, list[Alignment]]:
    """Align to one view of the channels; on a line that is known already, if there is one."""
    mixture = seen(mixture, view)
    tuning = estimate_tuning(_mono(mixture, sample_rate))
    rows = evidence(mixture, sample_rate, tuning)
    found = [(known or _locate_parts(rows, targets, others, tempo_range), tuning)]
    # Nearly a quarter tone: flat or sharp by that much?
    if known is None and abs(tuning) > _DOUBTFUL_TUNING:
        semitone = -1 if tuning > 0 else 1
        rolled = np.roll(rows[0], -semitone, axis=0), np.roll(rows[1], -semitone, axis=0)
        found.append((_locate_parts(rolled, targets, others, tempo_range), tuning + semitone))
        rows = rolled if found[1][0].confidence > found[0][0].confidence else rows
    line, tuning = max(found, key=lambda place: place[0].confidence)
    fit = _fit_by(rows)
    parts = [_placed(part, line) for part in (*targets, *others)]
    path = tuple(zip(line.onsets.tolist(), line.times.tolist(), strict=True))
    alignments = []
    for index, placed in enumerate(parts[: len(targets)]):
        rest = tuple(parts[:index] + parts[index + 1 :])
        alignments.append(
            Alignment(
                placed,
                line.confidence,
                line.factor,
                line.offset_seconds,
                path,
                rest,
                fit(placed),
                tuple(fit(beside(part, placed)) for part in rest),
                round(100 * tuning, 1),
                view,
                _course(rows, placed),
            )
        )
    return line, alignments


def _locate_parts(
    rows: tuple[np.ndarray, np.ndarray],
    targets: Sequence[Sequence[Note]],
    others: Sequence[Sequence[Note]],
    tempo_range: tuple[float, float],
) -> _Line:
    """The line of the targets, with the other parts where they help.

    Several targets are looked for together. Where they are not found so, one may belong to another
    song: each is looked for by itself, and the surest leads.
    """
    targets = [part for part in targets if _pitched(part)]
    line = _locate(rows, [note for part in targets for note in part], tempo_range)
    if len(targets) > 1 and line.confidence < _SURE:
        lines = [line, *(_locate(rows, part, tempo_range) for part in targets)]
        line = max(lines, key=lambda line: line.confidence)
    return _locate_together(rows, targets, others, line, tempo_range)


def _pitched(notes: Sequence[Note]) -> list[Note]:
    """The notes that `evidence` has rows for."""
    return [note for note in notes if _LOWEST_PITCH <= note.pitch < _LOWEST_PITCH + _PITCHES]


def _locate(
    rows: tuple[np.ndarray, np.ndarray], notes: Sequence[Note], tempo_range: tuple[float, float]
) -> _Line:
    """The line on which notes fit a recording best.

    Args:
        rows: the recording's `evidence`.
        notes: in seconds of the score, some of them pitched.
        tempo_range: of the factor.
    """
    pitched, (sounding, starting) = _pitched(notes), rows
    pool = _pool(sounding.shape[1])
    found = [
        (anchor, *_search(sounding, starting, anchor, tempo_range, pool))
        for anchor in _anchors(pitched)
    ]
    _, factor, offset, fit, wrong_fits = max(found, key=lambda result: _confidence(*result[3:]))
    onsets = np.unique([note.start_seconds for note in pitched])
    expected = onsets * factor + offset
    if len(found) > 1:
        factor, expected = _through(found, sounding, starting, onsets, tempo_range)
    seconds = onsets[-1] - onsets[0]
    if seconds > _STRAIGHT_SECONDS:  # no player keeps a tempo as long as that
        window = float(np.clip(_WANDER * seconds, 2.0, 20.0))
        _, times = _warp(
            _pooled(rows[0], _COARSE),
            _pooled(rows[1], _COARSE),
            pitched,
            factor,
            expected,
            window,
            rate=_FRAMES / _COARSE,
        )
        expected = times + _LATENESS_SECONDS
    onsets, times = _warp(sounding, starting, pitched, factor, expected)
    return _Line(float(factor), float(offset), _confidence(fit, wrong_fits), onsets, times)


def _locate_together(
    rows: tuple[np.ndarray, np.ndarray],
    targets: Sequence[Sequence[Note]],
    others: Sequence[Sequence[Note]],
    alone: _Line,
    tempo_range: tuple[float, float],
) -> _Line:
    """The line of the targets and of the other parts that fit there.

    Where the targets are found by themselves, the line is only bent anew, by all that fit on it.
    Else all are looked for together, which is far surer, unless the others are of another song.
    """
    fit = _fit_by(rows)
    notes = [note for part in targets for note in part]

    def fitting(parts: Sequence[Sequence[Note]], line: _Line) -> list[Note]:
        return [n for part in parts if fit(_placed(part, line)) >= NO_FIT for n in part]

    def leading(line: _Line) -> list[Note]:
        """The targets that fit; a single one in any case."""
        return (fitting(targets, line) if len(targets) > 1 else []) or notes

    near = [beside(part, notes) for part in others]
    if alone.confidence < _SURE and any(map(_pitched, others)):
        everything = [note for part in (notes, *others) for note in part]
        together = _locate(rows, everything, tempo_range)
        if together.confidence >= _SURE:
            return _bent(rows, [*leading(together), *fitting(near, together)], together)
    more = fitting(near, alone)
    if more or len(targets) > 1:
        return _bent(rows, [*leading(alone), *more], alone)
    return alone


def beside(part: Sequence[Note], notes: Sequence[Note]) -> list[Note]:
    """The notes of a part that sound about when the target's do: the others tell little of it."""
    first = min(note.start_seconds for note in notes) - _BESIDE_SECONDS
    last = max(note.end_seconds for note in notes) + _BESIDE_SECONDS
    return [note for note in part if first <= note.start_seconds <= last]


def _bent(rows: tuple[np.ndarray, np.ndarray], notes: Sequence[Note], line: _Line) -> _Line:
    """A line that is bent anew, by the onsets of these notes."""
    pitched = _pitched(notes)
    onsets = np.unique([note.start_seconds for note in pitched])
    expected = np.array([line.place(onset) for onset in onsets]) + _LATENESS_SECONDS
    onsets, times = _warp(*rows, pitched, line.factor, expected)
    return replace(line, onsets=onsets, times=times)


def _fit_by(rows: tuple[np.ndarray, np.ndarray]) -> Callable[[Sequence[Note]], float]:
    """A function of notes in seconds of the recording: `_surprise`, or 0 if none is within it."""
    frames = rows[0].shape[1]
    pool = _pool(frames)
    pooled = _twice(_pooled(rows[0], pool)), _pooled(rows[1], pool)

    @functools.cache  # the same parts are asked for again and again
    def fit(notes: tuple[Note, ...]) -> float:
        inside = within(_pitched(notes), frames / _FRAMES)
        inside = inside[:: 1 + len(inside) // _MOST_FITTED]
        return _surprise(*pooled, inside, _FRAMES / pool) if inside else 0.0

    return lambda notes: fit(tuple(notes))


def _course(
    rows: tuple[np.ndarray, np.ndarray], notes: Sequence[Note]
) -> tuple[tuple[float, float], ...]:
    """How surely the notes are where they are placed, along the recording: `Alignment.course`.

    For the notes around a time, the same is asked as for all of them by `_surprise`.
    """
    frames = rows[0].shape[1]
    pool = _pool(frames)
    pooled = _twice(_pooled(rows[0], pool)), _pooled(rows[1], pool)
    inside = within(_pitched(notes), frames / _FRAMES)
    inside = inside[:: 1 + len(inside) // _MOST_FITTED]
    onsets = np.array([note.start_seconds for note in inside])
    times = np.arange(0.0, frames / _FRAMES, _COURSE_SECONDS)
    near = np.abs(times[:, None] - onsets) <= _AROUND_SECONDS if inside else np.zeros((0, 0), bool)
    has_enough = near.sum(axis=1) >= _FEWEST_NOTES
    times, near = times[has_enough[: len(times)]], near[has_enough].astype(np.float64)
    if not len(near):
        return ()
    size = pooled[1].shape[1]
    rolls = np.unique(np.linspace(0, size, min(size, _COURSE_ROLLS), endpoint=False).astype(int))
    pitches = np.array([note.pitch for note in inside]) - _LOWEST_PITCH
    fits = np.zeros((1 + len(_WRONG_KEYS), len(times), len(rolls)))
    for index, key in enumerate((0, *_WRONG_KEYS)):
        possible = (pitches + key >= 0) & (pitches + key < _PITCHES)
        moved = [note for note, is_possible in zip(inside, possible, strict=True) if is_possible]
        fits[index] = near[:, possible] @ _fits_of_notes(*pooled, moved, _FRAMES / pool, rolls, key)
    elsewhere = fits.transpose(1, 0, 2).reshape(len(times), -1)[:, 1:]
    surprise = (fits[0, :, 0] - elsewhere.mean(axis=1)) / np.maximum(elsewhere.std(axis=1), 1e-9)
    confidence = 1 / (1 + np.exp(-(surprise - _EVEN_PASSAGE) / _PASSAGE_WIDTH))
    return tuple(zip(times.tolist(), confidence.round(3).tolist(), strict=True))


def apart(
    course: Sequence[tuple[float, float]], shortest_seconds: float = 4.0
) -> list[tuple[float, float]]:
    """Where score and recording part ways: from when to when the confidence is low, in seconds.

    Args:
        course: `Alignment.course`.
        shortest_seconds: passages that are shorter are left out.

    >>> apart([(0.0, 0.9), (1.0, 0.2), (2.0, 0.1), (5.0, 0.1), (6.0, 0.8)])
    [(1.0, 5.0)]
    """
    passages: list[tuple[float, float]] = []
    begin = None
    for seconds, confidence in course:
        if confidence < LOW_CONFIDENCE:
            begin, end = seconds if begin is None else begin, seconds
            continue
        if begin is not None and end - begin >= shortest_seconds:
            passages.append((begin, end))
        begin = None
    if begin is not None and end - begin >= shortest_seconds:
        passages.append((begin, end))
    return passages


def part_confidence(fit: float) -> float:
    """How surely a part is where it is placed: 0 to 1, from its fit (`Alignment.fit`)."""
    return float(1 / (1 + np.exp(-(fit - NO_FIT) / _FIT_WIDTH)))


def _pool(frames: int) -> int:
    """Frames that count as one observation, in a recording of so many."""
    return _POOL if frames <= _LONG_RECORDING_SECONDS * _FRAMES else 2 * _POOL


def doubles(notes: Sequence[Note], target: Sequence[Note]) -> bool:
    """Whether a part plays what the target plays: most of its notes begin with one of the target's,
    at the same pitch. No score can tell the two apart.

    >>> doubles([Note(0.0, 1.0, 60)], [Note(0.01, 0.5, 60), Note(1.0, 2.0, 62)])
    True
    >>> doubles([Note(0.0, 1.0, 48)], [Note(0.0, 1.0, 60)])
    False
    """
    starts: dict[int, list[float]] = defaultdict(list)
    for note in target:
        starts[note.pitch].append(note.start_seconds)
    shared = sum(
        any(abs(start - note.start_seconds) < _SAME_ONSET_SECONDS for start in starts[note.pitch])
        for note in notes
    )
    return shared >= _DOUBLED_SHARE * len(notes) > 0


def find_offset(notes: Sequence[Note], mixture: np.ndarray, sample_rate: int) -> float | None:
    """Find how much later the notes of one recording are in another of the same performance.

    The other recording may be another mastering, or hold more or less of the performance. No tempo
    or key other than the notes' own is tried: for another performance use `align`.

    Wrong notes fit best somewhere, too. The notes' current place is therefore compared with chance,
    which favours no place. The best of all places must be far better than the best places of wrong
    scores.

    Measured on 14 recordings of 5 to 25 s that were not used to choose the thresholds:

    - The recording's own notes: 14 of 14 fit where they are.
    - Eight masterings of each recording (filtered, limited, noisy, soft, mono, at another rate, as
      MP3): 112 of 112 fit where they are.
    - Recordings that begin 0.05, 0.5 and 3.21 s later: the offset is found in 41 of 42.
    - A longer recording that holds the performance: the offset is found in 14 of 14.
    - Notes paired with another recording: 377 of 378 pairs are refused. The other pair has the
      same tune.

    Args:
        notes: in seconds of the one recording.
        mixture: the other one, `[channel, time]`, of any level.
        sample_rate: in Hz.

    Returns:
        Seconds, 0 where the notes fit as they are; None where they do not fit.

    Raises:
        BespokeError: the recording is silent.
    """
    rows = evidence(mixture, sample_rate)
    pitched = _pitched(notes)
    if not pitched:
        return None
    pool = _pool(rows[0].shape[1])
    pooled = _twice(_pooled(rows[0], pool)), _pooled(rows[1], pool)

    def surprise(offset: float) -> float:
        return _surprise(*pooled, shift(pitched, offset), _FRAMES / pool)

    step = pool / _FRAMES
    here = max((surprise(offset), offset) for offset in (-2 * step, -step, 0.0, step, 2 * step))
    _, offset, fit, wrong_fits = _search(*rows, pitched, (1.0, 1.0), pool)
    found = surprise(offset) if fit >= _ENOUGH_ELSEWHERE * sum(wrong_fits) / 2 else 0.0
    if found >= _ENOUGH_HERE and found > _BETTER * here[0]:
        chosen = offset
    elif here[0] >= _ENOUGH_HERE:
        chosen = 0.0 if surprise(0.0) >= _SLACK * here[0] else here[1]
    else:
        return None
    if chosen == 0:
        return 0.0
    # Nearer than the observations' length.
    finer = np.arange(-pool, pool + 1)
    fits = _fits(_twice(rows[0]), rows[1], shift(pitched, chosen), _FRAMES, finer)
    return float(chosen + finer[fits.argmax()] / _FRAMES) - _LATENESS_SECONDS


def _twice(rows: np.ndarray) -> np.ndarray:
    """Cumulative sums over the frames, played twice in a row.

    The difference of two sums is the sum between them, also across the end of the recording.
    """
    return np.pad(np.cumsum(np.tile(rows, 2), axis=1), ((0, 0), (1, 0)))


def _surprise(
    summed: np.ndarray, starting: np.ndarray, notes: Sequence[Note], rate: float
) -> float:
    """How well notes fit where they are.

    In standard deviations above the mean fit at other places and in other keys.
    """
    frames = starting.shape[1]
    rolls = np.unique(np.linspace(0, frames, min(frames, _ROLLS), endpoint=False).astype(int))
    fits = np.stack([_fits(summed, starting, notes, rate, rolls, key) for key in (0, *_WRONG_KEYS)])
    others = fits.ravel()[1:]
    return float((fits[0, 0] - others.mean()) / max(others.std(), 1e-9))


def _fits(
    summed: np.ndarray,
    starting: np.ndarray,
    notes: Sequence[Note],
    rate: float,
    rolls: np.ndarray,
    key: int = 0,
) -> np.ndarray:
    """The fit, as in `_search`, of the notes after a shift by each of `rolls` frames: `[roll]`.

    Arguments as of `_fits_of_notes`, which says what counts.
    """
    frames = starting.shape[1]
    inside = [
        note
        for note in within(notes, frames / rate)
        if 0 <= note.pitch + key - _LOWEST_PITCH < _PITCHES
    ]
    return _fits_of_notes(summed, starting, inside, rate, rolls, key).sum(axis=0)


def _fits_of_notes(
    summed: np.ndarray,
    starting: np.ndarray,
    notes: Sequence[Note],
    rate: float,
    rolls: np.ndarray,
    key: int,
) -> np.ndarray:
    """The fit of each note after a shift by each of `rolls` frames: `[note, roll]`.

    Notes that are shifted past the recording's end come in at its start, so that as many notes
    count at every place.

    Args:
        summed: `_twice` of what sounds.
        starting: what starts to sound, `[pitch, frames]`.
        notes: in seconds, within the recording; as they are moved, within the pitches.
        rate: frames in a second.
        rolls: in frames.
        key: semitones by which the notes are moved.
    """
    frames = starting.shape[1]
    row, starts, ends = (
        np.array(values, int)[:, None]
        for values in (
            [note.pitch + key - _LOWEST_PITCH for note in notes],
            [min(round(note.start_seconds * rate), frames - 1) for note in notes],
            [round(note.end_seconds * rate) for note in notes],
        )
    )
    lengths = np.clip(ends - starts, 1, frames)
    first = (starts + rolls) % frames
    held = (summed[row, first + lengths] - summed[row, first]) / np.sqrt(lengths)
    return held + _ONSET_WEIGHT * starting[row, first]


def _placed(notes: Sequence[Note], line: _Line) -> tuple[Note, ...]:
    """The notes, carried along the bent line, and beyond its ends along a straight one."""
    placed = []
    for note in notes:
        start = line.place(note.start_seconds)
        # The path may run two onsets together, but a note keeps a quarter of its length.
        end = max(
            line.place(note.end_seconds),
            start + 0.25 * line.factor * (note.end_seconds - note.start_seconds),
        )
        placed.append(replace(note, start_seconds=start, end_seconds=end))
    return tuple(placed)


def evidence(
    mixture: np.ndarray, sample_rate: int, tuning: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """How much each pitch sounds, and how much it starts to sound, in standard deviations from its
    mean over the recording.

    The log magnitudes of a variable-Q transform, in the recording's own tuning, are whitened: what
    stands out from its surroundings of two semitones on either side counts. This removes drums and
    noise, which are flat, and the mixture's spectral envelope. Then they are summed over the
    partials of each pitch: Klapuri, "Multiple fundamental frequency estimation by summing harmonic
    amplitudes" (ISMIR 2006). As a pitch's mean is 0, a note costs as much where its pitch rests as
    it earns where it sounds.

    Args:
        mixture: `[channel, time]`, of any level; the channel mean counts.
        sample_rate: in Hz.
        tuning: of the recording, in semitones above A4 = 440 Hz; None: it is estimated.

    Returns:
        Two float64 arrays `[pitch, frames]`: pitches from C1 in semitones, frames 256/22050 s
        apart, the first one centred at 0.

    Raises:
        BespokeError: the recording is silent.
    """
    librosa = _import_librosa()
    mono = _mono(mixture, sample_rate)
    if tuning is None:
        tuning = estimate_tuning(mono)
    size = round(_BLOCK_SECONDS * _RATE)
    bins = {"n_bins": 96 * _BINS, "bins_per_octave": 12 * _BINS}
    lowest_hz = librosa.midi_to_hz(_LOWEST_PITCH + tuning)
    frames, step = 1 + mono.size // _HOP, size // _HOP
    magnitude = np.empty((96 * _BINS, frames), np.float32)
    # A block at a time, with its surroundings: the transform takes much memory.
    for start in range(0, frames, step):
        end, before = min(start + step, frames), min(start, _MARGIN_FRAMES)
        block = mono[(start - before) * _HOP : (end + _MARGIN_FRAMES) * _HOP]
        transform = librosa.vqt(block, sr=_RATE, hop_length=_HOP, fmin=lowest_hz, **bins)
        magnitude[:, start:end] = np.abs(transform[:, before : before + end - start])
    mean = magnitude.mean(dtype=np.float64)
    sounding = np.zeros((_PITCHES, frames))
    for start in range(0, frames, step):
        here = slice(start, start + step)
        level = np.log1p(10 * magnitude[:, here] / mean)
        level -= uniform_filter1d(level, 4 * _BINS + 1, axis=0)
        for partial in range(1, _PARTIALS + 1):
            bin_of_pitch = _BINS * np.arange(_PITCHES) + round(12 * _BINS * np.log2(partial))
            inside = bin_of_pitch < len(level)
            sounding[inside, here] += _DECAY ** (partial - 1) * level[bin_of_pitch[inside]]
    del magnitude
    sounding = _standardized(sounding)
    slope = np.repeat([-1.0, 1.0], _RISE_FRAMES) / _RISE_FRAMES
    rise = correlate1d(sounding, slope, axis=1, mode="nearest")
    return sounding, _standardized(np.maximum(rise, 0))


def _mono(mixture: np.ndarray, sample_rate: int) -> np.ndarray:
    """The channel mean at the rate of the evidence, `[time]`.

    Raises:
        BespokeError: it is silent.
    """
    mono = resample(mixture.mean(axis=0, keepdims=True), sample_rate, _RATE)[0]
    if not mono.any():
        raise BespokeError("The recording is silent: there is nothing to align the score to.")
    return mono


def estimate_tuning(mono: np.ndarray) -> float:
    """How much sharper than A4 = 440 Hz a recording is, in semitones from -0.5 to 0.5.

    Args:
        mono: `[time]` at 22,050 Hz. Of a long one ten pieces count.
    """
    size, pieces = round(_BLOCK_SECONDS * _RATE), 10
    if mono.size > size:
        starts = range(0, mono.size, mono.size // pieces)
        mono = np.concatenate([mono[start : start + size // pieces] for start in starts])
    return float(_import_librosa().estimate_tuning(y=mono, sr=_RATE))


def _import_librosa() -> ModuleType:
    """Import what is used of librosa, in a thread of its own.

    For every frame of the call stack, librosa's lazy loader searches all imported modules for the
    frame's module. Below Hydra's frames this takes a second. A thread's stack is short.
    """

    def load() -> ModuleType:
        import librosa

        for name in ("estimate_tuning", "midi_to_hz", "vqt"):
            getattr(librosa, name)  # is imported by this
        return librosa

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(load).result()


def _standardized(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(rows.std(axis=1, keepdims=True), 1e-9)


def _pooled(rows: np.ndarray, pool: int) -> np.ndarray:
    """Means over consecutive frames, the last ones with zeros."""
    frames = rows.shape[1] // pool + 1
    return (
        np.pad(rows, ((0, 0), (0, frames * pool - rows.shape[1])))
        .reshape(len(rows), frames, pool)
        .mean(axis=2)
    )


def _anchors(notes: Sequence[Note]) -> list[Sequence[Note]]:
    """The parts of a score that are searched for.

    A short score is one part. A long score gives two minutes at each of three places.
    """
    first, last = min(note.start_seconds for note in notes), max(note.end_seconds for note in notes)
    if last - first <= _LONG_SCORE_SECONDS:
        return [notes]
    starts = np.arange(first, last - _ANCHOR_SECONDS, 10.0)
    onsets = np.sort([note.start_seconds for note in notes])
    counts = np.searchsorted(onsets, starts + _ANCHOR_SECONDS) - np.searchsorted(onsets, starts)
    chosen = [part[counts[part].argmax()] for part in np.array_split(np.arange(len(starts)), 3)]
    parts = (
        [
            note
            for note in notes
            if starts[index] <= note.start_seconds < starts[index] + _ANCHOR_SECONDS
        ]
        for index in chosen
    )
    return [part for part in parts if part]


def _through(
    found: Sequence[tuple],
    sounding: np.ndarray,
    starting: np.ndarray,
    onsets: np.ndarray,
    tempo_range: tuple[float, float],
) -> tuple[float, np.ndarray]:
    """A line through the places of a long score's parts.

    Parts that contradict the part with the highest confidence are left out.

    Returns:
        Its tempo factor on the whole, and where each onset is on it, in seconds of the recording.
    """
    places = []
    for anchor, factor, offset, fit, wrong_fits in found:
        own = np.unique([note.start_seconds for note in anchor])
        _, times = _warp(sounding, starting, anchor, factor, own * factor + offset)
        places.append((_confidence(fit, wrong_fits), own, times + _LATENESS_SECONDS))
    confidence, own, times = max(places, key=lambda place: place[0])
    slack = (0.9 * tempo_range[0], 1.1 * tempo_range[1])
    kept = [(own, times)]
    for other_confidence, other_own, other_times in places:
        distance = np.median(other_own) - np.median(own)
        if distance and other_confidence >= min(confidence, LOW_CONFIDENCE):
            slope = (np.median(other_times) - np.median(times)) / distance
            kept += [(other_own, other_times)] if slack[0] <= slope <= slack[1] else []
    score, index = np.unique(np.concatenate([part for part, _ in kept]), return_index=True)
    recording = np.maximum.accumulate(np.concatenate([part for _, part in kept])[index])
    factor = float(np.clip(np.polyfit(score, recording, 1)[0], *tempo_range))
    beyond = np.minimum(onsets - score[0], 0) + np.maximum(onsets - score[-1], 0)
    return factor, np.interp(onsets, score, recording) + factor * beyond


def _search(
    sounding: np.ndarray,
    starting: np.ndarray,
    notes: Sequence[Note],
    tempo_range: tuple[float, float],
    pool: int,
) -> tuple[float, float, float, tuple[float, float]]:
    """Find the best straight line: every tempo factor on a grid, with all offsets at once.

    The offsets of one factor are compared by a correlation. A note's evidence is the mean of
    `sounding` over the note times the square root of its length, because standard deviations add up
    in this way. The evidence of its onset is added. What lies outside the recording counts as 0,
    which is the mean of chance.

    Returns:
        Tempo factor, offset in seconds, the fit, and two means of the best fits of wrong scores:
        in other keys, and with shuffled pitches.
    """
    frames = sounding.shape[1] // pool + 1
    rate = _FRAMES / pool
    pooled, rising = (_pooled(rows, pool) for rows in (sounding, starting))
    summed = np.pad(np.cumsum(pooled, axis=1), ((0, 0), (1, 0)))
    starts, ends = (
        np.array([getattr(note, name) for note in notes]) * rate
        for name in ("start_seconds", "end_seconds")
    )
    pitches, row = np.unique([note.pitch - _LOWEST_PITCH for note in notes], return_inverse=True)

    # Halfway between two factors, the ends of the score are off by 1.5 observations, which `_warp`
    # corrects. For scores longer than two minutes they are off by more, to save time.
    low, high = np.log(tempo_range)
    step = np.clip(6 / (ends.max() - starts.min()), 0.002, 0.01)
    factors = np.exp(np.linspace(low, high, int(np.ceil((high - low) / step)) + 1))
    before = int(np.ceil(ends.max() * factors[-1])) + 2  # the offset may be as negative as that
    offsets = np.arange(-before, frames) / rate
    size = 1 << int(np.ceil(np.log2(before + frames + 1)))
    summed_spectrum, rising_spectrum = (
        np.fft.rfft(rows, size).astype(np.complex64) for rows in (summed, rising)
    )
    # Wrong scores: they have the rhythm of the score that is searched for, and its pitches, which
    # are shuffled.
    rng = np.random.default_rng(0)
    orders = [row, *(rng.permutation(row) for _ in range(_SHUFFLES))]

    best = (-np.inf, 1.0, 0.0)
    fits: defaultdict[tuple[int, int], float] = defaultdict(lambda: -np.inf)
    for factor in track(factors.tolist()):
        weight = np.maximum((ends - starts) * factor, 0.5) ** -0.5
        for number, row in enumerate(orders):
            over = _impulses(len(pitches), size, row, ends * factor, weight) - _impulses(
                len(pitches), size, row, starts * factor, weight
            )
            onset = _impulses(
                len(pitches), size, row, starts * factor, np.full(len(row), _ONSET_WEIGHT)
            )
            over, onset = (
                torch.fft.rfft(torch.from_numpy(rows)).conj().resolve_conj().numpy()
                for rows in (over, onset)
            )
            for key in (0, *_WRONG_KEYS) if number == 0 else (0,):
                inside = (pitches + key >= 0) & (pitches + key < _PITCHES)
                at = pitches[inside] + key
                spectrum = (
                    summed_spectrum[at] * over[inside] + rising_spectrum[at] * onset[inside]
                ).sum(axis=0)
                fit = np.roll(np.fft.irfft(spectrum, size), before)[: before + frames]
                fits[number, key] = max(fits[number, key], fit.max())
                if number == key == 0 and fit.max() > best[0]:
                    best = (fit.max(), factor, offsets[fit.argmax()])
    in_keys, shuffled = (
        [fits[0, key] for key in _WRONG_KEYS],
        [fits[number, 0] for number in range(1, len(orders))],
    )
    return best[1], best[2], best[0], (float(np.mean(in_keys)), float(np.mean(shuffled)))


def _impulses(
    rows: int, size: int, row: np.ndarray, position: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Impulses at fractional positions, each shared by its two neighbours: `[rows, size]`."""
    impulses = np.zeros((rows, size), np.float32)
    whole = np.floor(position).astype(int)
    np.add.at(impulses, (row, whole), weight * (1 - (position - whole)))
    np.add.at(impulses, (row, whole + 1), weight * (position - whole))
    return impulses


def _warp(
    sounding: np.ndarray,
    starting: np.ndarray,
    notes: Sequence[Note],
    factor: float,
    expected_seconds: np.ndarray,
    window_seconds: float = 1.0,
    step_seconds: float = 0.4,
    jitter_seconds: float = 0.02,
    drift: float = 0.035,
    rate: float = _FRAMES,
) -> tuple[np.ndarray, np.ndarray]:
    """Bend a line: find the likeliest deviation of each onset (Viterbi).

    The evidence is that of `_search`.

    Args:
        expected_seconds: where each distinct onset is on the line, in seconds of the recording.
        jitter_seconds, drift: standard deviation of the change of the deviation from one onset to
            the next: `jitter_seconds` in any case (a grid of 62.5 ms gives 18 ms), and the share
            `drift` of the time between them.
        window_seconds, step_seconds: the largest deviation from the line, and the largest change of
            the deviation from one onset to the next.
        rate: frames of the evidence in a second.

    Returns:
        The distinct onsets, in seconds of the score, and where they are in the recording `[onset]`.
    """
    frames = sounding.shape[1]
    summed = np.pad(np.cumsum(sounding, axis=1), ((0, 0), (1, 0)))
    rise = np.pad(starting, ((0, 0), (0, 1)))  # the last frame is outside
    pooled = _FRAMES / rate
    reach, largest = round(window_seconds * rate), round(step_seconds * rate)
    deviations = np.arange(-reach, reach + 1)
    onsets, event = np.unique([note.start_seconds for note in notes], return_inverse=True)
    gain = np.zeros((len(onsets), len(deviations)))
    for note, index in zip(notes, event, strict=True):
        start = round(expected_seconds[index] * rate) + deviations
        length = max(1, round((note.end_seconds - note.start_seconds) * factor * rate))
        pitch = note.pitch - _LOWEST_PITCH
        held = (
            summed[pitch, np.clip(start + length, 0, frames)]
            - summed[pitch, np.clip(start, 0, frames)]
        )
        begun = rise[pitch, np.where((start >= 0) & (start < frames), start, frames)]
        gain[index] += held * pooled / np.sqrt(length * pooled * _POOL) + _ONSET_WEIGHT * begun

    change = np.arange(-largest, largest + 1) / rate
    score, origins = gain[0], []
    for index in range(1, len(onsets)):
        variance = jitter_seconds**2 + (drift * factor * (onsets[index] - onsets[index - 1])) ** 2
        padded = np.pad(score, largest, constant_values=-np.inf)
        options = np.lib.stride_tricks.sliding_window_view(padded, len(change)) - change**2 / (
            2 * variance
        )
        origins.append(options.argmax(axis=1))
        score = options.max(axis=1) + gain[index]
    state = [int(score.argmax())]
    for origin in reversed(origins):
        state.append(state[-1] + int(origin[state[-1]]) - largest)
    deviation_seconds = deviations[state[::-1]] / rate
    return onsets, expected_seconds + deviation_seconds - _LATENESS_SECONDS


def _confidence(fit: float, wrong_fits: tuple[float, float]) -> float:
    """The share of right scores among those whose fit beats their wrong variants by the same ratio.

    The ratio is that of the score's fit to the mean fit of its own wrong variants. The share is a
    logistic curve in the logarithm of this ratio. It was fitted to 254 right and 312 wrong scores
    in 13 recordings; right and wrong scores have half of the weight each. That was before the
    split (benchmark/split.yaml): seven of the recordings are of its development half, six of its
    test half.
    """
    ratio = fit / max(sum(wrong_fits) / 2, 1e-9)
    return float(1 / (1 + (_EVEN_RATIO / max(ratio, 1e-9)) ** _STEEPNESS))


def onset_errors(aligned: Sequence[Note], truth: Sequence[Note]) -> dict[str, float]:
    """How far the onsets are from the true ones.

    The notes of each pitch are matched so that the sum of their errors is least.

    Args:
        aligned, truth: in seconds of the recording. Notes that only one of them has are left out.

    Returns:
        `median_seconds`, `p90_seconds` (90th percentile), and the shares `within_50_ms` and
        `within_100_ms`, 0 to 1; NaN without a match.

    >>> aligned = [Note(1.0, 2.0, 60), Note(2.0, 3.0, 62)]
    >>> onset_errors(aligned, [Note(1.02, 2.0, 60), Note(2.08, 3.0, 62)])
    {'median_seconds': 0.05, 'p90_seconds': 0.074, 'within_50_ms': 0.5, 'within_100_ms': 1.0}
    """
    errors = []
    for pitch in sorted({note.pitch for note in truth}):
        ours, true = (
            np.array([note.start_seconds for note in notes if note.pitch == pitch])
            for notes in (aligned, truth)
        )
        distance = np.abs(ours[:, None] - true)
        errors.extend(distance[linear_sum_assignment(distance)])
    error = np.array(errors or [np.nan])
    shares = [(error <= limit).mean() if errors else np.nan for limit in (0.05, 0.1)]
    figures = (np.median(error), np.percentile(error, 90), *shares)
    names = ("median_seconds", "p90_seconds", "within_50_ms", "within_100_ms")
    return {name: round(float(figure), 4) for name, figure in zip(names, figures, strict=True)}
