"""The main table: every method, by what it is told, and what one brings over another.

A regime is what a method is told besides the recording, and the cases for which it can be told. All
figures are means over songs, of a song's cases and seeds, and so are the intervals.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bespoke.evaluation.benchmark import Case, Cell, by_case
from bespoke.evaluation.split import DEVELOPMENT, TEST, by_song, half_of
from bespoke.evaluation.statistics import bootstrap

Rows = Sequence[Mapping[str, Any]]
RESAMPLES = 10000  # as many as `bootstrap` draws
_MOST_DB = 100


@dataclass(frozen=True)
class Method:
    """A run of the main table.

    Attributes:
        overrides: of train.py.
        suits: whether the method differs from the others on a case.
        values: further settings, of one case.
    """

    overrides: tuple[str, ...]
    suits: Callable[[Case], bool] = lambda case: True
    values: Callable[[Case], Mapping[str, Any]] = field(default=lambda case: {})


METHODS: dict[str, Method] = {
    "auto": Method(("recipe=auto",)),
    "auto_alone": Method(("recipe=auto", "song.others=null"), suits=lambda case: bool(case.parts)),
    "auto_given": Method(
        ("recipe=auto", "align=given", "song.others=null"),
        suits=lambda case: case.true_score is not None,
        values=lambda case: {"song": {"target": {"score": str(case.true_score)}}},
    ),
    "auto_one_mask": Method(
        ("recipe=auto", "separate.panning=false"), suits=lambda case: case.channels > 1
    ),
    "paper": Method(("recipe=paper", "background=mixture")),
    "paper_synth": Method(
        ("recipe=paper", "background=synth"), suits=lambda case: bool(case.parts)
    ),
}
"""The runs of the main table by name; the oracles and the baselines stand beside them."""
SLOW = ("paper", "paper_synth")  # minutes a case, where the others take seconds


@dataclass(frozen=True)
class Regime:
    """What methods are told.

    Attributes:
        name: in words.
        methods: its methods, which may be compared.
        pairs: methods, and those whose difference from them is of interest.
        holds: whether a row is of a case of this regime.
    """

    name: str
    methods: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    holds: Callable[[Mapping[str, Any]], bool] = lambda row: True


_BOUNDS = ("oracle_ratio", "oracle_tpsa")
REGIMES = (
    Regime(
        "target's MIDI alone",
        ("mixture", "hpss", "comb_auto", "nmf_auto", "paper", "auto_alone", *_BOUNDS),
        (
            ("auto_alone", "nmf_auto"),
            ("auto_alone", "paper"),
            ("nmf_auto", "comb_auto"),
            ("paper", "mixture"),
        ),
    ),
    Regime(
        "MIDI of all parts",
        (
            "mixture",
            "nmf_auto",
            "nmf_parts_auto",
            "paper_synth",
            "auto_alone",
            "auto",
            *_BOUNDS,
        ),
        (
            ("auto", "auto_alone"),
            ("nmf_parts_auto", "nmf_auto"),
            ("auto", "nmf_parts_auto"),
            ("auto", "paper_synth"),
            ("paper_synth", "mixture"),
        ),
        lambda row: bool(row.get("parts")),
    ),
    Regime(
        "true alignment (diagnosis)",
        ("comb_aligned", "nmf_aligned", "auto_given"),
        (
            ("auto_given", "auto_alone"),
            ("nmf_aligned", "nmf_auto"),
            ("auto_given", "nmf_aligned"),
        ),
    ),
    Regime(
        "stereo",
        ("mixture", "nmf_auto", "auto_one_mask", "auto", *_BOUNDS),
        (("auto", "auto_one_mask"), ("auto", "nmf_auto")),
        lambda row: (row.get("channels") or 1) > 1,
    ),
)


def cells(cases: Sequence[Case], seeds: Sequence[int], without: Sequence[str] = ()) -> list[Cell]:
    """The runs of the main table.

    Args:
        cases: of the benchmark.
        seeds: a run each.
        without: names of methods to leave out.
    """
    return [
        Cell(case, name, method.overrides, seed, method.values(case))
        for seed in seeds
        for name, method in METHODS.items()
        if name not in without
        for case in cases
        if method.suits(case)
    ]


def _rows(rows: Rows) -> list[Mapping[str, Any]]:
    """The rows, and those of `auto_alone` where `auto` is told no other parts, either.

    Where `auto_alone` was not run on the cases that have them, its mean would be of other cases.
    """
    auto = [row for row in rows if row["method"] == "auto"]
    alone = {row["case"] for row in rows if row["method"] == "auto_alone"}
    is_whole = {row["case"] for row in auto if row.get("parts")} <= alone
    same = [row for row in auto if row.get("parts") == 0] if is_whole else []
    return [*rows, *({**row, "method": "auto_alone"} for row in same)]


def regime_table(rows: Rows) -> str:
    """Markdown table of all methods in all regimes that have rows.

    The interval is the 95 % bootstrap interval of the improvement over songs. BSS Eval's figures
    are means over songs of medians over seconds.
    """
    lines = [
        "| told | method | cases | songs | SI-SDR | improvement | interval over songs | gap closed"
        " | SDR | SIR | SAR | seconds |",
        "| --- |" + " --- |" * 11,
    ]
    for regime in REGIMES:
        held = [row for row in _rows(rows) if regime.holds(row)]
        for method in regime.methods:
            scores = by_case(held, method, "si_sdr")
            if scores:
                gains = by_song(by_case(held, method, "si_sdr_improvement"))
                cells = [
                    regime.name,
                    method,
                    str(len(scores)),
                    str(len(gains)),
                    _mean(held, method, "si_sdr", ".2f"),
                    _mean(held, method, "si_sdr_improvement", "+.2f"),
                    _bounds(bootstrap(gains)),
                    _mean(held, method, "gap_closed", ".0%"),
                    *(
                        _mean(held, method, figure, ".2f")
                        for figure in ("bss_sdr", "bss_sir", "bss_sar")
                    ),
                    _mean(held, method, "seconds_total", ".1f", most=np.inf),
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pair_table(rows: Rows) -> str:
    """Markdown table of the paired differences in SI-SDR of each regime's pairs of methods."""
    lines = [
        "| told | method | less | songs | difference, dB | interval over songs | better in |",
        "| --- |" + " --- |" * 6,
    ]
    for regime in REGIMES:
        held = [row for row in _rows(rows) if regime.holds(row)]
        for first, second in regime.pairs:
            one, other = (by_case(held, method, "si_sdr") for method in (first, second))
            difference = by_song({case: one[case] - other[case] for case in one if case in other})
            if difference:
                values = list(difference.values())
                cells = [
                    regime.name,
                    first,
                    second,
                    str(len(values)),
                    f"{np.mean(values):+.2f}",
                    _bounds(bootstrap(difference)),
                    f"{sum(value > 0 for value in values)} of {len(values)}",
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def half_table(rows: Rows) -> str:
    """Markdown table of the methods on the songs that settings are chosen on, and on those that are
    kept for the test, the best there last.

    The halves are of other songs, so that a method without settings differs, too. Gap closed, which
    is relative to each song's oracle mask, differs least.
    """
    lines = [
        "| method | songs: development | test | improvement: development | test"
        " | gap closed: development | test | test less development | interval over songs |",
        "| --- |" + " --- |" * 8,
    ]
    rows, found = _rows(rows), []
    for method in {row["method"] for row in rows}:
        gains, gaps = (
            [_of_half(rows, method, figure, half) for half in (DEVELOPMENT, TEST)]
            for figure in ("si_sdr_improvement", "gap_closed")
        )
        if all(gains) and all(gaps):
            means = [np.mean(list(half.values())) for half in gaps]
            low, high = _unpaired(gaps[0], gaps[1])
            cells = [
                method,
                *(str(len(half)) for half in gains),
                *(f"{np.mean(list(half.values())):+.2f}" for half in gains),
                *(f"{mean:.0%}" for mean in means),
                f"{means[1] - means[0]:+.0%}",
                f"{low:+.0%} to {high:+.0%}",
            ]
            found.append((means[1], method, f"| {' | '.join(cells)} |"))
    return "\n".join([*lines, *(line for *_, line in sorted(found))])


def _of_half(rows: Rows, method: str, figure: str, half: str) -> dict[str, float]:
    """A figure by song of one half of the split."""
    found = by_case(rows, method, figure)
    return by_song({case: value for case, value in found.items() if half_of(case) == half})


def _unpaired(
    development: Mapping[str, float], test: Mapping[str, float], seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the difference of means of two groups of songs, test first."""
    rng = np.random.default_rng(seed)
    means = []
    for group in (development, test):
        values = np.array(list(group.values()))
        draws = rng.integers(len(values), size=(RESAMPLES, len(values)))
        means.append(values[draws].mean(axis=1))
    low, high = np.percentile(means[1] - means[0], [2.5, 97.5])
    return float(low), float(high)


def _mean(rows: Rows, method: str, figure: str, form: str, most: float = _MOST_DB) -> str:
    values = list(by_song(by_case(rows, method, figure)).values())
    if not values:
        return ""
    # The mixture has no artefacts: its SAR is a matter of rounding.
    return f"{np.mean(values):{form}}" if np.mean(values) < most else f"> {most}"


def _bounds(bounds: tuple[float, float]) -> str:
    return "" if np.isnan(bounds[0]) else f"{bounds[0]:+.2f} to {bounds[1]:+.2f}"
