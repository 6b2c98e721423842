"""How good a separation is, where there is no reference: how far it agrees with what the score alone makes of the recording."""

from collections.abc import Sequence

import numpy as np

from bespoke.evaluation.baselines import ScoreInformedNMF
from bespoke.evaluation.metrics import LONG_SAMPLES, si_sdr
from bespoke.score.midi import Note, shift


class Agreement:
    """The SI-SDR of an estimate, not against the true target, which nobody has, but against a score-informed factorization's.

    Within a song it ranks separations much as the truth does: steps of a training, augmentations, recipes (docs/RESULTS.md, "Can one tell
    without a reference?"). It cannot tell what is better than the factorization from what is like it, nor, among good separations of
    different songs, which is the best.

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
        self.expected = np.empty((1, mixture.shape[-1]), np.float32)
        for start in range(0, mixture.shape[-1], LONG_SAMPLES):  # of a long recording in blocks, for the memory's sake
            block = slice(start, start + LONG_SAMPLES)
            mono = mixture[:, block].mean(axis=0, keepdims=True)
            self.expected[:, block] = ScoreInformedNMF().separate(mono, sample_rate, shift(notes, -start / sample_rate))

    def __call__(self, estimate: np.ndarray) -> float | None:
        """Judge an estimate of the target.

        Args:
            estimate: `[channel, time]`, as long as the recording.

        Returns:
            dB, the more the better; None where the estimate or the factorization's is silent, or the estimate is not finite.
        """
        found = si_sdr(estimate, self.expected)
        return found if found is not None and np.isfinite(found) else None
