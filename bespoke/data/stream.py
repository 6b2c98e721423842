"""Endless stream of training mixes, and its Lightning data module.

Each batch depends only on the seed and the batch index, whatever the number of workers and wherever
the stream starts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torch.utils.data.dataloader import _BaseDataLoaderIter

from bespoke.audio.dsp import frame_power
from bespoke.data.augment import MixParams, Policy
from bespoke.data.background import Background, BackgroundDraw, cut, level
from bespoke.data.mixer import Mix, mix
from bespoke.score.midi import Note, perturb, shift, stretch
from bespoke.utils.errors import BespokeError

TRAIN, VALIDATION = 0, 1  # streams of one seed without common batches
_GRID_SECONDS = 0.01
_SILENCE_DB = -40.0


@dataclass(frozen=True)
class ExampleDraw:
    """Everything drawn for one training example."""

    patch: int
    start: int
    background: BackgroundDraw
    params: MixParams
    notes: tuple[Note, ...] = ()  # in seconds of the segment


class MixStream(IterableDataset):
    """Endless stream of batches of training mixes.

    Iterating yields every `stride`-th batch from batch `start` on, as a dictionary:

    - `mixture`, `target`, `background`: float32 `[batch, 1, time]`
    - `index`: index of the batch
    - `features`: input of a network that uses the score, if requested

    Args:
        targets: waveforms of the target `[1, time]`, one per patch.
        background: provides background segments.
        policy: the augmentation.
        sample_rate: of all signals, in Hz.
        segment_seconds: length of each mix.
        batch_size: number of mixes per batch.
        seed: seed of the stream.
        silent_share: share of segments drawn from where the target is silent (40 dB below its
            level), if there are such places.
        label: see `bespoke.data.mixer.mix`.
        stream: TRAIN or VALIDATION.
        notes: notes of the target, in seconds of its waveforms, for a network that uses the score.
            Alignment errors are drawn for each mix and added to them, so that the network learns
            not to rely on exact notes.
        features: function of mixture and notes that returns the network's input.

    Raises:
        BespokeError: a setting is out of range.
    """

    def __init__(
        self,
        targets: Sequence[np.ndarray],
        background: Background,
        policy: Policy,
        sample_rate: int,
        segment_seconds: float = 2.0,
        batch_size: int = 8,
        seed: int = 0,
        silent_share: float = 0.05,
        label: str = "wet",
        stream: int = TRAIN,
        notes: Sequence[Note] = (),
        features: Callable[[np.ndarray, Sequence[Note]], torch.Tensor] | None = None,
    ):
        if segment_seconds <= 0 or batch_size < 1 or not 0 <= silent_share <= 1:
            raise BespokeError(
                "data.segment_seconds must be more than 0, data.batch_size at least 1 and "
                "data.silent_share from 0 to 1."
            )
        self.targets = [level(target, sample_rate) for target in targets]
        self.background, self.policy, self.sample_rate = background, policy, sample_rate
        self.samples = round(segment_seconds * sample_rate)
        self.batch_size, self.seed, self.silent_share, self.label, self.stream = (
            batch_size,
            seed,
            silent_share,
            label,
            stream,
        )
        self.notes, self.features = tuple(notes), features
        self.start, self.stride = 0, 1
        self._active, self._silent = zip(
            *(_starts(target, self.samples, sample_rate) for target in self.targets), strict=True
        )

    def draw(self, rng: np.random.Generator) -> ExampleDraw:
        """Draw an example: patch, positions of both segments, and augmentation parameters."""
        patch = int(rng.integers(len(self.targets)))
        wants_silence = rng.random() < self.silent_share
        starts = (
            self._silent[patch]
            if wants_silence and len(self._silent[patch])
            else self._active[patch]
        )
        grid = max(1, round(_GRID_SECONDS * self.sample_rate))
        start = int(rng.choice(starts)) + int(rng.integers(grid))
        background, params = (
            self.background.sample(rng, start, self.samples),
            self.policy.sample(rng),
        )
        notes = shift(self.notes, -start / self.sample_rate) if self.features else ()
        # Where the target is stretched, its notes are too.
        notes = perturb(stretch(notes, 1 / params.target_rate), rng) if self.features else ()
        return ExampleDraw(patch, start, background, params, notes)

    def example(self, draw: ExampleDraw) -> Mix:
        """Mix a drawn example."""
        target = cut(self.targets[draw.patch], draw.start, self.samples)
        background = self.background.segment(draw.background, self.samples)
        return mix(target, background, draw.params, self.sample_rate, self.label)

    def draws(self, index: int) -> list[ExampleDraw]:
        """What is drawn for each example of batch `index`."""
        rng = np.random.default_rng([self.seed, self.stream, index])
        return [self.draw(rng) for _ in range(self.batch_size)]

    def batch(self, index: int) -> dict[str, Any]:
        """Return batch `index`."""
        draws = self.draws(index)
        mixes = [self.example(draw) for draw in draws]
        signals = {
            name: torch.from_numpy(np.stack([getattr(mix, name) for mix in mixes]))
            for name in ("mixture", "target", "background")
        }
        if self.features:
            signals["features"] = torch.stack(
                [
                    self.features(mix.mixture, draw.notes)
                    for mix, draw in zip(mixes, draws, strict=True)
                ]
            )
        # The index is a plain number: a tensor would be moved to the GPU, and reading it from there
        # would wait for the previous step.
        return {"index": index, **signals}

    def describe(self, index: int) -> list[dict[str, Any]]:
        """Plain values of what was drawn for each example of a batch, effects included."""
        described = []
        for draw in self.draws(index):
            target = cut(self.targets[draw.patch], draw.start, self.samples)
            background = self.background.segment(draw.background, self.samples)
            described.append(
                {
                    "patch": draw.patch,
                    "start_seconds": draw.start / self.sample_rate,
                    "background_source": draw.background.source,
                    "background_tracks": list(draw.background.tracks),
                    "background_start_seconds": draw.background.start / self.sample_rate,
                    **draw.params.describe(target, background, self.sample_rate),
                }
            )
        return described

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        index = self.start + number * self.stride
        while True:
            yield self.batch(index)
            index += workers * self.stride


def _starts(target: np.ndarray, samples: int, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """First samples, on a grid, of the segments with and of those without sound of the target."""
    grid = max(1, round(_GRID_SECONDS * sample_rate))
    slack = target.shape[-1] - samples
    starts = np.arange(min(slack, 0), max(slack, 0) + 1, grid)
    power = frame_power(target, grid)
    loud = np.concatenate(([0], np.cumsum(power > power.max() * 10 ** (_SILENCE_DB / 10))))
    first = np.clip(starts // grid, 0, power.size)
    last = np.clip((starts + samples) // grid, 0, power.size)
    # A segment with at least 0.1 s of sound is active.
    is_active = loud[last] - loud[first] >= min(10, loud[-1])
    return (starts[is_active] if is_active.any() else starts), starts[~is_active]


def _use_one_thread(worker: int) -> None:
    """Limit NumPy's and SciPy's threads in a worker.

    The loader limits only PyTorch's. Workers with one thread per core each slow each other down.
    """
    threadpool_limits(1)


class _StreamLoader(DataLoader):
    """Loader that starts each iteration at the batch that training has reached."""

    def __init__(self, stream: MixStream, position: Callable[[], tuple[int, int]], **settings: Any):
        super().__init__(stream, batch_size=None, **settings)
        self.stream, self.position = stream, position

    def __iter__(self) -> _BaseDataLoaderIter:
        self.stream.start, self.stream.stride = self.position()
        return super().__iter__()


class MixDataModule(pl.LightningDataModule):
    """Data module that trains on a stream and validates on a fixed list of batches.

    Args:
        train: training stream.
        validation: stream whose first batches are the validation set.
        validation_batches: number of validation batches.
        workers: number of worker processes that make mixes. 0: the main process makes them.
        hyperparameters: plain values for the checkpoint.
    """

    def __init__(
        self,
        train: MixStream,
        validation: MixStream,
        validation_batches: int = 4,
        workers: int = 0,
        hyperparameters: dict | None = None,
    ):
        super().__init__()
        self.train, self.workers = train, workers
        self.validation = [validation.batch(index) for index in range(validation_batches)]
        self.save_hyperparameters(hyperparameters or {})

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        return _StreamLoader(
            self.train,
            self._position,
            num_workers=self.workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=_use_one_thread,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(cast(Dataset, self.validation), batch_size=None)

    def _position(self) -> tuple[int, int]:
        """First batch, and stride over the batches of all devices.

        The position follows from the batches that were trained on, not from those prefetched. Each
        device has its own batches.
        """
        assert self.trainer is not None
        world, rank = self.trainer.world_size, self.trainer.global_rank
        consumed = self.trainer.global_step * self.trainer.accumulate_grad_batches
        return consumed * world + rank, world
