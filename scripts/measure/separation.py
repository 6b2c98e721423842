"""Speed and memory of separating 44.1 kHz stereo with a trained network."""

import time
from pathlib import Path

from bespoke.audio.io import open_audio
from bespoke.models.separator import load_separator
from bespoke.score.midi import read_score
from measure.runs import Finished, long_song, run, train
from measure.table import Figure, Options, Section

PIECE_SECONDS = 20  # length of the shipped song


def measure(options: Options) -> Section:
    """Time `bespoke apply` with both recipes' checkpoints, on two lengths of the shipped song."""
    lengths = (1, 2) if options.is_quick else (3, 12)  # times the shipped song
    checkpoints = {}
    for recipe, steps in (("paper", 20), ("auto", 10)):
        settings = [
            f"recipe={recipe}",
            f"trainer.max_steps={3 if options.is_quick else steps}",
            f"trainer={options.trainer}",
        ]
        checkpoints[recipe] = (
            train(options.work / f"for_{recipe}", *settings).folder / "checkpoints" / "last.ckpt"
        )
    songs = [long_song(options.work, times) for times in lengths]
    seconds = [times * PIECE_SECONDS for times in lengths]
    figures, lines = [], []
    for recipe, scored in (("paper", False), ("auto", True)):
        alone = [_alone(checkpoints[recipe], *song, options) for song in songs]
        whole = [
            _apply(checkpoints[recipe], mixture, score if scored else None, options)
            for mixture, score in songs
        ]
        label = f"{seconds[1]} s of stereo, recipe={recipe}"
        command = f"bespoke apply, with its start{' and the alignment' * scored}"
        rates = {"Separating": seconds[1] / alone[1], command: seconds[1] / whole[1].seconds}
        for (name, rate), took in zip(rates.items(), (alone[1], whole[1].seconds), strict=True):
            figures.append(
                Figure(
                    f"{name}: {label}",
                    rate,
                    " × real time",
                    20,
                    at_least=True,
                    detail=f"{took:.1f} s",
                )
            )
        growth, detail = whole[1].peak_mb / whole[0].peak_mb, f"{whole[1].peak_mb / 1000:.2f} GB"
        figures.append(
            Figure(
                f"Its memory, recipe={recipe}: {seconds[1]} s over {seconds[0]} s",
                growth,
                "",
                1.25,
                detail=detail,
            )
        )
        for length, one, process in zip(seconds, alone, whole, strict=True):
            cells = (
                f"{one:.1f} s",
                f"{length / one:.1f}",
                f"{process.seconds:.1f} s",
                f"{process.peak_mb / 1000:.2f} GB",
            )
            lines.append(f"| {recipe} | {length} s | {' | '.join(cells)} |")
    head = [
        "| recipe | length | separating | × real time | the command | its peak memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return Section(figures, "\n".join([*head, *lines]))


def _alone(checkpoint: Path, mixture: Path, score: Path, options: Options) -> float:
    """Seconds from opening the recording to writing both stems."""
    separator = load_separator(checkpoint, options.device, notes=read_score(score)[0].notes)
    began = time.perf_counter()
    separator.write_stems(
        open_audio(mixture), options.work / "target.wav", options.work / "residual.wav"
    )
    return time.perf_counter() - began


def _apply(checkpoint: Path, mixture: Path, score: Path | None, options: Options) -> Finished:
    scores = [score] if score else []
    stems = options.work / "stems"
    device = ["--device", options.device]
    return run(
        [
            "-m",
            "bespoke",
            "apply",
            checkpoint,
            mixture,
            *scores,
            "--out",
            stems,
            "--force",
            *device,
        ],
        options.work / "apply",
    )
