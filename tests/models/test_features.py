"""Score features of tones with known partials."""

import numpy as np
import pytest
import torch

from bespoke.audio.stft import STFT
from bespoke.models.features import CHANNELS, FACTORIZATIONS, ScoreFeatures
from bespoke.models.nmf import ScoreInformedFactorization
from bespoke.score.midi import Note

RATE = 8000


@pytest.fixture(scope="module")
def stft():
    return STFT(RATE, 0.064, 0.016)


def tones(*pitches, seconds=3.0):
    """Each sounds from 1 to 2 s, but the first also before and after."""
    time = np.arange(round(seconds * RATE)) / RATE
    gates = [np.ones_like(time), *[(time >= 1) & (time < 2)] * (len(pitches) - 1)]
    return sum(
        gate * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
        for gate, pitch in zip(gates, pitches, strict=True)
    )[None].astype(np.float32)


def test_partials_attacks_and_shares_are_where_the_notes_are(stft):
    features = ScoreFeatures(stft)(tones(57, 69), [Note(1.0, 2.0, 69)])
    assert features.shape == (CHANNELS, stft.bins, 1 + 3 * RATE // 128)
    *masks, sounding, around, attack, others, others_around, told, short = features
    assert features.min() >= 0
    assert features[:-1].max() <= 1
    fundamental, frame = round(440 * 0.064), lambda seconds: round(seconds / 0.016)
    assert sounding[fundamental, frame(1.5)] > 0.9
    assert sounding[2 * fundamental, frame(1.5)] > 0.9
    assert sounding[fundamental * 3 // 2, frame(1.5)] == 0
    assert sounding[:, frame(2.1)].max() == 0
    assert around[fundamental, frame(2.1)] > 0.9
    assert around[:, frame(2.5)].max() == 0
    assert attack[:, frame(0.9)].max() == 0
    assert attack[0, frame(1.104)] == pytest.approx(np.exp(-1.04), abs=1e-3)
    assert torch.equal(attack[0], attack[-1])
    assert short[round(220 * 0.064), frame(0.5)] > 10 * short[4 * fundamental, frame(0.5)]
    assert 0.9 < short[fundamental, frame(1.2)] / short[fundamental, frame(1.8)] < 1.1
    assert short[fundamental, frame(1.5)] > 10 * short[fundamental, frame(2.2)]
    assert len(masks) == FACTORIZATIONS
    assert not torch.stack([others, others_around, told]).any()
    for mask in masks:
        assert mask[fundamental, frame(1.5)] > 0.5  # the note's
        assert mask[round(220 * 0.064), frame(1.5)] < 0.05  # the other tone's, an octave below
        assert mask[:, frame(2.5)].max() == 0


def test_known_other_parts_take_their_tones(stft):
    mixture, notes = tones(57, 69, 73), [Note(1.0, 2.0, 69)]
    alone = ScoreFeatures(stft)(mixture, notes)
    both = ScoreFeatures(stft)(mixture, notes, [[Note(0.0, 3.0, 57)], [Note(1.0, 2.0, 73)]])
    target, others, others_around, told = both[1], both[-4], both[-3], both[-2]
    octave_below, fundamental, third = (round(hz * 0.064) for hz in (220, 440, 440 * 2 ** (4 / 12)))
    frame = round(1.5 / 0.016)
    assert others[octave_below, frame] > 0.8
    assert others[third, frame] > 0.5
    assert others_around[third, frame] > 0.5
    assert others_around[third, round(0.5 / 0.016)] == 0
    assert told.min() == 1
    assert target[fundamental, frame] > 0.5
    assert (both[:FACTORIZATIONS].sum(dim=0) / FACTORIZATIONS + others).max() < 1.001
    torch.testing.assert_close(both[-1], alone[-1])


def test_no_notes_and_silence_are_all_zeros(stft):
    assert not ScoreFeatures(stft)(tones(57), [])[:-1].any()
    assert not ScoreFeatures(stft)(np.zeros((1, RATE), np.float32), [Note(0.2, 0.5, 60)])[
        :FACTORIZATIONS
    ].any()


def test_the_level_of_the_mixture_does_not_matter(stft):
    mixture, notes = tones(57, 69), [Note(1.0, 2.0, 69)]
    quiet, loud = (ScoreFeatures(stft)(level * mixture, notes) for level in (1e-3, 1))
    torch.testing.assert_close(quiet[:-1], loud[:-1], atol=2e-3, rtol=0)
    torch.testing.assert_close(1e3 * quiet[-1], loud[-1], atol=1e-3, rtol=1e-3)


def test_targets_of_the_same_parts_share_a_factorization(stft, monkeypatch):
    parts = [[Note(1.0, 2.0, 69)], [Note(0.0, 3.0, 57)], [Note(1.0, 2.0, 73)]]
    mixture = tones(57, 69, 73)
    first, second, third = parts
    alone = ScoreFeatures(stft)(mixture, second, [first, third])
    calls = []
    masks = ScoreInformedFactorization.masks
    monkeypatch.setattr(
        ScoreInformedFactorization, "masks", lambda *given: calls.append(1) or masks(*given)
    )
    made = {}
    features = ScoreFeatures(stft)
    for target, *others in (parts, [second, first, third]):
        together = features(mixture, target, others, made)
    assert len(calls) == FACTORIZATIONS
    assert together.numpy() == pytest.approx(alone.numpy(), abs=1e-3)
    features(mixture, second, [first], made)  # of other parts
    assert len(calls) == 2 * FACTORIZATIONS
