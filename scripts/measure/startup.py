"""Time until a command answers, and until its first training step."""

import statistics

from measure.runs import ROOT, run, train
from measure.table import Figure, Options, Section


def measure(options: Options) -> Section:
    """Time --help, and one training step. A recipe's first run is not counted, since it renders."""
    times = 1 if options.is_quick else 5
    figures = []
    for name, arguments in {
        "python train.py --help": [ROOT / "train.py", "--help"],
        "bespoke --help": ["-m", "bespoke", "--help"],
    }.items():
        seconds = [run(arguments, options.work / "help").seconds for _ in range(times)]
        figures.append(
            Figure(name, statistics.median(seconds), " s", 1.5, detail=f"median of {times}")
        )
    for recipe in ("paper", "auto"):
        seconds = []
        for turn in range(2 if options.is_quick else 3):
            folder = options.work / f"first_{recipe}_{turn}"
            step = train(
                folder, f"recipe={recipe}", "trainer.max_steps=1", f"trainer={options.trainer}"
            )
            seconds.append(step.until("checkpoints/last.ckpt"))
        warm = seconds[1:]
        figures.append(
            Figure(
                f"First step of recipe={recipe}",
                statistics.median(warm),
                " s",
                10,
                detail=f"median of {len(warm)}",
            )
        )
    return Section(figures)
