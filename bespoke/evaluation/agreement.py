"""How good a separation is, where there is no reference: how far it agrees with what the score alone makes of the recording."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bespoke.data.song import Song
from bespoke.evaluation.baselines import ScoreInformedNMF
from bespoke.evaluation.metrics import LONG_SAMPLES, si_sdr
from bespoke.score.align import LOW_CONFIDENCE, NO_CONFIDENCE, align, within
from bespoke.score.midi import Note, shift
from bespoke.utils.errors import BespokeError

log = logging.getLogger(__name__)


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
        for start in range(
            0, mixture.shape[-1], LONG_SAMPLES
        ):  # of a long recording in blocks, for the memory's sake
            block = slice(start, start + LONG_SAMPLES)
            mono = mixture[:, block].mean(axis=0, keepdims=True)
            self.expected[:, block] = ScoreInformedNMF().separate(
                mono, sample_rate, shift(notes, -start / sample_rate)
            )

    def __call__(self, estimate: np.ndarray) -> float | None:
        """Judge an estimate of the target.

        Args:
            estimate: `[channel, time]`, as long as the recording.

        Returns:
            dB, the more the better; None where the estimate or the factorization's is silent, or the estimate is not finite.
        """
        found = si_sdr(estimate, self.expected)
        return found if found is not None and np.isfinite(found) else None


def judge(song: Song, alignment: Mapping[str, Any] | None, keep: str) -> Agreement | None:
    """What judges the separation without a reference, from the notes as they are aligned or, if they are not, from an alignment for this.

    Args:
        song: with its target's notes.
        alignment: what metrics.json says of the alignment, where there is one.
        keep: `best`: it is to choose what is kept.

    Raises:
        BespokeError: it is to choose, and there is no score.
    """
    if song.target is None:
        if keep == "best":
            raise BespokeError("keep=best goes by the score: set song.target.score, or keep=last.")
        return None
    notes, confidence = song.target.part.notes, 0.0
    if alignment is not None:
        notes, confidence = notes if alignment["used"] else (), alignment["confidence"]
    else:
        with contextlib.suppress(BespokeError):  # no note to align, or silence
            found = align(notes, song.mixture, song.sample_rate)
            notes, confidence = within(found.notes, song.seconds), found.confidence
    is_used = bool(notes) and confidence >= NO_CONFIDENCE
    if confidence < LOW_CONFIDENCE:
        remedy = (
            "do not trust what it says of a step"
            if is_used
            else "no step can be judged by it" + ", and the last is kept" * (keep == "best")
        )
        log.warning("The score fits the recording badly (confidence %.2f): %s.", confidence, remedy)
    return Agreement(song.mixture, song.sample_rate, notes) if is_used else None
