"""Choice of patches: the patch and equalizer of a sound are found, and none for silence."""

import numpy as np
import pytest

from bespoke.audio.dsp import OCTAVES_HZ, equalize
from bespoke.data.song import Song
from bespoke.evaluation.timbre import NOTES, choose_patches, match, representative
from bespoke.score.midi import Note, shift
from bespoke.score.synth import Patch, SoundFont, render

RATE = 22050
NOTES_PLAYED = tuple(
    Note(0.3 + 0.7 * index, 0.8 + 0.7 * index, pitch)
    for index, pitch in enumerate((60, 64, 67, 55, 72, 62))
)


@pytest.mark.parametrize("program", [24, 73])
def test_the_patch_that_played_is_found_though_the_notes_are_a_little_late(program):
    played = render(NOTES_PLAYED, Patch(program), RATE)
    noise = (
        np.random.default_rng(0)
        .normal(0, 1e-3 * np.abs(played).max(), played.shape)
        .astype(np.float32)
    )
    first, second, _ = match(played + noise, RATE, shift(NOTES_PLAYED, 0.04), [SoundFont.find()])
    assert first.patch == Patch(program)
    assert first.distance_db < 1.5
    assert first.distance_db < second.distance_db
    assert np.abs(first.gains_db).max() < 1


def test_a_known_equalizer_is_recovered_and_undone():
    gains_db = np.array([0, 0, -6, -3, 0, 3, 6, 6])
    played = render(NOTES_PLAYED, Patch(48), RATE)
    recorded = equalize(played, RATE, gains_db)
    found = match(recorded, RATE, NOTES_PLAYED, [SoundFont.find()], count=112)
    (same,) = (candidate for candidate in found if candidate.patch == Patch(48))
    assert same in found[:3]
    heard = slice(
        OCTAVES_HZ.index(250), OCTAVES_HZ.index(4000) + 1
    )  # where the notes have partials of any strength
    difference_db = (np.array(same.gains_db) - gains_db)[heard]
    assert np.abs(difference_db - difference_db.mean()).max() < 2
    undone = equalize(recorded, RATE, -np.array(same.gains_db))
    (again,) = (
        found
        for found in match(undone, RATE, NOTES_PLAYED, [SoundFont.find()], count=112)
        if found.patch == Patch(48)
    )
    assert again.distance_db < same.distance_db / 2
    assert np.ptp(np.array(again.gains_db)[heard]) < np.ptp(gains_db) / 3


def test_few_long_notes_of_all_pitches_stand_for_the_part():
    notes = [
        Note(0.1 * index, 0.1 * index + (0.5 if index % 5 else 0.05), 40 + index)
        for index in range(40)
    ]
    chosen = representative([*notes, Note(-1, 2, 90), Note(9.95, 12, 91)], seconds=10.0)
    assert len(chosen) == NOTES
    assert all(note.end_seconds - note.start_seconds == pytest.approx(0.5) for note in chosen)
    assert [note.pitch // 5 for note in chosen] == list(
        range(8, 16)
    )  # one of each fifth of an octave
    assert representative(notes[:3], seconds=10.0) == notes[1:3]


def test_nothing_is_found_in_silence_or_outside():
    silence = np.zeros((2, 3 * RATE), np.float32)
    assert match(silence, RATE, NOTES_PLAYED, [SoundFont.find()]) == []
    assert match(silence + 0.1, RATE, shift(NOTES_PLAYED, 60), [SoundFont.find()]) == []


def test_choice_aligns_and_estimates_by_itself_where_the_recipe_does_not(tiny_song):
    target = {"score": str(tiny_song.score), "patches": "auto", "equalize": False}
    song, facts = choose_patches(
        Song.load({"mixture": str(tiny_song.mixture), "target": target}), None
    )
    assert song.target.patches[0] == Patch(80)
    assert [fact["program"] for fact in facts] == [patch.program for patch in song.target.patches]
    assert song.target.gains_db == ()
    assert len(song.render_target(RATE)) == 3


def test_score_that_does_not_fit_keeps_its_own_patch(tiny_song, caplog):
    song = Song.load(
        {
            "mixture": str(tiny_song.mixture),
            "target": {"score": str(tiny_song.score), "patches": "auto"},
        }
    )
    song, (fact,) = choose_patches(song, ())
    assert song.target.patches == (Patch(80),)
    assert (fact["program"], fact["soundfont"]) == (80, "TimGM6mb.sf2")
    assert "patch 80, the score's own" in caplog.text
