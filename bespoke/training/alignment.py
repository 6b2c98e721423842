"""The score in time with the recording, as a run writes and uses it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bespoke.audio.dsp import DIFFERENCE, seen
from bespoke.data.song import Song, Voice
from bespoke.evaluation.report.summary import clock, plot_alignment
from bespoke.models.separator import silent_elsewhere
from bespoke.score.align import (
    LOW_CONFIDENCE,
    NO_CONFIDENCE,
    NO_FIT,
    Alignment,
    align_parts,
    anywhere,
    apart,
    beside,
    check_pitches,
    doubles,
    in_time,
    part_confidence,
    within,
)
from bespoke.score.midi import Note, program_name, write_midi
from bespoke.utils.errors import BespokeError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Aligned:
    """A song after the alignment.

    Attributes:
        song: its parts play in time, where the alignment is used; other parts that do not fit the
            recording are gone.
        notes: for a network that uses the score. Where the alignment is not used, each pitch may
            sound at any time. Empty where no alignment was asked for.
        is_used: whether the times that were found are used.
        tuning_cents: how much sharper than A4 = 440 Hz the recording is.
        facts: what metrics.json says of it.
    """

    song: Song
    notes: tuple[Note, ...] = ()
    is_used: bool = False
    tuning_cents: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def notes_of(self, heard: Song) -> tuple[Note, ...]:
        """The notes of a part of the song, in its seconds."""
        assert heard.target is not None
        notes = heard.target.part.notes
        return tuple(notes) if self.is_used else anywhere(notes, heard.seconds)

    def others_of(self, heard: Song) -> tuple[tuple[Note, ...], ...]:
        """The notes of each other pitched part, in seconds of a part of the song; none where the
        alignment is not used."""
        return tuple(voice.part.notes for voice in _pitched(heard.others)) if self.is_used else ()

    def settings(self, heard: Song) -> dict[str, Any]:
        """What a `Separator` is to know of a part of the song."""
        return {
            "notes": self.notes_of(heard) if self.notes else (),
            "others": self.others_of(heard),
            "tuning_cents": self.tuning_cents,
            "view": heard.view and list(heard.view),
        }


def locate(songs: Sequence[Song], uses_others: bool, is_given: bool = False) -> list[Alignment]:
    """Find where the targets of one recording lie in it, all at once.

    Args:
        songs: of one recording, each with its target's score.
        uses_others: whether the other parts are aligned, too.
        is_given: whether the score is in time with the recording already.

    Returns:
        The alignment of each song's target. Its others are those of `_companions`.

    Raises:
        BespokeError: there is no score.
    """
    targets = []
    for song in songs:
        if song.target is None:
            raise BespokeError(
                "align=true needs a score: set song.target.score, or choose a recipe that needs"
                " none, such as recipe=paper."
            )
        targets.append(song.target.part)
    if is_given:
        return [
            in_time(
                part.notes,
                song.mixture,
                song.sample_rate,
                others=[voice.part.notes for voice in (_companions(song) if uses_others else ())],
            )
            for song, part in zip(songs, targets, strict=True)
        ]
    # Nobody can align drums by their pitches: they lie where the others are.
    leading = [part.notes for part in targets if not part.is_drum] or [targets[0].notes]
    voices = [voice for song in songs for voice in (_companions(song) if uses_others else ())]
    rest = [part.notes for part in (*targets, *(voice.part for voice in voices))]
    others = [notes for notes in dict.fromkeys(rest) if notes not in leading]
    found = align_parts(leading, songs[0].mixture, songs[0].sample_rate, others=others)
    alignments = []
    for song, part in zip(songs, targets, strict=True):
        index = leading.index(part.notes) if part.notes in leading else 0
        one = found[index]
        where = dict(
            zip(
                [*leading[:index], *leading[index + 1 :], *others],
                zip(one.others, one.fits, strict=True),
                strict=True,
            )
        )
        where[leading[index]] = (one.notes, one.fit)
        placed, fit = where[part.notes]
        companions = _companions(song) if uses_others else ()
        placed_others = [where[voice.part.notes] for voice in companions]
        alignments.append(
            replace(
                one,
                notes=placed,
                fit=fit,
                others=tuple(notes for notes, _ in placed_others),
                fits=tuple(fit for _, fit in placed_others),
                course=one.course if part.notes in leading else (),
            )
        )
    return alignments


def align_song(song: Song, alignment: Alignment, folder: Path, uses_others: bool) -> Aligned:
    """Put a song's score in time with the recording, and write the target's notes.

    Args:
        song: with its target's score.
        alignment: of `locate`.
        folder: for `aligned.mid` and `alignment.png`.
        uses_others: whether the other parts were aligned, too.

    Raises:
        BespokeError: the target has no note that can be aligned.
    """
    assert song.target is not None
    part, seconds = song.target.part, song.seconds
    check_pitches(part.notes)
    pitched = _companions(song) if uses_others else ()
    facts: dict[str, Any] = {
        "confidence": round(alignment.confidence, 4),
        "tempo_factor": round(alignment.tempo_factor, 4),
        "offset_seconds": round(alignment.offset_seconds, 3),
        "fit": round(alignment.fit, 1),
        "part_confidence": round(part_confidence(alignment.fit), 4),
        "tuning_cents": alignment.tuning_cents,
    }
    notes = within(alignment.notes, seconds)
    if not notes or alignment.confidence < NO_CONFIDENCE:
        log.warning(
            "THE SCORE DOES NOT FIT THE RECORDING (confidence %.2f): is it of this song, in its"
            " key? Only its pitches are used, not its times, and the result is not to be trusted.",
            alignment.confidence,
        )
        return Aligned(song, anywhere(part.notes, seconds), facts={**facts, "used": False})
    if alignment.confidence < LOW_CONFIDENCE:
        log.warning(
            "The score fits the recording badly (confidence %.2f): look at alignment.png, and"
            " listen before you trust it.",
            alignment.confidence,
        )
    if alignment.view is not None:
        facts["view"] = list(alignment.view)
        log.info("The target is looked for in %s.", _named(alignment.view))
    part = replace(part, notes=notes)
    write_midi(folder / "aligned.mid", [part])
    log.info("The score is aligned (confidence %.2f).", alignment.confidence)
    others = song.others
    if uses_others:
        if doubled := _doubled(song):
            log.info("Left out, as they double the target: %s.", _names(doubled))
        fitting, facts["others"] = _fitting(pitched, alignment, seconds)
        drums = tuple(voice for voice in song.others if voice.part.is_drum)
        others = (*fitting, *drums)
    seconds_apart = apart(alignment.course)
    facts["along"] = {
        "seconds": [at for at, _ in alignment.course],
        "confidence": [confidence for _, confidence in alignment.course],
        "apart": [list(passage) for passage in seconds_apart],
    }
    if seconds_apart:
        passages = [f"{clock(start)} to {clock(end)}" for start, end in seconds_apart]
        log.warning("The score and the recording part ways at %s.", _listed(passages))
    plot_alignment(
        folder / "alignment.png",
        song.target.part.notes,
        notes,
        seen(song.mixture, alignment.view),
        song.sample_rate,
        [note for voice in _pitched(others) for note in voice.part.notes] if uses_others else (),
        alignment.course,
    )
    target = replace(song.target, part=part, tuning_cents=alignment.tuning_cents)
    song = replace(song, target=target, others=others, view=alignment.view)
    return Aligned(song, notes, True, alignment.tuning_cents, {**facts, "used": True})


def _listed(items: Sequence[str]) -> str:
    """
    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([*([", ".join(items[:-1])] if items[1:] else []), items[-1]])


def _named(view: Sequence[float]) -> str:
    """What a view of two channels is called."""
    if view == DIFFERENCE:
        return "the difference of the channels: it is missing in their mean"
    return f"the {'left' if view[0] else 'right'} channel: it is not found in the mean of both"


def _pitched(voices: Sequence[Voice]) -> tuple[Voice, ...]:
    """Those that factorization and network can use: drums are not told by their pitches."""
    return tuple(voice for voice in voices if not voice.part.is_drum)


def _companions(song: Song) -> tuple[Voice, ...]:
    """The other pitched parts that do not double the target."""
    doubled = _doubled(song)
    return tuple(voice for voice in _pitched(song.others) if voice not in doubled)


def _doubled(song: Song) -> list[Voice]:
    """The other pitched parts that double the target."""
    assert song.target is not None
    notes = song.target.part.notes
    return [voice for voice in _pitched(song.others) if doubles(voice.part.notes, notes)]


def _fitting(
    voices: Sequence[Voice], alignment: Alignment, seconds: float
) -> tuple[tuple[Voice, ...], list[dict[str, Any]]]:
    """The other parts that fit the recording, in time, and what metrics.json says of all."""
    fitting: list[Voice] = []
    silent = ("rest", "outside")
    left_out: dict[str, list[Voice]] = {"do not fit": [], "rest": [], "outside": []}
    facts: list[dict[str, Any]] = []
    target = within(alignment.notes, seconds)
    for voice, notes, fit in zip(voices, alignment.others, alignment.fits, strict=True):
        notes = within(notes, seconds)
        is_used = fit >= NO_FIT and bool(notes)
        placed = replace(
            voice,
            part=replace(voice.part, notes=notes),
            tuning_cents=alignment.tuning_cents,
        )
        why = None
        if is_used:
            fitting.append(placed)
        else:
            why = "outside" if not notes else "do not fit" if beside(notes, target) else "rest"
            left_out[why].append(placed)
        facts.append(
            {
                "name": _names([voice]),
                "fit": round(fit, 1),
                # Nothing is known of a part that is not heard beside the target.
                "confidence": None if why in silent else round(part_confidence(fit), 4),
                "used": is_used,
            }
        )
    if fitting:
        log.info("Other parts of the score that are used: %s.", _names(fitting))
    for why, sentence in (
        ("do not fit", "Left out, as they do not fit the recording: %s."),
        ("rest", "Not needed, as they rest while the target plays: %s."),
        ("outside", "Not needed, as they play before or after the recording: %s."),
    ):
        if left_out[why]:
            log.info(sentence, _names(left_out[why]))
    return tuple(fitting), facts


def _names(voices: Sequence[Voice]) -> str:
    return ", ".join(voice.part.name or program_name(voice.part) for voice in voices)


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
