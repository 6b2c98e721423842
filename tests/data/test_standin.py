import itertools

import pytest

from bespoke.audio.io import read_audio
from bespoke.data.compositions import Clock, compose, pitch, play_line, third_above
from bespoke.data.standin import PERFORMANCES, perform, play, transcribe
from bespoke.score.midi import choose_part, read_score
from bespoke.utils.errors import BespokeError

NAMES = ["take_on_me", "reelin_in_the_years"]
TRAINED_ON = {  # the programs of conf/song/*.yaml for the two songs, by part; kits for drums
    "take_on_me": {"Lead Synth": {81}},
    "reelin_in_the_years": {
        "Lead Guitar 1": {29, 30},
        "Lead Guitar 2": {29, 30},
        "Piano": {0, 1},
        "Rhythm Guitar": {27, 26},
        "Bass": {33, 34},
        "Drums": {0, 16},
    },
}


@pytest.fixture(scope="module", params=NAMES)
def performed(request, tmp_path_factory):
    """One performance of each song, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BESPOKE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield request.param, perform(request.param)


def parts_by_name(parts):
    return {part.name: part for part in parts}


def test_notation_gives_the_written_notes():
    straight = play_line("C4:1 r:.5 F#4!:.5 Eb5:2", Clock(bpm=60), velocity=80, articulation=1.0)
    assert [
        (note.start_seconds, note.end_seconds, note.pitch, note.velocity) for note in straight
    ] == [
        (0.0, 1.0, 60, 86),
        (1.5, 2.0, 66, 92),
        (2.0, 4.0, 75, 86),
    ]
    shuffled = play_line("C4:.5 C4:.5 C4:.25 C4:.25 C4:.5 r:2", Clock(bpm=60, swing=True))
    assert [note.start_seconds for note in shuffled] == pytest.approx([0, 2 / 3, 1, 4 / 3, 5 / 3])
    assert (pitch("B4"), pitch("Bb1"), pitch("E3")) == (71, 34, 52)
    assert [note.pitch for note in third_above(straight[:1], "C D E F G A B")] == [64]
    with pytest.raises(ValueError, match="bar 2 ends at beat 7"):
        play_line("C4:4 | C4:3", Clock(bpm=60))


def test_target_lies_8_db_below_the_rest_and_nothing_clips(performed):
    _, standin = performed
    mixture, sample_rate = read_audio(standin.mixture)
    target, _ = read_audio(standin.reference)
    rest = mixture - target
    power, rest_power = (
        (signal.mean(axis=0, dtype="float64") ** 2).mean() for signal in (target, rest)
    )
    assert power / rest_power == pytest.approx(10**-0.8, rel=0.02)  # within 0.1 dB
    assert (sample_rate, mixture.shape[0], target.shape) == (44100, 2, mixture.shape)
    assert 18 < mixture.shape[-1] / sample_rate < 27
    assert abs(mixture).max() == pytest.approx(0.9, abs=1e-4)


def test_target_sounds_where_it_plays_and_rests_where_it_rests(performed):
    name, standin = performed
    composition = compose(name)
    notes = parts_by_name(play(composition, PERFORMANCES[name]))[composition.target].notes
    target, sample_rate = read_audio(standin.reference)
    peak = abs(target).max()
    assert abs(target[:, : int((notes[0].start_seconds - 0.05) * sample_rate)]).max() < 0.001 * peak
    for note in notes:
        start = int((note.start_seconds + 0.02) * sample_rate)
        assert abs(target[:, start : start + 2000]).max() > 0.1 * peak
    gap, rest = max(
        (after.start_seconds - before.end_seconds, before.end_seconds)
        for before, after in itertools.pairwise(notes)
    )
    assert gap > 0.5
    start = int((rest + gap - 0.1) * sample_rate)
    assert abs(target[:, start : start + 2000]).max() < 0.1 * peak


def test_score_has_all_parts_at_another_tempo_and_place(performed):
    name, standin = performed
    composition = compose(name)
    score = parts_by_name(read_score(standin.score))
    assert list(score) == [part.name for part in composition.parts]
    assert choose_part(list(score.values()), composition.target).program == (
        81 if name == "take_on_me" else 29
    )
    drums = parts_by_name(play(composition, PERFORMANCES[name]))[
        "Drums"
    ].notes  # the part that the score has without mistakes
    starts = [note.start_seconds for note in drums]
    written = [note.start_seconds for note in score["Drums"].notes]
    assert len(starts) == len(written)
    ratio = (starts[-1] - starts[0]) / (written[-1] - written[0])
    assert ratio == pytest.approx(1 / PERFORMANCES[name].tempo, rel=0.01)
    assert abs(ratio - 1) > 0.05
    assert starts[0] - written[0] > 0.5
    # The tempo drifts and onsets are loose: they lie near a straight line, but not on one.
    bent = [
        start - starts[0] - ratio * (beat - written[0])
        for start, beat in zip(starts, written, strict=True)
    ]
    assert 0.02 < max(map(abs, bent)) < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_score_has_a_few_mistakes_of_every_kind(name):
    composition = compose(name)
    score = parts_by_name(transcribe(composition, PERFORMANCES[name].seed))
    for part in composition.parts:
        true, given = set(part.notes), set(score[part.name].notes)
        kept = len(true & given) / len(true)
        if part.is_drum:
            assert true == given
        elif part.name == composition.target:
            wrong = [
                note
                for note in given - true
                if any(note.start_seconds == other.start_seconds for other in true - given)
            ]
            assert (len(true - given), len(given - true), len(wrong)) == (
                2,
                2,
                1,
            )  # one wrong, one missing, one too many
            assert 0.95 < kept < 1
        else:
            assert 0.9 < kept < 1


@pytest.mark.parametrize("name", NAMES)
def test_performance_uses_other_patches_than_training(name):
    stems = PERFORMANCES[name].stems
    assert set(stems) == {part.name for part in compose(name).parts}
    for part, programs in TRAINED_ON[name].items():
        assert not programs & set(stems[part].programs)


def test_target_guitar_is_a_diatonic_third_below_the_other():
    composition = compose("reelin_in_the_years")
    parts = parts_by_name(composition.parts)
    upper = {note.start_seconds: note.pitch for note in parts["Lead Guitar 1"].notes}
    lower = {note.start_seconds: note.pitch for note in parts[composition.target].notes}
    intervals = [upper[start] - lower[start] for start in lower if start in upper]
    assert len(intervals) > 0.9 * len(lower)
    assert sum(interval in (3, 4) for interval in intervals) > 0.95 * len(intervals)
    assert {3, 4} <= set(intervals)  # diatonic, not parallel


@pytest.mark.parametrize("name", NAMES)
def test_notes_lie_in_the_range_of_their_instruments(name):
    for part in compose(name).parts:
        pitches = [note.pitch for note in part.notes]
        low, high = {"Lead": ("E3", "E6"), "Bass": ("E1", "G3")}.get(
            part.name.split()[0], ("C1", "C6")
        )
        assert pitch(low) <= min(pitches)
        assert max(pitches) <= pitch(high)


@pytest.mark.parametrize(
    "performed", ["take_on_me"], indirect=True
)  # one is enough for the cache, and performing takes seconds
def test_cache_is_reused_remade_where_incomplete_and_the_same_bytes_elsewhere(
    performed, tmp_path, monkeypatch
):
    name, first = performed
    files = (first.mixture, first.reference, first.score)
    monkeypatch.setenv("BESPOKE_CACHE", str(tmp_path))
    again = perform(name)
    assert again.mixture != first.mixture
    contents = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in (again.mixture, again.reference, again.score)] == contents

    written = again.mixture.stat().st_mtime_ns
    assert perform(name) == again
    assert again.mixture.stat().st_mtime_ns == written

    again.reference.unlink()
    assert perform(name) == again
    assert again.reference.read_bytes() == contents[1]


def test_unknown_song_is_an_error_that_names_the_known_ones():
    with pytest.raises(
        BespokeError,
        match="no stand-in for the song yesterday: choose one of take_on_me, reelin_in_the_years",
    ):
        perform("yesterday")
