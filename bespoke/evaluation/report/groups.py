"""Groups of runs that differ only by seed, or by seed and song: which settings are better?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bespoke.evaluation.report.runs import COLUMNS, Column, Run, is_setting, label, varying
from bespoke.evaluation.statistics import excludes_zero, paired_difference
from bespoke.utils.errors import BespokeError

OBJECTIVES = ("si_sdr_improvement", "agreement")  # what a comparison goes by: the first there is
SUMMARIZED = tuple(column for column in COLUMNS if column.best)


@dataclass
class Figure:
    """What a group has come to in one column.

    Attributes:
        values: by recording and seed.
        mean: over recordings, of the means over their seeds.
        spread: standard deviation over the seeds of a recording; None without several seeds.
        difference: from the baseline, over what both have, as of `paired_difference`.
    """

    values: dict[tuple, float]
    mean: float
    spread: float | None
    difference: dict[str, Any] | None = None


@dataclass
class Group:
    """Runs with the same settings.

    Attributes:
        settings: that differ between the groups.
        label: these in a few words.
        runs: that have a result.
        failed: the number of those that have none.
        figures: by the keys of SUMMARIZED, where there are values.
        is_baseline, baseline: whether it is one; else the group that it is compared with, if any.
        is_best: whether it is better than each other group, as far as the intervals go.
    """

    settings: dict[str, str]
    label: str
    runs: list[Run]
    failed: int
    figures: dict[str, Figure] = field(default_factory=dict)
    is_baseline: bool = False
    baseline: "Group | None" = None
    is_best: bool = False


@dataclass
class Block:
    """Groups to compare with one another, of one recording or over all of them.

    Attributes:
        title: the song, or how many.
        songs: the number of recordings.
        column: what they are compared by.
        groups: in the order of the runs.
    """

    title: str
    songs: int
    column: Column
    groups: list[Group]

    @property
    def is_repeated(self) -> bool:
        """Whether any group has several runs, without which nothing is known of chance."""
        return any(len(figure.values) > 1 for _, figure in self.ranked())

    def ranked(self) -> list[tuple[Group, Figure]]:
        """The groups that have the column's figure, best first."""
        found = [
            (group, group.figures[self.column.key])
            for group in self.groups
            if self.column.key in group.figures
        ]
        return sorted(found, key=lambda item: -self.column.best * item[1].mean)

    @property
    def best(self) -> Group | None:
        return next((group for group in self.groups if group.is_best), None)

    def answer(self) -> str:
        """What the comparison says, in a sentence or two."""
        ranked, unit = self.ranked(), self.column.unit
        if len(ranked) < 2:
            return "There is nothing to compare: one setting has results."
        (first, figure), (second, next_best) = ranked[:2]
        if not self.is_repeated:
            return (
                f"Run {first.runs[0].name} is highest ({first.label}:"
                f" {self.column.text(figure.mean, '+')} {unit}), from one run each: only more seeds"
                " (seed=0,1,2) tell it from chance."
            )
        if self.best:
            return f"{self.best.label} is better than every other."
        difference = paired(figure, next_best)
        ahead = "" if difference is None else f" by {interval_text(difference, self.column)} {unit}"
        return f"Not decided: {first.label} is ahead of {second.label}{ahead}; more seeds decide."


def compare_groups(runs: Sequence[Run], baseline: str = "") -> list[Block]:
    """Group runs and compare the groups: each recording's, and over all recordings.

    Args:
        runs: finished or not.
        baseline: settings of the groups that the others are compared with, such as `aug=none`, or
            several with commas. Empty: those of the first run.

    Returns:
        Over all recordings first, where there are several; none if no run has a figure to go by.

    Raises:
        BespokeError: no run has the baseline's settings.
    """
    chosen = _read_baseline(runs, baseline)
    finished = [run for run in runs if not run.error]
    objective = next(
        (
            column
            for key in OBJECTIVES
            for column in SUMMARIZED
            if column.key == key and any(run.figures[key] is not None for run in finished)
        ),
        None,
    )
    if objective is None:
        return []
    recordings = list(dict.fromkeys(run.recording for run in finished))
    failed = [run for run in runs if run.error]
    blocks = []
    if len(recordings) > 1:
        blocks.append(
            _block(f"over {len(recordings)} songs", objective, finished, failed, chosen, pool=True)
        )
    for recording in recordings:
        of_one = [run for run in finished if run.recording == recording]
        lost = [run for run in failed if run.recording[0] in ("", recording[0])]
        blocks.append(_block(of_one[0].song, objective, of_one, lost, chosen, pool=False))
    return blocks


def _read_baseline(runs: Sequence[Run], text: str) -> dict[str, str]:
    chosen = dict(part.strip().partition("=")[::2] for part in text.split(",") if part.strip())
    for key, value in chosen.items():
        known = list(dict.fromkeys(run.settings[key] for run in runs if run.settings.get(key)))
        if value not in known:
            choices = ", ".join(known) or f"there are only {', '.join(varying(runs)) or 'no'} keys"
            raise BespokeError(f"No run has the baseline {key}={value}: choose {choices}.")
    return chosen


def _block(
    title: str,
    column: Column,
    runs: Sequence[Run],
    failed: Sequence[Run],
    baseline: Mapping[str, str],
    pool: bool,
) -> Block:
    keys = [key for key in varying(runs) if not _is_of_song_or_seed(key, pool)]
    told = [key for key in (runs[0].settings if runs else ()) if not _is_of_song_or_seed(key, True)]
    leaves = _leaves(runs, pool)
    members: dict[tuple, list[Run]] = {}
    for run in runs:
        identity = tuple(run.settings.get(key, "") for key in told) if pool or not leaves else ()
        members.setdefault((*identity, *(run.config.get(key) for key in leaves)), []).append(run)
    groups = []
    for found in members.values():
        settings = {key: found[0].settings.get(key, "") for key in keys}
        lost = [
            run for run in failed if all(run.settings.get(key) == settings[key] for key in keys)
        ]
        groups.append(Group(settings, label(settings, keys), found, len(lost)))
    _tell_apart(groups, leaves)
    for group in groups:
        for each in SUMMARIZED:
            values = _values(group.runs, each.key)
            if values:
                group.figures[each.key] = Figure(values, *_mean_and_spread(values))
    for group in groups:
        other = _baseline_of(group, groups, baseline)
        group.is_baseline = other is group
        group.baseline = None if group.is_baseline else other
        against = group.baseline.figures if group.baseline else {}
        for key in group.figures.keys() & against.keys():
            group.figures[key].difference = paired(group.figures[key], against[key])
    block = Block(title, len({run.recording for run in runs}), column, groups)
    _find_best(block)
    return block


def _baseline_of(group: Group, groups: Sequence[Group], chosen: Mapping[str, str]) -> Group | None:
    """The group with the baseline's settings, and this one's where it names none."""
    if not chosen:
        return groups[0]
    wanted = {**group.settings, **chosen}
    return next(
        (
            other
            for other in groups
            if all(value == wanted[key] for key, value in other.settings.items())
        ),
        None,
    )


def paired(first: Figure, second: Figure) -> dict[str, Any] | None:
    """By how much the first is higher, over the recordings and seeds that both have."""
    return paired_difference(first.values, second.values, cluster=lambda pair: pair[0], widen=True)


def _is_of_song_or_seed(key: str, pool: bool) -> bool:
    return key == "seed" or (key.split(".")[0] == "song" and (pool or key == "song"))


def _leaves(runs: Sequence[Run], pool: bool) -> list[str]:
    """Settings of the whole config that make runs different.

    Over several recordings those are left out that belong to the recording: the same in all of its
    runs.
    """
    keys = dict.fromkeys(
        key for run in runs for key in run.config if is_setting(key) and key != "seed"
    )
    places: dict[Any, list[Run]] = {}
    for run in runs:
        places.setdefault(run.recording if pool else None, []).append(run)
    return [
        key
        for key in keys
        if any(len({run.config.get(key) for run in found}) > 1 for found in places.values())
    ]


def _tell_apart(groups: Sequence[Group], leaves: Sequence[str]) -> None:
    """Add to equal labels what else differs, such as a policy that was changed between sweeps."""
    for group in groups:
        same = [other for other in groups if other.label == group.label]
        if len(same) > 1:
            keys = [
                key for key in leaves if len({other.runs[0].config.get(key) for other in same}) > 1
            ][:2]
            texts = [f"{other.label} {label(other.runs[0].config, keys)}".strip() for other in same]
            for number, (other, text) in enumerate(zip(same, texts, strict=True), 1):
                other.label = text if texts.count(text) == 1 else f"{text} ({number})"
        group.label = group.label or "all runs"


def _values(runs: Sequence[Run], key: str) -> dict[tuple, float]:
    """A figure by recording and seed; of what was run twice, the mean."""
    found: dict[tuple, list[float]] = {}
    for run in runs:
        value = run.figures[key]
        if value is not None and math.isfinite(value):
            found.setdefault((run.recording, run.seed), []).append(value)
    return {pair: float(np.mean(values)) for pair, values in found.items()}


def _mean_and_spread(values: Mapping[tuple, float]) -> tuple[float, float | None]:
    places: dict[tuple, list[float]] = {}
    for (recording, _), value in values.items():
        places.setdefault(recording, []).append(value)
    mean = float(np.mean([np.mean(found) for found in places.values()]))
    free = len(values) - len(places)
    square = sum(float(np.var(found)) * len(found) for found in places.values())
    return mean, math.sqrt(square / free) if free else None


def _find_best(block: Block) -> None:
    """Star the best group if it is better than each other one by an interval above 0."""
    ranked = block.ranked()
    if len(ranked) < 2:
        return
    (best, figure), *others = ranked
    differences = [paired(figure, other) for _, other in others]
    best.is_best = all(
        difference is not None and block.column.best * difference["interval"][0] > 0
        for difference in differences
    )


def verdict(group: Group, column: Column) -> str:
    """How a group does against its baseline, in a word or two."""
    if group.is_baseline:
        return "baseline"
    if group.baseline is None:
        return "no baseline"
    difference = group.figures[column.key].difference if column.key in group.figures else None
    if difference is None:
        return "no seed in common"
    if math.isnan(difference["interval"][0]):
        return "one pair"
    if not excludes_zero(difference["interval"]):
        return "not decided"
    return "better" if column.best * difference["mean"] > 0 else "worse"


def interval_text(difference: Mapping[str, Any], column: Column, of: str = "interval") -> str:
    """A difference with its interval, as `+0.20 (-0.10 to +0.50)`."""
    low, high = (column.text(bound, "+") for bound in difference[of])
    mean = column.text(difference["mean"], "+")
    return mean if math.isnan(difference[of][0]) else f"{mean} ({low} to {high})"


def group_rows(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """One row per group, for CSV and other tables."""
    rows = []
    for block in blocks:
        for group in block.groups:
            row: dict[str, Any] = {"song": block.title, "group": group.label, **group.settings}
            figure = group.figures.get(block.column.key)
            row |= {
                "n": len(figure.values) if figure else 0,
                "failed": group.failed,
                "best": group.is_best,
                "baseline": group.baseline.label if group.baseline else "",
                "verdict": verdict(group, block.column),
            }
            for key, found in group.figures.items():
                row |= {key: found.mean, f"{key}_spread": found.spread}
                if found.difference:
                    over_songs = found.difference["interval_by_source"]
                    ends = zip(("low", "high"), found.difference["interval"], strict=True)
                    row |= {
                        f"{key}_pairs": found.difference["cases"],
                        f"{key}_difference": found.difference["mean"],
                        **{f"{key}_difference_{end}": _known(value) for end, value in ends},
                        f"{key}_difference_low_over_songs": _known(over_songs[0]),
                        f"{key}_difference_high_over_songs": _known(over_songs[1]),
                    }
            rows.append(row)
    return rows


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def group_table(blocks: Sequence[Block]) -> str:
    """The groups as text: a table for each recording and over all, and what it says."""
    lines = []
    for block in blocks:
        if len(block.ranked()) < 2 and not block.is_repeated:
            continue
        column = block.column
        heading = [block.title, "n", column.heading, "spread", "difference (95 %)", ""]
        cells = [[*heading, "over songs"] if block.songs > 1 else heading]
        ranked = [group for group, _ in block.ranked()]
        for group in [*ranked, *(group for group in block.groups if group not in ranked)]:
            figure = group.figures.get(column.key)
            name = f"{group.label} ★" if group.is_best else group.label
            count = str(len(figure.values) if figure else 0)
            count += f" ({group.failed} failed)" if group.failed else ""
            mean = column.text(figure.mean) if figure else ""
            spread = column.text(figure.spread) if figure else ""
            difference = figure.difference if figure else None
            text = interval_text(difference, column) if difference else ""
            over_songs = (
                interval_text(difference, column, "interval_by_source") if difference else ""
            )
            cells.append(
                [name, count, mean, spread, text, verdict(group, column)]
                + ([over_songs.partition(" ")[2]] if block.songs > 1 else [])
            )
        # Of groups of one run each the table of runs has all there is.
        lines += ["", *(aligned(cells) if block.is_repeated else [block.title]), block.answer()]
    return "\n".join(lines)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, with its columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
