"""Growth of cost with the song's length, patches, parts, workers, and jobs of a sweep."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from torch.utils.data import DataLoader

from bespoke.audio.io import open_audio
from bespoke.models.separator import load_separator
from bespoke.score.midi import Part, read_score, write_midi
from measure.runs import ROOT, SHIPPED, long_song, run, train
from measure.setup import config, stream
from measure.table import Figure, Options, Section

TINY = (
    "recipe=quick",
    "model.hidden_size=8",
    "model.layers=1",
    "data.batch_size=2",
    "data.validation_batches=1",
    "trainer.max_steps=3",
)
PANELS = {
    "length of the song, s": "separation, s",
    "patches": "rendering and loading, s",
    "parts": "bespoke separate, s",
    "workers": "500 mixes of aug=heavy, s",
    "jobs of a sweep": "train.py -m, tiny runs, s",
}


def measure(options: Options) -> Section:
    """Time each at a few sizes, fit exponent and marginal cost, and plot them."""
    found = [length(options), patches(options), parts(options), workers(options), jobs(options)]
    picture = options.out / "speed" / f"scale{'_gpu' * options.on_gpu}.png"
    draw(found, picture)
    lines = [
        "| cost of | sizes | seconds | exponent | one more costs |",
        "| --- | --- | --- | --- | --- |",
    ]
    figures = []
    for (what, _), (sizes, seconds) in zip(PANELS.items(), found, strict=True):
        power, slope = exponent(sizes, seconds), float(np.polyfit(sizes, seconds, 1)[0])
        figures.append(Figure(f"Growth with {what.partition(',')[0]}: exponent", power, "", 1.1))
        cells = (
            ", ".join(f"{value:g}" for value in sizes),
            ", ".join(f"{value:.2f}" for value in seconds),
            f"{power:.2f}",
            f"{slope:.3g} s",
        )
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return Section(figures, "\n".join([*lines, "", f"![Cost against size](speed/{picture.name})"]))


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent with which time grows with size, fitted to the logarithms without sizes of 0.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    pairs = np.array([pair for pair in zip(sizes, seconds, strict=True) if pair[0] > 0], float)
    return float(np.polyfit(*np.log(pairs).T, 1)[0])


def length(options: Options) -> tuple[list[float], list[float]]:
    folder = options.work / "for_scale"
    checkpoint = (
        train(folder, "recipe=auto", "trainer.max_steps=1", f"trainer={options.trainer}").folder
        / "checkpoints"
        / "last.ckpt"
    )
    sizes, seconds = [1, 2] if options.is_quick else [1, 2, 4, 8], []
    for times in sizes:
        mixture, score = long_song(options.work, times)
        separator = load_separator(checkpoint, options.device, notes=read_score(score)[0].notes)
        stems = options.work / "target.wav", options.work / "residual.wav"

        def separate(separator=separator, mixture=mixture, stems=stems) -> None:
            separator.write_stems(open_audio(mixture), *stems)

        seconds.append(_seconds(separate))
    return [20.0 * times for times in sizes], seconds


def patches(options: Options) -> tuple[list[float], list[float]]:
    """Rendering time by number of patches, in a process with an empty render cache."""
    sizes, seconds = [1, 2] if options.is_quick else [1, 2, 4, 8, 16, 32], []
    code = """if True:
        import sys, time
        sys.path.insert(0, sys.argv[1])
        from measure.setup import config, stream
        stream(config("recipe=quick", "song.target.patches=[0]"))  # loads the synthesizer
        began = time.perf_counter()
        stream(config("recipe=quick", sys.argv[2]))
        print(time.perf_counter() - began)
    """
    for count in sizes:
        folder = options.work / f"patches_{count}"
        wanted = f"song.target.patches={list(range(20, 20 + count))}"
        run(["-c", code, ROOT / "scripts", wanted], folder, BESPOKE_CACHE=str(folder))
        seconds.append(float((folder / "log.txt").read_text().split()[-1]))
    return sizes, seconds


def parts(options: Options) -> tuple[list[float], list[float]]:
    sizes, seconds = [1, 2] if options.is_quick else [1, 2, 3], []
    (melody,) = read_score(SHIPPED / "target.mid")[:1]
    for count in sizes:
        folder = options.work / f"parts_{count}"
        folder.mkdir(parents=True)
        write_midi(
            folder / "band.mid",
            [Part(f"Part {index}", 24 + index, False, melody.notes) for index in range(count)],
        )
        command = [
            "-m",
            "bespoke",
            "separate",
            SHIPPED / "mix.flac",
            "band.mid",
            "--instrument",
            "all",
        ]
        settings = ["trainer.max_steps=1", "report=false", f"trainer={options.trainer}"]
        seconds.append(
            run(
                [*command, *(word for value in settings for word in ("--set", value))], folder
            ).seconds
        )
    return sizes, seconds


def workers(options: Options) -> tuple[list[float], list[float]]:
    source, batches = (
        stream(config("recipe=quick", "aug=heavy")),
        5 if options.is_quick else 500 // 8,
    )
    source.batch(0)
    sizes, seconds = [0, 1, 2], []
    for count in sizes:

        def consume(count: int = count) -> None:
            iterator = iter(
                DataLoader(
                    source, batch_size=None, num_workers=count, prefetch_factor=4 if count else None
                )
            )
            for _ in range(batches):
                next(iterator)

        seconds.append(_seconds(consume))
    return sizes, seconds


def jobs(options: Options) -> tuple[list[float], list[float]]:
    sizes, seconds = [1, 2] if options.is_quick else [1, 2, 4], []
    for count in sizes:
        folder = options.work / f"jobs_{count}"
        fixed = [
            "report=false",
            "logger=none",
            f"trainer={options.trainer}",
            f"hydra.sweep.dir={folder / 'sweep'}",
        ]
        seeds = ",".join(map(str, range(count)))
        seconds.append(
            run(
                [ROOT / "train.py", "-m", *TINY, "trainer.max_steps=3", *fixed, f"seed={seeds}"],
                folder,
            ).seconds
        )
    return sizes, seconds


def draw(found: Sequence[tuple[Sequence[float], Sequence[float]]], picture: Path) -> None:
    """Plot one panel per kind of work, with the fitted power where there is one."""
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(15, 3), layout="constrained")
    for panel, (what, cost), (sizes, seconds) in zip(axes, PANELS.items(), found, strict=True):
        panel.plot(sizes, seconds, "o-", color="tab:blue")
        panel.set(
            xlabel=what,
            ylabel=cost,
            ylim=(0, None),
            title=f"size^{exponent(sizes, seconds):.2f}" if sum(n > 0 for n in sizes) > 1 else "",
        )
        panel.grid(alpha=0.3)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=80)
    pyplot.close(figure)


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
