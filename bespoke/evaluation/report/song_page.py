"""Page of a song, next to its stems: a mixer of all parts and the rest."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from bespoke.evaluation.report.page import (
    MAX_SECONDS,
    Track,
    address,
    player,
    read_stem,
    size,
    write,
)
from bespoke.evaluation.report.run_page import beside, doubts, level_db, place, tiles, trust
from bespoke.evaluation.report.summary import clock
from bespoke.score.crop import take_notes
from bespoke.score.midi import Part, describe, read_score
from bespoke.score.synth import DRUM_BANK, Patch, render
from bespoke.utils.files import read_json

MAX_TRACK_SECONDS = 3600  # of all tracks together: a browser keeps all of them in memory
MAX_HELD_VALUES = 150_000_000  # most samples to read; beyond, only the channel mean is read
DETAILS = {
    "report.html": "all about the run, to hear and see",
    "aligned.mid": "the score, in time with the recording",
    "alignment.png": "the notes before and after",
    "metrics.json": "all figures",
    "config.yaml": "all settings",
    "train.log": "the messages of the run",
    "checkpoints/best.ckpt": "the network",
    "checkpoints/last.ckpt": "the network at the end of training",
}


def write_song_page(
    path: Path,
    song: str,
    sources: Mapping[str, Path],
    finals: Mapping[str, Path],
    runs: Mapping[str, Path],
    gain: float = 1.0,
    reword: Callable[[str], str] = str,
) -> list[Path]:
    """Write the page of a song's stems.

    Args:
        path: file to write; links are relative to its folder.
        song: name of the song.
        sources: stems as float WAV files, by label, the rest last. They add up to the recording.
        finals: stems as they were delivered, by label.
        runs: folder of each part's run, by label.
        gain: gain of the delivered stems.
        reword: rewrites the runs' warnings for the reader.

    Returns:
        The files that the page links to.
    """
    single = len(runs) == 1
    info = soundfile.info(next(iter(sources.values())))
    seconds = min(MAX_SECONDS, MAX_TRACK_SECONDS / (len(sources) + 1))
    held = (len(sources) + 1) * min(info.duration, seconds) * info.samplerate * info.channels
    stems = {
        label: gain * _read(source, seconds, info.channels > 2 or held > MAX_HELD_VALUES)
        for label, source in sources.items()
    }
    mixture = np.sum(list(stems.values()), axis=0)
    length = mixture.shape[-1] / info.samplerate
    parts = {label: _part(folder) for label, folder in runs.items()}
    metrics = {label: read_json(folder / "metrics.json") for label, folder in runs.items()}
    levels = {label: level_db(stems[label], mixture) for label in runs}
    warned = [
        reword(warning) if single else f"{label}: {reword(warning)}"
        for label in runs
        for warning in (
            *metrics[label].get("warnings", []),
            *doubts(metrics[label], levels[label]),
        )
    ]
    if info.duration > length + 0.1:
        warned.append(f"This page plays the song up to {clock(length)}; the stems are complete.")
    label = next(iter(runs))
    part = parts[label]
    tracks = _tracks(song, mixture, stems, parts)
    if single and part and part.notes[0].start_seconds < length:
        tracks.append(_score_track(part, mixture, info.samplerate))
    write(
        path,
        "song.html.j2",
        song=song,
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        lead=f"{clock(info.duration)} of audio, in {len(sources)} stems, which add up to it.",
        warnings=warned,
        tiles=tiles(metrics[label], part.notes if part else (), levels[label]) if single else [],
        rows=[_row(label, metrics[label], parts[label], levels[label]) for label in runs],
        player=player(
            tracks,
            info.samplerate,
            mask=(stems[label], mixture) if single else None,
            seconds=length,
        ),
        stems=[
            {"what": label, **_link(file, file.name, path), "size": size(file)}
            for label, file in finals.items()
        ],
        details=[
            {
                "part": label,
                "files": [
                    {"what": DETAILS[name], **_link(folder / name, name, path)}
                    for name in _details(folder)
                ],
            }
            for label, folder in runs.items()
        ],
    )
    return [
        *finals.values(),
        *(folder / name for folder in runs.values() for name in _details(folder)),
    ]


def _tracks(
    song: str,
    mixture: np.ndarray,
    stems: Mapping[str, np.ndarray],
    parts: Mapping[str, Part | None],
) -> list[Track]:
    """The recording and its stems."""
    tracks = [Track("Recording", "the whole song", "recording", mixture, notes=())]
    for label, stem in stems.items():
        part = parts.get(label)
        note = describe(part) if part else "separated"
        if label not in parts:
            note = "what none of the parts took"
        name = label.capitalize() if len(parts) == 1 or label not in parts else label
        tracks.append(
            Track(name, note, f"{song}.{label}", stem, notes=_pitched(part), together=True)
        )
    return tracks


def _score_track(part: Part, mixture: np.ndarray, sample_rate: int) -> Track:
    """The notes as they were found, as a piano plays them beside the recording."""
    played = take_notes(part.notes, [(0.0, mixture.shape[-1] / sample_rate)])
    piano = render(played, Patch(0, DRUM_BANK if part.is_drum else 0), sample_rate)
    note = "the notes as they were found, as a piano plays them"
    return Track("Score", note, "score", beside(mixture, piano), notes=_pitched(part))


def _details(folder: Path) -> list[str]:
    """Which of the files that tell more are in a run's folder."""
    return [name for name in DETAILS if (folder / name).is_file()]


def _link(file: Path, name: str, page: Path) -> dict[str, str]:
    return {"name": name, "address": address(file, page.parent)}


def _read(path: Path, seconds: float, mono: bool) -> np.ndarray:
    waveform, _ = read_stem(path, seconds)
    return waveform.mean(axis=0, keepdims=True) if mono else waveform


def _part(folder: Path) -> Part | None:
    """A run's target, if the run aligned it with the recording."""
    return read_score(file)[0] if (file := folder / "aligned.mid").is_file() else None


def _pitched(part: Part | None) -> Sequence[Any]:
    return part.notes if part and not part.is_drum else ()  # a drum note's number is not a pitch


def _row(label: str, metrics: Mapping[str, Any], part: Part | None, level: float) -> dict[str, Any]:
    alignment = metrics.get("alignment")
    says, tone = trust(alignment) if alignment else ("", "")
    return {
        "part": label,
        "place": place(metrics, part.notes) if part else "",
        "notes": len(part.notes) if part else "",
        "level": f"{level:+.1f} dB",
        "confidence": f"{_confidence(alignment):.2f}" if alignment else "",
        "says": says,
        "tone": tone,
    }


def _confidence(alignment: Mapping[str, Any]) -> float:
    """That the score fits, and that this part is in the recording."""
    return min(alignment["confidence"], alignment.get("part_confidence", 1.0))
