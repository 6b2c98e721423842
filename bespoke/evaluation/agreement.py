"""Quality of a separation without a reference: its agreement with a score-informed estimate."""

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
    """SI-SDR of an estimate against a score-informed factorization instead of the true target.

    Within a song it ranks separations much as the true SI-SDR does: training steps, augmentations,
    recipes (docs/RESULTS.md, "Can one tell without a reference?"). It cannot distinguish an
    estimate that is better than the factorization from one that resembles it, and it cannot rank
    good separations of different songs.

    Args:
        mixture: the recording, `[channel, time]`, at any level.
        sample_rate: in Hz.
        notes: notes of the target, in seconds of the recording.

    >>> high, low = (
    ...     np.sin(2 * np.pi * hz * np.arange(16000) / 8000)[None].astype(np.float32)
    ...     for hz in (880, 440)
    ... )
    >>> agreement = Agreement(high + low, 8000, [Note(0.0, 2.0, 81)])
    >>> agreement(high) > 10 > agreement(high + low) > agreement(low)
    True
    """

    def __init__(self, mixture: np.ndarray, sample_rate: int, notes: Sequence[Note]):
        self.expected = np.empty((1, mixture.shape[-1]), np.float32)
        # Long recordings are factorized in blocks to limit memory.
        for start in range(0, mixture.shape[-1], LONG_SAMPLES):
            block = slice(start, start + LONG_SAMPLES)
            mono = mixture[:, block].mean(axis=0, keepdims=True)
            self.expected[:, block] = ScoreInformedNMF().separate(
                mono, sample_rate, shift(notes, -start / sample_rate)
            )

    def __call__(self, estimate: np.ndarray) -> float | None:
        """Agreement of an estimate of the target.

        Args:
            estimate: `[channel, time]`, as long as the recording.

        Returns:
            SI-SDR in dB, higher is better. None if the estimate or the factorization's estimate is
            silent, or if the estimate is not finite.
        """
        found = si_sdr(estimate, self.expected)
        return found if found is not None and np.isfinite(found) else None


def judge(song: Song, alignment: Mapping[str, Any] | None, keep: str) -> Agreement | None:
    """Create the agreement metric of a song.

    The notes are used as they are aligned. If the run did not align them, they are aligned here.

    Args:
        song: with the target's notes.
        alignment: the alignment's entry of metrics.json. None: the run aligned no score.
        keep: the setting `keep`; with `best` the metric chooses the checkpoint that is kept.

    Returns:
        The metric, or None if there is no score or the score does not fit the recording.

    Raises:
        BespokeError: `keep` is `best` and there is no score.
    """
    if song.target is None:
        if keep == "best":
            raise BespokeError("keep=best needs a score: set song.target.score, or keep=last.")
        return None
    notes, confidence = song.target.part.notes, 0.0
    if alignment is not None:
        notes, confidence = notes if alignment["used"] else (), alignment["confidence"]
    else:
        with contextlib.suppress(BespokeError):  # no notes to align, or a silent recording
            found = align(notes, song.mixture, song.sample_rate)
            notes, confidence = within(found.notes, song.seconds), found.confidence
    is_used = bool(notes) and confidence >= NO_CONFIDENCE
    if confidence < LOW_CONFIDENCE:
        remedy = (
            "the agreement of single steps is unreliable"
            if is_used
            else "there is no agreement metric" + ", and the last step is kept" * (keep == "best")
        )
        log.warning("The score fits the recording badly (confidence %.2f): %s.", confidence, remedy)
    return Agreement(song.mixture, song.sample_rate, notes) if is_used else None
