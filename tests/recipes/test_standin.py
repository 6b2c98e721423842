import itertools

import numpy as np
import pytest
import soundfile

from bespoke.audio.io import read_audio
from bespoke.data.song import Song
from bespoke.score.midi import read_score, write_midi
from bespoke.utils.errors import BespokeError
from recipes.standin.compositions import Clock, compose, pitch, play_line, third_above
from recipes.standin.performances import (
    FOLDER,
    PERFORMANCES,
    in_16_bits,
    perform,
    play,
    transcribe,
)

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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_ships_is_what_the_compositions_give(name, tmp_path):
    mixture, target, score = perform(name)
    write_midi(tmp_path / "score.mid", score)
    assert (tmp_path / "score.mid").read_bytes() == (FOLDER / name / "score.mid").read_bytes()
    for stem, waveform in (("mix", mixture), ("target", target)):
        shipped, _ = soundfile.read(FOLDER / name / f"{stem}.flac", dtype="int16")
        assert shipped.shape == waveform.T.shape
        # To the bit with the FluidSynth that made them; another may round otherwise.
        error = (in_16_bits(waveform).T - shipped.astype(float)).std() / shipped.std()
        assert error < 1e-3


def test_16_bits_are_the_nearest_to_the_bit():
    waveform = np.array([[0.0, 0.5, -1.0, 0.9, 1.4 / 32768, -1.6 / 32768]], np.float32)
    assert in_16_bits(waveform).tolist() == [[0, 16384, -32768, 29491, 1, -2]]


@pytest.mark.parametrize("name", NAMES)
def test_song_of_the_paper_is_its_stand_in(name, song_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    song = Song.load(song_config(f"song={name}"))
    composition = compose(name)
    assert song.is_standin
    assert song.target.part.name == composition.target
    assert set(song.target.part.notes) <= set(
        read_score(FOLDER / name / "score.mid")[
            [part.name for part in composition.parts].index(composition.target)
        ].notes
    )
    assert np.array_equal(song.mixture, read_audio(FOLDER / name / "mix.flac")[0])
    assert np.array_equal(song.reference, read_audio(FOLDER / name / "target.flac")[0])


@pytest.mark.parametrize("name", NAMES)
def test_target_lies_8_db_below_the_rest_and_nothing_clips(name):
    mixture, sample_rate = read_audio(FOLDER / name / "mix.flac")
    target, _ = read_audio(FOLDER / name / "target.flac")
    rest = mixture - target
    power, rest_power = (
        (signal.mean(axis=0, dtype="float64") ** 2).mean() for signal in (target, rest)
    )
    assert power / rest_power == pytest.approx(10**-0.8, rel=0.02)  # within 0.1 dB
    assert (sample_rate, mixture.shape[0], target.shape) == (44100, 2, mixture.shape)
    assert 18 < mixture.shape[-1] / sample_rate < 27
    assert abs(mixture).max() == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_target_sounds_where_it_plays_and_rests_where_it_rests(name):
    composition = compose(name)
    notes = parts_by_name(play(composition, PERFORMANCES[name]))[composition.target].notes
    target, sample_rate = read_audio(FOLDER / name / "target.flac")
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


@pytest.mark.parametrize("name", NAMES)
def test_score_has_all_parts_at_another_tempo_and_place(name):
    composition = compose(name)
    score = parts_by_name(read_score(FOLDER / name / "score.mid"))
    assert list(score) == [part.name for part in composition.parts]
    assert score[composition.target].program == (81 if name == "take_on_me" else 29)
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


def test_unknown_song_is_an_error_that_names_the_known_ones():
    with pytest.raises(
        BespokeError,
        match="no stand-in for the song yesterday: choose one of take_on_me, reelin_in_the_years",
    ):
        perform("yesterday")
