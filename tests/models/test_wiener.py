"""Signals of one pitch are separated by their positions; mono mixes are not changed."""

import numpy as np
import pytest
import torch

from bespoke.audio.stft import STFT
from bespoke.evaluation.metrics import si_sdr
from bespoke.models.networks import MaskNetwork
from bespoke.models.separator import Separator
from bespoke.models.wiener import multichannel_wiener
from bespoke.utils.errors import BespokeError

RATE = 8000
RNG = np.random.default_rng(0)


def placed(signal, *gains):
    return np.array(gains, np.float32)[:, None] * signal


@pytest.fixture(scope="module")
def players():
    """Two signals of one pitch that swell and fade in turns, and an uncertain mask at each time."""
    time = np.arange(4 * RATE) / RATE
    swell = 0.5 + 0.45 * np.sin(2 * np.pi * 1.5 * time)
    tone = np.sin(2 * np.pi * 440 * time)
    other = np.sin(2 * np.pi * 443 * time + 1)
    return (swell * tone).astype(np.float32), ((1 - swell) * other).astype(np.float32)


class Unsure(MaskNetwork):
    """A mask that hears the target swell, and no more."""

    takes_any_bins = True

    def __init__(self, swells_per_second=1.5):
        super().__init__()
        self.swells_per_second = swells_per_second

    def forward(self, magnitude):
        seconds = torch.arange(magnitude.shape[-1]) * 0.008
        return (0.5 + 0.4 * torch.sin(2 * torch.pi * self.swells_per_second * seconds)).expand_as(
            magnitude
        )


def separator(panning, **settings):
    return Separator(STFT(RATE), Unsure(), panning=panning, **settings)


@pytest.mark.parametrize(
    "places", [((0.4, 1.3), (1, 1)), ((1, 1), (1.3, 0.5)), ((1, 0.2, 0.7), (0.3, 1, 0.7))]
)
def test_players_of_one_pitch_are_told_apart_by_their_places(players, places):
    target, rest = (placed(player, *gains) for player, gains in zip(players, places, strict=True))
    estimates = [separator(panning).separate(target + rest, RATE) for panning in (False, True)]
    without, with_panning = (
        si_sdr(estimate.reshape(1, -1), target.reshape(1, -1)) for estimate, _ in estimates
    )
    assert without < 10
    assert with_panning > without + 8
    for estimate, residual in estimates:
        assert np.abs(estimate + residual - (target + rest)).max() <= 1e-6


def test_channels_that_differ_in_level_alone_give_what_the_mask_gives(players):
    mixture = placed(sum(players), 1, 0.3)
    without, with_panning = (
        separator(panning).separate(mixture, RATE)[0] for panning in (False, True)
    )
    assert with_panning == pytest.approx(without, abs=1e-5)


@pytest.mark.parametrize("channels", [1, 2])
def test_mono_is_what_it_was_to_the_bit(players, channels):
    mixture = np.repeat(sum(players)[None], channels, axis=0)
    without, with_panning = (
        separator(panning).separate(mixture, RATE)[0] for panning in (False, True)
    )
    assert np.array_equal(without, with_panning)


def test_silent_channel_stays_silent_and_silence_too(players):
    mixture = np.concatenate(
        [
            placed(players[0], 0.4, 1.3) + placed(players[1], 1, 1),
            np.zeros((1, 4 * RATE), np.float32),
        ]
    )
    target, _ = separator(True).separate(mixture, RATE)
    assert target[:2] == pytest.approx(separator(True).separate(mixture[:2], RATE)[0], abs=0.05)
    assert np.abs(target[2]).max() < 1e-6
    mixture[:, RATE : 2 * RATE] = 0
    assert not separator(True).separate(mixture, RATE)[0][:, RATE + 400 : 2 * RATE - 400].any()


def test_many_channels_are_masked_each_by_itself():
    mixture = RNG.normal(size=(9, RATE)).astype(np.float32)
    without, with_panning = (
        separator(panning).separate(mixture, RATE)[0] for panning in (False, True)
    )
    assert np.array_equal(without, with_panning)


def test_blocks_give_what_the_whole_gives(players):
    target, rest = (
        np.tile(placed(player, *gains), 3)
        for player, gains in zip(players, ((0.4, 1.3), (1, 1)), strict=True)
    )
    whole, _ = separator(True).separate(target + rest, RATE)
    # Every block begins where the mask, which knows the time in its block alone, says the same.
    blocks, residual = separator(True, block_seconds=14 / 3, overlap_seconds=2 / 3).separate(
        target + rest, RATE
    )
    assert si_sdr(blocks.reshape(1, -1), whole.reshape(1, -1)) > 30
    assert np.abs(blocks + residual - target - rest).max() <= 1e-6


def test_a_sure_mask_is_obeyed_and_no_evidence_changes_nothing():
    mixture = torch.from_numpy(
        RNG.normal(size=(2, 129, 40)) + 1j * RNG.normal(size=(2, 129, 40))
    ).to(torch.complex64)
    for value in (0.0, 1.0):
        mask = torch.full((129, 40), value)
        assert torch.allclose(multichannel_wiener(mask, mixture), value * mixture, atol=1e-5)
    halves = torch.full((129, 40), 0.5)  # both covariances are the mixture's
    assert torch.allclose(multichannel_wiener(halves, mixture), 0.5 * mixture, atol=1e-5)
    assert not multichannel_wiener(halves, 0 * mixture).any()
    loud = multichannel_wiener(0.3 * halves, 1e-12 * mixture)
    assert torch.allclose(1e12 * loud, multichannel_wiener(0.3 * halves, mixture), atol=1e-4)


def test_setting_is_checked():
    with pytest.raises(BespokeError, match="panning=2"):
        separator(2)


class All(Unsure):
    """Takes everything that it is shown."""

    def forward(self, magnitude):
        return torch.ones_like(magnitude)


def test_what_is_estimated_in_a_view_has_its_image_in_all_channels():
    noises = np.random.default_rng(0).normal(0, 0.1, (2, 4 * RATE)).astype(np.float32)
    target, rest = placed(noises[0], 0.8, -0.5), placed(noises[1], 1, 1)
    for panning in (False, True):
        separator = Separator(STFT(RATE), All(), view=(0.5, -0.5), panning=panning)
        estimate, residual = separator.separate(target + rest, RATE)
        for channel in (0, 1):
            assert si_sdr(estimate[channel : channel + 1], target[channel : channel + 1]) > 15
        assert np.abs(estimate + residual - (target + rest)).max() <= 1e-6
