"""Separator: masks at other rates, sums of stems, blocks, and contents of checkpoints."""

import numpy as np
import pytest
import torch

from bespoke.audio.stft import STFT
from bespoke.models.features import FACTORIZATIONS
from bespoke.models.networks import MaskBLSTM, MaskNetwork, pretrained_score_unet
from bespoke.models.separator import Separator, carry, load_separator, stream_together
from bespoke.score.midi import Note
from bespoke.utils.errors import BespokeError

RNG = np.random.default_rng(0)


class Constant(MaskNetwork):
    """A mask of one value."""

    takes_any_bins = True

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, magnitude):
        return torch.full_like(magnitude, self.value)


class LowPass(MaskNetwork):
    """A mask that passes the bins below one."""

    takes_any_bins = False

    def __init__(self, cutoff):
        super().__init__()
        self.cutoff = cutoff

    def forward(self, magnitude):
        mask = torch.zeros_like(magnitude)
        mask[:, : self.cutoff] = 1
        return mask


def test_several_parts_together_are_what_each_is_by_itself_in_any_blocks():
    sample_rate = 8000
    recording = RNG.normal(0, 0.1, (1, 5 * sample_rate)).astype(np.float32)
    separators = [
        Separator(STFT(sample_rate), network, block_seconds=2.0, overlap_seconds=0.5)
        for network in (Constant(0.25), LowPass(30))
    ]
    level = float(np.abs(recording).max())
    pieces = [recording[:, start : start + 3000] for start in range(0, 5 * sample_rate, 3000)]
    stems = [*stream_together(separators, pieces, 5 * sample_rate, sample_rate, 2 * [level])]
    for number, separator in enumerate(separators):
        together = np.concatenate([block[number][0] for block in stems], axis=1)
        assert np.array_equal(together, separator.separate(recording, sample_rate)[0])


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_stems_have_the_recordings_shape_and_add_up(sample_rate, channels):
    recording = (
        RNG.normal(size=(channels, sample_rate + 7)).astype(np.float32) * 3
    )  # far above full scale
    separator = Separator(STFT(16000), LowPass(40))
    target, residual = separator.separate(recording, sample_rate)
    assert target.shape == residual.shape == recording.shape
    assert target.dtype == residual.dtype == np.float32
    assert np.abs(target + residual - recording).max() <= 1e-6 * np.abs(recording).max()


class Narrow(MaskNetwork):
    """Mask of bins above both neighbours, as partials are if the window is long enough."""

    takes_any_bins = True

    def forward(self, magnitude):
        above = magnitude > 30 * magnitude.median(dim=1, keepdim=True).values
        return above.float()


def test_several_resolutions_give_the_mean_of_each():
    recording = RNG.normal(size=(1, 16000)).astype(np.float32)
    recording[0] += 20 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    short, long, both = (
        Separator(STFT(16000), Narrow(), resolutions=factors).separate(recording, 16000)[0]
        for factors in ([1], [4], [1, 4])
    )
    np.testing.assert_allclose(both, (short + long) / 2, atol=1e-5)
    assert np.abs(short - long).max() > 0.1
    same, _ = Separator(STFT(16000, 0.128, 0.032), Narrow()).separate(recording, 16000)
    np.testing.assert_allclose(long, same, atol=1e-5)


@pytest.mark.parametrize(
    ("factors", "words"),
    [([2], "alone"), ([1, 2], "alone"), ([], "list"), ([0], "list"), (["long"], "list")],
)
def test_a_resolution_that_cannot_be_is_refused(factors, words):
    with pytest.raises(BespokeError, match=words):
        Separator(STFT(16000), LowPass(40), resolutions=factors)


@pytest.mark.parametrize("sample_rate", [22050, 44100])
def test_a_tone_below_the_cutoff_is_target_and_one_above_is_residual(sample_rate):
    time = np.arange(sample_rate) / sample_rate
    low, high = (np.sin(2 * np.pi * hz * time)[None].astype(np.float32) for hz in (500, 4000))
    target, residual = Separator(STFT(16000), LowPass(64)).separate(
        low + high, sample_rate
    )  # 2000 Hz
    middle = slice(sample_rate // 10, -sample_rate // 10)  # a tone's beginning and end are no tone
    assert np.abs(target - low)[:, middle].max() < 0.02
    assert np.abs(residual - high)[:, middle].max() < 0.02


def test_a_mask_is_carried_by_hz_and_seconds():
    source, destination = STFT(16000), STFT(44100)
    frames = 126
    ramp = (source.frequencies_hz[:, None] / 8000 * source.times_seconds(frames)[None]).float()
    carried = carry(ramp, torch.ones_like(ramp), source, destination, 126)
    expected = (
        destination.frequencies_hz[:, None]
        / 8000
        * destination.times_seconds(126)[None].clamp(max=1.0)
    )
    below = destination.frequencies_hz <= 8000
    assert torch.allclose(carried[below], expected[below], atol=1e-4)


def test_above_the_models_band_the_top_octave_goes_on_weighted_by_magnitude():
    source, destination = STFT(16000), STFT(44100)
    mask, magnitude = torch.zeros(257, 4), torch.zeros(257, 4)
    mask[200:] = 0.8
    magnitude[150] = 1.0  # mask 0
    magnitude[220] = 3.0  # mask 0.8
    carried = carry(mask, magnitude, source, destination, 4)
    above = destination.frequencies_hz > 8000
    assert torch.allclose(carried[above], torch.tensor(0.6), atol=1e-4)


@pytest.mark.slow
def test_blocks_join_without_a_seam():
    recording = RNG.normal(size=(1, 16000 * 7)).astype(np.float32)
    whole, _ = Separator(STFT(16000), Constant(0.5)).separate(recording, 16000)
    assert whole == pytest.approx(recording / 2, abs=1e-5)
    blocks, residual = Separator(
        STFT(16000), Constant(0.5), block_seconds=2, overlap_seconds=0.5
    ).separate(recording, 16000)
    assert blocks == pytest.approx(whole, abs=1e-5)
    assert np.abs(blocks + residual - recording).max() <= 1e-6 * np.abs(recording).max()


@pytest.mark.parametrize("length", [16001, 20001, 31999, 32001, 44000, 62345])
def test_blocks_cover_every_length(length):
    recording = np.ones((1, length), np.float32)
    target, _ = Separator(
        STFT(16000), Constant(1.0), block_seconds=1, overlap_seconds=0.5
    ).separate(recording, 16000)
    assert target == pytest.approx(recording, abs=1e-4)


def test_silence_gives_silence():
    target, residual = Separator(STFT(16000), Constant(0.5)).separate(
        np.zeros((2, 1000), np.float32), 16000
    )
    assert not target.any()
    assert not residual.any()


def test_blocks_that_make_no_sense_are_refused():
    with pytest.raises(BespokeError, match="overlap"):
        Separator(STFT(16000), Constant(0.5), block_seconds=2, overlap_seconds=1.5)


class Payload:
    """What a hostile checkpoint would hold."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('owned').touch()",)


def test_checkpoints_that_are_missing_foreign_damaged_or_hostile_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BespokeError, match="does not exist"):
        load_separator(tmp_path / "none.ckpt")
    torch.save({"weights": 1}, tmp_path / "foreign.ckpt")
    (tmp_path / "damaged.ckpt").write_bytes(b"PK\x03\x04 nothing")
    torch.save({"hyper_parameters": Payload(), "state_dict": {}}, tmp_path / "hostile.ckpt")
    for name in ("foreign", "damaged", "hostile"):
        with pytest.raises(BespokeError, match=f"{name}.ckpt is not a checkpoint"):
            load_separator(tmp_path / f"{name}.ckpt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("network", ["paper", "pretrained"])
def test_only_the_network_that_was_trained_in_bfloat16_separates_in_it(network, monkeypatch):
    stft = STFT(8000, 0.064, 0.016)
    torch.manual_seed(0)
    model = MaskBLSTM(stft.bins) if network == "paper" else pretrained_score_unet()
    time = np.arange(16000) / 8000
    mixture = (np.sin(2 * np.pi * 440 * time) + 0.1 * RNG.normal(size=16000))[None].astype(
        np.float32
    )
    estimates = []
    for is_there in (False, True):
        monkeypatch.setattr(
            "bespoke.utils.processor.multiplies_bfloat16", lambda is_there=is_there: is_there
        )
        estimates.append(
            Separator(stft, model, notes=[Note(0.2, 1.8, 69)]).separate(mixture, 8000)[0]
        )
    difference = np.std(estimates[1] - estimates[0]) / np.std(estimates[0])
    assert difference == 0 if network == "paper" else 0 < difference < 0.01


class Sounding(MaskNetwork):
    """Passes the partials of the notes that sound."""

    uses_score = True

    def forward(self, magnitude, features):
        return features[:, FACTORIZATIONS]


def test_notes_are_in_seconds_of_the_recording_in_every_block():
    sample_rate = 16000
    time = np.arange(4 * sample_rate) / sample_rate
    recording = np.sin(2 * np.pi * 440 * time)[None].astype(np.float32)
    stft, notes = STFT(8000, 0.064, 0.016), [Note(2.2, 3.2, 69)]
    whole, _ = Separator(stft, Sounding(), notes=notes).separate(recording, sample_rate)
    blocks, residual = Separator(stft, Sounding(), 1.5, 0.5, notes).separate(recording, sample_rate)
    for target in (whole, blocks):
        assert np.abs(target[0, : int(2.0 * sample_rate)]).max() < 0.02
        assert np.std(target[0, int(2.4 * sample_rate) : int(3.0 * sample_rate)]) == pytest.approx(
            np.sqrt(0.5), rel=0.1
        )
        assert np.abs(target[0, int(3.4 * sample_rate) :]).max() < 0.02
    assert blocks + residual == pytest.approx(recording, abs=1e-6)


@pytest.mark.parametrize("is_training", [True, False])
def test_a_network_is_left_in_the_mode_in_which_it_was(is_training):
    stft = STFT(8000, 0.064, 0.016)
    model = MaskBLSTM(stft.bins, hidden_size=4, layers=2, dropout=0.9).train(is_training)
    mixture = RNG.normal(size=(1, 4000)).astype(np.float32)
    first, second = (Separator(stft, model).separate(mixture, 8000)[0] for _ in range(2))
    assert model.training is is_training
    assert np.array_equal(first, second)  # without dropout
    with pytest.raises(TypeError, match="Linear is no MaskNetwork"):
        Separator(stft, torch.nn.Linear(1, 1))
