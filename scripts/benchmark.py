"""Run recipes and rivals over a folder of cases, and tabulate them.

    python scripts/benchmark.py --cases CASES --recipes paper,quick --seeds 0,1,2 --out outputs/benchmark

What is finished is not run again; what was killed goes on. After `--`, overrides for every cell (`-- trainer.max_steps=500`) or for
Hydra (`-- hydra/launcher=joblib`). `--variant NAME 'aug=heavy;trainer.max_steps=150'` adds a method of that name.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from bespoke import benchmark
from bespoke.audio import write_json
from bespoke.errors import BespokeError

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run what is missing, print the table. Returns the exit code: 0, or 2 if a case or a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True, help="a folder of cases")
    parser.add_argument("--only", default="", help="names of cases, separated by commas")
    parser.add_argument("--recipes", default="", help="names of recipes, separated by commas")
    parser.add_argument("--variant", nargs=2, action="append", default=[], metavar=("NAME", "OVERRIDES"), help="overrides, separated by ;")
    parser.add_argument("--rivals", default="mixture,comb,nmf,hpss", help="names of rivals, separated by commas")
    parser.add_argument("--seeds", default="0", help="separated by commas")
    parser.add_argument("--out", type=Path, required=True, help="folder for cells and rows.csv")
    parser.add_argument("overrides", nargs="*", help="for train.py")
    options = parser.parse_args(arguments)
    try:
        cases, broken = benchmark.read_cases(options.cases, _split(options.only))
        methods = {recipe: (f"recipe={recipe}",) for recipe in _split(options.recipes)}
        methods |= {name: tuple(entry for entry in text.split(";") if entry) for name, text in options.variant}
        failed = _others(cases, _split(options.rivals), options.out)
        cells = [
            benchmark.Cell(case, method, overrides, int(seed))
            for seed in _split(options.seeds)
            for method, overrides in methods.items()
            for case in cases
        ]
        failed += _run(cells, options.out, options.overrides)
        print(benchmark.table(benchmark.write_rows(options.out)))
    except BespokeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, reason in broken.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    for place in failed:
        print(f"failed: {place}", file=sys.stderr)
    return 2 if broken or failed else 0


def _others(cases: list[benchmark.Case], rivals: list[str], out: Path) -> list[str]:
    """Rows of oracles and rivals, one file a case, made anew when the list of rivals changes."""
    failed = []
    for case in tqdm(cases, desc="oracles and rivals", disable=not sys.stderr.isatty()):
        file = out / benchmark.FOLDER / case.name / "others.json"
        if file.is_file() and json.loads(file.read_text())["rivals"] == rivals:
            continue
        try:
            write_json(file, {"rivals": rivals, "rows": benchmark.other_rows(case, rivals)})
        except BespokeError as error:
            failed.append(f"{case.name}: {error}")
    return failed


def _run(cells: list[benchmark.Cell], out: Path, overrides: list[str]) -> list[str]:
    """Run the cells that are not finished in one multirun; give the places of those that failed."""
    out = out.resolve()
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
        f"hydra.sweep.dir={out / benchmark.FOLDER}",
        "+hydra.callbacks.rows._target_=bespoke.benchmark.RowWriter",
        f"+hydra.callbacks.rows.out={out}",
        f"+hydra.callbacks.rows.total={len(pending)}",
        *overrides,
        "+cell=glob(*)",
    ]
    subprocess.run(command, check=False)  # what failed lacks its row
    return [cell.place for cell in pending if not (out / benchmark.FOLDER / cell.place / "row.json").is_file()]


def _split(text: str) -> list[str]:
    return [entry for entry in text.split(",") if entry]


if __name__ == "__main__":
    sys.exit(main())
