"""Separate a recording with a checkpoint, without training.

python scripts/separate.py outputs/feelings/.../checkpoints/last.ckpt SONG.wav --out FOLDER
"""

import argparse
import sys
from pathlib import Path

from bespoke.audio import open_audio
from bespoke.errors import BespokeError
from bespoke.separate import load_separator


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and write the stems. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Separate a recording with a trained checkpoint.")
    parser.add_argument("checkpoint", type=Path, help="checkpoints/last.ckpt of a run")
    parser.add_argument("recording", type=Path, help="audio of any rate, length and number of channels")
    parser.add_argument("--out", type=Path, default=None, help="folder for target.wav and residual.wav (default: RECORDING.stems)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument(
        "--strength", type=float, default=None, help="more than 1: less of the others and more artefacts; less than 1: the reverse"
    )
    parser.add_argument("--force", action="store_true", help="replace stems that are already there")
    options = parser.parse_args(arguments)
    out = options.out or options.recording.with_suffix(".stems")
    try:
        present = [name for name in ("target.wav", "residual.wav") if (out / name).exists()]
        if present and not options.force:
            raise BespokeError(f"{out} already has {' and '.join(present)}: choose another with --out, or replace them with --force.")
        settings = {} if options.strength is None else {"strength": options.strength}
        separator = load_separator(options.checkpoint, options.device, **settings)
        separator.write_stems(open_audio(options.recording), out / "target.wav", out / "residual.wav")
    except BespokeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out / 'target.wav'}\n{out / 'residual.wav'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
