"""Batch k is the same for any number of workers and any start of the stream."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from audiomentations import AddGaussianNoise, Gain, PitchShift, TimeStretch
from threadpoolctl import threadpool_info, threadpool_limits
from torch.utils.data import DataLoader

from bespoke.data.augment import Policy
from bespoke.data.background import BackgroundDraw, cut
from bespoke.data.stream import VALIDATION, MixDataModule, MixStream
from bespoke.score.midi import Note
from bespoke.utils.errors import BespokeError

RATE = 8000


class Noise:
    """A background of seeded noise."""

    track = np.random.default_rng(5).normal(size=(1, 4 * RATE)).astype(np.float32) * 0.1

    def sample(self, rng, target_start, samples):
        return BackgroundDraw("noise", (), int(rng.integers(3 * RATE)))

    def segment(self, draw, samples):
        return cut(self.track, draw.start, samples)


def target(seconds=6.0, sounding=(1.0, 3.0)):
    """A tone that sounds between two times."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (np.sin(2 * np.pi * 440 * time) * ((time >= sounding[0]) & (time < sounding[1])))[
        None
    ].astype(np.float32)


def stream(**settings):
    policy = Policy(
        (-12, 6),
        (-12, 6),
        {"ratios": [2, 20]},
        {"pitch": PitchShift(p=0.5)},
        mix={"noise": AddGaussianNoise(p=0.5)},
    )
    defaults = {"segment_seconds": 0.5, "batch_size": 3, "seed": 1}
    return MixStream(
        [target(), target(sounding=(1.0, 2.5))], Noise(), policy, RATE, **{**defaults, **settings}
    )


def take(loader, count):
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


def same(first, second):
    return all(
        torch.equal(first[name], second[name]) for name in ("mixture", "target", "background")
    )


@pytest.fixture(scope="module")
def expected():
    return [stream().batch(index) for index in range(9)]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_stream_is_the_same_for_any_number_of_workers(workers, expected):
    batches = take(DataLoader(stream(), batch_size=None, num_workers=workers), 9)
    assert all(same(*pair) for pair in zip(batches, expected, strict=True))


def test_a_stream_that_starts_later_goes_on_and_devices_share_it_out(expected):
    later = stream()
    later.start = 4
    assert all(same(*pair) for pair in zip(take(later, 5), expected[4:], strict=True))
    device = stream()
    device.start, device.stride = 1, 2
    assert all(
        same(*pair)
        for pair in zip(
            take(DataLoader(device, batch_size=None, num_workers=2), 4), expected[1::2], strict=True
        )
    )


def trainer_on(device, accumulate_grad_batches=1):
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(
        world_size=1,
        global_rank=0,
        accumulate_grad_batches=accumulate_grad_batches,
        global_step=0,
        strategy=strategy,
    )


def test_every_iteration_of_the_training_loader_begins_where_training_is(expected):
    module = MixDataModule(stream(), stream(stream=VALIDATION), 1)
    module.trainer = trainer_on("cpu", accumulate_grad_batches=2)
    loader = module.train_dataloader()
    assert same(take(loader, 1)[0], expected[0])
    module.trainer.global_step = 3  # of two batches each
    assert same(take(loader, 1)[0], expected[6])


@pytest.mark.parametrize(("device", "is_pinned"), [("cuda", True), ("cpu", False), ("mps", False)])
def test_training_loader_pins_its_batches_for_a_gpu_and_makes_them_ahead(device, is_pinned):
    module = MixDataModule(stream(), stream(stream=VALIDATION), 1, workers=2)
    module.trainer = trainer_on(device)
    loader = module.train_dataloader()
    assert (loader.pin_memory, loader.num_workers, loader.prefetch_factor) == (is_pinned, 2, 4)


class Threads(MixStream):
    def batch(self, index):
        return [library["num_threads"] for library in threadpool_info()]


def test_a_worker_computes_with_one_thread():
    module = MixDataModule(
        Threads([target()], Noise(), Policy((0, 0)), RATE, batch_size=1),
        stream(stream=VALIDATION),
        1,
        workers=1,
    )
    module.trainer = trainer_on("cpu")
    with threadpool_limits(2):
        (threads,) = take(module.train_dataloader(), 1)
    assert threads
    assert set(threads) == {1}


def test_batches_differ_between_indices_seeds_and_streams(expected):
    assert not same(expected[0], expected[1])
    assert not same(expected[0], stream(seed=2).batch(0))
    assert not same(expected[0], stream(stream=VALIDATION).batch(0))


def test_a_batch_has_shapes_and_adds_up(expected):
    batch = expected[0]
    assert batch["mixture"].shape == batch["target"].shape == (3, 1, RATE // 2)
    assert batch["mixture"].dtype == torch.float32
    assert batch["index"] == 0
    assert torch.allclose(batch["mixture"], batch["target"] + batch["background"], atol=1e-6)


def test_validation_is_a_fixed_list():
    module = MixDataModule(stream(), stream(stream=VALIDATION), 2)
    first, second = list(module.val_dataloader()), list(module.val_dataloader())
    assert len(first) == 2
    assert all(same(*pair) for pair in zip(first, second, strict=True))


def test_what_was_drawn_can_be_read_and_says_what_was_made(expected):
    made = MixStream(
        [target()],
        Noise(),
        Policy((-12, 6), target={"gain": Gain(-3, -3, p=1)}),
        RATE,
        batch_size=2,
    )
    described = made.describe(5)
    assert described == made.describe(5)
    assert [
        example["target_effects"]["gain"]["amplitude_ratio"] for example in described
    ] == pytest.approx([10 ** (-3 / 20)] * 2)
    assert json.loads(json.dumps(described)) == described
    batch = made.batch(5)
    for number, example in enumerate(described):
        start = round(example["start_seconds"] * RATE)
        power = np.square(cut(made.targets[0], start, made.samples)).mean() * 10 ** (
            example["target_gain_db"] / 10
        )
        background = np.square(
            cut(Noise.track, round(example["background_start_seconds"] * RATE), made.samples)
        ).mean()
        ratio = (
            batch["target"][number].square().mean() / batch["background"][number].square().mean()
        )
        assert ratio.item() == pytest.approx(power / background, rel=1e-3)


def starts_of(made, count=600):
    rng = np.random.default_rng(0)
    return np.array([made.draw(rng).start for _ in range(count)]) / RATE


def test_segments_fall_anywhere_the_target_sounds_and_silence_has_its_share():
    made = MixStream([target()], Noise(), Policy(), RATE, segment_seconds=0.5, silent_share=0.2)
    starts = starts_of(made)
    silent = (starts + 0.5 < 1.0) | (starts > 3.0)
    assert silent.mean() == pytest.approx(0.2, abs=0.06)
    sounding = starts[~silent]
    assert sounding.min() < 0.75
    assert sounding.max() > 2.7
    assert np.histogram(sounding, bins=5, range=(0.6, 2.9))[0].min() > 40


def test_without_a_share_for_silence_the_target_always_sounds():
    made = MixStream([target()], Noise(), Policy(), RATE, segment_seconds=0.5, silent_share=0)
    rng = np.random.default_rng(0)
    for _ in range(100):
        assert np.abs(made.example(made.draw(rng)).target).max() > 0.01


def test_a_song_shorter_than_a_segment_is_padded():
    made = MixStream(
        [target(1.0, (0.0, 1.0))],
        Noise(),
        Policy(),
        RATE,
        segment_seconds=2.0,
        batch_size=1,
        silent_share=0,
    )
    batch = made.batch(0)
    assert batch["target"].shape == (1, 1, 2 * RATE)
    assert (batch["target"].abs() > 1e-6).sum() == pytest.approx(RATE, abs=0.02 * RATE)


def test_settings_that_make_no_sense_are_refused():
    for settings in ({"segment_seconds": 0}, {"batch_size": 0}, {"silent_share": 2}):
        with pytest.raises(BespokeError, match=r"data\."):
            stream(**settings)


def test_a_stream_for_a_network_that_uses_the_score_tells_where_the_notes_are():
    seen = []

    def features(mixture, notes):
        seen.append(notes)
        return torch.full((6, 2, 3), float(len(notes)))

    notes = [Note(1.0, 3.0, 69)]
    scored = stream(notes=notes, features=features, silent_share=0.0)
    batch = scored.batch(0)
    assert batch["features"].shape == (3, 6, 2, 3)
    assert torch.equal(scored.batch(0)["features"], batch["features"])
    draws = [scored.draw(np.random.default_rng(index)) for index in range(40)]
    offsets = [
        draw.notes[0].start_seconds - (1.0 - draw.start / RATE) for draw in draws if draw.notes
    ]
    assert len(offsets) > 30
    assert 0 < np.abs(offsets).max() < 0.15  # the alignment's errors
    # The mixes are those of a stream without a score but for what the errors draw.
    assert "features" not in stream().batch(0)


def test_notes_are_where_a_stretched_target_sounds():
    notes = (Note(1.0, 3.0, 69),)
    policy = Policy(target={"time": TimeStretch(min_rate=0.8, max_rate=1.25, p=1.0)})
    seen = []
    stretched = MixStream(
        [target()],
        Noise(),
        policy,
        RATE,
        segment_seconds=5.0,
        batch_size=6,
        notes=notes,
        features=lambda mixture, notes: seen.append(notes) or torch.zeros(1),
    )
    batch = stretched.batch(0)
    compared = 0
    for waveform, heard in zip(batch["target"][:, 0].numpy(), seen, strict=True):
        loud = np.flatnonzero(np.abs(waveform) > 0.3 * np.abs(waveform).max()) / RATE
        if heard and heard[0].start_seconds > 0.2:
            compared += 1
            # An aligned score's errors are added to the notes: tens of milliseconds.
            assert heard[0].start_seconds == pytest.approx(loud[0], abs=0.1)
    assert compared >= 3
