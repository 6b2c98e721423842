"""Summary of one run: its warnings, its page, the end of its log, and its alignment drawn."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bespoke.audio.stft import STFT
from bespoke.data.song import Song
from bespoke.score.align import LOW_CONFIDENCE, apart
from bespoke.score.midi import Note, pitch_hz, shift
from bespoke.utils.errors import one_sentence
from bespoke.utils.files import atomic_path

log = logging.getLogger(__name__)

_EDGES = ("start_seconds", "end_seconds")


@contextlib.contextmanager
def collect_warnings(warnings: list[str]) -> Iterator[None]:
    """Add the distinct warnings that Bespoke logs inside the block to a list."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() not in warnings:
                warnings.append(record.getMessage())

    handler = Collector(logging.WARNING)
    logger = logging.getLogger("bespoke")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def write_page(folder: Path, song: Song, metrics: Mapping[str, Any]) -> None:
    """Write a run's report.html. If that fails, log a warning: the results are complete without."""
    try:
        from bespoke.evaluation.report import run_page  # imports a template engine

        run_page.write_report(folder, song, metrics)
    except Exception as error:
        log.warning(
            "report.html could not be made (%s: %s); the stems are complete.",
            type(error).__name__,
            one_sentence(error),
        )
        log.debug("", exc_info=True)


def summary(folder: Path, metrics: Mapping[str, Any]) -> str:
    """Text for the end of a run's log: what it made, where, its metrics, and advice.

    A run that is part of a request does not name its files: the request ends with its own.
    """
    trained = f"{metrics['steps']} steps, " if metrics["steps"] else ""
    lines = [f"{metrics['song']}: {trained}{metrics['seconds']['total']:.0f} s"]
    if not (folder / "inputs.json").is_file():  # a request writes it before its runs
        lines += [f"  target    {folder / 'target.wav'}", f"  residual  {folder / 'residual.wav'}"]
        if "kept_step" in metrics:
            best = folder / "checkpoints" / "best.ckpt"
            lines.append(
                f"  kept      step {metrics['kept_step']}, which agrees most with the score: {best}"
            )
        if (folder / "aligned.mid").is_file():
            confidence = metrics["alignment"]["confidence"]
            lines.append(
                f"  score     {folder / 'aligned.mid'}: aligned, confidence {confidence:.2f}"
            )
        if (folder / "report.html").is_file():
            lines.append(f"  report    {folder / 'report.html'}")
    if metrics.get("si_sdr") is not None:
        lines.append(
            f"  SI-SDR    {metrics['si_sdr']:.2f} dB, mixture {metrics['si_sdr_mixture']:.2f} dB:"
            f" improved by {metrics['si_sdr_improvement']:+.2f} dB"
            f" (oracle mask {metrics['si_sdr_oracle']:.2f} dB)"
        )
    elif "si_sdr" in metrics:
        lines.append("  SI-SDR    none: the target is silent")
    if metrics.get("agreement") is not None:
        lines.append(
            f"  agreement {metrics['agreement']:.2f} dB with the score-informed estimate: "
            "use it to compare runs of this song"
        )
    if notice := (metrics.get("alignment") or {}).get("notice"):
        lines.append(f"  note      {notice}")
    return "\n".join([*lines, *(f"  next      {advice}" for advice in _advice(folder, metrics))])


def _advice(folder: Path, metrics: Mapping[str, Any]) -> list[str]:
    """Suggestions for a run whose figures are poor."""
    recipe, alignment = metrics["recipe"], metrics.get("alignment")
    advice = []
    if alignment and alignment["confidence"] < LOW_CONFIDENCE:
        picture = folder / "alignment.png"
        look = f"look at {picture}: " if picture.is_file() else ""
        advice.append(
            f"{look}is song.target.score of this song and key, "
            "and song.target.instrument the right one?"
        )
    if (metrics.get("si_sdr_improvement") or 0) < 0 and recipe in ("paper", "quick"):
        advice.append(
            "recipe=auto, or background=synth with the other parts' MIDI: "
            "this background contains the target itself (docs/EXPERIMENTS.md)"
        )
    return advice


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(62.4), clock(59.7), clock(3605)
    ('1:02', '1:00', '60:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def plot_alignment(
    path: Path,
    before: Sequence[Note],
    after: Sequence[Note],
    mixture: np.ndarray,
    sample_rate: int,
    others: Sequence[Note] = (),
    course: Sequence[tuple[float, float]] = (),
) -> None:
    """Plot the score's fundamentals over the recording's spectrogram, before and after alignment.

    The target's notes are cyan. The other parts' are green, and shown where they are aligned.

    Of a recording longer than ten minutes, ten minutes are shown, from shortly before the first
    aligned note.

    Args:
        path: PNG file to write.
        before, after: notes in seconds of the recording.
        mixture: `[channel, time]`.
        sample_rate: in Hz.
        others: notes of the other parts, in seconds of the recording.
        course: the alignment's confidence along time, drawn beneath if there is any.
    """
    from matplotlib.figure import Figure  # slow to import

    start = 0.0
    if mixture.shape[-1] > 600 * sample_rate:
        start = max(0.0, min(note.start_seconds for note in after) - 10)
        before, after, others = (
            shift((note for note in notes if note.start_seconds < start + 600), -start)
            for notes in (before, after, others)
        )
        mixture = mixture[:, round(start * sample_rate) :][:, : 600 * sample_rate]
    # A hop of half the window would round to more than half at some sample rates.
    stft = STFT(sample_rate, 4096 / 44100, 0.045)
    level_db = (
        20
        * torch.log10(
            stft(torch.from_numpy(mixture.mean(axis=0))[None, None])[0, 0].abs() + 1e-6
        ).numpy()
    )
    top_hz = 2 * pitch_hz(max(note.pitch for note in [*before, *after]))
    figure = Figure(figsize=(12, 7 if course else 6), layout="constrained")
    heights = [3, 3, 1] if course else [1, 1]
    every = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    for axes, notes, title in zip(
        every[:2],
        (before, after),
        ("score as given", "score aligned"),
        strict=True,
    ):
        half_bin_hz = sample_rate / stft.window_samples / 2
        extent = (0, mixture.shape[-1] / sample_rate, -half_bin_hz, sample_rate / 2 + half_bin_hz)
        axes.imshow(
            level_db,
            origin="lower",
            aspect="auto",
            extent=extent,
            vmin=level_db.max() - 70,
            cmap="magma",
        )
        beside = others if notes is after else ()
        for shown, color in ((beside, "lime"), (notes, "cyan")):
            hz = [pitch_hz(note.pitch) for note in shown]
            edges = ([getattr(note, edge) for note in shown] for edge in _EDGES)
            axes.hlines(hz, *edges, color=color, linewidth=2)
        axes.set(title=title, ylabel="Hz", ylim=(0, min(top_hz, sample_rate / 2)), xlim=extent[:2])
    if course:
        times, confidence = zip(*course, strict=True)
        axes = every[2]
        axes.plot(np.subtract(times, start), confidence, color="black")
        axes.axhline(LOW_CONFIDENCE, color="grey", linestyle="dotted")
        for begin, end in apart(course):
            axes.axvspan(begin - start, end - start, color="red", alpha=0.2, linewidth=0)
        axes.set(title="do score and recording agree?", ylabel="confidence", ylim=(0, 1.02))
    axes.set_xlabel("seconds of the recording")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
