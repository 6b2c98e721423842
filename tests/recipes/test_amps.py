"""Amplifiers: captures compute what their format says, and a chord is distorted as a whole."""

import json

import numpy as np
import pytest

from bespoke.audio.io import write_wav
from recipes.prior.amps import CHUNK, RATE, Amps, Capture, Rig

LAYERS = (
    {"channels": 3, "head_size": 2, "head_bias": False, "dilations": [1, 4]},
    {"channels": 2, "head_size": 1, "head_bias": True, "dilations": [2]},
)


def described(layers=LAYERS, seed=0):
    """A capture of two arrays of layers with random weights, as in a `.nam` file."""
    arrays, inputs, size = [], 1, 1
    for layer in layers:
        channels, count = layer["channels"], len(layer["dilations"])
        arrays.append(
            {
                **layer,
                "input_size": inputs,
                "condition_size": 1,
                "kernel_size": 3,
                "activation": "Tanh",
                "gated": False,
            }
        )
        size += channels * inputs + count * (4 * channels**2 + 3 * channels)
        size += layer["head_size"] * (channels + layer["head_bias"])
        inputs = channels
    weights = 0.5 * np.random.default_rng(seed).standard_normal(size)
    return {
        "version": "0.5.0",
        "architecture": "WaveNet",
        "config": {"layers": arrays, "head": None, "head_scale": 0.02},
        "weights": weights.tolist(),
    }


def plainly(about, signal):
    """What the format says, sample by sample filter, in double precision."""
    weights = iter(about["weights"])

    def take(*shape):
        return np.array([next(weights) for _ in range(np.prod(shape))]).reshape(shape)

    hidden, head = signal[None], None
    for array in about["config"]["layers"]:
        channels = array["channels"]
        hidden = take(channels, array["input_size"]) @ hidden
        for dilation in array["dilations"]:
            taps, bias, of_input = (
                take(channels, channels, 3),
                take(channels, 1),
                take(channels, 1),
            )
            mix, mix_bias = take(channels, channels), take(channels, 1)
            total = bias + of_input * signal
            for tap in range(3):
                delay = (2 - tap) * dilation
                late = np.pad(hidden, ((0, 0), (delay, 0)))[:, : len(signal)]
                total = total + taps[:, :, tap] @ late
            active = np.tanh(total)
            head = active if head is None else head + active
            hidden = hidden + mix @ active + mix_bias
        head = take(array["head_size"], channels) @ head
        if array["head_bias"]:
            head = head + take(array["head_size"], 1)
    return take(1) * head[0]


def test_a_capture_plays_what_its_format_says_across_chunks(tmp_path):
    (tmp_path / "amp.nam").write_text(json.dumps(described()))
    signal = np.random.default_rng(1).standard_normal(CHUNK + 500)
    expected = plainly(described(), np.pad(signal, (50, 0)))[50:]
    played = Capture(tmp_path / "amp.nam").play(signal)
    np.testing.assert_allclose(played, expected, atol=1e-4)


def test_a_capture_of_another_kind_is_refused(tmp_path):
    wrong = {**described(), "architecture": "LSTM"}
    (tmp_path / "lstm.nam").write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=r"lstm\.nam"):
        Capture(tmp_path / "lstm.nam")
    more = described()
    more["weights"].append(0.0)
    (tmp_path / "more.nam").write_text(json.dumps(more))
    with pytest.raises(ValueError, match=r"more\.nam"):
        Capture(tmp_path / "more.nam")


@pytest.mark.parametrize("seed", range(6))
def test_an_amplifier_keeps_time_and_length_and_leaves_silence_silent(seed):
    rate, amps, rng = 22050, Amps(), np.random.default_rng(seed)
    time = np.arange(rate) / rate
    part = np.where(time > 0.5, np.sin(2 * np.pi * 220 * time), 0)
    played = amps.amplify(part, rate, rng)
    assert played.dtype == np.float32
    assert played.shape == part.shape
    assert np.abs(played).max() == pytest.approx(1)
    before, during = (
        np.mean(played[int(a * rate) : int(b * rate)] ** 2) for a, b in ((0.3, 0.49), (0.6, 1))
    )
    assert before < 1e-3 * during
    assert not amps.amplify(np.zeros(100), rate, rng).any()


def test_a_chord_is_distorted_as_a_whole_and_a_rig_plays_twice_alike():
    """Two notes a fifth apart sound their difference, which neither has alone."""
    rate = 22050
    time = np.arange(rate) / rate
    rig = Rig(None, None, 0.0, seed=3)
    low, high = (np.sin(2 * np.pi * hz * time) for hz in (400.0, 600.0))

    def at_200_hz(played):
        return np.abs(np.fft.rfft(played * np.hanning(rate)))[195:206].max()

    together = rig.play(low + high, rate)
    assert at_200_hz(together) > 20 * at_200_hz(rig.play(low, rate) + rig.play(high, rate))
    assert np.array_equal(together, rig.play(low + high, rate))


def test_amplifiers_of_a_folder_are_drawn_with_its_cabinets(tmp_path):
    (tmp_path / "captures").mkdir()
    (tmp_path / "cabinets").mkdir()
    about = {}
    for name, kind in (("a.nam", "amp"), ("b.nam", "cabinet"), ("c.nam", "boost")):
        (tmp_path / "captures" / name).write_text(json.dumps(described()))
        about[name] = {"kind": kind, "make": kind}
    (tmp_path / "captures.json").write_text(json.dumps(about))
    response = np.zeros((1, 64), np.float32)
    response[0, 0] = 1
    write_wav(tmp_path / "cabinets" / "flat.wav", response, RATE)
    amps = Amps(tmp_path, captured=1.0)
    rigs = [amps.draw(np.random.default_rng(seed)) for seed in range(20)]
    assert set(amps.makes) == {"amp", "cabinet"}
    assert len({id(rig.capture) for rig in rigs}) == 2
    assert {rig.response is None for rig in rigs} == {True, False}
    played = rigs[0].play(np.random.default_rng(0).standard_normal(2000), 22050)
    assert np.isfinite(played).all()
