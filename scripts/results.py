"""Make the tables and pictures of docs/RESULTS.md again from the committed rows: `python scripts/results.py`.

Tables stand between `<!-- NAME -->` and `<!-- end -->` in the page; its words are written by hand.
"""

import re
import sys
from pathlib import Path

import matplotlib
import numpy as np

from bespoke import benchmark

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "RESULTS.md"


def main() -> int:
    """Write the pictures and the page's tables. Returns the exit code."""
    rows = benchmark.read_rows(RESULTS / "rows.csv")
    tables = {"methods": benchmark.table(rows), "cases": benchmark.case_table(rows), "alignment": _alignment(rows)}
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text, flags=re.S
        )
    PAGE.write_text(text, encoding="utf-8")
    matplotlib.use("Agg")
    _draw_cases(rows, RESULTS / "cases.png")
    _draw_curves(rows, benchmark.read_rows(RESULTS / "curves.csv"), RESULTS / "curves.png")
    return 0


def _alignment(rows: list[dict]) -> str:
    """What the automatic alignment found, case by case."""
    lines = ["| case | confidence | median onset error, ms | 90 % within, ms | within 50 ms | within 100 ms |", "| --- |" + " --- |" * 5]
    for row in rows:
        if row["method"] == "nmf_auto":
            errors = f"{1000 * row['onset_median_seconds']:.0f} | {1000 * row['onset_p90_seconds']:.0f}"
            shares = f"{row['onset_within_50_ms']:.0%} | {row['onset_within_100_ms']:.0%}"
            lines.append(f"| {row['case']} | {row['align_confidence']:.2f} | {errors} | {shares} |")
    return "\n".join(lines)


def _draw_cases(rows: list[dict], path: Path) -> None:
    """SI-SDR of every method by case, the cases in order of the oracle's."""
    from matplotlib import pyplot

    scores = {method: benchmark.by_case(rows, method, "si_sdr") for method in {row["method"] for row in rows} - {"oracle_ratio"}}
    cases = sorted(scores["oracle_tpsa"], key=scores["oracle_tpsa"].get)
    figure, axis = pyplot.subplots(figsize=(9, 5), layout="constrained")
    markers = dict(zip(sorted(scores), "ovs^Dxp*P<>", strict=False))
    for method in sorted(scores, key=lambda name: -np.mean(list(scores[name].values()))):
        found = [case for case in cases if case in scores[method]]
        axis.plot([scores[method][case] for case in found], [cases.index(case) for case in found], markers[method], label=method, alpha=0.8)
    axis.set(yticks=range(len(cases)), yticklabels=cases, xlabel="SI-SDR, dB")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left", fontsize="small")
    figure.savefig(path, dpi=100)


def _draw_curves(rows: list[dict], curves: list[dict], path: Path) -> None:
    """Gap closed against training steps, a line a case; 0 is the mixture, 1 the oracle mask."""
    from matplotlib import pyplot

    mixture, oracle = (
        benchmark.by_case(rows, "mixture" if name == "mixture" else "oracle_tpsa", "si_sdr") for name in ("mixture", "oracle")
    )
    figure, axis = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    for number, case in enumerate(sorted({point["case"] for point in curves})):
        points = sorted((point["step"], point["si_sdr"]) for point in curves if point["case"] == case)
        axis.plot(
            [step for step, _ in points],
            [(score - mixture[case]) / (oracle[case] - mixture[case]) for _, score in points],
            label=case,
            linewidth=1.2,
            linestyle=("-", "--")[number // 10],  # there are ten colours
        )
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xlabel="training steps", ylabel="gap closed (0: mixture, 1: oracle mask)", ylim=(-2, 1))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="x-small")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
