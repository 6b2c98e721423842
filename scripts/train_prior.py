"""Train the network that ships with recipe=auto (bespoke/prior.pt) on random synthesized ensembles.

    python scripts/train_prior.py --soundfonts TimGM6mb FluidR3_GM MuseScore_General --examples 2400 --minutes 30 --folder /tmp/prior

The examples are kept in the folder, so that a second call goes on from what is there. The shipped one: docs/LAB.md.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import joblib
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bespoke.audio import atomic_path
from bespoke.ensembles import Ensembles
from bespoke.features import ScoreFeatures
from bespoke.instruments import Sampler
from bespoke.loss import RelativeErrorLoss
from bespoke.model import PRIOR, ScoreUNet
from bespoke.score import perturb
from bespoke.stft import STFT
from bespoke.synth import Player, SoundFont

STFT_SETTINGS = {"sample_rate": 22050, "window_seconds": 2048 / 22050, "hop_seconds": 512 / 22050}  # as conf/recipe/auto.yaml
BINS, FRAMES = 384, 128  # of a crop: to 4 kHz, where the energy is, and 3 s
STORED_BINS = 512
PIECES_PER_STEP, CROPS_PER_PIECE = 3, 2
EQUALIZER_DB = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--soundfonts", nargs="+", required=True, help="names or paths; the more unlike, the better")
    parser.add_argument("--drums", nargs="*", default=[], help="soundfonts with drum kits only")
    parser.add_argument(
        "--recorded", type=Path, help="a folder of instruments: of each a folder of recorded notes, see bespoke/instruments.py"
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the examples, 4 MB each")
    parser.add_argument("--examples", type=int, default=2400)
    parser.add_argument("--minutes", type=float, default=30.0, help="of training")
    parser.add_argument("--jobs", type=int, default=2, help="processes that make examples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--initial", type=Path, help="go on from a prior")
    parser.add_argument("--output", type=Path, default=PRIOR)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    pieces = [piece for piece in range(-(-options.examples // 2)) if not (options.folder / f"{piece:05d}_0.npz").exists()]
    shares = [pieces[job :: options.jobs] for job in range(options.jobs)]
    joblib.Parallel(options.jobs)(joblib.delayed(make_examples)(share, options) for share in shares)
    train(sorted(options.folder.glob("*.npz")), options.output, options.minutes, options.seed, options.initial)


def make_examples(pieces: Sequence[int], options: argparse.Namespace) -> None:
    """Draw pieces and keep their signals and features (of notes with errors), two examples a piece."""
    torch.set_num_threads(1)
    players, drummers = ([Player(SoundFont.find(name)) for name in names] for names in (options.soundfonts, options.drums))
    stft = STFT(**STFT_SETTINGS)
    recorded = {folder.name: Sampler(folder, stft.sample_rate) for folder in sorted(options.recorded.iterdir())} if options.recorded else {}
    ensembles, features = Ensembles(players, stft.sample_rate, 20.0, recorded, drummers), ScoreFeatures(stft)
    for piece in pieces:
        rng = np.random.default_rng([options.seed, piece])
        for number, example in enumerate(ensembles.draw(rng)):
            channels = features((example.target + example.background)[None], perturb(example.notes, rng))
            with atomic_path(options.folder / f"{piece:05d}_{number}.npz") as temporary, open(temporary, "wb") as file:
                np.savez(
                    file,
                    target=(example.target * 32767).astype(np.int16),
                    background=(example.background.clip(-1, 1) * 32767).astype(np.int16),
                    features=(channels[:, :STORED_BINS] * 255).round().byte().numpy(),
                )


def train(files: Sequence[Path], output: Path, minutes: float, seed: int, initial: Path | None) -> None:
    """Train on crops of the examples; the weights' moving average is what counts, and is written every few minutes."""
    torch.manual_seed(seed)
    rng, stft, loss = np.random.default_rng(seed), STFT(**STFT_SETTINGS), RelativeErrorLoss()
    model = ScoreUNet().to(memory_format=torch.channels_last)
    if initial:
        model.load_state_dict({name: value.float() for name, value in torch.load(initial, weights_only=True)["weights"].items()})
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-3)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True)
    began, step = time.monotonic(), 0
    compiled = torch.compile(model)
    with tqdm(total=round(60 * minutes), unit="s", mininterval=10) as bar:
        while (done := (time.monotonic() - began) / 60 / minutes) < 1:
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(1, (step + 1) / 50) * (0.51 + 0.49 * np.cos(np.pi * done))
            crops = [crop for file in rng.choice(files, PIECES_PER_STEP) for crop in _crops(file, stft, rng)]
            features, target, mixture = (torch.stack(parts) for parts in zip(*crops, strict=True))
            value = loss(compiled(mixture.abs(), features), target, mixture)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            average.update_parameters(model)
            step += 1
            bar.set_postfix(step=step, loss=f"{value.item():.2f} dB", refresh=False)
            bar.update(round(60 * minutes * done) - bar.n)
            if step % 200 == 0:
                save(average.module, output)
    save(average.module, output)


def save(model: ScoreUNet, output: Path) -> None:
    """Write the weights, in half precision but for biases and statistics, which lose by it."""
    weights = {name: value.half() if value.ndim > 1 else value for name, value in model.state_dict().items()}
    with atomic_path(output) as temporary:
        torch.save({"channels": model.hyperparameters["channels"], "weights": weights}, temporary)


def _crops(file: Path, stft: STFT, rng: np.random.Generator) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Features, target and mixture of segments of an example, with another equalizer each: timbre must not matter."""
    with np.load(file) as stored:
        target, background = (torch.from_numpy(stored[name].astype(np.float32) / 32767) for name in ("target", "background"))
        channels = stored["features"]
    target, mixture = stft(torch.stack([target, target + background])[None])[0, :, :BINS]
    rms, octaves = mixture.abs().square().mean().sqrt(), np.log2(np.maximum(stft.frequencies_hz[:BINS].numpy(), 30) / 30)
    crops = []
    for _ in range(CROPS_PER_PIECE):
        for _ in range(5):  # rather where the target plays
            frames = slice(start := int(rng.integers(mixture.shape[1] - FRAMES)), start + FRAMES)
            if target[:, frames].abs().square().sum() > 1e-3 * mixture[:, frames].abs().square().sum():
                break
        gains = 10 ** (np.interp(octaves, np.arange(0, 9, 0.5), rng.normal(0, EQUALIZER_DB, 18)) / 20)
        gains = torch.from_numpy(gains.astype(np.float32))[:, None] / rms
        features = torch.from_numpy(channels[:, :BINS, frames].astype(np.float32) / 255)
        crops.append((features, target[:, frames] * gains, mixture[:, frames] * gains))
    return crops


if __name__ == "__main__":
    main()
