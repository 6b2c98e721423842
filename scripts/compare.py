"""Compare runs on one page: `python scripts/compare.py DIR...`.

Each DIR is a run's folder, or contains such folders, as a sweep's does.
"""

import argparse
import sys
from pathlib import Path

from bespoke.evaluation.report.comparison import write_comparison
from bespoke.evaluation.report.summary import find_runs
from bespoke.utils.errors import BespokeError


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and write the page. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="a run's folder, or one that holds runs at any depth",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the page (default: comparison.html in DIR, or here if there are several)",
    )
    parser.add_argument("--title", default="", help="of the page")
    options = parser.parse_args(arguments)
    out = (
        options.out
        or (options.folders[0] if len(options.folders) == 1 else Path()) / "comparison.html"
    )
    try:
        runs = [run for folder in options.folders for run in find_runs(folder)]
        print(write_comparison(list(dict.fromkeys(runs)), out, options.title))
    except BespokeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
