"""Measure all points of docs/SPEED.md in one run, and write the page.

    python scripts/speed.py --cases CASES        all sections: 15 minutes on two idle cores
    python scripts/speed.py --only step,mixer    only these; the page keeps its other sections
    python scripts/speed.py --cases CASES --only quality --case 'bach10_*' --seeds 0,1,2
    python scripts/speed.py --quick              everything in a minute or two, as a test
    python scripts/speed.py --gpu                on a GPU: fills the page's last column

CASES is a folder of cases as for scripts/benchmark.py; without it, `quality` is not measured.
`--quick` writes to outputs/speed. Measurements are stored in speed/*.json next to the page, from
which `--only page` writes it again.
"""

import argparse
import importlib
import shlex
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import table

from bespoke.cli.launch import quieten
from bespoke.utils.errors import BespokeError
from bespoke.utils.memory import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ("quality", "step", "mixer", "startup", "separation", "gpu", "scale")


def main(arguments: list[str] | None = None) -> int:
    """Measure and write. Returns the exit code: 0, or 2 for an error that the user can correct."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", help=f"sections, separated by commas: {', '.join(SECTIONS)}; or page"
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer and shorter repeats, into outputs/speed"
    )
    parser.add_argument("--gpu", action="store_true", help="measure on this machine's GPU")
    parser.add_argument("--cases", type=Path, help="a folder of cases, for the time to quality")
    parser.add_argument(
        "--case", default="", help="names of cases or patterns, separated by commas; else all"
    )
    parser.add_argument(
        "--seeds",
        default="0",
        help="of auto on the cases, separated by commas; all recipes are timed with the first",
    )
    parser.add_argument(
        "--out", type=Path, help="folder of SPEED.md; else docs, or outputs/speed with --quick"
    )
    given = parser.parse_args(arguments)
    out = (given.out or (ROOT / "outputs" / "speed" if given.quick else ROOT / "docs")).resolve()
    only = _split(given.only)
    command = shlex.join(
        ["python", "scripts/speed.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    try:
        if unknown := set(only) - {*SECTIONS, "page"}:
            raise BespokeError(
                f"--only {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}."
            )
        if given.gpu and not torch.cuda.is_available():
            raise BespokeError(
                "--gpu: there is no NVIDIA GPU here, or this PyTorch was built without CUDA."
            )
        with tempfile.TemporaryDirectory() as work:
            cases = given.cases and given.cases.resolve()
            seeds = tuple(map(int, _split(given.seeds)))
            for name in [name for name in SECTIONS if name in only or not only]:
                options = table.Options(
                    out,
                    Path(work) / name,
                    given.quick,
                    given.gpu,
                    cases,
                    tuple(_split(given.case)),
                    seeds,
                )
                _measure(name, options, command)
        found = table.read(out / "speed")
        table.write_page(out / "SPEED.md", ROOT / "docs" / "SPEED.md", found, SECTIONS)
    except BespokeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(out / "SPEED.md")
    return 0


def _measure(name: str, options: table.Options, command: str) -> None:
    """Measure a section, print its rows, and store them."""
    options.work.mkdir(parents=True)
    place, began = table.machine(), time.perf_counter()
    section = importlib.import_module(f"measure.{name}").measure(options)
    seconds = time.perf_counter() - began
    table.save(section, name, options, place, seconds, command)
    print(
        f"{name}, {seconds:.0f} s",
        *(f"  {row}" for row in table.table(section.figures).splitlines()[2:]),
        sep="\n",
        flush=True,
    )


def _split(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]


if __name__ == "__main__":
    quieten()
    keep_freed_memory()
    sys.exit(main())
