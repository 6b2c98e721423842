"""Random pieces keep to key, range and length, and each seed gives one piece."""

import numpy as np

from recipes.prior.pieces import Piece

SECONDS = 6.0


def test_a_seed_is_a_piece():
    def lines(seed):
        piece = Piece(np.random.default_rng(seed), SECONDS)
        return [piece.bass(), piece.drums(), piece.arpeggio(60), piece.riff(), *piece.chorale(4)]

    assert lines(1) == lines(1)
    assert lines(1) != lines(2)


def test_a_line_keeps_to_the_key_and_its_range():
    for seed in range(20):
        piece = Piece(np.random.default_rng(seed), SECONDS)
        for note in piece.line(60, (0, 0, 1, 0, 0, 0, 0), rest=0.0):
            assert (note.pitch - piece.key) % 12 in piece.scale
            assert abs(note.pitch - 60) <= 9


def test_a_riff_is_low_and_has_a_fifth_on_every_root():
    for seed in range(10):
        pitches = {note.pitch for note in Piece(np.random.default_rng(seed), SECONDS).riff()}
        roots = {pitch for pitch in pitches if 39 <= pitch <= 51 and pitch + 7 in pitches}
        assert roots
        assert pitches <= {root + semitones for root in roots for semitones in (0, 7, 12)}
