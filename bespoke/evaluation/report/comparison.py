"""Page that compares many runs.

It says which settings are better and how sure that is, with groups that open into their runs. It
has a table of all runs, players that keep their position when the run is switched, and the training
curves of the groups.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from bespoke.data.song import Song
from bespoke.evaluation.report import media, page
from bespoke.evaluation.report.groups import Block, Figure, Group, interval_text, paired, verdict
from bespoke.evaluation.report.runs import (
    COLUMNS,
    Run,
    constant,
    differing_settings,
    label,
    short_names,
    varying,
)
from bespoke.evaluation.report.sweep import Results
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import atomic_path, read_json

MAX_HEARD = 40  # most runs that a page plays
MAX_HEARD_SECONDS = 2400  # and their total length: a browser keeps all of them in memory
MAX_UNREPEATED = 12  # of groups of one run each, which the table of runs has too, the best

# Of a page of limited size: drafts, of which each comes nearer to its aim.
_DRAFTS, _AIM, _SMALL = 3, 0.97, media.Quality(picture=20, outline_points=300)
_ENOUGH = 0.9  # of the limit: another draft, which takes as long, would gain little
_BASE64 = 3 / 4


def write_small_comparison(
    results: Results,
    path: Path,
    title: str = "",
    max_bytes: float = 5e6,
    note: str = "",
) -> Path:
    """Write a page of limited size that compares runs, to pass on.

    It is without residuals, the training, and settings that name files of this machine. Its sound
    is as good as fits.

    Args:
        results, path, title, note: as of `write_comparison`.
        max_bytes: largest size of the page.

    Raises:
        BespokeError: there are too many runs.
    """
    kept, size, budget = None, 0, 0.5 * max_bytes
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(_DRAFTS):
            quality = replace(_SMALL, audio_bytes=budget)
            draft = Path(scratch) / "draft.html"
            write_comparison(results, draft, title, note, quality, is_short=True)
            size = draft.stat().st_size
            if size <= max_bytes:
                kept = draft.read_bytes()
                if size > _ENOUGH * max_bytes:
                    break
            budget += _BASE64 * (_AIM * max_bytes - size)
    if kept is None:
        raise BespokeError(
            f"The page would have {size / 1e6:.1f} MB, more than {max_bytes / 1e6:g}:"
            " name fewer runs."
        )
    with atomic_path(path) as temporary:
        temporary.write_bytes(kept)
    return path


def write_comparison(
    results: Results,
    path: Path,
    title: str = "",
    note: str = "",
    quality: media.Quality = page.DEFAULT_QUALITY,
    is_short: bool = False,
) -> Path:
    """Write a page that compares runs. It needs only the files in their folders.

    Args:
        results: the runs, finished or not, and their groups.
        path: file to write.
        title: title of the page. Empty: the number of runs.
        note: a sentence below it.
        quality: of sound and pictures.
        is_short: whether residuals, the training, links, and settings that name files are left out.
    """
    runs = results.runs
    finished = [run for run in runs if not run.error]
    heard = _heard(finished)
    keys = [
        key
        for key in runs[0].settings
        if not (is_short and any(Path(run.settings[key]).is_absolute() for run in runs))
    ]
    place = None if is_short else path.parent
    return page.write(
        path,
        "comparison.html.j2",
        title=title or f"{len(runs)} runs",
        note=note,
        counts=_counts(runs),
        constant={key: value for key, value in constant(runs).items() if key in keys}
        if len(runs) > 1
        else {},
        blocks=[_block(block, heard, place) for block in results.blocks],
        has_songs=any(block.songs > 1 for block in results.blocks),
        keys=keys,
        short=short_names(keys),
        columns=[
            {"column": column, "folded": _is_folded(finished, column)}
            for column in COLUMNS
            if any(run.figures[column.key] is not None for run in runs)
        ],
        varying=varying(runs),
        rows=[_row(run, heard, place) for run in runs],
        players=_players(heard, quality, not is_short),
        unheard=len(finished) - len(heard),
        charts={} if is_short else page.charts(_curves(results)),
        failed=[run for run in runs if run.error],
        warnings=_warnings(finished),
        settings={} if is_short else differing_settings(runs),
        runs=runs,
    )


def _counts(runs: Sequence[Run]) -> str:
    failed = sum(bool(run.error) for run in runs)
    songs = dict.fromkeys(run.song for run in runs if run.song)
    text = f"{len(runs)} runs of {', '.join(songs)}" if songs else f"{len(runs)} runs"
    return text + (f", {failed} of which failed or did not finish" if failed else "")


def _is_folded(runs: Sequence[Run], column: Any) -> bool:
    """Whether a column is left out at first.

    It says the same of every run of a song; or it is the memory, in which runs of one process are
    taken together.
    """
    places: dict[tuple, set] = {}
    for run in runs:
        places.setdefault(run.recording, set()).add(run.figures[column.key])
    is_constant = all(len(values) == 1 for values in places.values())
    return (is_constant and column is not COLUMNS[0]) or column.key == "peak_memory_mb"


def _row(run: Run, heard: Sequence[Run], place: Path | None) -> dict[str, Any]:
    """What the template wants of a run, and of the files beside it if the page is at a place."""
    report = run.folder / "report.html"
    return {
        "run": run,
        "cells": {
            column.key: (run.figures[column.key], column.text(run.figures[column.key]))
            for column in COLUMNS
        },
        "report": page.address(report, place) if place and report.is_file() else None,
        "is_heard": run in heard,
        "has_rest": bool(place) and run in heard and (run.folder / "residual.wav").is_file(),
        "words": " ".join(
            f"{key}={value}"
            for key, value in run.settings.items()
            if place or not Path(value).is_absolute()
        ),
    }


def _block(block: Block, heard: Sequence[Run], place: Path | None) -> dict[str, Any]:
    """What the template wants of a block, with its bars on one axis."""
    column = block.column
    ranked = block.ranked()
    shown = ranked if block.is_repeated else ranked[:MAX_UNREPEATED]
    ends = [0.0]
    for _, figure in shown:
        spread = figure.spread or 0.0
        ends += [*figure.values.values(), figure.mean - spread, figure.mean + spread]
    low, high = min(ends), max(ends)

    def at(value: float) -> float:
        """Position on the axis, in percent."""
        return round(100 * (value - low) / ((high - low) or 1), 2)

    return {
        "block": block,
        "column": column,
        "answer": block.answer(),
        "zero": at(0),
        "left_out": len(ranked) - len(shown),
        "groups": [_group(block, group, figure, at, heard, place) for group, figure in shown],
    }


def _group(
    block: Block, group: Group, figure: Figure, at: Any, heard: Sequence[Run], place: Path | None
) -> dict[str, Any]:
    column, spread = block.column, figure.spread
    difference = figure.difference
    return {
        "group": group,
        "n": len(figure.values),
        "mean": column.text(figure.mean),
        "spread": "" if spread is None else column.text(spread),
        "bar": sorted((at(0), at(figure.mean))),
        "whisker": spread and (at(figure.mean - spread), at(figure.mean + spread)),
        "dots": [at(value) for value in figure.values.values()],
        "difference": interval_text(difference, column) if difference else "",
        "over_songs": interval_text(difference, column, "interval_by_source").partition(" ")[2]
        if difference
        else "",
        "verdict": verdict(group, column),
        "runs": [
            _row(run, heard, place)
            | {
                "member": label(run.settings, varying(group.runs)) or run.name,
                "text": column.text(run.figures[column.key]),
                "dots": [at(run.figures[column.key] or 0.0)],
                "difference": _of_run(run, group, column),
            }
            for run in group.runs
            if run.figures[column.key] is not None
        ],
    }


def _of_run(run: Run, group: Group, column: Any) -> str:
    """How much higher a run is than the baseline's run of the same song and seed."""
    key, value = (run.recording, run.seed), run.figures[column.key]
    if group.baseline is None or column.key not in group.baseline.figures or value is None:
        return ""
    mine = Figure({key: value}, value, None)
    difference = paired(mine, group.baseline.figures[column.key])
    return column.text(difference["mean"], "+") if difference else ""


def _curves(results: Results) -> dict[str, list[Path]]:
    """Folders of each group of a recording, by its name."""
    blocks = [block for block in results.blocks if block.songs == 1]
    if not blocks:
        return {run.label: [run.folder] for run in results.runs if not run.error}
    return {
        f"{block.title}: {group.label}" if len(blocks) > 1 else group.label: [
            run.folder for run in group.runs
        ]
        for block in blocks
        for group in block.groups
    }


def _warnings(runs: Sequence[Run]) -> dict[str, str]:
    """Each warning with the labels of the runs that gave it."""
    given: dict[str, list[Run]] = {}
    for run in runs:
        for warning in run.warnings:
            given.setdefault(warning, []).append(run)
    return {warning: _whose(found, runs) for warning, found in given.items()}


def _whose(found: Sequence[Run], runs: Sequence[Run]) -> str:
    if 1 < len(found) == len(runs):
        return "all"
    songs = {run.song for run in found}
    if len(found) > 1 and [run for run in runs if run.song in songs] == list(found):
        return f"all of {', '.join(sorted(songs))}"
    return ", ".join(run.label for run in found)


def _heard(runs: Sequence[Run]) -> list[Run]:
    """The runs that the page plays, in their given order: the best first, up to its limits."""
    best_first = sorted(runs, key=lambda run: -(run.figures["si_sdr_improvement"] or 0))
    seconds = np.cumsum(
        [
            min(soundfile.info(run.folder / "target.wav").duration, page.MAX_SECONDS)
            for run in best_first
        ]
    )
    chosen = [
        run for run, total in zip(best_first, seconds, strict=True) if total <= MAX_HEARD_SECONDS
    ][:MAX_HEARD]
    return [run for run in runs if run in chosen]


def _players(runs: Sequence[Run], quality: media.Quality, with_rest: bool) -> list[dict[str, Any]]:
    """One player per recording, with target and, if wanted, residual of all of its runs."""
    groups: dict[tuple, list[page.Track]] = {}
    songs: dict[tuple, str] = {}
    for run in runs:
        target, sample_rate = page.read_stem(run.folder / "target.wav")
        key = (*run.recording, sample_rate, target.shape)
        tracks, songs[key] = groups.setdefault(key, []), run.song
        if not tracks:
            tracks += _common_tracks(run.folder, target)
        gain = run.figures["si_sdr_improvement"]
        note = f"run {run.name}" + ("" if gain is None else f", {gain:+.2f} dB")
        name, file = run.label.removeprefix(f"{run.song} "), run.name.replace("/", "_")
        tracks.append(page.Track(name, note, f"target_{file}", target, run.name))
        if with_rest and (run.folder / "residual.wav").is_file():
            rest, _ = page.read_stem(run.folder / "residual.wav")
            tracks.append(
                page.Track(
                    name, f"residual of {note}", f"residual_{file}", rest, run.name, rest=True
                )
            )
    samples = {
        key: sum(track.waveform.size for track in tracks) / key[-2]
        for key, tracks in groups.items()
    }
    players = []
    for key, tracks in groups.items():
        *_, sample_rate, shape = key
        share = samples[key] / sum(samples.values())
        data = page.player(
            tracks,
            sample_rate,
            seconds=shape[1] / sample_rate,
            share=share,
            wave_height=44,
            picture_height=88,
            quality=quality,
        )
        players.append({"heading": f"Listen: {songs[key] or 'recording'}", "data": data})
    return players


def _common_tracks(folder: Path, target: np.ndarray) -> list[page.Track]:
    tracks = []
    if (folder / "residual.wav").is_file():
        tracks.append(
            page.Track(
                "Mixture",
                "the recording",
                "mixture",
                target + page.read_stem(folder / "residual.wav")[0],
            )
        )
    reference = _reference(folder, target)
    if reference is not None:
        tracks.append(
            page.Track("Reference", "the true stem, for comparison only", "reference", reference)
        )
    return tracks


def _reference(folder: Path, target: np.ndarray) -> np.ndarray | None:
    """The true stem of a run.

    None if the run had none, or its files were moved or changed since, or its rate, length or
    number of channels is not that of the run's target.
    """
    config, hashes = folder / "config.yaml", read_json(folder / "metrics.json").get("hashes", {})
    if "reference" not in hashes or not config.is_file():
        return None
    try:
        song = Song.load(yaml.safe_load(config.read_text(encoding="utf-8"))["song"])
    except BespokeError:  # for example, the run was made on another machine
        return None
    same = all(song.hashes.get(role) == hashes.get(role) for role in ("mixture", "reference"))
    stem = soundfile.info(folder / "target.wav")
    if song.reference is None or not same:
        return None
    held = (*song.reference.shape, song.sample_rate)
    fits = held == (stem.channels, stem.frames, stem.samplerate)
    return song.reference[:, : target.shape[1]] if fits else None
