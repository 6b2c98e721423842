"""Mixes per second on one core, compared with the same mixes made by common tools."""

import importlib.util
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bespoke.audio.dsp import peak
from bespoke.audio.io import write_wav
from bespoke.cli.train import CONF
from bespoke.data.stream import MixStream
from measure.setup import config, stream
from measure.table import Figure, Options, Section

V100_STEP_SECONDS = 0.15  # from the paper: 2,000 steps in under 5 minutes
POLICIES = tuple(sorted(file.stem for file in (CONF / "aug").glob("*.yaml")))


def measure(options: Options) -> Section:
    """Measure each policy with one thread, and the paper's with ffmpeg and pedalboard.

    ffmpeg runs once per mix, pedalboard in this process. Both are favoured by the comparison, since
    they make only the mixture, without the target as it sounds in it.
    """
    seconds = 0.3 if options.is_quick else 3.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rates = {name: policy_rate(name, seconds) for name in POLICIES}
    source = stream(config("recipe=quick", "aug=paper"))
    usual = {
        "ffmpeg, a process a mix": by_ffmpeg(source, options.work),
        "pedalboard, one by one": by_pedalboard(source),
    }
    usual = {name: rate(make, seconds) if make else None for name, make in usual.items()}
    torch.set_num_threads(threads)
    slowest = min(rates, key=rates.get)
    figures = [Figure(f"Mixes of aug={name}", rates[name], "/s a core") for name in POLICIES]
    for (name, other), goal in zip(usual.items(), (10, None), strict=True):
        if other is not None:
            figures.append(
                Figure(
                    f"aug=paper against {name}",
                    rates["paper"] / other,
                    " ×",
                    goal,
                    at_least=True,
                    detail=f"{other:.0f}/s",
                )
            )
    wanted = source.batch_size / V100_STEP_SECONDS
    figures.append(
        Figure(
            f"The slowest policy ({slowest}) on four cores",
            4 * rates[slowest],
            "/s",
            round(wanted, 1),
            at_least=True,
        )
    )
    missing = [
        f"{name}: not measured, as it is not installed."
        for name, other in usual.items()
        if other is None
    ]
    return Section(figures, "\n\n".join(missing))


def policy_rate(aug: str, seconds: float) -> float:
    """Mixes per second of one process. Effects of `matched` use the paper's background."""
    source = stream(config("recipe=quick", f"aug={aug}"))
    index = iter(range(10**9))
    return source.batch_size * rate(lambda: source.batch(next(index)), seconds)


def rate(make: Callable[[], object], seconds: float) -> float:
    """Calls per second, after one warm-up call."""
    make()
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        make()
        count += 1
    return count / elapsed


def by_ffmpeg(source: MixStream, folder: Path) -> Callable[[], np.ndarray] | None:
    """Function that makes one mix of the paper's policy with an ffmpeg process over two files.

    None if there is no ffmpeg.
    """
    program = shutil.which("ffmpeg")
    if program is None and importlib.util.find_spec("imageio_ffmpeg"):
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    if program is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    draws, sample_rate, length = (
        _draws(source),
        source.sample_rate,
        source.samples / source.sample_rate,
    )
    files = folder / "ffmpeg_target.wav", folder / "ffmpeg_background.wav"
    for file, waveform in zip(files, _whole(source), strict=True):
        write_wav(file, waveform, sample_rate)

    def make() -> np.ndarray:
        draw = next(draws)
        inputs = []
        for file, start in zip(files, (draw.start, draw.background.start), strict=True):
            inputs += [
                "-ss",
                f"{max(0, start) / sample_rate:.4f}",
                "-t",
                f"{length}",
                "-i",
                str(file),
            ]
        chain = (
            f"[0]volume={draw.params.target_gain_db}dB[t];"
            f"[1]volume={draw.params.background_gain_db}dB[b];[t][b]amix=inputs=2:normalize=0,"
            f"acompressor=threshold=0.125:ratio={draw.params.compressor.ratio}"
            ":attack=20:release=250:detection=rms"
        )
        command = [
            program,
            "-v",
            "error",
            "-nostdin",
            *inputs,
            "-filter_complex",
            chain,
            "-f",
            "f32le",
            "-",
        ]
        mixture = np.frombuffer(
            subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout, np.float32
        )
        return mixture / (peak(mixture) or 1)

    return make


def by_pedalboard(source: MixStream) -> Callable[[], np.ndarray] | None:
    """Function that makes one mix of the paper's policy with pedalboard, in this process.

    None if pedalboard is not installed. It is under the GPL, so Bespoke must not depend on it.
    """
    if importlib.util.find_spec("pedalboard") is None:
        return None
    from pedalboard import Compressor, Gain, Pedalboard

    draws, (target, background) = _draws(source), _whole(source)

    def make() -> np.ndarray:
        draw = next(draws)
        cuts = (
            waveform[:, max(0, start) : max(0, start) + source.samples]
            for waveform, start in ((target, draw.start), (background, draw.background.start))
        )
        gains = (draw.params.target_gain_db, draw.params.background_gain_db)
        parts = [
            Gain(gain_db)(part, source.sample_rate)
            for gain_db, part in zip(gains, cuts, strict=True)
        ]
        samples = min(part.shape[-1] for part in parts)
        board = Pedalboard(
            [
                Compressor(
                    threshold_db=-18,
                    ratio=draw.params.compressor.ratio,
                    attack_ms=20,
                    release_ms=250,
                )
            ]
        )
        mixture = board(parts[0][:, :samples] + parts[1][:, :samples], source.sample_rate)
        return mixture / (peak(mixture) or 1)

    return make


def _draws(source: MixStream):
    rng = np.random.default_rng(0)
    while True:
        yield source.draw(rng)


def _whole(source: MixStream) -> tuple[np.ndarray, np.ndarray]:
    """The whole waveforms from which segments are cut."""
    draw = source.draw(np.random.default_rng(0))
    background = source.background.segment(draw.background, 20 * source.sample_rate)
    return source.targets[0], background
