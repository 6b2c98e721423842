"""Train the network of recipe=auto (bespoke/models/prior.pt) on random synthesized ensembles.

This is the network that ships. From the project's folder:

    python -m recipes.prior.train_prior \\
        --soundfonts TimGM6mb FluidR3_GM MuseScore_General --folder outputs/prior \\
        --examples 2400 --minutes 30

The examples are kept in the folder, so that a second call continues with what is there. How the
shipped network was trained: docs/LAB.md.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bespoke.audio.stft import STFT
from bespoke.models.features import ScoreFeatures
from bespoke.models.losses import RelativeErrorLoss
from bespoke.models.networks import PRIOR, ScoreUNet
from bespoke.score.midi import Note, perturb
from bespoke.score.synth import Player, SoundFont
from bespoke.utils.files import atomic_path
from bespoke.utils.processor import multiplies_bfloat16
from recipes.prior.amps import Amps
from recipes.prior.ensembles import Ensembles, Example
from recipes.prior.instruments import Sampler

STFT_SETTINGS = {
    "sample_rate": 22050,
    "window_seconds": 2048 / 22050,
    "hop_seconds": 512 / 22050,
}  # as conf/recipe/auto.yaml
BINS, FRAMES = 384, 256  # of a crop: to 4 kHz, where the energy is, and 6 s
STORED_BINS, CROPS_PER_STEP, EQUALIZER_DB, LEARNING_RATE = 512, 3, 5.0, 2e-3
TOLD_NOTHING, WRONG_PART = 0.35, 0.1  # shares of the examples
STEPS_A_LISTING = (
    100  # after so many the folder is looked through again: examples may still be made
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--soundfonts", nargs="+", required=True, help="names or paths; the more unlike, the better"
    )
    parser.add_argument("--drums", nargs="*", default=[], help="soundfonts with drum kits only")
    parser.add_argument(
        "--recorded", type=Path, help="a folder with a folder of recorded notes for each instrument"
    )
    parser.add_argument("--amps", type=Path, help="a folder of amplifiers, see recipes.prior.amps")
    parser.add_argument("--folder", type=Path, required=True, help="for the examples, 4 MB each")
    parser.add_argument("--examples", type=int, default=2400)
    parser.add_argument("--minutes", type=float, default=30.0, help="of training")
    parser.add_argument("--jobs", type=int, default=2, help="processes that make examples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--initial", type=Path, help="go on from a prior")
    parser.add_argument(
        "--initial-share", type=float, default=0.0, help="of that prior's weights in the result"
    )
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="the largest")
    parser.add_argument("--output", type=Path, default=PRIOR)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    pieces = [
        piece
        for piece in range(-(-options.examples // 2))
        if not (options.folder / f"{piece:05d}_0.npz").exists()
    ]
    shares = [pieces[job :: options.jobs] for job in range(options.jobs)]
    joblib.Parallel(options.jobs)(joblib.delayed(make_examples)(share, options) for share in shares)
    if options.minutes:
        train(
            options.folder,
            options.output,
            options.minutes,
            options.seed,
            options.initial,
            options.learning_rate,
            options.initial_share,
        )


def make_examples(pieces: Sequence[int], options: argparse.Namespace) -> None:
    """Draw pieces, and keep the signals and features of two examples for each.

    The features are those of notes with errors.
    """
    torch.set_num_threads(1)
    players, drummers = (
        [Player(SoundFont.find(name)) for name in names]
        for names in (options.soundfonts, options.drums)
    )
    stft = STFT(**STFT_SETTINGS)
    recorded = (
        {
            folder.name: Sampler(folder, stft.sample_rate)
            for folder in sorted(options.recorded.iterdir())
        }
        if options.recorded
        else {}
    )
    ensembles, features = (
        Ensembles(
            players,
            stft.sample_rate,
            20.0,
            recorded,
            drummers,
            Amps(options.amps) if options.amps else None,
        ),
        ScoreFeatures(stft),
    )
    strangers: tuple[tuple[Note, ...], ...] = ()
    for piece in pieces:
        rng = np.random.default_rng([options.seed, piece])
        for number, example in enumerate(ensembles.draw(rng)):
            others = told(example.others, strangers, rng)
            written = loosened if example.is_faithful else perturb
            save_example(
                options.folder / f"{piece:05d}_{number}.npz",
                example,
                written(example.notes, rng),
                [written(part, rng) for part in others],
                features,
            )
            strangers = example.others


def save_example(
    path: Path,
    example: Example,
    notes: Sequence[Note],
    others: Sequence[Sequence[Note]],
    features: ScoreFeatures,
) -> None:
    """Write an example's signals and the features that the network is to see.

    Args:
        path: of the `.npz` file.
        example: its own notes are not used.
        notes: of the target, with errors.
        others: parts that the network is told of, with errors.
        features: of the settings of recipe=auto.
    """
    channels = features((example.target + example.background)[None], notes, others)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            target=(example.target.clip(-1, 1) * 32767).astype(np.int16),
            background=(example.background.clip(-1, 1) * 32767).astype(np.int16),
            features=(channels[:-1, :STORED_BINS] * 255).round().byte().numpy(),
        )


def loosened(notes: Sequence[Note], rng: np.random.Generator) -> tuple[Note, ...]:
    """Give the right notes the errors that an alignment of them leaves.

    They are a third of those of `bespoke.score.midi.perturb`, and no pitch is wrong.
    """
    together, length = rng.normal(0, 0.006), rng.uniform(0.85, 1.1)
    apart = np.abs(rng.normal(0, 0.006))
    loose = []
    for note in notes:
        start = note.start_seconds + together + rng.normal(0, apart)
        seconds = (note.end_seconds - note.start_seconds) * length + rng.normal(0, 0.01)
        loose.append(replace(note, start_seconds=start, end_seconds=start + max(0.05, seconds)))
    return tuple(loose)


def told(
    others: Sequence[Sequence[Note]],
    strangers: Sequence[Sequence[Note]],
    rng: np.random.Generator,
) -> list[Sequence[Note]]:
    """Which other parts the network is told of: often none, as where only the target's score is
    there, at times not all, and at times one of another piece.

    Args:
        others: the parts that play.
        strangers: parts of another piece.
        rng: draws the choice.
    """
    if rng.random() < TOLD_NOTHING:
        return []
    known = 1.0 if rng.random() < 0.6 else rng.uniform(0.3, 1.0)
    parts = [part for part in others if rng.random() < known]
    if strangers and rng.random() < WRONG_PART:
        parts.append(strangers[int(rng.integers(len(strangers)))])
    return parts


def train(
    folder: Path,
    output: Path,
    minutes: float,
    seed: int,
    initial: Path | None,
    learning_rate: float,
    initial_share: float,
) -> None:
    """Train on crops of the examples in a folder, to which more may be added meanwhile.

    The result is the moving average of the weights, mixed with the initial ones in the end. It is
    written every few minutes.
    """
    torch.manual_seed(seed)
    rng, features, loss = (
        np.random.default_rng(seed),
        ScoreFeatures(STFT(**STFT_SETTINGS)),
        RelativeErrorLoss(),
    )
    model = ScoreUNet().to(memory_format=torch.channels_last)
    if initial:
        weights = torch.load(initial, weights_only=True)["weights"]
        model.load_state_dict({name: value.float() for name, value in weights.items()})
    start = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=1e-3)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    began, step = time.monotonic(), 0
    with tqdm(total=round(60 * minutes), unit="s", mininterval=10) as bar:
        while (done := (time.monotonic() - began) / 60 / minutes) < 1:
            for group in optimizer.param_groups:
                group["lr"] = (
                    learning_rate
                    * min(1, (step + 1) / 100)
                    * (0.505 + 0.495 * np.cos(np.pi * done))
                )
            if step % STEPS_A_LISTING == 0:
                files = sorted(folder.glob("*.npz"))
            crops = [
                _crop(files[index], features, rng)
                for index in rng.integers(len(files), size=CROPS_PER_STEP)
            ]
            channels, target, mixture = (torch.stack(parts) for parts in zip(*crops, strict=True))
            with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16()):
                mask = model(mixture.abs(), channels)
            value = loss(mask, target, mixture)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            average.update_parameters(model)
            step += 1
            bar.set_postfix(step=step, loss=f"{value.item():.2f} dB", refresh=False)
            bar.update(round(60 * minutes * done) - bar.n)
            if step % 500 == 0:
                save(average.module, output)
    mix(average.module, start, initial_share)
    save(average.module, output)


def mix(model: ScoreUNet, others: Mapping[str, Tensor], share: float) -> None:
    """Give the weights of another stage of a training a share in a network's own.

    Args:
        model: is changed.
        others: the other weights, by name.
        share: 0 to 1.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.lerp_(others[name], share)


def save(model: ScoreUNet, output: Path) -> None:
    """Write the weights, in half precision but for biases and statistics, which lose by it."""
    weights = {
        name: value.half() if value.ndim > 1 else value
        for name, value in model.state_dict().items()
    }
    with atomic_path(output) as temporary:
        torch.save({"channels": model.hyperparameters["channels"], "weights": weights}, temporary)


def _crop(
    file: Path, features: ScoreFeatures, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, target and mixture of a random segment of an example.

    Segments in which the target plays are preferred. A random equalizer is applied, because the
    network must not depend on timbre.
    """
    stft = features.stft
    margin = (
        stft.window_samples // 2 // stft.hop_samples
    )  # frames, so that no window reaches over the edge
    with np.load(file) as stored:
        target, background, channels = (
            stored[name] for name in ("target", "background", "features")
        )
    for _ in range(5):
        start = int(rng.integers(margin, channels.shape[-1] - FRAMES - margin))
        part = slice(
            (start - margin) * stft.hop_samples, (start + FRAMES - 1 + margin) * stft.hop_samples
        )
        signals = np.stack([target[part], background[part]]).astype(np.float32) / 32767
        if np.sum(signals[0] ** 2) > 1e-3 * np.sum(signals[1] ** 2):
            break
    signals = torch.from_numpy(np.stack([signals[0], signals.sum(axis=0)]))
    frames = slice(margin, margin + FRAMES)
    target, mixture = stft(signals[None])[0, :, :BINS, frames]
    octaves = np.log2(np.maximum(stft.frequencies_hz[:BINS].numpy(), 30) / 30)
    gains = 10 ** (np.interp(octaves, np.arange(0, 9, 0.5), rng.normal(0, EQUALIZER_DB, 18)) / 20)
    gains = (
        torch.from_numpy(gains.astype(np.float32))[:, None] / mixture.abs().square().mean().sqrt()
    )
    short = gains * torch.from_numpy(features.short_magnitude(signals[None, 1:])[:BINS, frames])
    channels = torch.from_numpy(channels[:, :BINS, start : start + FRAMES].astype(np.float32) / 255)
    return torch.cat([channels, short[None]]), target * gains, mixture * gains


if __name__ == "__main__":
    main()
