"""Make cases for the benchmark from a data set of the field.

    python scripts/make_cases.py slakh babyslakh_16k --out CASES
    python scripts/make_cases.py urmp URMP/Dataset --out CASES
    python scripts/make_cases.py musdb18 MUSDB18-HQ --scores MIDI --out CASES
    python scripts/benchmark.py --cases CASES --out OUT

The data set is read as it was unpacked; nothing is downloaded. Cases that are there already stay as
they are. bespoke/evaluation/datasets.py says what each data set's folder holds.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from bespoke.evaluation import datasets
from bespoke.evaluation.cases import make_cases
from bespoke.utils.errors import BespokeError, one_sentence

EXCERPT_SECONDS = {"slakh": 24.0}  # of the others the whole recordings, with their own scores


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and make the cases.

    Returns:
        The exit code: 0, or 2 if no case was made, or a recording could not be read.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=datasets.names())
    parser.add_argument("folder", type=Path, help="into which the data set was unpacked")
    parser.add_argument("--out", type=Path, required=True, help="the folder of cases")
    parser.add_argument(
        "--seconds",
        type=float,
        help="length of the excerpts, whose scores are made of the aligned notes; 0: the whole"
        " recording, with the data set's own score where it has one; default: 24 for slakh, else 0",
    )
    parser.add_argument("--per-song", type=int, default=1, help="most targets of a recording")
    parser.add_argument("--limit", type=int, help="most recordings, by name")
    parser.add_argument("--seed", type=int, default=0, help="of targets and scores")
    parser.add_argument("--scores", type=Path, help="musdb18: your scores, NAME/bass.mid and so on")
    parser.add_argument(
        "--in-time", action="store_true", help="musdb18: your scores are in time with the recording"
    )
    options = parser.parse_args(arguments)
    seconds = options.seconds
    if seconds is None:
        seconds = EXCERPT_SECONDS.get(options.dataset, 0.0)
    made, skipped = 0, 0
    try:
        found = datasets.recordings(
            options.dataset, options.folder, options.scores, options.in_time
        )
    except BespokeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for read in tqdm(found[: options.limit], disable=not sys.stderr.isatty()):
        try:
            track = read()
            for folder in make_cases(
                track, options.out, seconds or None, options.per_song, options.seed
            ):
                made += 1
                print(folder)
        except BespokeError as error:
            skipped += 1
            print(f"skipped: {error}", file=sys.stderr)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            skipped += 1  # a file that is missing, or is not what its name says
            name = type(error).__name__
            place = read.args[0]
            print(f"skipped: {place} ({name}: {one_sentence(error)})", file=sys.stderr)
    print(f"{made} cases of {len(found[: options.limit])} recordings", file=sys.stderr)
    return 2 if skipped or not made else 0


if __name__ == "__main__":
    sys.exit(main())
