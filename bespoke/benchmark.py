"""Many cases, recipes and seeds: what is run, what is kept of it, and the statistics.

A cell is a case, a recipe (or other overrides) and a seed. Cells are runs of train.py, written as config files of one group and started
by Hydra's own multirun, so that every launcher serves. A finished cell has a `row.json`; a killed one goes on from its checkpoint.
"""

import csv
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from bespoke.align import align, onset_errors
from bespoke.audio import atomic_path, read_audio, write_csv, write_json
from bespoke.errors import BespokeError
from bespoke.evaluate import evaluate_fully, oracle, ratio_oracle
from bespoke.rivals import RIVALS
from bespoke.score import read_midi
from bespoke.song import ROOT, Song

log = logging.getLogger(__name__)

FOLDER = "cells"
CONF = ROOT / "conf"
ORACLES = {"oracle_tpsa": oracle, "oracle_ratio": ratio_oracle}


@dataclass(frozen=True)
class Case:
    """A folder with `mix.flac`, `target.flac`, `target.mid` (unaligned) and `meta.json`, whose `gm_program` is the patch a user would pick.

    `target_aligned.mid` is read by rivals labelled `aligned` alone. The source is the folder's name up to the first underscore; cases of
    one source are not independent.
    """

    folder: Path
    program: int

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def source(self) -> str:
        return self.name.partition("_")[0]

    @property
    def song(self) -> dict[str, Any]:
        """The song's config, with nothing that a user would not have but the reference."""
        return {
            "name": self.name,
            "mixture": str(self.folder / "mix.flac"),
            "target": {"score": str(self.folder / "target.mid"), "patches": [self.program]},
            "reference": str(self.folder / "target.flac"),
        }


@dataclass(frozen=True)
class Cell:
    """One run: a case, a method's name with the overrides that make it, and a seed."""

    case: Case
    method: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def place(self) -> str:
        """Its folder, relative to the benchmark's cells."""
        return f"{self.case.name}/{self.method}/{self.seed}"


def read_cases(folder: str | Path, names: Sequence[str] = ()) -> tuple[list[Case], dict[str, str]]:
    """Find the cases of a folder and check that each can be run.

    Returns:
        The sound cases in order of their names, and the broken ones with the reason.

    Raises:
        BespokeError: there are no cases, or one of `names` is not among them.
    """
    folder = Path(folder)
    folders = sorted(path.parent for path in folder.glob("*/meta.json")) if folder.is_dir() else []
    missing = set(names) - {path.name for path in folders}
    if not folders or missing:
        raise BespokeError(f"{folder} has no case {', '.join(sorted(missing)) or 'at all'}: a case is a folder with a meta.json.")
    cases, broken = [], {}
    for path in folders:
        if names and path.name not in names:
            continue
        try:
            program = json.loads((path / "meta.json").read_text())["gm_program"]
            case = Case(path.resolve(), int(program))
            Song.load(case.song)
            cases.append(case)
        except BespokeError as error:
            broken[path.name] = str(error)
        except (ValueError, KeyError, TypeError) as error:
            broken[path.name] = f"{path / 'meta.json'} has no usable gm_program ({type(error).__name__})."
    return cases, broken


def write_cells(cells: Iterable[Cell], out: Path) -> list[Cell]:
    """Write a config file for each cell that is not finished; give those cells.

    Each file is a choice of the config group `cell`, which sets the song, the seed and the folder, and continues what was begun.
    """
    group = out / "conf" / "cell"
    group.mkdir(parents=True, exist_ok=True)
    for stale in group.glob("*.yaml"):
        stale.unlink()
    pending = [cell for cell in cells if not (out / FOLDER / cell.place / "row.json").is_file()]
    for number, cell in enumerate(pending):
        names = {override: override.partition("=")[0] for override in cell.overrides}
        choices = [override.partition("=") for override, name in names.items() if (CONF / name).is_dir()]
        values = OmegaConf.from_dotlist([override for override, name in names.items() if not (CONF / name).is_dir()])
        config = {
            "defaults": [{f"override /{name}": choice} for name, _, choice in choices],
            **OmegaConf.to_container(values),
            "song": cell.case.song,
            "seed": cell.seed,
            "ckpt": "last" if (out / FOLDER / cell.place / "config.yaml").is_file() else None,
            "cell": {"case": cell.case.name, "source": cell.case.source, "method": cell.method},
            "hydra": {"sweep": {"subdir": cell.place}},
        }
        with atomic_path(group / f"{number:05d}.yaml") as temporary:
            temporary.write_text("# @package _global_\n" + yaml.safe_dump(config, sort_keys=False))
    return pending


class RowWriter(Callback):
    """Hydra callback: when a cell ends, write its row and say how far the benchmark is."""

    def __init__(self, out: str, total: int):
        self.out, self.total, self.done = Path(out), total, 0

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        self.done += 1
        if not (folder / "metrics.json").is_file():
            log.error("cell %d of %d failed: %s", self.done, self.total, config.hydra.sweep.subdir)
            return
        row = cell_row(folder, OmegaConf.to_container(config.cell))
        write_json(folder / "row.json", row)
        write_rows(self.out)
        write_curves(self.out)
        log.info(
            "cell %d of %d: %s, SI-SDR improved by %.2f dB", self.done, self.total, config.hydra.sweep.subdir, row["si_sdr_improvement"]
        )


def cell_row(folder: Path, labels: Mapping[str, str]) -> dict[str, Any]:
    """The row of a finished run: what it is, all figures of its stem, and its cost."""
    metrics = json.loads((folder / "metrics.json").read_text())
    config = (folder / "config.yaml").read_text()
    song = Song.load(yaml.safe_load(config)["song"])
    estimate, _ = read_audio(folder / "target.wav")
    figures = evaluate_fully(estimate, song.mixture, song.reference, song.sample_rate)
    seconds = {f"seconds_{stage}": value for stage, value in metrics["seconds"].items()}
    versions = {f"version_{package}": metrics["versions"][package] for package in ("bespoke", "torch")}
    cost = {"steps": metrics["steps"], **seconds, "peak_memory_mb": metrics.get("peak_memory_mb"), "device": metrics["device"]}
    return {**labels, "seed": metrics["seed"], "config": hashlib.sha256(config.encode()).hexdigest()[:12], **figures, **cost, **versions}


def other_rows(case: Case, rivals: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of the oracles and of rivals; those that use a score get the true alignment (`aligned`) and our own (`auto`)."""
    song = Song.load(case.song)
    truth = tuple(note for part in read_midi(case.folder / "target_aligned.mid") for note in part.notes)
    alignment = align(song.target.part.notes, song.mixture, song.sample_rate)
    found = {
        "align_confidence": alignment.confidence,
        **{f"onset_{name}": value for name, value in onset_errors(alignment.notes, truth).items()},
    }
    estimates = {}
    for name, ideal in ORACLES.items():
        estimates[name] = np.repeat(ideal(song.mixture, song.reference, song.sample_rate), len(song.mixture), axis=0)
    for name in rivals:
        rival = RIVALS[name](case.program)
        scores = {f"{name}_aligned": truth, f"{name}_auto": alignment.notes} if rival.uses_score else {name: ()}
        estimates |= {label: rival.separate(song.mixture, song.sample_rate, notes) for label, notes in scores.items()}
    rows = []
    for label, estimate in estimates.items():
        figures = evaluate_fully(estimate, song.mixture, song.reference, song.sample_rate)
        row = {"case": case.name, "source": case.source, "method": label, "seed": 0, **figures}
        rows.append(row | (found if label.endswith("_auto") else {}))
    return rows


def write_rows(out: Path) -> list[dict[str, Any]]:
    """Gather the rows of all finished cells in `rows.csv`, ordered by case, method and seed."""
    rows = [json.loads(file.read_text()) for file in sorted((out / FOLDER).rglob("row.json"))]
    for file in sorted((out / FOLDER).glob("*/others.json")):
        rows += json.loads(file.read_text())["rows"]
    rows.sort(key=lambda row: (row["case"], row["method"], row["seed"]))
    write_csv(out / "rows.csv", rows)
    return rows


def write_curves(out: Path) -> None:
    """Gather the quality curves of all finished cells in `curves.csv`."""
    curves = []
    for file in sorted((out / FOLDER).rglob("curve.csv")):
        if (file.parent / "row.json").is_file():
            row = json.loads((file.parent / "row.json").read_text())
            curves += [{**{label: row[label] for label in ("case", "method", "seed")}, **point} for point in read_rows(file)]
    write_csv(out / "curves.csv", curves)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read rows.csv; numbers become numbers, empty cells None."""

    def value(text: str) -> Any:
        try:
            return float(text) if text else None
        except ValueError:
            return text

    with open(path, newline="") as file:
        return [{column: value(text) for column, text in row.items()} for row in csv.DictReader(file)]


def by_case(rows: Sequence[Mapping[str, Any]], method: str, figure: str) -> dict[str, float]:
    """A method's figure for each case, seeds averaged first."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["method"] == method and row.get(figure) is not None:
            found.setdefault(row["case"], []).append(row[figure])
    return {case: float(np.mean(values)) for case, values in found.items()}


def bootstrap(values: Mapping[str, float], resamples: int = 10000, seed: int = 0, by_source: bool = False) -> tuple[float, float]:
    """95 % percentile interval of the mean over cases.

    Args:
        values: a figure by case.
        resamples: how often the cases are drawn anew.
        seed: of the draws.
        by_source: draw sources with all of their cases, since cases of one source are not independent.
    """
    rng = np.random.default_rng(seed)
    if by_source:
        sources: dict[str, list[float]] = {}
        for case, value in values.items():
            sources.setdefault(case.partition("_")[0], []).append(value)
        sums, counts = (np.array([function(group) for group in sources.values()], float) for function in (sum, len))
        draws = rng.integers(len(sums), size=(resamples, len(sums)))
        means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    else:
        figures = np.array(list(values.values()))
        means = figures[rng.integers(len(figures), size=(resamples, len(figures)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def compare(rows: Sequence[Mapping[str, Any]], first: str, second: str, figure: str = "si_sdr") -> dict[str, Any]:
    """Paired difference of two methods over the cases that both have: mean, intervals, and Wilcoxon's signed-rank test."""
    from scipy.stats import wilcoxon

    one, other = by_case(rows, first, figure), by_case(rows, second, figure)
    difference = {case: one[case] - other[case] for case in one if case in other}
    if not difference:
        raise BespokeError(f"{first} and {second} have no case in common.")
    test = wilcoxon(list(difference.values())).pvalue if len(difference) > 1 and any(difference.values()) else None
    return {
        "first": first,
        "second": second,
        "cases": len(difference),
        "mean": float(np.mean(list(difference.values()))),
        "interval": bootstrap(difference),
        "interval_by_source": bootstrap(difference, by_source=True),
        "p_wilcoxon": None if test is None else float(test),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of the methods, best last: means over cases, seeds averaged first, with intervals of the improvement."""
    lines = [
        "| method | cases | seeds | SI-SDR | improvement | interval over cases | over sources | gap closed | worse than the mixture |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    scores = {method: by_case(rows, method, "si_sdr") for method in {row["method"] for row in rows}}
    for method in sorted(scores, key=lambda name: np.mean(list(scores[name].values()))):
        gain, gap = (by_case(rows, method, figure) for figure in ("si_sdr_improvement", "gap_closed"))
        over_cases, over_sources = (bootstrap(gain, by_source=by_source) for by_source in (False, True))
        cells = [
            method,
            str(len(gain)),
            str(len({row["seed"] for row in rows if row["method"] == method})),
            f"{np.mean(list(scores[method].values())):.2f}",
            f"{np.mean(list(gain.values())):+.2f}",
            f"{over_cases[0]:.2f} to {over_cases[1]:.2f}",
            f"{over_sources[0]:.2f} to {over_sources[1]:.2f}",
            f"{np.mean(list(gap.values())):.0%}",
            str(sum(value < 0 for value in gain.values())),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def case_table(rows: Sequence[Mapping[str, Any]], figure: str = "si_sdr") -> str:
    """A Markdown table of a figure by case and method, seeds averaged; methods in order of their mean."""
    scores = {method: by_case(rows, method, figure) for method in {row["method"] for row in rows}}
    methods = sorted(scores, key=lambda name: np.mean(list(scores[name].values())))
    lines = [f"| case | {' | '.join(methods)} |", "| --- |" + " --- |" * len(methods)]
    for case in sorted({row["case"] for row in rows}):
        values = (scores[method].get(case) for method in methods)
        lines.append(f"| {case} | {' | '.join('' if value is None else f'{value:.2f}' for value in values)} |")
    return "\n".join(lines)
