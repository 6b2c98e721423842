"""Compare runs: which settings are better, in the terminal and on a page.

    python scripts/compare.py outputs/sweeps/TIME
    python scripts/compare.py DIR DIR --baseline aug=none --out comparison.html

Each DIR is a run's folder, or contains such folders, as a sweep's or a benchmark's does. Of a
single DIR the page, sweep.csv and groups.csv are written into it, as at the end of a sweep.

The page that ships is made of a benchmark of the cases that ship:

    python scripts/compare.py outputs/benchmark/cells --only '*/paper/0,*/auto/0' --max-mb 5 \\
        --title 'The paper and the default on the cases that ship' --out docs/listen.html \\
        --note 'Recordings, their authors and licences: benchmark/cases/README.md'
"""

import argparse
import fnmatch
import sys
from pathlib import Path

from bespoke.evaluation.report.comparison import write_comparison, write_small_comparison
from bespoke.evaluation.report.groups import group_table
from bespoke.evaluation.report.runs import find_runs
from bespoke.evaluation.report.sweep import PAGE, read_results, write_tables
from bespoke.utils.errors import BespokeError


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, print the tables and write the page. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="a run's folder, or one that holds runs at any depth",
    )
    parser.add_argument(
        "--baseline",
        default="",
        metavar="KEY=VALUE",
        help="settings of the runs that the others are compared with, several with commas; "
        "default: those of the first run",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the page (default: comparison.html in DIR, or here if there are several)",
    )
    parser.add_argument("--title", default="", help="of the page")
    parser.add_argument("--note", default="", help="a sentence below the title")
    parser.add_argument(
        "--only", default="", help="patterns of the runs' places in DIR, separated by commas"
    )
    parser.add_argument(
        "--max-mb",
        type=float,
        help="largest size of the page, which is then without settings and training",
    )
    options = parser.parse_args(arguments)
    folders = options.folders
    try:
        patterns = options.only.split(",") if options.only else ["*"]
        found = [
            run
            for folder in folders
            for run in find_runs(folder)
            if any(fnmatch.fnmatchcase(str(run.relative_to(folder)), name) for name in patterns)
        ]
        results = read_results(found, options.baseline)
        if len(folders) == 1 and options.out is None:
            print(write_tables(results, folders[0]))
        else:
            print(group_table(results.blocks))
        out = options.out or (folders[0] if len(folders) == 1 else Path()) / PAGE
        if options.max_mb is None:
            print(write_comparison(results, out, options.title, options.note))
        else:
            most = 1e6 * options.max_mb
            print(write_small_comparison(results, out, options.title, most, options.note))
    except BespokeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
