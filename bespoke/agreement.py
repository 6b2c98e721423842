"""How good a separation is, where there is no reference: how far it agrees with what the score alone makes of the recording."""

from collections.abc import Sequence

import numpy as np

from bespoke.evaluate import si_sdr
from bespoke.rivals import ScoreInformedNMF
from bespoke.score import Note, shift

_BLOCK_SECONDS = 120  # of recording that is factorized at once


class Agreement:
    """The SI-SDR of an estimate, not against the true target, which nobody has, but against a score-informed factorization's.

    Within a song it ranks separations much as the truth does: steps of a training, augmentations, recipes (docs/RESULTS.md, "Can one tell
    without a reference?"). Between songs it tells nothing; nor can it tell what is better than the factorization from what is like it.

    Args:
        mixture: the recording, `[channel, time]`, of any level.
        sample_rate: in Hz.
        notes: the target's, in seconds of the recording.

    >>> high, low = (np.sin(2 * np.pi * hz * np.arange(16000) / 8000)[None].astype(np.float32) for hz in (880, 440))
    >>> agreement = Agreement(high + low, 8000, [Note(0.0, 2.0, 81)])
    >>> agreement(high) > 10 > agreement(high + low) > agreement(low)
    True
    """

    def __init__(self, mixture: np.ndarray, sample_rate: int, notes: Sequence[Note]):
        mono = mixture.mean(axis=0, keepdims=True, dtype=np.float32)
        block = _BLOCK_SECONDS * sample_rate
        starts = range(0, mono.shape[-1], block)
        expected = (ScoreInformedNMF().separate(mono[:, at : at + block], sample_rate, shift(notes, -at / sample_rate)) for at in starts)
        self.expected = np.concatenate(list(expected), axis=1)

    def __call__(self, estimate: np.ndarray) -> float | None:
        """Judge an estimate of the target.

        Args:
            estimate: `[channel, time]`, as long as the recording.

        Returns:
            dB, the more the better; None where the estimate or the factorization's is silent.
        """
        return si_sdr(estimate, self.expected)
