"""Time until recipe=auto is as good as the paper's recipe at its best.

It is compared with the time of the paper's 2,000 steps.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bespoke.evaluation.benchmark import Case, compare, read_cases
from bespoke.utils.files import read_csv
from measure.runs import ROOT, TrainingRun, song_of, train
from measure.table import Figure, Options, Section

RESULTS = ROOT / "docs" / "results"
PAPER, PAPER_STEPS = ("paper", "paper_500", "quick"), 2000
NEVER = float("inf")


def measure(options: Options) -> Section:
    """Run `auto` and the first steps of `paper` on every case, one after the other."""
    if options.cases is None:
        return Section(
            [],
            "Not measured: it needs `--cases`, a folder of cases as for scripts/benchmark.py.",
        )
    cases, broken = read_cases(options.cases, options.names)
    cases = cases[:1] if options.is_quick else cases
    best = paper_best(RESULTS)
    rows = [one(case, best.get(case.name), options) for case in cases]
    known = [row for row in rows if row["bar"] is not None]
    figures = (
        [_median("Time to the paper's best, as a share of its 2,000 steps", known, "ratio", 1 / 20)]
        if known
        else []
    )
    figures += [
        _median("Time to 90 % of auto's own gain, as a share of the same", rows, "own_ratio", None),
        Figure(
            "python train.py, start to stems",
            statistics.median(row["total"] for row in rows),
            " s",
            detail=f"median of {len(rows)}",
        ),
        *against_committed(rows, cases, options),
    ]
    return Section(figures, _text(rows, broken), {"cases": rows})


def one(case: Case, bar: tuple[float, float] | None, options: Options) -> dict[str, Any]:
    """Run both recipes on a case.

    Args:
        case: the case.
        bar: the paper's best SI-SDR in dB, and the number of steps it was trained for.
        options: how to measure.
    """
    song, trainer = song_of(case), f"trainer={options.trainer}"
    steps = 4 if options.is_quick else 10
    paper = train(
        options.work / case.name / "paper",
        *song,
        trainer,
        "recipe=paper",
        f"trainer.max_steps={steps}",
        f"curve_steps={steps // 2}",
    )
    auto = train(options.work / case.name / "auto", *song, trainer, "recipe=auto")
    whole, metrics = paper_seconds(paper), auto.metrics
    own = metrics["si_sdr_mixture"] + 0.9 * (metrics["si_sdr"] - metrics["si_sdr_mixture"])
    reached, own_reached = (
        None if level is None else seconds_to(auto, level) for level in (bar and bar[0], own)
    )
    return {
        "case": case.name,
        "bar": bar and bar[0],
        "bar_steps": bar and bar[1],
        "si_sdr": metrics["si_sdr"],
        "seconds": reached,
        "own_seconds": own_reached,
        "paper_seconds": whole,
        "step_seconds": step_seconds(paper.curve),
        "ratio": None if reached is None else reached / whole,
        "own_ratio": own_reached / whole,
        "total": auto.until("target.wav") - scoring_seconds(auto),
    }


def paper_best(results: Path) -> dict[str, tuple[float, float]]:
    """Best SI-SDR (dB) of the paper's recipe in any run on each case, and its longest run in steps.

    `quick` is its first 300 steps, `paper_500` its first 500 with other seeds.
    """
    best: dict[str, tuple[float, float]] = {}
    for file in sorted(results.glob("*_curves.csv")):
        for row in read_csv(file):
            if row["method"] in PAPER and row["si_sdr"] is not None:  # a silent estimate has none
                score, steps = best.get(row["case"], (-NEVER, 0))
                best[row["case"]] = max(score, row["si_sdr"]), max(steps, row["step"])
    return best


def time_to(curve: Sequence[Mapping[str, float]], level_db: float) -> float:
    """Seconds of training until a quality curve first reaches a level; infinite if it never does.

    >>> curve = [{"seconds": 3.0, "si_sdr": 1.0}, {"seconds": 5.0, "si_sdr": 2.5}]
    >>> time_to([*curve, {"seconds": 9.0, "si_sdr": 2.0}], 2.0)
    5.0
    """
    return next(
        (
            row["seconds"]
            for row in curve
            if row["si_sdr"] is not None and row["si_sdr"] >= level_db
        ),
        NEVER,
    )


def scoring_seconds(run: TrainingRun) -> float:
    """Time of the separations for the quality curve, which a run without a curve does not need."""
    return _training_seconds(run) - run.curve[-1]["seconds"] if run.curve else 0.0


def seconds_to(run: TrainingRun, level_db: float) -> float:
    """Seconds from the command's start to the stems, if training ended at that quality.

    A run that does not train has one quality, at its end.
    """
    if not run.curve:
        return run.until("target.wav") if run.metrics["si_sdr"] >= level_db else NEVER
    return run.until("target.wav") - _training_seconds(run) + time_to(run.curve, level_db)


def step_seconds(curve: Sequence[Mapping[str, float]]) -> float:
    """Seconds per step between the first and the last point of a curve, after the warm-up.

    >>> step_seconds([{"step": 10, "seconds": 9.0}, {"step": 20, "seconds": 11.0}])
    0.2
    """
    return (curve[-1]["seconds"] - curve[0]["seconds"]) / (curve[-1]["step"] - curve[0]["step"])


def paper_seconds(run: TrainingRun, steps: int = PAPER_STEPS) -> float:
    """Seconds from the command's start to the stems, extrapolated to `steps` training steps."""
    return run.until("target.wav") - _training_seconds(run) + steps * step_seconds(run.curve)


def _training_seconds(run: TrainingRun) -> float:
    """Time of training including the quality curve and its evaluation."""
    return run.metrics["seconds"]["train"] + run.metrics["seconds"].get("agreement", 0.0)


def against_committed(
    rows: list[dict[str, Any]], cases: Sequence[Case], options: Options
) -> list[Figure]:
    """SI-SDR of auto now minus that in docs/results, paired by case and seed.

    Seeds after the first are run for this comparison alone.
    """
    now = [
        {
            "case": row["case"],
            "method": "now",
            "seed": options.seeds[0],
            "si_sdr": row["si_sdr"],
            "steps": 1,
        }
        for row in rows
    ]
    for seed in options.seeds[1:]:
        for case in cases:
            run = train(
                options.work / case.name / f"auto_{seed}",
                *song_of(case),
                f"trainer={options.trainer}",
                f"seed={seed}",
            )
            now.append(
                {
                    "case": case.name,
                    "method": "now",
                    "seed": seed,
                    "si_sdr": run.metrics["si_sdr"],
                    "steps": 1,
                }
            )
    committed = RESULTS / "auto.csv"
    if not committed.is_file():
        return []
    result = compare(
        [*now, *(row for row in read_csv(committed) if row["method"] == "auto")], "now", "auto"
    )
    low, high = result["interval"]
    seeds = f"{len(options.seeds)} seed{'s' * (len(options.seeds) > 1)}"
    detail = f"mean {result['mean']:+.3f}, {result['cases']} cases, {seeds}"
    if np.isnan(low):
        return [
            Figure("auto's SI-SDR now less docs/results'", result["mean"], " dB", detail=detail)
        ]
    detail += f", 95 % interval {low:+.3f} to {high:+.3f}"
    return [
        Figure(
            "auto's SI-SDR now less docs/results', low end of the interval",
            low,
            " dB",
            -0.3,
            at_least=True,
            detail=detail,
        )
    ]


def _median(what: str, rows: Sequence[Mapping[str, Any]], key: str, goal: float | None) -> Figure:
    values = [row[key] for row in rows]
    middle = statistics.median(values)
    detail = (
        f"{_share(middle)}, median of {len(values)}; {_share(max(values))} to {_share(min(values))}"
    )
    return Figure(what, middle, "", goal, detail=detail)


def _share(ratio: float) -> str:
    return "never" if ratio == NEVER else f"1/{1 / ratio:.0f}"


def _text(rows: Sequence[Mapping[str, Any]], broken: Mapping[str, str]) -> str:
    lines = [
        "| case | the paper's best (of how many steps) | auto | auto reaches that after "
        "| 90 % of its own gain | a step of paper | 2,000 of them | share |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        bar = "" if row["bar"] is None else f"{row['bar']:.2f} dB ({row['bar_steps']:.0f})"
        reached = (
            ""
            if row["seconds"] is None
            else "never"
            if row["seconds"] == NEVER
            else f"{row['seconds']:.1f} s"
        )
        share = "" if row["ratio"] is None else _share(row["ratio"])
        cells = (
            bar,
            f"{row['si_sdr']:.2f} dB",
            reached,
            f"{row['own_seconds']:.1f} s",
            f"{row['step_seconds']:.3f} s",
        )
        lines.append(
            f"| {row['case']} | {' | '.join(cells)} | {row['paper_seconds']:.0f} s | {share} |"
        )
    skipped = [f"\nSkipped {name}: {reason}" for name, reason in broken.items()]
    return "\n".join([*lines, *skipped])
