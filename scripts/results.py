"""Update the tables and figures of docs/RESULTS.md from the committed rows.

    python scripts/results.py

A set of results is a folder: docs/results for the methods, docs/results/NAME for a study. It
consists of all CSV files of the folder, as scripts/benchmark.py writes them: files whose names end
in `curves` are curves, the others rows. Oracles and baselines may be in several files, a trained
run in only one.

A table is between `<!-- TABLE SET -->` and `<!-- end -->` in the page. SET is a study's name or
`.`; TABLE is one of TABLES below: methods (those run on all cases), cases, steps, ..., or
`differences SET BASELINE`. A number after these evaluates the runs at that step. The text of the
page is written by hand. Figures without data are left out.
"""

import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot
from scipy.stats import spearmanr

from bespoke.evaluation import benchmark, regimes
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import read_csv

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "RESULTS.md"
STEPS = (10, 20, 25, 50, 100, 200, 300, 500, 1000, 2000)
Rows = Sequence[Mapping[str, Any]]


def main(results: Path = RESULTS, page: Path = PAGE) -> int:
    """Write the figures next to the rows, and the tables of the page.

    Returns:
        The exit code: 0, or 2 if a run is in two files.
    """
    matplotlib.use("Agg")
    try:
        sets = {
            name: read_set(results / name)
            for name in [".", *(folder.name for folder in sorted(results.glob("*/")))]
        }
    except BespokeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def table(found: re.Match) -> str:
        name, *arguments = found[2].split()
        chosen, *rest = arguments or ["."]
        rows, curves = sets.get(chosen, ([], []))
        picture = results / chosen / f"{name}.png"
        if rest and rest[-1].isdecimal():
            picture = results / chosen / f"{name}_{rest[-1]}.png"
            rows = at_step(rows, curves, int(rest.pop()))
        text = TABLES[name](rows, curves, *rest)
        if name == "differences":
            draw_differences(_differences(rows, *rest), picture)
        elif name == "losses":
            draw_losses(rows, picture)
        text = text if len(text.splitlines()) > 2 else "Not measured yet."
        return f"{found[1]}\n{text}\n\n{found[3]}"

    text = page.read_text(encoding="utf-8")
    page.write_text(
        re.sub(
            rf"(<!-- ((?:{'|'.join(TABLES)})[^>]*?) -->\n).*?(<!-- end -->)",
            table,
            text,
            flags=re.S,
        ),
        encoding="utf-8",
    )
    for name, (rows, curves) in sets.items():
        if name == ".":
            draw_cases(rows, results / "cases.png")
            draw_steps(rows, curves, results / "curves.png")
        draw_means(rows, curves, "step", results / name / "steps.png")
        draw_means(rows, curves, "seconds", results / name / "seconds.png")
    return 0


def read_set(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and curves of all CSV files of a folder.

    Raises:
        BespokeError: a trained run is in two files.
    """
    found: tuple[dict, dict] = {}, {}
    for file in sorted(folder.glob("*.csv")):
        kept = found[file.stem.endswith("curves")]
        for row in read_csv(file):
            cell = tuple(row.get(label) for label in ("case", "method", "seed", "step"))
            first, _ = kept.setdefault(cell, (file, row))
            if first != file and (row.get("steps") or row.get("step")):
                raise BespokeError(
                    f"{row['method']} on {row['case']} is in both {first} and {file}: remove one."
                )
    rows, curves = ([row for _, row in kept.values()] for kept in found)
    return rows, curves


def at_step(rows: Rows, curves: Rows, step: int) -> list[dict[str, Any]]:
    """Rows with the trained runs evaluated at a step of their curves.

    Trained runs without a curve are left out.
    """
    bounds = _bounds(rows)
    found: list[dict[str, Any]] = [dict(row) for row in rows if row.get("steps") is None]
    for point in curves:
        if point["step"] == step and point["case"] in bounds and point["si_sdr"] is not None:
            gain, room = (
                edge - bounds[point["case"]][0]
                for edge in (point["si_sdr"], bounds[point["case"]][1])
            )
            found.append(
                {**point, "steps": step, "si_sdr_improvement": gain, "gap_closed": gain / room}
            )
    return found


def _on_all_cases(rows: Rows) -> list[Mapping[str, Any]]:
    """Rows of the methods that were run on all cases: means over other cases do not compare."""
    cases: dict[str, set[str]] = {}
    for row in rows:
        cases.setdefault(row["method"], set()).add(row["case"])
    most = max(map(len, cases.values()), default=0)
    return [row for row in rows if len(cases[row["method"]]) == most]


def _differences(rows: Rows, baseline: str) -> list[dict[str, Any]]:
    return benchmark.comparisons(rows, benchmark.trained(rows), baseline)


def _steps(rows: Rows, curves: Rows) -> str:
    """Mean gap closed after a number of steps, over the cases trained that long, and the best."""
    gaps = _gap_curves(rows, curves, "step")
    columns = [
        step
        for step in STEPS
        if any(step in steps for found in gaps.values() for steps, _ in found.values())
    ]
    lines = [
        f"| method | cases | {' | '.join(map(str, columns))} | at each case's best step "
        "| which is, by case |"
    ]
    lines.append("| --- |" + " --- |" * (len(columns) + 3))
    for method, found in gaps.items():
        means = []
        for step in columns:
            values = [
                gap[list(steps).index(step)] for steps, gap in found.values() if step in steps
            ]
            means.append(f"{np.mean(values):.0%}" if len(values) == len(found) else "")
        best = sorted(int(steps[np.argmax(gap)]) for steps, gap in found.values())
        peak = np.mean([gap.max() for _, gap in found.values()])
        lines.append(
            f"| {method} | {len(found)} | {' | '.join(means)} | {peak:.0%} "
            f"| {', '.join(map(str, best))} |"
        )
    return "\n".join(lines)


def _alignment(rows: Rows, _: Rows) -> str:
    """Errors of the automatic alignment, by case."""
    lines = [
        "| case | confidence | median onset error, ms | 90 % within, ms | within 50 ms "
        "| within 100 ms |",
        "| --- |" + " --- |" * 5,
    ]
    for row in rows:
        if row["method"] == "nmf_auto":
            errors = (
                f"{1000 * row['onset_median_seconds']:.0f} | {1000 * row['onset_p90_seconds']:.0f}"
            )
            shares = f"{row['onset_within_50_ms']:.0%} | {row['onset_within_100_ms']:.0%}"
            lines.append(f"| {row['case']} | {row['align_confidence']:.2f} | {errors} | {shares} |")
    return "\n".join(lines)


def _agreement(rows: Rows, curves: Rows) -> str:
    """Rank correlation of agreement and SI-SDR.

    It is computed over methods or runs of one song, over steps of one run, and over songs.
    """
    runs = benchmark.trained(rows)
    judged = [row for row in rows if row.get("agreement") is not None and row["si_sdr"] is not None]
    methods = sorted(
        {
            row["method"]
            for row in judged
            if not row["method"].startswith("oracle_") and not row["method"].endswith("_aligned")
        }
    )
    means = {
        name: [benchmark.by_case(judged, name, figure) for figure in ("agreement", "si_sdr")]
        for name in methods
    }
    groups: dict[str, dict[Any, list]] = {}
    if set(methods) <= set(runs):
        kind, points = (
            "runs on one song",
            [(row["case"], row["agreement"], row["si_sdr"]) for row in judged],
        )
    else:
        kind, points = (
            "methods on one song",
            [(case, said[case], true[case]) for said, true in means.values() for case in said],
        )
    for case, *pair in points:
        groups.setdefault(kind, {}).setdefault(case, []).append(pair)
    for row in curves:
        if row.get("agreement") is not None and row["si_sdr"] is not None:
            run = groups.setdefault("steps of one run", {}).setdefault(
                (row["case"], row["method"], row["seed"]), []
            )
            run.append((row["agreement"], row["si_sdr"]))
    for name in methods:
        if name in runs and kind == "methods on one song":
            said, true = means[name]
            groups[f"songs, by {name}"] = {name: [(said[case], true[case]) for case in said]}
    lines = [
        "| ranked | how often | of how many on the mean | mean rank correlation | lowest |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, found in groups.items():
        pairs = [
            pair
            for pair in found.values()
            if len(pair) >= 4 and all(len(set(values)) > 1 for values in zip(*pair, strict=True))
        ]
        if pairs:
            correlations = [spearmanr(*zip(*pair, strict=True)).statistic for pair in pairs]
            size = np.mean([len(pair) for pair in pairs])
            lines.append(
                f"| {kind} | {len(pairs)} | {size:.0f} | {np.mean(correlations):.2f} "
                f"| {min(correlations):.2f} |"
            )
    return "\n".join(lines)


def _kept(_: Rows, curves: Rows) -> str:
    """SI-SDR of the last step, of the step of highest agreement, and of the best step.

    Only the reference tells which step is best. Only evaluated steps count.
    """
    runs: dict[str, dict[tuple, list]] = {}
    for row in curves:
        if row.get("agreement") is not None and row["si_sdr"] is not None:
            runs.setdefault(row["method"], {}).setdefault((row["case"], row["seed"]), []).append(
                row
            )
    lines = [
        "| method | cases | seeds | steps | last | kept | best | kept less last "
        "| interval over cases | better in |",
        "| --- |" + " --- |" * 9,
    ]
    for method, found in runs.items():
        choices = {
            "last": lambda row: row["step"],
            "kept": lambda row: row["agreement"],
            "best": lambda row: row["si_sdr"],
        }
        rows = [
            {
                "case": case,
                "method": name,
                "seed": seed,
                "si_sdr": max(points, key=choice)["si_sdr"],
                "steps": 1,
            }
            for (case, seed), points in found.items()
            for name, choice in choices.items()
        ]
        means = [
            f"{np.mean(list(benchmark.by_case(rows, name, 'si_sdr').values())):.2f}"
            for name in choices
        ]
        difference = benchmark.compare(rows, "kept", "last")
        low, high = difference["interval"]
        steps = sorted({int(row["step"]) for points in found.values() for row in points})
        cells = [
            method,
            difference["cases"],
            len({seed for _, seed in found}),
            f"{steps[0]} to {steps[-1]}",
            *means,
            f"{difference['mean']:+.2f}",
        ]
        cells += [f"{low:+.2f} to {high:+.2f}", f"{difference['better']} of {difference['cases']}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _chosen(rows: Rows, _: Rows) -> str:
    """SI-SDR of the best of several methods, by how it is chosen.

    It is chosen for all songs, or for each song by agreement or by the reference.
    """
    runs = set(benchmark.trained(rows))
    judged = _on_all_cases(
        [row for row in rows if row["method"] in runs and row.get("agreement") is not None]
    )
    if not judged:
        return ""
    single = max(
        {row["method"] for row in judged},
        key=lambda name: np.mean(list(benchmark.by_case(judged, name, "si_sdr").values())),
    )
    songs: dict[tuple, list] = {}
    for row in judged:
        songs.setdefault((row["case"], row["seed"]), []).append(row)
    found = [{**row, "method": "single"} for row in judged if row["method"] == single]
    for name, figure in (("agreement", "agreement"), ("reference", "si_sdr")):
        found += [
            {**max(candidates, key=lambda row: row[figure]), "method": name}
            for candidates in songs.values()
        ]
    lines = [
        "| chosen | cases | SI-SDR | less the first, over cases | over sources | better in |",
        "| --- |" + " --- |" * 5,
    ]
    for name, words in (
        ("single", f"{single} for all"),
        ("agreement", "by agreement, for each"),
        ("reference", "by the reference, for each"),
    ):
        scores = benchmark.by_case(found, name, "si_sdr")
        cells = [words, str(len(scores)), f"{np.mean(list(scores.values())):.2f}"]
        if name != "single":
            difference = benchmark.compare(found, name, "single")
            over_cases, over_sources = (
                f"{low:+.2f} to {high:+.2f}"
                for low, high in (difference["interval"], difference["interval_by_source"])
            )
            cells += [
                f"{difference['mean']:+.2f} ({over_cases})",
                over_sources,
                f"{difference['better']} of {difference['cases']}",
            ]
        lines.append(f"| {' | '.join(cells + [''] * (6 - len(cells)))} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[..., str]] = {
    "methods": lambda rows, _: benchmark.table(_on_all_cases(rows)),
    "cases": lambda rows, _: benchmark.case_table(rows),
    "regimes": lambda rows, _: regimes.regime_table(rows),
    "pairs": lambda rows, _: regimes.pair_table(rows),
    "halves": lambda rows, _: regimes.half_table(_on_all_cases(rows)),
    "steps": _steps,
    "alignment": _alignment,
    "agreement": _agreement,
    "kept": _kept,
    "chosen": _chosen,
    "losses": lambda rows, _: benchmark.difference_table(benchmark.losses(rows)),
    "differences": lambda rows, _, baseline: benchmark.difference_table(
        _differences(rows, baseline)
    ),
}


def draw_cases(rows: Rows, path: Path) -> None:
    """Plot SI-SDR of every method by case, with the cases sorted by the oracle's."""
    methods = {row["method"] for row in rows} - {"oracle_ratio"}
    scores = {
        method: benchmark.by_case(rows, method, "si_sdr")
        for method in sorted(methods)
        if not method.startswith("ceiling_")
    }
    cases = sorted(_bounds(rows), key=lambda case: _bounds(rows)[case][1])
    if not cases:
        return
    figure, axis = pyplot.subplots(figsize=(9, 5), layout="constrained")
    markers = dict(zip(scores, itertools.cycle("ovs^Dxp*P<>"), strict=False))
    for method in sorted(scores, key=lambda name: -np.mean(list(scores[name].values() or [0]))):
        found = [case for case in cases if case in scores[method]]
        axis.plot(
            [scores[method][case] for case in found],
            [cases.index(case) for case in found],
            markers[method],
            label=method,
            alpha=0.8,
        )
    axis.set(yticks=range(len(cases)), yticklabels=cases, xlabel="SI-SDR, dB")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left", fontsize="small")
    _save(figure, path)


def draw_steps(rows: Rows, curves: Rows, path: Path) -> None:
    """Plot gap closed against training steps: one panel per method, one line per case.

    0 is the mixture, 1 the oracle mask.
    """
    gaps = _gap_curves(rows, curves, "step")
    if not gaps:
        return
    height = -(-len(gaps) // 2)
    figure, axes = pyplot.subplots(
        height,
        min(len(gaps), 2),
        figsize=(10, 4.5 * height),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    cases = sorted({case for found in gaps.values() for case in found})
    styles = {
        case: (f"C{number % 10}", ("-", "--")[number // 10 % 2])
        for number, case in enumerate(cases)
    }  # there are ten colours
    for axis in axes.flat[len(gaps) :]:
        axis.remove()
    for axis, (method, found) in zip(axes.flat, gaps.items(), strict=False):
        for case, (steps, values) in found.items():
            axis.plot(
                steps,
                values,
                label=case,
                linewidth=1.2,
                color=styles[case][0],
                linestyle=styles[case][1],
            )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=method, xlabel="training steps", ylim=(-2, 1))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("gap closed (0: mixture, 1: oracle mask)")
    legend = {
        text: line
        for axis in figure.axes
        for line, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(legend.values(), legend, loc="outside right upper", fontsize="x-small")
    _save(figure, path)


def draw_means(rows: Rows, curves: Rows, axis: str, path: Path) -> None:
    """Plot mean gap closed against steps or seconds of training, one line per method.

    A line ends where the shortest curve of the method's cases ends.
    """
    gaps = _gap_curves(rows, _on_all_cases(curves), axis)
    if not gaps:
        return
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (method, found) in enumerate(gaps.items()):
        places = np.linspace(
            max(places[0] for places, _ in found.values()),
            min(places[-1] for places, _ in found.values()),
            100,
        )
        mean = np.mean([np.interp(places, *curve) for curve in found.values()], axis=0)
        axes.plot(
            places, mean, "--" if number >= 10 else "-", label=f"{method} ({len(found)} cases)"
        )  # there are ten colours
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(
        xlabel={"step": "training steps", "seconds": "seconds of training"}[axis],
        ylabel="gap closed, mean over cases",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    _save(figure, path)


def draw_losses(rows: Rows, path: Path) -> None:
    """Plot mixture, method, its ceiling on true stems, and oracle mask, by method and case."""
    methods = [
        method
        for method in benchmark.trained(rows)
        if benchmark.by_case(rows, f"ceiling_{method}", "si_sdr")
    ]
    if not methods:
        return
    bounds = _bounds(rows)
    figure, axes = pyplot.subplots(
        1, len(methods), figsize=(8 * len(methods), 4), squeeze=False, layout="constrained"
    )
    for axis, method in zip(axes.flat, methods, strict=True):
        own, ceiling = (
            benchmark.by_case(rows, name, "si_sdr") for name in (method, f"ceiling_{method}")
        )
        cases = sorted(own.keys() & ceiling.keys(), key=lambda case: bounds[case][1])
        places = range(len(cases))
        edges = {
            method: [own[case] for case in cases],
            "ceiling: the same on the true stems": [ceiling[case] for case in cases],
            "oracle mask": [bounds[case][1] for case in cases],
        }
        low, middle, high = edges.values()
        axis.hlines(
            places, low, middle, color="C1", linewidth=5, alpha=0.5, label="lost by the data"
        )
        axis.hlines(
            places,
            middle,
            high,
            color="C0",
            linewidth=5,
            alpha=0.5,
            label="lost by network, loss and steps",
        )
        axis.plot([bounds[case][0] for case in cases], places, "k|", label="mixture")
        for marker, (name, values) in zip("osD", edges.items(), strict=True):
            axis.plot(values, places, marker, color="black", markersize=4, label=name)
        axis.set(yticks=places, yticklabels=cases, xlabel="SI-SDR, dB")
        axis.margins(y=0.5 / len(cases))
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.15), ncols=2)
    _save(figure, path)


def draw_differences(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot mean paired differences with their intervals: over cases thick, over sources thin."""
    if not results:
        return
    figure, axis = pyplot.subplots(figsize=(8, 1.2 + 0.35 * len(results)), layout="constrained")
    places = range(len(results))
    for name, width in (("interval", 4), ("interval_by_source", 1.2)):
        axis.hlines(
            places,
            *zip(*(result[name] for result in results), strict=True),
            color="C0",
            linewidth=width,
        )
    axis.plot([result["mean"] for result in results], places, "ko")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(
        yticks=places,
        yticklabels=[result["first"] for result in results],
        xlabel=f"SI-SDR less that of {results[0]['second']}, dB",
    )
    axis.grid(alpha=0.3)
    _save(figure, path)


def _bounds(rows: Rows) -> dict[str, tuple[float, float]]:
    """SI-SDR of mixture and oracle mask by case, which every row contains."""
    return {
        row["case"]: (row["si_sdr_mixture"], row["si_sdr_oracle"])
        for row in rows
        if row.get("si_sdr_oracle") is not None
    }


def _gap_curves(
    rows: Rows, curves: Rows, axis: str
) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Gap closed along an axis of the curves, by method and case.

    Values are means over seeds, up to the last step that all seeds have.
    """
    bounds = _bounds(rows)
    found: dict[str, dict[str, dict[Any, list]]] = {}
    for point in curves:
        if point["case"] in bounds and point["si_sdr"] is not None:
            mixture, oracle = bounds[point["case"]]
            seeds = found.setdefault(point["method"], {}).setdefault(point["case"], {})
            seeds.setdefault(point["seed"], []).append(
                (point["step"], point[axis], (point["si_sdr"] - mixture) / (oracle - mixture))
            )

    def mean(seeds: dict[Any, list]) -> tuple[np.ndarray, np.ndarray]:
        shortest = min(map(len, seeds.values()))
        points = np.mean([sorted(points)[:shortest] for points in seeds.values()], axis=0)
        return points[:, 1], points[:, 2]

    return {
        method: {case: mean(seeds) for case, seeds in sorted(cases.items())}
        for method, cases in sorted(found.items())
    }


def _save(figure: pyplot.Figure, path: Path) -> None:
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
