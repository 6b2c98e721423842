"""The target's notes in time with the recording, as a run writes and uses them."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bespoke.data.song import Song
from bespoke.evaluation.report.summary import plot_alignment
from bespoke.models.separator import silent_elsewhere
from bespoke.score.align import LOW_CONFIDENCE, NO_CONFIDENCE, align, anywhere, within
from bespoke.score.midi import Note, write_midi
from bespoke.utils.errors import BespokeError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Aligned:
    """A song after the alignment.

    Attributes:
        song: its target plays in time, where the alignment is used.
        notes: for a network that uses the score; where the alignment is not used each pitch may sound
            at any time. Empty where no alignment was asked for.
        is_used: whether the times that were found are used.
        facts: what metrics.json says of it.
    """

    song: Song
    notes: tuple[Note, ...] = ()
    is_used: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def notes_of(self, heard: Song) -> tuple[Note, ...]:
        """The notes of a part of the song, in its seconds."""
        assert heard.target is not None
        notes = heard.target.part.notes
        return tuple(notes) if self.is_used else anywhere(notes, heard.seconds)


def align_target(song: Song, folder: Path) -> Aligned:
    """Put the target's notes in time with the recording, and write them.

    Args:
        song: with its target's score.
        folder: for `aligned.mid` and `alignment.png`.

    Raises:
        BespokeError: there is no score.
    """
    if song.target is None:
        raise BespokeError(
            "align=true needs a score: set song.target.score, or choose a recipe that needs none, such as recipe=paper."
        )
    part, seconds = song.target.part, song.seconds
    alignment = align(part.notes, song.mixture, song.sample_rate)
    facts = {
        "confidence": round(alignment.confidence, 4),
        "tempo_factor": round(alignment.tempo_factor, 4),
        "offset_seconds": round(alignment.offset_seconds, 3),
    }
    notes = within(alignment.notes, seconds)
    if not notes or alignment.confidence < NO_CONFIDENCE:
        log.warning(
            "THE SCORE DOES NOT FIT THE RECORDING (confidence %.2f): is it of this song, in its key? Only its pitches are used, not its"
            " times, and the result is not to be trusted.",
            alignment.confidence,
        )
        return Aligned(song, anywhere(part.notes, seconds), False, {**facts, "used": False})
    if alignment.confidence < LOW_CONFIDENCE:
        log.warning(
            "The score fits the recording badly (confidence %.2f): look at alignment.png, and listen before you trust it.",
            alignment.confidence,
        )
    part = replace(part, notes=notes)
    write_midi(folder / "aligned.mid", [part])
    plot_alignment(
        folder / "alignment.png", song.target.part.notes, notes, song.mixture, song.sample_rate
    )
    log.info("The score is aligned (confidence %.2f).", alignment.confidence)
    return Aligned(
        replace(song, target=replace(song.target, part=part)), notes, True, {**facts, "used": True}
    )


def note_coverage(aligned: Aligned) -> None:
    """Say where the target is silent because the score does not cover the recording."""
    notice = silent_elsewhere(aligned.notes, aligned.song.seconds) if aligned.is_used else None
    if notice:
        aligned.facts["notice"] = notice
        covered_seconds = max(note.end_seconds for note in aligned.notes) - min(
            note.start_seconds for note in aligned.notes
        )
        log.log(
            logging.WARNING if covered_seconds < aligned.song.seconds / 2 else logging.INFO, notice
        )
