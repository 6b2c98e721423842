"""Random ensembles: sums, levels and notes are right, and each seed gives one piece."""

import numpy as np
import pytest

from bespoke.score.midi import Note
from bespoke.score.synth import SYNTH_RATE, Player, SoundFont
from recipes.prior.amps import Amps
from recipes.prior.ensembles import BASSES, LEADS, RIFFS, Ensembles, one_voice

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


def spread(waveform, around_hz):
    """Share of a tone's power that is more than 1 Hz away from its frequency."""
    power = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)))) ** 2
    hz = np.fft.rfftfreq(len(waveform), 1 / 8000)
    return power[np.abs(hz - around_hz) > 1].sum() / power.sum()


@pytest.mark.parametrize("movement", ["_chorus", "_sweep"])
def test_pads_move_and_keep_their_length(player, movement):
    tone = np.sin(2 * np.pi * 1000 * np.arange(4 * 8000) / 8000).astype(np.float32)
    ensembles = Ensembles([player], 8000, 4.0)
    moved = getattr(ensembles, movement)(tone, np.random.default_rng(2))
    assert moved.shape == tone.shape
    assert np.isfinite(moved).all()
    assert spread(moved, 1000) > 100 * spread(tone, 1000)


class Beep:
    """In place of an amplifier: whatever goes in, a tone of 1 kHz comes out."""

    def __init__(self):
        self.heard = []

    def play(self, waveform, rate):
        self.heard.append(waveform)
        return np.sin(2 * np.pi * 1000 * np.arange(len(waveform)) / rate).astype(np.float32)


def test_riffs_go_through_the_amplifier_as_a_whole_and_basses_beside_it(player):
    ensembles, chord = Ensembles([player], 8000, 2.0), [Note(0.1, 1.5, p, 100) for p in (45, 52)]
    for programs, loudest in ((RIFFS, 0.0), (BASSES, 0.9)):
        beep, rng = Beep(), np.random.default_rng(1)
        played = ensembles._take(chord, programs, "rock", rng, beep)
        assert len(beep.heard) == 1
        spectrum = np.abs(np.fft.rfft(beep.heard[0]))
        hz = np.fft.rfftfreq(2 * 8000, 1 / 8000)
        for pitch_hz in (110.0, 164.8):
            near = np.abs(hz - pitch_hz) < 4
            assert spectrum[near].max() > 10 * np.median(spectrum)
        assert 0.1 * loudest <= spread(played, 1000) <= loudest + 1e-3


def test_only_guitars_and_basses_have_amplifiers(player):
    plain, amplified = (Ensembles([player], 8000, 2.0, amps=amps) for amps in (None, Amps()))
    rngs = [np.random.default_rng(seed) for seed in range(8)]
    assert all(plain._rig(RIFFS, rng) is None for rng in rngs)
    assert all(amplified._rig(LEADS, rng) is None for rng in rngs)
    assert any(amplified._rig(RIFFS, rng) for rng in rngs)
