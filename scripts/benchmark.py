"""Run recipes and baselines over a folder of cases, and tabulate the results.

    python scripts/benchmark.py             # the main table, on the cases that ship
    python scripts/benchmark.py --quick     # four of them, without the paper's 2,000 steps
    python scripts/benchmark.py --cases CASES --recipes paper,quick --seeds 0,1,2 --out OUT
    python scripts/benchmark.py --cases CASES --experiment aug_screen --out outputs/aug_screen

Where no recipe, variant, experiment or ceiling is named, the methods of the main table run
(bespoke/evaluation/regimes.py). All tables are in OUT/tables.md, all rows in OUT/rows.csv. Finished
runs are not repeated, and killed ones are resumed.

`--variant NAME 'aug=heavy;trainer.max_steps=150'` adds a method NAME. `--experiment NAME` adds one
for each combination of the sweep in conf/experiment/NAME.yaml. `--ceiling NAME` adds, as a
diagnosis, the method NAME trained on the true stems. After `--` follow overrides for every run
(`-- trainer.max_steps=500`) or for Hydra (`-- hydra/launcher=joblib`). The runs' output goes to
benchmark.log.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from bespoke.evaluation import benchmark, metrics, regimes
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import atomic_path, read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT / "benchmark" / "cases"
# Two of each half of the split: one in stereo, one without the other parts, two with them.
QUICK = (
    "fof_sectoid_feelings_guitar_stereo",
    "fof_sectoid_war_of_freedom_guitar",
    "trk_pk2-song03_pizzicato",
    "trk_pk2-song07_clarinet",
)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run what is missing, and print the tables.

    Returns:
        The exit code: 0, or 2 if a case or a run failed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", type=Path, default=CASES, help="a folder of cases; default: those that ship"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="four cases (of another folder: the first four), and no method that takes minutes",
    )
    parser.add_argument(
        "--only",
        default="",
        help="names of cases or patterns, separated by commas; default: those of the experiments",
    )
    parser.add_argument(
        "--recipes",
        help="names of recipes, separated by commas; '': none, where nothing else is named",
    )
    parser.add_argument(
        "--variant",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "OVERRIDES"),
        help="overrides, separated by ;",
    )
    parser.add_argument(
        "--experiment", default="", help="names of experiments, separated by commas"
    )
    parser.add_argument(
        "--ceiling", default="", help="names of recipes or variants, separated by commas"
    )
    parser.add_argument(
        "--baselines",
        "--rivals",
        default="mixture,comb,nmf,hpss",
        help="names of the baseline methods to run, separated by commas",
    )
    parser.add_argument("--seeds", default="0", help="separated by commas")
    parser.add_argument(
        "--baseline",
        default="",
        help="method that the others are compared with; default: the first",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/benchmark"),
        help="folder for cells, rows.csv and tables.md; default: outputs/benchmark",
    )
    parser.add_argument("overrides", nargs="*", help="for train.py")
    options = parser.parse_args(arguments)
    out, began = options.out.resolve(), time.monotonic()
    named = (options.variant, options.experiment, options.ceiling)
    is_standard = options.recipes is None and not any(named)
    try:
        metrics.check_packages()
        lock = benchmark.lock_folder(out)
        methods = {recipe: (f"recipe={recipe}",) for recipe in _split(options.recipes or "")}
        methods |= {
            name: tuple(entry for entry in text.split(";") if entry)
            for name, text in options.variant
        }
        only = _split(options.only)
        for name in _split(options.experiment):
            found, of_experiment = benchmark.read_experiment(name)
            methods |= found
            only += [case for case in of_experiment if not options.only and case not in only]
        if options.quick and not only and options.cases == CASES:
            only = list(QUICK)
        cases, broken = benchmark.read_cases(options.cases, only)
        cases = cases[: len(QUICK)] if options.quick else cases
        failed = _others(cases, _split(options.baselines), out)
        cells, seeds = [], [int(seed) for seed in _split(options.seeds)]
        if is_standard:
            cells = regimes.cells(cases, seeds, regimes.SLOW if options.quick else ())
        for seed in seeds:
            cells += [
                benchmark.Cell(case, name, overrides, seed)
                for name, overrides in methods.items()
                for case in cases
            ]
            for name in _split(options.ceiling):
                overrides = methods.get(name, (f"recipe={name}",))
                cells += [benchmark.ceiling(case, name, overrides, seed, out) for case in cases]
        failed += _run(cells, out, options.overrides)
        rows = benchmark.write_rows(out)
        benchmark.write_curves(out)
        tables = _tables(rows, options.baseline or next(iter(methods), ""))
        with atomic_path(out / "tables.md") as temporary:
            temporary.write_text(f"{tables}\n", encoding="utf-8")
        lock.release()
    except BespokeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(tables)
    minutes = (time.monotonic() - began) / 60
    print(f"{len(cases)} cases, {minutes:.1f} minutes; {out / 'tables.md'}", file=sys.stderr)
    for name, reason in broken.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    for place in failed:
        print(f"failed: {place}", file=sys.stderr)
    return 2 if broken or failed else 0


def _tables(rows: list[dict], baseline: str) -> str:
    """All tables that have rows, in Markdown."""
    differences = benchmark.comparisons(rows, benchmark.trained(rows), baseline)
    tables = {
        "Methods": benchmark.table(rows),
        "Regimes": regimes.regime_table(rows),
        "Paired differences": regimes.pair_table(rows),
        "Development and test": regimes.half_table(rows),
        f"Less {baseline}": benchmark.difference_table(differences),
        "Where quality is lost": benchmark.difference_table(benchmark.losses(rows)),
        "Cases": benchmark.case_table(rows),
    }
    return "\n\n".join(
        f"## {title}\n\n{table}"
        for title, table in tables.items()
        if len(table.splitlines()) > 2  # more than the heading
    )


class Progress:
    """Progress with the time left: a bar on a terminal, elsewhere a line per result."""

    def __init__(self, what: str, total: int):
        self.what, self.began = what, time.monotonic()
        self.bar = tqdm(total=total, desc=what, smoothing=0, disable=not sys.stderr.isatty())
        self.total, self.done = total, 0

    def add(self, result: str) -> None:
        """Count one more result and show it."""
        self.done += 1
        self.bar.set_postfix_str(result, refresh=False)
        self.bar.update()
        if self.bar.disable:
            left = tqdm.format_interval(
                (time.monotonic() - self.began) / self.done * (self.total - self.done)
            )
            print(
                f"{self.what} {self.done} of {self.total}, {left} left: {result}",
                file=sys.stderr,
                flush=True,
            )


def _baselines_in(file: Path) -> list[str] | None:
    """The baselines in a file of rows; None if there is no file."""
    content = read_json(file)
    return content.get("baselines", content.get("rivals"))  # the key's former name


def _others(cases: list[benchmark.Case], baselines: list[str], out: Path) -> list[str]:
    """Write the rows of oracles and baselines, one file per case.

    A file is written again if the list of baselines has changed.

    Returns:
        The cases that failed, with the reason.
    """
    files = {case: out / benchmark.FOLDER / case.name / "others.json" for case in cases}
    pending = {case: file for case, file in files.items() if _baselines_in(file) != baselines}
    progress, failed = Progress("oracles and baselines", len(pending)), []
    for case, file in pending.items():
        try:
            write_json(
                file, {"baselines": baselines, "rows": benchmark.other_rows(case, baselines)}
            )
        except BespokeError as error:
            failed.append(f"{case.name}: {error}")
        progress.add(case.name)
    progress.bar.close()
    return failed


def _run(cells: list[benchmark.Cell], out: Path, overrides: list[str]) -> list[str]:
    """Run the unfinished cells in one multirun, and return those that failed, with the reason.

    Raises:
        BespokeError: Hydra rejected the command, or cells of a killed benchmark are still running.
    """
    folder, log = out / benchmark.FOLDER, out / "benchmark.log"
    benchmark.lock_folder(folder).release()  # from now on the process of the cells locks it
    pending = benchmark.write_cells(cells, out)
    if not pending:
        return []
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "-m",
        "--config-dir",
        str(out / "conf"),
        "song=custom",
        "logger=none",
        "report=false",
        f"hydra.sweep.dir={folder}",
        "+hydra.callbacks.rows._target_=bespoke.evaluation.benchmark.RowWriter",
        f"+hydra.callbacks.rows.out={out}",
        *overrides,
        "+cell=glob(*)",
    ]
    with open(log, "ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    waiting, progress = list(pending), Progress("cells", len(pending))
    try:
        running = True
        while running:
            # Asked first, so that no cell is missed that ends in between.
            running = process.poll() is None
            ended = [
                cell
                for cell in waiting
                if any(
                    (folder / cell.place / name).is_file() for name in ("row.json", "error.json")
                )
            ]
            for cell in ended:
                waiting.remove(cell)
                progress.add(f"{cell.place}, {_result(folder / cell.place)}")
            if ended:
                benchmark.write_rows(out)
                benchmark.write_curves(out)
            progress.bar.refresh()
            time.sleep(0.5 if running else 0)
    finally:
        process.terminate()
        process.wait()
        progress.bar.close()
    if process.returncode > 0 and len(waiting) == len(pending):
        raise BespokeError(
            log.read_text(encoding="utf-8", errors="replace")
            .splitlines()[-1]
            .removeprefix("error: ")
        )
    missing = [cell.place for cell in pending if not (folder / cell.place / "row.json").is_file()]
    return [f"{place}: {_result(folder / place)}" for place in missing]


def _result(folder: Path) -> str:
    """Result of a cell in a few words."""
    if (folder / "row.json").is_file():
        improvement = json.loads((folder / "row.json").read_text())["si_sdr_improvement"]
        return "no SI-SDR" if improvement is None else f"SI-SDR improved by {improvement:+.2f} dB"
    if (folder / "error.json").is_file():
        return json.loads((folder / "error.json").read_text())["error"]
    return "it did not end; benchmark.log says why"


def _split(text: str) -> list[str]:
    return [entry for entry in text.split(",") if entry]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # end the cells too
    sys.exit(main())
