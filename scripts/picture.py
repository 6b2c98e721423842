"""Plot the spectrograms of a run's mixture, target and residual.

python scripts/picture.py RUN_FOLDER OUT.png
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import yaml

from bespoke.audio.io import read_audio
from bespoke.data.song import Song
from bespoke.training.logs import spectrogram_image
from bespoke.utils.errors import BespokeError


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and plot. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("out", type=Path, help="the picture, .png, .svg or .pdf")
    parser.add_argument("--max-hz", type=float, default=6000.0, help="upper end of the picture")
    options = parser.parse_args(arguments)
    try:
        signals = {name: read_audio(options.run / f"{name}.wav") for name in ("target", "residual")}
        song = Song.load(yaml.safe_load((options.run / "config.yaml").read_text())["song"])
    except BespokeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    panels = {
        "the recording": song.mixture,
        "separated": signals["target"][0],
        "the rest": signals["residual"][0],
    }
    if song.reference is not None:
        panels["the true target"] = song.reference
    draw(panels, song.sample_rate, options.out, options.max_hz)
    return 0


def draw(panels: dict, sample_rate: int, path: Path, max_hz: float) -> None:
    """Plot spectrograms side by side, each with a range of 80 dB."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(3.6 * len(panels), 3.2), sharey=True, layout="constrained"
    )
    for axis, (name, signal) in zip(axes, panels.items(), strict=True):
        extent = (0, signal.shape[-1] / sample_rate, 0, sample_rate / 2000)
        axis.imshow(spectrogram_image(signal, sample_rate), aspect="auto", extent=extent)
        axis.set(title=name, xlabel="seconds", ylim=(0, max_hz / 1000))
    axes[0].set_ylabel("kHz")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    sys.exit(main())
