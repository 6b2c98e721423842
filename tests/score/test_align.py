"""Alignment of recordings made from notes with known times."""

from dataclasses import replace

import numpy as np
import pytest

from bespoke.audio.dsp import resample
from bespoke.score.align import (
    LOW_CONFIDENCE,
    NO_FIT,
    align,
    align_parts,
    anywhere,
    apart,
    evidence,
    find_offset,
    in_time,
    is_anywhere,
    onset_errors,
    part_confidence,
    within,
)
from bespoke.score.midi import Note, shift, stretch, transpose
from bespoke.score.synth import Patch, render
from bespoke.utils.errors import BespokeError

pytestmark = pytest.mark.slow  # 20 s of sound are analysed

RATE = 22050
SECONDS = 20.0


def melody(seed, notes=32, low=60):
    """Melody in C major from 1 s on, with notes of 0.25 to 0.75 s and some rests."""
    rng = np.random.default_rng(seed)
    scale = low + np.array([0, 2, 4, 5, 7, 9, 11, 12])
    time, line = 1.0, []
    for _ in range(notes):
        length = float(rng.choice([0.25, 0.5, 0.75]))
        line.append(Note(time, time + 0.9 * length, int(rng.choice(scale))))
        time += length + (0.5 if rng.random() < 0.2 else 0.0)
    return tuple(line)


def recording(notes, seed=0, channels=2, noise=0.3):
    """20 s of the notes played by an oboe (68), with two instruments in the same key and noise."""
    rng = np.random.default_rng(seed)
    bass, piano = stretch(melody(1001, 60, 36), 1.07), stretch(melody(1002, 60, 48), 0.93)
    samples = round(SECONDS * RATE)
    mixture = rng.normal(0, noise, samples)
    for part, program in ((notes, 68), (bass, 33), (piano, 0)):
        waveform = render(part, Patch(program), RATE)[0, :samples]
        mixture[: len(waveform)] += waveform / waveform.std()
    return np.tile(mixture.astype(np.float32), (channels, 1))


def unaligned(notes, factor, shift_seconds=0.0):
    """The score of which `notes` are `factor` times as slow, beginning at `shift_seconds`."""
    first = notes[0].start_seconds
    return tuple(
        replace(
            note,
            start_seconds=(note.start_seconds - first) / factor + shift_seconds,
            end_seconds=(note.end_seconds - first) / factor + shift_seconds,
        )
        for note in notes
    )


@pytest.fixture(scope="module")
def truth():
    return tuple(note for note in melody(0) if note.end_seconds < SECONDS)


@pytest.fixture(scope="module")
def mixture(truth):
    return recording(truth)


@pytest.mark.parametrize(("factor", "shift_seconds"), [(0.75, 0.0), (1.0, 3.0), (1.3, 10.0)])
def test_tempo_and_offset_are_found(truth, mixture, factor, shift_seconds):
    found = align(unaligned(truth, factor, shift_seconds), mixture, RATE)
    assert found.tempo_factor == pytest.approx(factor, rel=0.01)
    assert found.offset_seconds == pytest.approx(
        truth[0].start_seconds - factor * shift_seconds, abs=0.15
    )
    assert found.confidence > 0.9
    errors = onset_errors(found.notes, truth)
    assert errors["median_seconds"] < 0.02
    assert errors["within_50_ms"] > 0.9
    assert [note.pitch for note in found.notes] == [note.pitch for note in truth]
    assert (
        np.median(
            [abs(a.end_seconds - b.end_seconds) for a, b in zip(found.notes, truth, strict=True)]
        )
        < 0.03
    )


BASS, PIANO = stretch(melody(1001, 60, 36), 1.07), stretch(melody(1002, 60, 48), 0.93)


def common_score(*parts, factor=1.2):
    """Parts as they are written in one score, of which the recording is `factor` times as slow."""
    return [stretch(part, 1 / factor) for part in parts]


def test_other_parts_of_the_score_are_placed_too(truth, mixture):
    target, *others = common_score(truth, BASS, PIANO)
    found = align(target, mixture, RATE, others=others)
    assert min(found.fit, *found.fits) > NO_FIT
    assert found.confidence > 0.95
    for notes, true in zip((found.notes, *found.others), (truth, BASS, PIANO), strict=True):
        inside = [[note for note in part if note.end_seconds < 18] for part in (notes, true)]
        errors = onset_errors(*inside)
        assert errors["median_seconds"] < 0.03
        assert errors["within_100_ms"] > 0.85


def test_the_course_names_the_passage_that_is_wrong_and_no_other(truth, mixture):
    right = align(unaligned(truth, 1.15), mixture, RATE)
    assert apart(right.course) == []
    assert min(confidence for _, confidence in right.course) > 0.5
    # From 7 to 16 s the score has other notes.
    stranger = [note for note in melody(7) if 7 <= note.start_seconds < 16]
    wrong = sorted([*(n for n in truth if not 7 <= n.start_seconds < 16), *stranger])
    found = align(unaligned(wrong, 1.15), mixture, RATE)
    assert found.confidence > 0.5
    [(begin, end)] = apart(found.course)
    assert 6 <= begin < 11 < end <= 17


def test_a_parts_confidence_tells_whether_it_is_in_the_recording(truth, mixture):
    target, bass, stranger = common_score(truth, BASS, melody(7))
    found = align(target, mixture, RATE, others=[bass, stranger])
    own, bass, stranger = (part_confidence(fit) for fit in (found.fit, *found.fits))
    assert min(own, bass) > 0.9
    assert stranger < 0.2


def test_several_targets_lie_on_one_line(truth, mixture):
    score = common_score(truth, BASS, PIANO, melody(7))
    *found, stranger = align_parts(score, mixture, RATE)
    assert len({alignment.path for alignment in (*found, stranger)}) == 1
    assert stranger.fit < NO_FIT < min(alignment.fit for alignment in found)
    assert [alignment.fit for alignment in found] == [*stranger.fits]
    for alignment, true in zip(found, (truth, BASS, PIANO), strict=True):
        inside = [
            [note for note in part if note.end_seconds < 18] for part in (alignment.notes, true)
        ]
        assert onset_errors(*inside)["median_seconds"] < 0.03
    assert found[0].others == (found[1].notes, found[2].notes, stranger.notes)


def test_parts_that_are_not_in_the_recording_do_not_mislead_and_do_not_fit(truth, mixture):
    target, bass, *strangers = common_score(truth, BASS, melody(7), melody(8), melody(9, 60, 48))
    for others in (strangers, [bass, strangers[0]]):
        found = align(target, mixture, RATE, others=others)
        fitting = [fit >= NO_FIT for fit in found.fits]
        assert fitting == [part is bass for part in others]
        assert onset_errors(found.notes, truth)["median_seconds"] < 0.03


def test_a_part_that_cannot_be_found_alone_is_found_by_the_others(mixture):
    # Two notes that are nowhere in the recording, between others that are.
    target = (Note(4.0, 4.1, 61), Note(9.0, 9.1, 61))
    score, *others = common_score(target, BASS, PIANO)
    found = align(score, mixture, RATE, others=others)
    assert found.confidence > 0.95
    assert [note.start_seconds for note in found.notes] == pytest.approx([4.0, 9.0], abs=0.15)
    assert found.fit < NO_FIT


@pytest.mark.parametrize("cents", [-50, -20, 0, 47])
def test_the_tuning_is_found_and_a_quarter_tone_is_no_other_key(truth, mixture, cents):
    ratio = 2 ** (cents / 1200)
    positions = np.arange(0, mixture.shape[1], ratio)
    retuned = np.interp(positions, np.arange(mixture.shape[1]), mixture[0])[None]
    found = align(unaligned(truth, 1.1), retuned.astype(np.float32), RATE)
    assert found.tuning_cents == pytest.approx(cents, abs=12)
    errors = onset_errors(found.notes, stretch(truth, 1 / ratio))
    assert errors["median_seconds"] < 0.02


def test_a_score_in_time_is_taken_as_it_is_and_tuned(truth, mixture):
    ratio = 2 ** (-50 / 1200)
    positions = np.arange(0, mixture.shape[1], ratio)
    retuned = np.interp(positions, np.arange(mixture.shape[1]), mixture[0])[None]
    notes, absent = stretch(truth, 1 / ratio), transpose(truth, 1)
    found = in_time(notes, retuned.astype(np.float32), RATE, others=[absent])
    assert (found.notes, found.others) == (tuple(notes), (tuple(absent),))
    assert found.tuning_cents == pytest.approx(-50, abs=12)
    assert found.fit > NO_FIT > found.fits[0]


def test_a_target_with_opposite_channels_is_found_in_their_difference(truth, mixture):
    lead = render(truth, Patch(68), RATE)[0, : mixture.shape[1]]
    lead = np.pad(lead, (0, mixture.shape[1] - len(lead))) / lead.std()
    rest = mixture[0] - lead
    score = unaligned(truth, 1.1)
    found = align(score, np.stack([lead + rest, rest - lead]).astype(np.float32), RATE)
    assert found.view == (0.5, -0.5)
    assert onset_errors(found.notes, truth)["median_seconds"] < 0.02
    assert align(score, mixture, RATE).view is None


def test_the_path_is_the_notes_onsets(truth, mixture):
    found = align(unaligned(truth, 1.1), mixture, RATE)
    score_seconds, seconds = np.array(found.path).T
    assert (np.diff(score_seconds) > 0).all()
    assert seconds.tolist() == [note.start_seconds for note in found.notes]


@pytest.mark.slow
def test_level_rate_and_channels_do_not_matter(truth, mixture):
    from bespoke.audio.dsp import resample

    score = unaligned(truth, 1.1)
    found = align(score, mixture, RATE)
    assert align(score, 1e-3 * mixture, RATE).path == pytest.approx(np.array(found.path), abs=0.012)
    other = align(score, resample(mixture[:1], RATE, 44100), 44100)
    assert np.median(np.abs(np.array(other.path) - np.array(found.path))) < 0.012


def test_a_drifting_tempo_is_followed(truth):
    def slow_down(
        seconds,
    ):  # up to 10 % slower and faster, a period of 12 seconds: 0.19 s off a straight line
        return seconds + 0.1 * 12 / (2 * np.pi) * np.sin(2 * np.pi * seconds / 12)

    played = tuple(
        replace(
            note,
            start_seconds=slow_down(note.start_seconds),
            end_seconds=slow_down(note.end_seconds),
        )
        for note in truth
    )
    found = align(unaligned(truth, 0.9), recording(played), RATE)
    straight = tuple(
        replace(note, start_seconds=note.start_seconds * found.tempo_factor + found.offset_seconds)
        for note in unaligned(truth, 0.9)
    )
    errors = onset_errors(found.notes, played)
    assert errors["median_seconds"] < 0.03
    assert errors["within_100_ms"] > 0.9
    assert errors["median_seconds"] < 0.5 * onset_errors(straight, played)["median_seconds"]


def test_quantized_wrong_missing_and_extra_notes_are_borne(truth, mixture):
    rng = np.random.default_rng(3)
    score = []
    for index, note in enumerate(unaligned(truth, 1.12)):
        start, end = (
            round(seconds / 0.0625) * 0.0625 for seconds in (note.start_seconds, note.end_seconds)
        )
        note = replace(note, start_seconds=start, end_seconds=max(end, start + 0.0625))
        if index % 10 == 3:
            continue
        if index % 10 == 6:
            note = replace(note, pitch=note.pitch + int(rng.integers(1, 5)))
        score.append(note)
        if index % 10 == 9:
            score.append(
                replace(note, start_seconds=end, end_seconds=end + 0.25, pitch=note.pitch + 3)
            )
    found = align(score, mixture, RATE)
    assert found.confidence > LOW_CONFIDENCE
    assert len(found.notes) == len(score)
    errors = onset_errors(
        [note for note in found.notes if note.pitch in {other.pitch for other in truth}], truth
    )
    assert errors["median_seconds"] < 0.03
    assert errors["within_100_ms"] > 0.85


@pytest.mark.slow
def test_a_score_may_be_longer_than_the_recording(truth, mixture):
    before = [
        Note(second, second + 0.4, 60 + int(second) % 5) for second in np.arange(0.0, 8.0, 0.5)
    ]
    score = (
        *before,
        *unaligned(truth, 0.9, 8.0),
        *(Note(40 + second, 40.4 + second, 65) for second in range(10)),
    )
    found = align(score, mixture, RATE)
    assert found.confidence > LOW_CONFIDENCE
    assert found.notes[0].start_seconds < 0
    assert found.notes[-1].start_seconds > SECONDS
    assert onset_errors(found.notes[len(before) : -10], truth)["median_seconds"] < 0.03


def test_a_score_may_cover_a_part_of_the_recording(truth, mixture):
    part = tuple(note for note in truth if 8 < note.start_seconds < 15)
    found = align(unaligned(part, 1.2), mixture, RATE)
    assert found.confidence > LOW_CONFIDENCE
    assert onset_errors(found.notes, part)["median_seconds"] < 0.03


def test_notes_at_the_same_time_stay_together(truth):
    chords = tuple(sorted((*truth, *transpose(truth, 4))))
    found = align(unaligned(chords, 0.8), recording(chords), RATE)
    assert onset_errors(found.notes, chords)["median_seconds"] < 0.03
    assert len(found.path) == len(truth)
    assert len({note.start_seconds for note in found.notes}) == len(truth)


@pytest.mark.slow
def test_wrong_scores_have_a_low_confidence(truth, mixture):
    right = align(unaligned(truth, 1.1), mixture, RATE).confidence
    wrong = [align(melody(seed, 25), mixture, RATE).confidence for seed in range(5, 11)]
    wrong += [align(transpose(unaligned(truth, 1.1), 1), mixture, RATE).confidence]
    assert np.median(wrong) < 0.2
    assert max(wrong) < LOW_CONFIDENCE < right


def test_noise_gives_no_confidence(truth):
    noise = np.random.default_rng(0).normal(size=(1, 10 * RATE)).astype(np.float32)
    assert align(truth, noise, RATE).confidence < LOW_CONFIDENCE


@pytest.mark.slow
def test_notes_out_of_range_go_along(truth, mixture):
    score = unaligned(truth, 1.1)
    low = replace(score[5], pitch=20)
    found = align((*score, low), mixture, RATE)
    assert found.notes[-1].start_seconds == pytest.approx(found.notes[5].start_seconds)
    assert found.notes[:-1] == align(score, mixture, RATE).notes


def test_what_cannot_be_aligned_is_said():
    noise = np.random.default_rng(0).normal(size=(1, RATE)).astype(np.float32)
    for notes in ((), (Note(0, 1, 12),)):
        with pytest.raises(BespokeError, match="no note from C1 to B7"):
            align(notes, noise, RATE)
    with pytest.raises(BespokeError, match="silent"):
        align((Note(0, 1, 60),), np.zeros((2, RATE), np.float32), RATE)


def test_a_single_note_in_a_short_recording(truth):
    tone = np.zeros((1, RATE), np.float32)
    sound = render((Note(0.0, 0.4, 69),), Patch(80), RATE)[:, : RATE // 2]
    tone[:, RATE // 2 :] = sound[:, : RATE - RATE // 2]
    tone += np.random.default_rng(0).normal(0, 1e-3, tone.shape).astype(np.float32)
    assert align((Note(5.0, 5.4, 69),), tone, RATE, tempo_range=(0.99, 1.01)).notes[
        0
    ].start_seconds == pytest.approx(0.5, abs=0.05)


def test_evidence_is_highest_at_the_pitch_that_sounds():
    sounding, starting = evidence(render((Note(1.0, 2.0, 69),), Patch(80), RATE), RATE)
    frame = round(1.5 * RATE / 256)
    assert sounding.shape == starting.shape
    assert sounding[69 - 24, frame] > 1
    assert starting[69 - 24].argmax() * 256 / RATE == pytest.approx(1.0, abs=0.05)


def test_onset_errors_of_known_differences():
    truth = [Note(float(second), second + 0.5, 60 + second % 2) for second in range(10)]
    moved = [
        replace(note, start_seconds=note.start_seconds + 0.02 * index)
        for index, note in enumerate(truth)
    ]
    assert onset_errors(moved, truth) == {
        "median_seconds": 0.09,
        "p90_seconds": 0.162,
        "within_50_ms": 0.3,
        "within_100_ms": 0.6,
    }
    # A missing note takes no other's place: the rest keep their partners.
    assert onset_errors(moved[:3] + moved[5:], truth)["median_seconds"] == pytest.approx(0.11)
    assert np.isnan(onset_errors([], truth)["median_seconds"])


def test_notes_are_cut_to_the_recording():
    notes = [
        Note(-2.0, -1.0, 60),
        Note(-0.5, 0.5, 61),
        Note(1.0, 2.0, 62),
        Note(4.5, 6.0, 63),
        Note(5.0, 6.0, 64),
    ]
    assert within(notes, 5.0) == (Note(0.0, 0.5, 61), Note(1.0, 2.0, 62), Note(4.5, 5.0, 63))


def test_a_score_without_a_place_keeps_its_pitches():
    assert anywhere([Note(9, 10, 64), Note(1, 2, 60), Note(3, 4, 64)], 5.0) == (
        Note(0.0, 5.0, 60),
        Note(0.0, 5.0, 64),
    )


MASTERINGS = {
    "the same": lambda mixture: (mixture, RATE),
    "soft, in mono": lambda mixture: (0.01 * mixture[:1], RATE),
    "at another rate": lambda mixture: (resample(mixture, RATE, 44100), 44100),
    "without bass": lambda mixture: (np.diff(mixture, prepend=0), RATE),
    "limited": lambda mixture: (np.tanh(2 * mixture / mixture.std()), RATE),
    "noisy": lambda mixture: (
        mixture + np.random.default_rng(1).normal(0, mixture.std(), mixture.shape),
        RATE,
    ),
}


@pytest.mark.parametrize("name", MASTERINGS)
def test_notes_fit_another_mastering_as_they_are(truth, mixture, name):
    other, rate = MASTERINGS[name](mixture)
    assert find_offset(truth, other.astype(np.float32), rate) == 0


@pytest.mark.parametrize("seconds", [0.5, 3.21, -2.3])
def test_what_begins_later_or_earlier_is_found(truth, mixture, seconds):
    samples = round(abs(seconds) * RATE)
    other = np.pad(mixture, ((0, 0), (samples, 0))) if seconds > 0 else mixture[:, samples:]
    assert find_offset(truth, other, RATE) == pytest.approx(seconds, abs=0.04)


def test_an_excerpt_is_found_in_the_whole(truth, mixture):
    part = [note for note in truth if note.start_seconds >= 8]
    assert find_offset(shift(part, -8.0), mixture, RATE) == pytest.approx(8, abs=0.04)


@pytest.mark.slow
def test_notes_of_another_song_or_key_fit_nowhere(truth, mixture):
    for wrong in (
        melody(7),
        melody(8, 20),
        transpose(truth, 2),
        stretch(truth, 1.2),
        tuple(reversed_in_time(truth)),
    ):
        assert find_offset(wrong, mixture, RATE) is None
    assert find_offset([Note(0.0, 1.0, 0)], mixture, RATE) is None  # too low to be looked for


def reversed_in_time(notes):
    return [
        replace(
            note, start_seconds=SECONDS - note.end_seconds, end_seconds=SECONDS - note.start_seconds
        )
        for note in notes
    ]


def test_notes_without_a_place_are_known(truth):
    assert is_anywhere(anywhere(truth, 20.0))
    assert not is_anywhere(truth)
    assert not is_anywhere(shift(anywhere(truth, 20.0), 1.0))
