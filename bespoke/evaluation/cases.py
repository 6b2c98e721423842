"""Cases of the benchmark, made of recordings with stems and notes."""

import json
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from bespoke.audio.dsp import peak
from bespoke.evaluation.datasets import Multitrack, Stem
from bespoke.evaluation.unaligned import Distortion
from bespoke.score.align import within
from bespoke.score.midi import Note, Part, shift, write_midi
from bespoke.utils.errors import BespokeError

FEWEST_NOTES = 8  # of a target
_LEVEL_DB = (-20.0, 10.0)  # of a target, relative to the rest
_LIKE_DB = -30.0  # stems that differ by less from a recording make it
_BEAT_SECONDS = 0.5  # where beats are not known


def make_cases(
    track: Multitrack, out: Path, seconds: float | None, per_track: int, seed: int
) -> list[Path]:
    """Make cases of a recording, each in a folder of its own.

    A target is a pitched stem with notes enough, not much softer or louder than the rest. The
    recording is the data set's, where its stems add up to it, else their sum. Where the whole
    recording is taken and the data set has a score of its own, the score is that. Else it is made
    of the aligned notes by a `Distortion`.

    Args:
        track: the recording.
        out: the folder of cases. Cases that are there already stay as they are.
        seconds: length of the excerpt: where the target plays most. None: the whole recording.
        per_track: most targets of the recording, drawn at random.
        seed: of the targets and the scores; they depend on nothing else but the recording's name.

    Returns:
        The folders.

    Raises:
        BespokeError: no stem can be a target, or the stems differ in their sample rates.
    """
    key = (seed, zlib.crc32(track.name.encode()))
    stems = [stem for stem in track.stems if stem.program is not None]
    drawn = np.random.default_rng(key).permutation(len(stems))
    made: list[Path] = []
    for index in drawn:
        if len(made) == per_track:
            break
        folder = out / f"{track.name}_{stems[index].name}"
        if folder.is_dir() or _make_case(track, stems[index], folder, seconds, (*key, int(index))):
            made.append(folder)
    if not made:
        raise BespokeError(
            f"{track.name} has no target: a pitched stem of {FEWEST_NOTES} notes or more that is"
            f" {-_LEVEL_DB[0]:.0f} dB softer than the rest at most, and {_LEVEL_DB[1]:.0f} dB"
            " louder."
        )
    return sorted(made)


def _make_case(
    track: Multitrack, target: Stem, folder: Path, seconds: float | None, key: Sequence[int]
) -> bool:
    """Make a case, if the stem can be a target. Returns whether it can."""
    if seconds is not None and not target.notes:
        raise BespokeError(
            f"The notes of {track.name} are not in time with it: take the whole recording"
            " (--seconds 0), or say that they are (--in-time)."
        )
    start = 0.0 if seconds is None else _busiest(target.notes, seconds)
    aligned = [_excerpt(stem.notes, start, seconds) for stem in track.stems]
    index = track.stems.index(target)
    is_own = seconds is None and bool(target.score)
    written = list(target.score) if is_own else aligned[index]
    if len(written) < FEWEST_NOTES:
        return False
    rates = {stem.sound.sample_rate for stem in track.stems}
    if len(rates) > 1:
        raise BespokeError(f"The stems of {track.name} are of several sample rates.")
    (sample_rate,) = rates
    sounds = [stem.sound.read(start, seconds) for stem in track.stems]
    channels, samples = (max(sound.shape[axis] for sound in sounds) for axis in (0, 1))
    stems = np.zeros((len(sounds), channels, samples), np.float32)
    for stem, sound in zip(stems, sounds, strict=True):
        stem[:, : sound.shape[1]] = sound  # a sound of one channel is in all
    mixture, says = stems.sum(axis=0), "sum of the stems"
    if track.mixture is not None:
        own = track.mixture.read(start, seconds)
        if own.shape == mixture.shape and _level_db(own - mixture, own) < _LIKE_DB:
            mixture, says = own, "the data set's"
    level_db = _level_db(stems[index], mixture - stems[index])
    if not _LEVEL_DB[0] <= level_db <= _LEVEL_DB[1]:
        return False
    others = [
        place
        for place, stem in enumerate(track.stems)
        if place != index
        and stem.program is not None
        and (stem.score if is_own else aligned[place])
    ]
    if is_own:
        scores = [target.score, *(track.stems[place].score for place in others)]
        facts: dict = {"score": "the data set's own, not in time with the recording"}
    else:
        beats = [beat - start for beat in track.beats_seconds] or [0.0, _BEAT_SECONDS]
        distortion = Distortion.sample(int(np.random.default_rng(key).integers(2**31)))
        scores, facts = distortion.apply(
            [aligned[index], *(aligned[place] for place in others)], beats
        )
        facts = {"score": facts}
    scale = max(peak(mixture), peak(stems[index]), 1.0)
    meta = {
        "name": folder.name,
        "source": track.name,
        "licence": track.licence,
        "gm_program": target.program,
        "sr": sample_rate,
        "seconds": round(samples / sample_rate, 2),
        "start_seconds": start,
        "mix": says,
        "target_to_rest_dB": round(level_db, 1),
        **facts,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, sound in (("mix", mixture), ("target", stems[index])):
            file = temporary / f"{name}.flac"
            soundfile.write(file, (sound / scale).T, sample_rate, subtype="PCM_24")
        _write_score(temporary / "target.mid", target, scores[0])
        for place, score in zip(others, scores[1:], strict=True):
            stem = track.stems[place]
            if score:
                _write_score(temporary / f"other_{stem.name}.mid", stem, score)
        if aligned[index]:
            _write_score(temporary / "target_aligned.mid", target, aligned[index])
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _busiest(notes: Sequence[Note], seconds: float) -> float:
    """The whole second from which on the notes sound longest, in an excerpt of this length."""
    last = max(note.end_seconds for note in notes)
    starts = range(max(1, int(last - seconds) + 1))

    def sounding(start: int) -> float:
        return sum(
            note.end_seconds - note.start_seconds for note in _excerpt(notes, start, seconds)
        )

    return float(max(starts, key=sounding))


def _excerpt(notes: Sequence[Note], start: float, seconds: float | None) -> list[Note]:
    """The notes in seconds of an excerpt, cut to it."""
    moved = shift(notes, -start)
    return list(moved if seconds is None else within(moved, seconds))


def _level_db(sound: np.ndarray, other: np.ndarray) -> float:
    """The level of a sound relative to another; of silence the least that counts."""
    powers = [float(np.square(signal, dtype=np.float64).mean()) for signal in (sound, other)]
    return 10 * float(np.log10(max(powers[0], 1e-12) / max(powers[1], 1e-12)))


def _write_score(path: Path, stem: Stem, notes: Sequence[Note]) -> None:
    write_midi(path, [Part(stem.name, stem.program or 0, False, tuple(notes))])
