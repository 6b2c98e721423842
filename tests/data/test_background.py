"""Backgrounds: the segments, their levels, and how often each is drawn."""

from dataclasses import replace

import numpy as np
import pytest

from bespoke.audio.dsp import active_rms
from bespoke.audio.io import write_wav
from bespoke.data.background import (
    LEVEL,
    AudioBackground,
    MixedBackground,
    MixtureBackground,
    ResidualBackground,
    SynthBackground,
    cut,
    draw_start,
    song_background,
)
from bespoke.data.song import Song, Voice
from bespoke.score.midi import Note, Part
from bespoke.score.synth import Patch
from bespoke.utils.errors import BespokeError

RATE = 16000


@pytest.fixture(scope="module")
def song():
    rng = np.random.default_rng(0)
    voices = tuple(
        Voice(
            Part(name, 0, False, tuple(Note(i / 4, i / 4 + 0.2, pitch) for i in range(12))),
            (Patch(program), Patch(program + 1)),
        )
        for name, pitch, program in (("bass", 40, 33), ("piano", 60, 0))
    )
    mixture = rng.normal(size=(2, 44100 * 2)).astype(np.float32) * 0.01
    return Song("test", mixture, 44100, None, None, voices, None, False, {}, None)


def test_cutting_pads_with_zeros_beyond_both_ends():
    ramp = np.arange(1.0, 5.0)[None]
    assert cut(ramp, 1, 2).tolist() == [[2, 3]]
    assert cut(ramp, -1, 3).tolist() == [[0, 1, 2]]
    assert cut(ramp, 3, 3).tolist() == [[4, 0, 0]]
    assert cut(ramp, 9, 2).tolist() == cut(ramp, -9, 2).tolist() == [[0, 0]]


def test_the_residual_lacks_the_estimate_and_keeps_its_level_beside_it(song):
    with pytest.raises(BespokeError, match="align=true"):
        ResidualBackground(song, RATE)
    tone = (
        np.sin(2 * np.pi * 1000 * np.arange(song.mixture.shape[1]) / 44100)
        .astype(np.float32)[None]
        .repeat(2, axis=0)
    )
    loud = replace(song, mixture=song.mixture + 0.5 * tone, estimate=0.5 * tone)
    track = ResidualBackground(loud, RATE).track
    spectrum = np.abs(np.fft.rfft(track[0]))
    assert spectrum[round(1000 * track.shape[-1] / RATE)] < 10 * np.median(spectrum)
    # With the estimate normalized to LEVEL, the rest has the same relative level as in the
    # recording, limited to 12 dB below.
    assert active_rms(track, RATE) == pytest.approx(LEVEL / 4, rel=1e-3)
    as_loud = replace(loud, estimate=song.mixture, mixture=2 * song.mixture)
    assert active_rms(ResidualBackground(as_loud, RATE).track, RATE) == pytest.approx(
        LEVEL, rel=1e-3
    )


def test_starts_cover_the_whole_track_and_short_tracks_lie_within_the_segment():
    rng = np.random.default_rng(0)
    assert {draw_start(rng, 10, 6) for _ in range(200)} == set(range(5))
    assert {draw_start(rng, 3, 6) for _ in range(200)} == set(range(-3, 1))


def test_mixture_background_is_the_recordings_mono_at_the_common_level(song):
    background = MixtureBackground(song, RATE)
    assert background.track.shape == (1, 2 * RATE)
    assert active_rms(background.track, RATE) == pytest.approx(LEVEL, rel=0.01)
    draw = background.sample(np.random.default_rng(0), 0, RATE)
    assert (
        background.segment(draw, RATE) == background.track[:, draw.start : draw.start + RATE]
    ).all()


def test_synth_background_sums_the_drawn_patches_in_time(song):
    background = SynthBackground(song, RATE)
    draws = [background.sample(np.random.default_rng(seed), 4000, RATE) for seed in range(40)]
    assert {draw.tracks for draw in draws} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {draw.start for draw in draws} == {4000}
    expected = sum(
        background.voices[voice][patch][:, 4000 : 4000 + RATE]
        for voice, patch in enumerate(draws[0].tracks)
    )
    assert background.segment(draws[0], RATE) == pytest.approx(expected, abs=1e-6)
    together = sum(cut(renders[0], 0, background.length) for renders in background.voices)
    assert active_rms(together, RATE) == pytest.approx(LEVEL, rel=0.01)
    for renders in background.voices:  # the patches of a part are equally loud
        assert active_rms(renders[0], RATE) == pytest.approx(active_rms(renders[1], RATE), rel=0.01)


def test_synth_background_can_be_out_of_time(song):
    background = SynthBackground(song, RATE, in_time=False)
    assert (
        len(
            {background.sample(np.random.default_rng(seed), 4000, RATE).start for seed in range(20)}
        )
        > 10
    )


def test_audio_background_searches_folders_and_draws_longer_files_more_often(song, tmp_path):
    (tmp_path / "inner").mkdir()
    for name, seconds in (("a.wav", 3), ("inner/b.wav", 1)):
        write_wav(
            tmp_path / name,
            np.random.default_rng(0).normal(size=(1, 8000 * seconds)).astype(np.float32),
            8000,
        )
    (tmp_path / "notes.txt").write_text("not audio")
    background = AudioBackground(song, RATE, [str(tmp_path)])
    assert [track.shape[-1] for track in background.tracks] == [3 * RATE, RATE]
    rng = np.random.default_rng(0)
    draws = [background.sample(rng, 0, 800) for _ in range(1000)]
    assert np.mean([draw.tracks == (0,) for draw in draws]) == pytest.approx(0.75, abs=0.05)
    assert background.segment(draws[0], 800).shape == (1, 800)


def test_audio_background_without_audio_is_refused(song, tmp_path):
    with pytest.raises(BespokeError, match=r"background\.paths"):
        AudioBackground(song, RATE, [str(tmp_path)])


def test_mixed_background_draws_by_weight_and_makes_only_what_it_needs(song):
    def never(song, sample_rate):
        raise AssertionError("a background of weight 0 was made")

    weights = {"mixture": 3, "synth": 1, "audio": 0}
    background = MixedBackground(
        song, RATE, weights, mixture=MixtureBackground, synth=SynthBackground, audio=never
    )
    rng = np.random.default_rng(0)
    draws = [background.sample(rng, 0, 800) for _ in range(1000)]
    assert np.mean([draw.source == "mixture" for draw in draws]) == pytest.approx(0.75, abs=0.05)
    assert all(background.segment(draw, 800).shape == (1, 800) for draw in draws[:20])


def test_weights_that_make_no_sense_are_refused(song):
    for weights in ({"nosuch": 1}, {"mixture": -1}, {"mixture": 0}, {}):
        with pytest.raises(BespokeError, match="weights"):
            MixedBackground(song, RATE, weights, mixture=MixtureBackground)


@pytest.mark.parametrize(
    ("named", "kind"), [(None, "mixture"), ("mixture", "mixture"), ("synth", "synth")]
)
def test_the_songs_own_background_is_the_one_that_it_names(make_song, tmp_path, named, kind):
    files = make_song(tmp_path, programs=(80, 33))
    config = {
        "mixture": str(files.mixture),
        "target": {"score": str(files.score), "instrument": "Part 0"},
        "others": "rest",
        "background": named,
    }
    background = song_background(Song.load(config), RATE, in_time=True)
    assert background.uses_others == (kind == "synth")
    assert background.sample(np.random.default_rng(0), 0, 100).source == kind
    with pytest.raises(BespokeError, match=r"song\.background=rest is not possible"):
        Song.load({**config, "background": "rest"})
    with pytest.raises(BespokeError, match=r"song\.background=synth .*song\.others"):
        Song.load({**config, "background": "synth", "others": None})
