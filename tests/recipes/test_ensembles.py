"""Random ensembles: sums, levels and notes are right, and each seed gives one piece."""

import numpy as np
import pytest

from bespoke.score.midi import Note
from bespoke.score.synth import SYNTH_RATE, Player, SoundFont
from recipes.prior.ensembles import Ensembles, one_voice

SECONDS = 6.0


@pytest.fixture(scope="module")
def player():
    return Player(SoundFont.find())


def test_examples_add_up_to_their_peak_within_the_range_of_levels(player):
    ensembles = Ensembles([player], 8000, SECONDS)
    for seed in range(4):
        for example in ensembles.draw(np.random.default_rng(seed)):
            assert example.target.shape == example.background.shape == (round(SECONDS * 8000),)
            assert np.abs(example.target + example.background).max() == pytest.approx(0.9, abs=1e-4)
            level_db = 10 * np.log10(np.mean(example.target**2) / np.mean(example.background**2))
            assert -15.01 <= level_db <= 3.01
            assert len(example.notes) >= 4
            assert all(
                0 <= note.start_seconds < note.end_seconds <= SECONDS for note in example.notes
            )


def test_a_seed_is_an_ensemble(player):
    notes = [
        [
            example.notes
            for example in Ensembles([player], 8000, SECONDS).draw(np.random.default_rng(seed))
        ]
        for seed in (1, 1, 2)
    ]
    assert notes[0] == notes[1]
    assert notes[0] != notes[2]


def test_a_player_plays_a_note_at_its_time_and_nothing_of_the_one_before(player):
    player.play([Note(0.0, 1.0, 60)], 48, False, 1.0)
    waveform = player.play([Note(0.5, 0.7, 69)], 80, False, 1.0)
    assert waveform.shape == (1, SYNTH_RATE)
    assert np.abs(waveform[:, : SYNTH_RATE * 4 // 10]).max() < 1e-3
    assert np.abs(waveform[:, SYNTH_RATE // 2 :]).max() > 1e-2
    spectrum = np.abs(np.fft.rfft(waveform[0, SYNTH_RATE // 2 : SYNTH_RATE * 7 // 10]))
    assert abs(spectrum.argmax() * 5 - 440) <= 10


def test_a_player_says_when_there_is_no_such_program(player):
    assert player.play([Note(0.0, 0.1, 60)], 127, True, 0.2) is None


def test_chords_are_tracked_as_the_one_note_whose_partials_they_are():
    def pitches(*chord):
        return [note.pitch for note in one_voice([Note(0.0, 1.0, pitch) for pitch in chord])]

    assert pitches(60) == [60]
    assert pitches(60, 72) == [60]
    assert pitches(60, 67) == [48]
    assert pitches(60, 64, 67) == [36]  # 4 : 5 : 6
    moved = one_voice([Note(0.0, 1.0, 60), Note(0.5, 1.5, 67), Note(2.0, 2.03, 50)])
    assert [(note.start_seconds, note.end_seconds, note.pitch) for note in moved] == [
        (0.0, 0.5, 60),
        (0.5, 1.0, 48),
        (1.0, 1.5, 67),
    ]
