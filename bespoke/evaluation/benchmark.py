"""Benchmark of methods over cases and seeds: runs, results and statistics.

A cell is a combination of case, method (a recipe or other overrides) and seed. Each cell is a run
of train.py. Cells are written as config files of one Hydra group and started by Hydra's multirun,
so every launcher works. A finished cell has a `row.json`; a killed one resumes from its checkpoint.
"""

import contextlib
import fnmatch
import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml
from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from bespoke.audio.io import open_audio, write_wav
from bespoke.data.song import ROOT, Song
from bespoke.data.song import hold as hold_audio
from bespoke.evaluation.agreement import Agreement
from bespoke.evaluation.baselines import BASELINES
from bespoke.evaluation.metrics import evaluate_fully, oracle, ratio_oracle
from bespoke.evaluation.split import half_of
from bespoke.evaluation.statistics import bootstrap, paired_difference
from bespoke.score.align import NO_FIT, align, doubles, onset_errors
from bespoke.score.midi import Note, read_score
from bespoke.utils.configs import as_dict
from bespoke.utils.errors import BespokeError, one_sentence
from bespoke.utils.files import atomic_path, read_csv, write_csv, write_json

FOLDER = "cells"
CONF = ROOT / "conf"
ORACLES = {"oracle_tpsa": oracle, "oracle_ratio": ratio_oracle}


@dataclass(frozen=True)
class Case:
    """A recording of the benchmark.

    The folder holds `mix.flac`, `target.flac`, `target.mid` (unaligned) and `meta.json`, whose
    `gm_program` is the patch a user would choose. Each `other_*.mid` is another part, on the time
    base of `target.mid`, played with the program that it names. `target_aligned.mid`, which may be
    missing, is read only for methods labelled `aligned` or `given`. The source is the folder's name
    up to the first underscore; cases of one source are not independent.
    """

    folder: Path
    program: int

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def source(self) -> str:
        return source(self.name)

    @property
    def half(self) -> str | None:
        """The case's half of the split in benchmark/split.yaml.

        `development`, on which settings are chosen, `test`, or None for a song in neither half.
        """
        return half_of(self.name)

    @property
    def parts(self) -> list[Path]:
        """The scores of the other parts."""
        return sorted(self.folder.glob("other_*.mid"))

    @property
    def channels(self) -> int:
        return open_audio(self.folder / "mix.flac").channels

    @property
    def true_score(self) -> Path | None:
        """The score in time with the recording, where it is known."""
        score = self.folder / "target_aligned.mid"
        return score if score.is_file() else None

    @property
    def song(self) -> dict[str, Any]:
        """Song config, with only what a user would have, and the reference."""
        return {
            "name": self.name,
            "mixture": str(self.folder / "mix.flac"),
            "target": {"score": str(self.folder / "target.mid"), "patches": [self.program]},
            "others": [{"score": str(file)} for file in self.parts] or None,
            "reference": str(self.folder / "target.flac"),
        }

    @property
    def patches(self) -> dict[str, list[int]]:
        """Values of the keywords for `song.target.patches`.

        `own` is the case's program, `family` its General MIDI family, and `wide` the program and
        one of every other family.
        """
        family = self.program // 8
        # The last two families are percussion and sound effects.
        others = [8 * other for other in range(14) if other != family]
        return {
            "own": [self.program],
            "family": list(range(8 * family, 8 * family + 8)),
            "wide": [self.program, *others],
        }


def source(case: str) -> str:
    """The source of a case: its name up to the first underscore."""
    return case.partition("_")[0]


@dataclass(frozen=True)
class Cell:
    """One run: a case, a method with its overrides, and a seed.

    `values` are settings of this case alone, which take precedence over the overrides.
    """

    case: Case
    method: str
    overrides: tuple[str, ...]
    seed: int
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Folder of the cell, relative to the folder of all cells."""
        return f"{self.case.name}/{self.method}/{self.seed}"


def lock_folder(folder: Path) -> FileLock:
    """Lock a folder until the lock is released or this process ends.

    Raises:
        BespokeError: another process has locked it, or the folder cannot be written.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise BespokeError(
            f"A benchmark is running in {folder}: wait until it has ended, or choose another --out."
        ) from error
    except OSError as error:
        raise BespokeError(
            f"{folder} cannot be written ({error.strerror or error}): choose another --out."
        ) from error
    return lock


def read_cases(folder: str | Path, names: Sequence[str] = ()) -> tuple[list[Case], dict[str, str]]:
    """Find the cases in a folder and check that each can be run.

    Args:
        folder: contains one folder per case.
        names: names or patterns (`bach10_*`) of the cases to take. Empty: all.

    Returns:
        The valid cases by name, and the reason for each invalid case.

    Raises:
        BespokeError: there are no cases, or one of `names` matches none.
    """
    folder = Path(folder)
    folders = sorted(
        {path.parent for name in ("meta.json", "mix.flac") for path in folder.glob(f"*/{name}")}
    )
    missing = [
        name for name in names if not any(fnmatch.fnmatchcase(path.name, name) for path in folders)
    ]
    if not folders or missing:
        raise BespokeError(
            f"{folder} has no case {', '.join(missing) or 'at all'}: "
            "a case is a folder with a mix.flac and a meta.json."
        )
    cases, broken = [], {}
    for path in folders:
        if names and not any(fnmatch.fnmatchcase(path.name, name) for name in names):
            continue
        try:
            program = json.loads((path / "meta.json").read_text())["gm_program"]
            case = Case(path.resolve(), int(program))
            Song.load(case.song)
            cases.append(case)
        except BespokeError as error:
            broken[path.name] = str(error)
        except (OSError, ValueError, KeyError, TypeError) as error:
            broken[path.name] = (
                f"{path / 'meta.json'} has no usable gm_program ({type(error).__name__})."
            )
    return cases, broken


def read_experiment(name: str) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Read the methods of `conf/experiment/NAME.yaml`, one per combination of its sweep.

    Returns:
        The overrides of each method, by the name NAME_VALUES, and the patterns of the cases that
        the experiment lists, if any.

    Raises:
        BespokeError: the experiment does not exist, or it sweeps over a range, not over choices.
    """
    file = CONF / "experiment" / f"{name}.yaml"
    if not file.is_file():
        choices = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise BespokeError(f"There is no experiment {name}: choose {choices}.")
    config = cast(DictConfig, OmegaConf.load(file))
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    axes = []
    for override in parse_overrides([f"{key}={values}" for key, values in params.items()]):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise BespokeError(
                f"{name} searches {override.key_or_group} in a range: run it with train.py -m."
            )
        values = (
            override.sweep_string_iterator()
            if override.is_sweep_override()
            else [override.get_value_element_as_str()]
        )
        axes.append([(override.get_key_element(), value) for value in values])
    methods = {}
    for choice in itertools.product(*axes):
        words = (
            word for _, value in choice for word in re.findall(r"[\w.+-]+(?![\w.+-]*:)", value)
        )
        methods["_".join([name, *words])] = (
            f"experiment={name}",
            *(f"{key}={value}" for key, value in choice),
        )
    return methods, list(config.get("cases") or [])


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides with Hydra's parser.

    Raises:
        BespokeError: an override is invalid.
    """
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise BespokeError(
            f"{'; '.join(overrides)} cannot be read as overrides: {one_sentence(error)}"
        ) from error


def ceiling(case: Case, method: str, overrides: Sequence[str], seed: int, out: Path) -> Cell:
    """Cell of the diagnosis `ceiling_METHOD`: training on the case's true stems.

    The run is the same, but target and background of its mixes are the true stems at independent
    offsets. The true rest is written to `rest.wav` in the case's folder in `out`, which must be an
    absolute path.
    """
    rest = out / FOLDER / case.name / "rest.wav"
    if not rest.is_file():
        song = Song.load(case.song)
        write_wav(rest, song.mixture - song.reference, song.sample_rate)
    stem = {"target": {"score": None, "audio": str(case.folder / "target.flac"), "patches": None}}
    return Cell(
        case,
        f"ceiling_{method}",
        (*overrides, "background=audio"),
        seed,
        {"song": stem, "background": {"paths": [str(rest)]}},
    )


def write_cells(cells: Iterable[Cell], out: Path) -> list[Cell]:
    """Write a config file for each unfinished cell and return these cells.

    Each file is an option of the config group `cell`. It sets the song, the seed and the folder,
    and resumes a run that was started.
    """
    group = out / "conf" / "cell"
    group.mkdir(parents=True, exist_ok=True)
    for stale in group.glob("*.yaml"):
        stale.unlink()
    pending = [cell for cell in cells if not (out / FOLDER / cell.place / "row.json").is_file()]
    for number, cell in enumerate(pending):
        folder = out / FOLDER / cell.place
        (folder / "error.json").unlink(missing_ok=True)
        choices, values = {}, OmegaConf.create()
        for override in parse_overrides(cell.overrides):
            name = override.key_or_group
            if override.is_sweep_override() or override.is_delete():
                raise BespokeError(
                    f"{override.input_line} of {cell.method}: "
                    "give one value; name each variant separately."
                )
            if (CONF / name).is_dir():
                choices[f"override /{name}"] = override.value()
            else:
                OmegaConf.update(values, name, override.value(), force_add=True)
        patches = OmegaConf.select(values, "song.target.patches")
        if isinstance(patches, str) and patches in cell.case.patches:
            values.song.target.patches = cell.case.patches[patches]
        config = {
            "defaults": [{name: choice} for name, choice in choices.items()],
            **as_dict(OmegaConf.merge({"song": cell.case.song}, values, cell.values)),
            "seed": cell.seed,
            "ckpt": "last" if (folder / "config.yaml").is_file() else None,
            "cell": {
                "case": cell.case.name,
                "source": cell.case.source,
                "method": cell.method,
                "parts": len(cell.case.parts),
                "channels": cell.case.channels,
            },
            "hydra": {"sweep": {"subdir": cell.place}},
        }
        with atomic_path(group / f"{number:05d}.yaml") as temporary:
            temporary.write_text("# @package _global_\n" + yaml.safe_dump(config, sort_keys=False))
    return pending


class RowWriter(Callback):
    """Hydra callback that writes the row of each finished cell, in any launcher's process.

    The process that runs the cells locks their folder, because it may outlive the benchmark that
    started it.
    """

    lock: FileLock | None = None

    def __init__(self, out: str):
        self.out = Path(out)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        RowWriter.lock = lock_folder(self.out / FOLDER)

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        if (folder / "metrics.json").is_file():
            write_json(folder / "row.json", cell_row(folder, as_dict(config.cell)))


def cell_row(folder: Path, labels: Mapping[str, Any]) -> dict[str, Any]:
    """Row of a finished run: its labels, all figures of its target stem, and its cost."""
    metrics = json.loads((folder / "metrics.json").read_text())
    config = (folder / "config.yaml").read_text()
    song = Song.load(yaml.safe_load(config)["song"])
    # hold_audio accepts a stem that is silent
    estimate, _ = hold_audio(
        replace(song.source, path=folder / "target.wav", first=0), song.sample_rate
    )
    assert song.reference is not None
    figures = evaluate_fully(estimate, song.mixture, song.reference, song.sample_rate)
    seconds = {f"seconds_{stage}": value for stage, value in metrics["seconds"].items()}
    versions = {
        f"version_{package}": metrics["versions"][package] for package in ("bespoke", "torch")
    }
    judged = {"agreement": metrics["agreement"]} if "agreement" in metrics else {}
    cost = {
        "steps": metrics["steps"],
        **seconds,
        "peak_memory_mb": metrics.get("peak_memory_mb"),
        "device": metrics["device"],
    }
    return {
        **labels,
        "seed": metrics["seed"],
        "config": hashlib.sha256(config.encode()).hexdigest()[:12],
        **figures,
        **judged,
        **cost,
        **versions,
    }


def other_rows(case: Case, baselines: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the oracles and baselines of a case.

    Baselines that use a score run with the true alignment (`NAME_aligned`), where it is known, and
    with Bespoke's own (`NAME_auto`); those that can use the other parts also with all parts, where
    these are known (`NAME_parts_auto`). Their seconds include Bespoke's alignment.
    """
    song = Song.load(case.song)
    assert song.target is not None
    assert song.reference is not None
    scores = _scores(case, song)
    estimates = {}
    for name, ideal in ORACLES.items():
        began = time.monotonic()
        estimate = ideal(song.mixture, song.reference, song.sample_rate)
        estimate = np.repeat(estimate, len(song.mixture), axis=0)
        estimates[name] = (estimate, {"seconds_total": time.monotonic() - began})
    for name in baselines:
        baseline = BASELINES[name](case.program)
        told = (
            {
                f"{name}_{label}": score
                for label, score in scores.items()
                if label != "parts_auto" or baseline.uses_others
            }
            if baseline.uses_score
            else {name: _Score((), (), 0.0)}
        )
        for label, score in told.items():
            began = time.monotonic()
            estimate = baseline.separate(
                song.mixture, song.sample_rate, score.notes, others=score.others
            )
            seconds = score.seconds + time.monotonic() - began
            estimates[label] = (estimate, {**score.facts, "seconds_total": seconds})
    agreement = Agreement(song.mixture, song.sample_rate, scores["auto"].notes)
    rows = []
    for label, (estimate, facts) in estimates.items():
        figures = evaluate_fully(estimate, song.mixture, song.reference, song.sample_rate)
        if label != "nmf_auto":  # against which agreement is measured
            figures["agreement"] = agreement(estimate)
        rows.append(
            {
                "case": case.name,
                "source": case.source,
                "method": label,
                "parts": len(case.parts),
                "channels": case.channels,
                "seed": 0,
                **figures,
                **facts,
            }
        )
    return rows


@dataclass(frozen=True)
class _Score:
    """The notes that a baseline is told, in seconds of the recording.

    Attributes:
        notes: the target's.
        others: those of each other part.
        seconds: what it took to align them.
        facts: the alignment's confidence and errors.
    """

    notes: tuple[Note, ...]
    others: tuple[tuple[Note, ...], ...]
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)


def _scores(case: Case, song: Song) -> dict[str, _Score]:
    """The scores of a case by label: `aligned`, `auto`, `parts_auto`."""
    assert song.target is not None
    target = song.target.part.notes
    truth = tuple(
        note
        for part in (read_score(case.true_score) if case.true_score else ())
        for note in part.notes
    )
    parts = [
        voice.part.notes
        for voice in song.others
        if not voice.part.is_drum and not doubles(voice.part.notes, target)
    ]
    scores = {"aligned": _Score(truth, (), 0.0)} if truth else {}
    for label, others in {"auto": [], "parts_auto": parts}.items():
        if others or label == "auto":
            began = time.monotonic()
            found = align(target, song.mixture, song.sample_rate, others=others)
            errors = onset_errors(found.notes, truth) if truth else {}
            scores[label] = _Score(
                found.notes,
                tuple(
                    notes
                    for notes, fit in zip(found.others, found.fits, strict=True)
                    if fit >= NO_FIT
                ),
                time.monotonic() - began,
                {
                    "align_confidence": found.confidence,
                    **{f"onset_{name}": value for name, value in errors.items()},
                },
            )
    return scores


def write_rows(out: Path) -> list[dict[str, Any]]:
    """Collect the rows of all finished cells in `rows.csv`, sorted by case, method and seed."""
    rows = [json.loads(file.read_text()) for file in sorted((out / FOLDER).rglob("row.json"))]
    for file in sorted((out / FOLDER).glob("*/others.json")):
        rows += json.loads(file.read_text())["rows"]
    rows.sort(key=lambda row: (row["case"], row["method"], row["seed"]))
    write_csv(out / "rows.csv", rows)
    return rows


def write_curves(out: Path) -> None:
    """Collect the quality curves of all finished cells in `curves.csv`."""
    curves = []
    for file in sorted((out / FOLDER).rglob("curve.csv")):
        if (file.parent / "row.json").is_file():
            row = json.loads((file.parent / "row.json").read_text())
            curves += [
                {**{label: row[label] for label in ("case", "method", "seed")}, **point}
                for point in read_csv(file)
            ]
    write_csv(out / "curves.csv", curves)


def trained(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the methods that are runs of train.py, without ceilings.

    All other methods give the same for every seed.
    """
    return sorted(
        {
            row["method"]
            for row in rows
            if row.get("steps") is not None and not row["method"].startswith("ceiling_")
        }
    )


def by_case(rows: Sequence[Mapping[str, Any]], method: str, figure: str) -> dict[str, float]:
    """A method's figure for each case, averaged over seeds."""
    return {
        case: float(np.mean(list(seeds.values())))
        for case, seeds in _by_seed(rows, method, figure).items()
    }


def _by_seed(
    rows: Sequence[Mapping[str, Any]], method: str, figure: str
) -> dict[str, dict[Any, float]]:
    """A method's figure for each case and seed."""
    found: dict[str, dict[Any, float]] = {}
    for row in rows:
        if row["method"] == method and row.get(figure) is not None:
            found.setdefault(row["case"], {})[row["seed"]] = row[figure]
    return found


def compare(
    rows: Sequence[Mapping[str, Any]], first: str, second: str, figure: str = "si_sdr"
) -> dict[str, Any]:
    """Paired difference of two methods over their common cases.

    If both methods are trained, only seeds that both have are compared.

    Returns:
        Mean and median over cases, intervals of the mean, the p-value of Wilcoxon's signed-rank
        test, and the number of cases in which the first method is better.

    Raises:
        BespokeError: the methods have no case in common.
    """
    one, other = _by_seed(rows, first, figure), _by_seed(rows, second, figure)
    runs = {row["method"] for row in rows if row.get("steps") is not None}
    means: tuple[dict[str, float], dict[str, float]] = {}, {}
    for case in one.keys() & other.keys():
        shared = (one[case].keys() & other[case].keys()) if {first, second} <= runs else None
        for mean, found in zip(means, (one, other), strict=True):
            kept = [
                value for seed, value in found[case].items() if shared is None or seed in shared
            ]
            if kept:
                mean[case] = float(np.mean(kept))
    difference = paired_difference(*means, cluster=source, test=True)
    if difference is None:
        raise BespokeError(f"{first} and {second} have no case in common.")
    return {"first": first, "second": second, **difference}


def comparisons(
    rows: Sequence[Mapping[str, Any]], methods: Sequence[str], baseline: str
) -> list[dict[str, Any]]:
    """`compare` each method with a baseline, best last.

    Methods that have no case in common with the baseline are left out.
    """
    found = []
    for method in methods:
        with contextlib.suppress(BespokeError):
            found += [compare(rows, method, baseline)] if method != baseline else []
    return sorted(found, key=lambda result: result["mean"])


def difference_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of results of `compare`."""
    lines = [
        "| method | against | cases | mean difference | median | interval over cases | over sources"
        " | better in | p (Wilcoxon) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        intervals = (_interval(result[name], "+.2f") for name in ("interval", "interval_by_source"))
        p_value = "" if result["p_wilcoxon"] is None else f"{result['p_wilcoxon']:.3f}"
        cells = [
            f"{result['mean']:+.2f}",
            f"{result['median']:+.2f}",
            *intervals,
            f"{result['better']} of {result['cases']}",
            p_value,
        ]
        lines.append(
            f"| {result['first']} | {result['second']} | {result['cases']} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _interval(bounds: tuple[float, float], form: str) -> str:
    return "" if np.isnan(bounds[0]) else f"{bounds[0]:{form}} to {bounds[1]:{form}}"


def losses(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where quality is lost, for each method with a ceiling.

    The loss from the oracle mask to the ceiling is the network's; the loss from the ceiling to the
    method is that of the training data.
    """
    methods = [
        method for method in trained(rows) if f"ceiling_{method}" in {row["method"] for row in rows}
    ]
    pairs = [
        pair
        for method in methods
        for pair in (("oracle_tpsa", f"ceiling_{method}"), (f"ceiling_{method}", method))
    ]
    return [result for pair in pairs for result in comparisons(rows, pair[:1], pair[1])]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of the methods, best last: means over cases, with seeds averaged first.

    Intervals are of the mean improvement.
    """
    lines = [
        "| method | cases | seeds | SI-SDR | improvement | median | interval over cases"
        " | over sources | gap closed | worse than the mixture |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, scores in _ranked(rows, "si_sdr"):
        gain, gap = (
            by_case(rows, method, figure) for figure in ("si_sdr_improvement", "gap_closed")
        )
        over_cases, over_sources = (bootstrap(gain, cluster=cluster) for cluster in (None, source))
        cells = [
            method,
            str(len(gain)),
            str(len({row["seed"] for row in rows if row["method"] == method})),
            f"{np.mean(list(scores.values())):.2f}",
            f"{np.mean(list(gain.values())):+.2f}",
            f"{np.median(list(gain.values())):+.2f}",
            _interval(over_cases, ".2f"),
            _interval(over_sources, ".2f"),
            f"{np.mean(list(gap.values())):.0%}" if gap else "",
            str(sum(value < 0 for value in gain.values())),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def case_table(rows: Sequence[Mapping[str, Any]], figure: str = "si_sdr") -> str:
    """Markdown table of a figure by case and method, averaged over seeds, sorted by mean."""
    scores = dict(_ranked(rows, figure))
    lines = [f"| case | {' | '.join(scores)} |", "| --- |" + " --- |" * len(scores)]
    for case in sorted({row["case"] for row in rows}):
        values = (found.get(case) for found in scores.values())
        cells = ("" if value is None else f"{value:.2f}" for value in values)
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ranked(rows: Sequence[Mapping[str, Any]], figure: str) -> list[tuple[str, dict[str, float]]]:
    """Figure by case of all methods that have it, sorted by mean."""
    scores = {
        method: by_case(rows, method, figure) for method in sorted({row["method"] for row in rows})
    }
    return sorted(
        ((name, found) for name, found in scores.items() if found),
        key=lambda item: np.mean(list(item[1].values())),
    )
