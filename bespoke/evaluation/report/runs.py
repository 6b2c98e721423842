"""The runs of a sweep, or of any folders: what was set, what came out, and what to call them."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from bespoke.evaluation.metrics import gap_closed
from bespoke.utils.files import read_json
from bespoke.utils.moved import as_now

# Overrides that say where and how a run was made, not what was made.
BOOKKEEPING = ("ckpt", "cell", "report", "threads", "log_audio_steps", "checkpoint_steps")
_BOOKKEEPING_GROUPS = ("hydra", "logger", "callbacks")
MAX_LABEL = 48  # characters of the settings in a run's label


@dataclass(frozen=True)
class Column:
    """A figure of a run.

    `best` is +1 if higher values are better, -1 if lower ones are, and 0 if neither.
    """

    key: str
    name: str
    unit: str
    best: int
    decimals: int = 2

    @property
    def heading(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def text(self, value: float | None, sign: str = "") -> str:
        """A value with its decimals, and never as minus 0."""
        return (
            "" if value is None else f"{round(value, self.decimals) + 0.0:{sign},.{self.decimals}f}"
        )


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
    """A run, finished or not.

    Attributes:
        name: its path below the folder that all runs have in common.
        folder: of its files.
        settings: what any of the runs was told, by key, with the value in force in this one.
        config: its whole config, flat, as text. Empty if the run did not come so far.
        figures: by the keys of COLUMNS; None where there is none.
        error: why it ended without a result, or empty.
        song: what to call its recording.
        recording: what the recording is known by.
        seed: of the run, None if unknown.
        warnings: that it gave.
        label: the settings in which it differs from the others.
    """

    name: str
    folder: Path
    settings: dict[str, str]
    config: dict[str, str]
    figures: dict[str, float | None]
    error: str
    song: str
    recording: tuple
    seed: Any
    warnings: list[str]
    label: str = ""
    overrides: dict[str, str] = field(default_factory=dict)


def find_runs(place: Path) -> list[Path]:
    """Folders of all runs in a folder, finished or not, sorted by number.

    The folder may itself be a run's.
    """
    found = {
        file.parent
        for name in ("config.yaml", "metrics.json", "error.json", "job.json")
        for file in place.rglob(name)
    }
    # W&B's folder has a config.yaml of its own for each of its runs.
    runs = [run for run in found if "wandb" not in run.relative_to(place).parts[:-1]]
    return sorted(runs, key=lambda folder: (len(folder.relative_to(place).name), folder))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, each once. Only the files in their folders are needed."""
    folders = list(dict.fromkeys(folders))
    found = [_read(folder, name) for folder, name in zip(folders, names(folders), strict=True)]
    runs, choices = [run for run, _ in found], [chosen for _, chosen in found]
    _fill_in(runs, choices)
    _name_songs(runs)
    keys = varying(runs)
    labels = [label(run.settings, keys) for run in runs]
    counts = Counter(labels)
    for run, text in zip(runs, labels, strict=True):
        is_enough = text and counts[text] == 1
        run.label = text if is_enough else f"{text} (run {run.name})" if text else run.name
        if len(text) > MAX_LABEL:
            run.label = f"run {run.name}"  # the table has its settings
    return runs


def names(folders: Sequence[Path]) -> list[str]:
    """Name each run by its path below the common parent folder."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(common).as_posix() for path in paths]


def _read(folder: Path, name: str) -> tuple[Run, dict[str, str]]:
    """A run, whose settings are those that it was given itself, and its choice of each group."""
    metrics, error, job = (
        read_json(folder / file) for file in ("metrics.json", "error.json", "job.json")
    )
    overrides = dict(
        override.lstrip("+~").partition("=")[::2]
        for override in (metrics or error or job).get("overrides", [])
    )
    path = folder / "config.yaml"
    whole = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    config = dict(flat(as_now(whole or {})))
    figures = {column.key: metrics.get(column.key) for column in COLUMNS}
    figures["seconds"] = metrics.get("seconds", {}).get("total")
    figures["confidence"] = metrics.get("alignment", {}).get("confidence")
    gap = gap_closed(*(metrics.get(key) for key in ("si_sdr", "si_sdr_mixture", "si_sdr_oracle")))
    figures["gap_closed"] = None if gap is None else 100 * gap
    reason = "" if metrics else error.get("error", "not finished")
    if not reason and not (folder / "target.wav").is_file():
        reason = "its target.wav is missing"
    song = metrics.get("song") or config.get("song.name") or overrides.get("song") or ""
    recording = (song, metrics.get("hashes", {}).get("mixture"), metrics.get("song_seconds"))
    seed = metrics.get("seed", config.get("seed", overrides.get("seed")))
    run = Run(
        name,
        folder,
        {},
        config,
        figures,
        reason,
        song,
        recording,
        seed,
        metrics.get("warnings", []),
        overrides={key: _plain(value) for key, value in overrides.items() if is_setting(key)},
    )
    if "cell.case" in config:  # a run of the benchmark, whose overrides are in its cell
        told = {key: config[f"cell.{key}"] for key in ("case", "method")} | {"seed": str(seed)}
        return replace(run, overrides=told), {}
    chosen = metrics.get("choices") or job.get("choices") or {}
    return run, {key: str(choice) for key, choice in chosen.items() if is_setting(key)}


def is_setting(key: str) -> bool:
    """Whether an override, or a setting, tells what is made rather than where and how.

    >>> [is_setting(key) for key in ("aug", "ckpt", "hydra.sweep.dir", "logger.project")]
    [True, False, False, False]
    """
    group = key.split("/")[0].split(".")[0]
    return key not in BOOKKEEPING and group not in _BOOKKEEPING_GROUPS


def _fill_in(runs: Sequence[Run], choices: Sequence[Mapping[str, str]]) -> None:
    """Give every run the value in force of each setting that any of them was told."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    groups = dict.fromkeys(key for chosen in choices for key in chosen)
    differing = [key for key in groups if len({chosen.get(key) for chosen in choices}) > 1]
    known = {  # what runs of former versions do not say, others may
        (key, _section(run, key)): chosen[key]
        for run, chosen in zip(runs, choices, strict=True)
        for key in chosen
    }
    for run, chosen in zip(runs, choices, strict=True):
        for key in dict.fromkeys([*keys, *differing]):
            told = run.overrides.get(key) or known.get((key, _section(run, key)), "")
            run.settings[key] = chosen.get(key) or run.config.get(key) or told


def _section(run: Run, group: str) -> tuple | None:
    return tuple(item for item in run.config.items() if item[0].startswith(f"{group}.")) or None


def _name_songs(runs: Sequence[Run]) -> None:
    """Tell recordings of one name apart: by the file, else by the length."""
    recordings: dict[str, list[tuple]] = {}
    for run in runs:
        if run.recording[1] and run.recording not in recordings.setdefault(run.song, []):
            recordings[run.song].append(run.recording)
    for run in runs:
        if len(recordings.get(run.song, [])) > 1 and run.recording[1]:
            same = [known for known in recordings[run.song] if known[1] == run.recording[1]]
            file = Path(run.config.get("song.mixture", "")).stem or run.recording[1][:6]
            length = f", {run.recording[2]:.1f} s" if len(same) > 1 else ""
            run.song = f"{run.song} ({file}{length})"
    if any(run.song for run in runs) and len({run.recording for run in runs}) > 1:
        for run in runs:
            if run.song:
                run.settings["song"] = run.song


def varying(runs: Sequence[Run]) -> list[str]:
    """Keys of the settings in which the runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({run.settings.get(key, "") for run in runs}) > 1]


def constant(runs: Sequence[Run]) -> dict[str, str]:
    """The settings that are the same in all runs."""
    differing = set(varying(runs))
    return {key: value for key, value in runs[0].settings.items() if key not in differing}


def label(settings: Mapping[str, str], keys: Sequence[str]) -> str:
    """Settings in a few words, such as `aug=heavy eq.p=0.5`. A song is named without its key.

    >>> label({"aug": "heavy", "aug.target.eq.p": "0.123456", "seed": "1"}, ["aug.target.eq.p"])
    'eq.p=0.1235'
    """
    short = short_names(keys)
    return " ".join(
        ("" if key == "song" else f"{short[key]}=") + rounded(settings.get(key, "")) for key in keys
    )


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each key, with as many parts before it as it takes to tell it.

    >>> list(short_names(["aug.target.eq.p", "aug.target_gain_db.0", "seed"]).values())
    ['eq.p', 'target_gain_db.0', 'seed']
    """
    keys = list(keys)
    found = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            is_vague = parts[-count] in ("p", "name") or parts[-count].isdecimal()
            if not is_vague and not any(
                other != key and f".{other}".endswith(f".{name}") for other in keys
            ):
                break
        found[key] = name
    return found


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """The values of a nested config by their dotted keys, as text."""
    if isinstance(value, Mapping):
        return [
            leaf
            for key, item in value.items()
            for leaf in flat(item, f"{name}.{key}" if name else str(key))
        ]
    return [(name, str(value))]


def differing_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Settings that differ between the runs' full configs, with the value of each run."""
    known = [run.config for run in runs if run.config]
    keys = dict.fromkeys(key for config in known for key in config)
    return {
        key: [run.config.get(key, "") for run in runs]
        for key in keys
        if len({config.get(key) for config in known}) > 1
    }


def _plain(text: str) -> str:
    """An override's value as a config has it: `[4,12]` and `[4, 12]` are the same."""
    try:
        return str(yaml.safe_load(text))
    except yaml.YAMLError:
        return text


def rounded(text: str) -> str:
    """A number in at most four digits; any other text as it is."""
    try:
        return f"{float(text):.4g}" if "." in text or "e" in text else text
    except ValueError:
        return text
