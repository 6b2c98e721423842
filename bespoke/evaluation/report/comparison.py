"""Page that compares many runs.

It has a sortable table, players that keep their position when the target is switched, the training
curves in one chart, and the runs that failed.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from bespoke.data.song import Song
from bespoke.evaluation.metrics import gap_closed
from bespoke.evaluation.report import media, page, summary
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import atomic_path, read_json
from bespoke.utils.moved import as_now

MAX_LABEL = 32  # characters of the differing settings in a run's label
MAX_HEARD = 40  # most targets that a page plays
MAX_HEARD_SECONDS = 2400  # and their total length: a browser keeps all of them in memory


# Of a page of limited size: drafts, of which each comes nearer to its aim.
_DRAFTS, _AIM, _SMALL = 3, 0.97, media.Quality(picture=20, outline_points=300)
_ENOUGH = 0.9  # of the limit: another draft, which takes as long, would gain little
_BASE64 = 3 / 4


@dataclass(frozen=True)
class Column:
    """A column of the table.

    `best` is +1 if higher values are better, -1 if lower ones are, and 0 if neither.
    """

    key: str
    name: str
    unit: str
    best: int
    decimals: int = 2


COLUMNS = (
    Column("si_sdr_improvement", "improvement", "dB", 1),
    Column("si_sdr", "SI-SDR", "dB", 1),
    Column("gap_closed", "gap closed", "%", 1, 0),
    Column("agreement", "agreement", "dB", 1),
    Column("si_sdr_mixture", "recording", "dB", 0),
    Column("si_sdr_oracle", "oracle", "dB", 0),
    Column("confidence", "alignment", "", 0),
    Column("steps", "steps", "", 0, 0),
    Column("seconds", "time", "s", -1, 1),
    Column("peak_memory_mb", "memory", "MB", -1, 0),
)


@dataclass
class Run:
    """A run of the page: `values` are its overrides, `figures` its metrics.

    `error` is the error that ended the run, or empty.
    """

    name: str
    folder: Path
    values: dict[str, str]
    figures: dict[str, float | None]
    error: str
    recording: tuple
    warnings: list[str]
    label: str = ""


def write_small_comparison(
    folders: Sequence[Path],
    path: Path,
    title: str = "",
    max_bytes: float = 5e6,
    note: str = "",
) -> Path:
    """Write a page of limited size that compares runs, to pass on.

    It is without the settings, which name files of this machine, and without the training. Its
    sound is as good as fits.

    Args:
        folders, path, title, note: as of `write_comparison`.
        max_bytes: largest size of the page.

    Raises:
        BespokeError: there are no runs, or too many.
    """
    kept, size, budget = None, 0, 0.5 * max_bytes
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(_DRAFTS):
            quality = replace(_SMALL, audio_bytes=budget)
            draft = Path(scratch) / "draft.html"
            write_comparison(folders, draft, title, note, quality, is_short=True)
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
    folders: Sequence[Path],
    path: Path,
    title: str = "",
    note: str = "",
    quality: media.Quality = page.DEFAULT_QUALITY,
    is_short: bool = False,
) -> Path:
    """Write a page that compares runs. It needs only the files in their folders.

    Args:
        folders: folders of the runs, finished or not.
        path: file to write.
        title: title of the page. Empty: the number of runs.
        note: a sentence below it.
        quality: of sound and pictures.
        is_short: whether the settings that differ and the training are left out.

    Raises:
        BespokeError: there are no runs.
    """
    if not folders:
        raise BespokeError(
            "There are no runs to compare: "
            "name folders that hold runs, such as outputs/sweeps/TIME."
        )
    runs = [_read(folder, name) for folder, name in zip(folders, names(folders), strict=True)]
    varying = _varying(runs)
    for run in runs:
        run.label = " ".join(f"{key}={run.values.get(key, 'default')}" for key in varying)
    labels = {run.label for run in runs}
    if len(labels) < len(runs) or not 0 < max(map(len, labels)) <= MAX_LABEL:
        for run in runs:
            run.label = run.name  # the table has the differing settings
    finished = [run for run in runs if not run.error]
    heard = _heard(finished)
    return page.write(
        path,
        "comparison.html.j2",
        title=title or f"{len(runs)} runs",
        note=note,
        counts=_counts(runs),
        constant=_constant(runs),
        varying=varying,
        columns=[
            column
            for column in COLUMNS
            if any(run.figures.get(column.key) is not None for run in runs)
        ],
        rows=_rows(runs, varying, None if is_short else path.parent),
        best=_best_runs(finished),
        players=_players(heard, varying, quality),
        unheard=len(finished) - len(heard),
        charts={} if is_short else page.charts({run.label: run.folder for run in finished}),
        failed=[run for run in runs if run.error],
        warnings=_warnings(finished),
        settings={} if is_short else _differing_settings(runs),
    )


def names(folders: Sequence[Path]) -> list[str]:
    """Name each run by its path below the common parent folder."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [str(path.relative_to(common)) for path in paths]


def _read(folder: Path, name: str) -> Run:
    row, metrics = summary.rows([folder])[0], read_json(folder / "metrics.json")
    fixed = {"run", "error", *summary.COLUMNS}
    figures = {column.key: row.get(column.key, metrics.get(column.key)) for column in COLUMNS}
    figures["gap_closed"] = gap_closed(
        *(metrics.get(key) for key in ("si_sdr", "si_sdr_mixture", "si_sdr_oracle"))
    )
    figures["gap_closed"] = None if figures["gap_closed"] is None else 100 * figures["gap_closed"]
    figures["confidence"] = metrics.get("alignment", {}).get("confidence")
    error = row["error"] or (
        "" if (folder / "target.wav").is_file() else "its target.wav is missing"
    )
    recording = (
        metrics.get("song"),
        metrics.get("hashes", {}).get("mixture"),
        metrics.get("song_seconds"),
    )
    values = {key: str(value) for key, value in row.items() if key not in fixed}
    if "cell" in values and (cell := _config(folder).get("cell")):  # a run of the benchmark
        values = {key: str(cell[key]) for key in ("case", "method")} | {
            "seed": str(metrics.get("seed", ""))
        }
    return Run(name, folder, values, figures, error, recording, metrics.get("warnings", []))


def _varying(runs: Sequence[Run]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.values)
    return [
        key
        for key in keys
        if key not in ("hydra.run.dir", "ckpt") and len({run.values.get(key) for run in runs}) > 1
    ]


def _constant(runs: Sequence[Run]) -> dict[str, str]:
    return (
        {
            key: value
            for key, value in runs[0].values.items()
            if all(run.values.get(key) == value for run in runs)
        }
        if len(runs) > 1
        else {}
    )


def _counts(runs: Sequence[Run]) -> str:
    failed = sum(bool(run.error) for run in runs)
    songs = dict.fromkeys(run.recording[0] for run in runs if run.recording[0])
    text = f"{len(runs)} runs of {', '.join(songs)}" if songs else f"{len(runs)} runs"
    return text + (f", {failed} of which failed or did not finish" if failed else "")


def _rows(runs: Sequence[Run], varying: Sequence[str], place: Path | None) -> list[dict[str, Any]]:
    usual = {
        key: Counter(run.values.get(key) for run in runs).most_common(1)[0][0] for key in varying
    }
    rows = []
    for run in runs:
        peers = [other for other in runs if other.recording == run.recording and not other.error]
        cells = []
        for column in COLUMNS:
            value = run.figures.get(column.key)
            cells.append(
                {
                    "key": column.key,
                    "value": value,
                    "text": "" if value is None else f"{value:,.{column.decimals}f}",
                    "best": len(peers) > 1 and value is not None and value == _best(peers, column),
                    "bad": column.key == "si_sdr_improvement" and value is not None and value < 0,
                }
            )
        link = run.folder / "report.html"
        rows.append(
            {
                "run": run,
                "values": [
                    (run.values.get(key, ""), run.values.get(key) != usual[key]) for key in varying
                ],
                "cells": cells,
                "report": page.address(link, place) if place and link.is_file() else None,
            }
        )
    return rows


def _best(runs: Sequence[Run], column: Column) -> float | None:
    found = [run.figures.get(column.key) for run in runs]
    values = [value for value in found if value is not None]
    return (max(values) if column.best > 0 else min(values)) if values and column.best else None


def _best_runs(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The best run for each recording and figure."""
    found = []
    recordings = dict.fromkeys(run.recording for run in runs)
    for recording in recordings:
        peers = [run for run in runs if run.recording == recording]
        for column in COLUMNS:
            value = _best(peers, column)
            if value is not None and column.key != "gap_closed" and len(peers) > 1:
                winner = next(run for run in peers if run.figures[column.key] == value)
                song = f"{recording[0]}: " if len(recordings) > 1 else ""
                sign = "+" if column.key == "si_sdr_improvement" else ""
                text = f"{value:{sign},.{column.decimals}f}"
                says = ("highest " if column.best > 0 else "lowest ") + column.name
                found.append(
                    {"name": song + says, "value": text, "unit": column.unit, "says": winner.label}
                )
    return found


def _warnings(runs: Sequence[Run]) -> dict[str, str]:
    """Each warning with the labels of the runs that gave it."""
    given: dict[str, list[str]] = {}
    for run in runs:
        for warning in run.warnings:
            given.setdefault(warning, []).append(run.label)
    return {
        warning: "all" if 1 < len(labels) == len(runs) else ", ".join(labels)
        for warning, labels in given.items()
    }


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


def _players(
    runs: Sequence[Run], varying: Sequence[str], quality: media.Quality
) -> list[dict[str, Any]]:
    """One player per recording, with the targets of all of its runs."""
    groups: dict[tuple, list[page.Track]] = {}
    peers: dict[tuple, list[Run]] = {}
    for run in runs:
        peers.setdefault(run.recording, []).append(run)
    for run in runs:
        target, sample_rate = page.read_stem(run.folder / "target.wav")
        tracks = groups.setdefault((*run.recording, sample_rate, target.shape), [])
        if not tracks:
            tracks += _common_tracks(run.folder, target)
        gain = run.figures["si_sdr_improvement"]
        note = f"target of run {run.name}" + ("" if gain is None else f", {gain:+.2f} dB")
        name = _short_label(run, peers[run.recording], varying)
        tracks.append(
            page.Track(name, note, f"target_{run.name.replace('/', '_')}", target, run.name)
        )
    samples = {
        key: sum(track.waveform.size for track in tracks) / key[-2]
        for key, tracks in groups.items()
    }
    players = []
    for key, tracks in groups.items():
        song, *_, sample_rate, shape = key
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
        players.append({"heading": f"Listen: {song or 'recording'}", "data": data})
    return players


def _short_label(run: Run, peers: Sequence[Run], varying: Sequence[str]) -> str:
    """What tells a run from the others of its recording: its label, where it tells more."""
    told = [
        {key: peer.values.get(key, "default") for key in varying if _differs(key, peers)}
        for peer in peers
    ]
    words = " ".join(f"{key}={value}" for key, value in told[peers.index(run)].items())
    is_enough = len({tuple(one.values()) for one in told}) == len(peers)
    return words if words and is_enough and len(words) <= MAX_LABEL else run.label


def _differs(key: str, runs: Sequence[Run]) -> bool:
    return len({run.values.get(key) for run in runs}) > 1


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


def _differing_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Settings that differ between the runs' full configs, with the value of each run."""
    configs = []
    for run in runs:
        configs.append(dict(_flat(as_now(_config(run.folder)))))
    known = [config for config in configs if config]
    keys = dict.fromkeys(key for config in known for key in config)
    return {
        key: [config.get(key, "") for config in configs]
        for key in keys
        if len({config.get(key) for config in known}) > 1
    }


def _config(folder: Path) -> dict[str, Any]:
    """The whole config of a run; nothing where it has none."""
    path = folder / "config.yaml"
    return (yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None) or {}


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [
            leaf
            for key, item in value.items()
            for leaf in _flat(item, f"{name}.{key}" if name else str(key))
        ]
    return [(name, str(value))]
