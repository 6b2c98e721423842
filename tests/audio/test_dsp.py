"""Compressor against FFmpeg and hand-computed levels; gain, resampling and levels on tones."""

from fractions import Fraction

import av
import numpy as np
import pytest

from bespoke.audio.compressor import compressor_gain
from bespoke.audio.dsp import active_rms, frame_power, gain, peak, resample

RATE = 16000


def tone(frequency_hz, seconds, amplitude=0.5, sample_rate=RATE):
    return (
        amplitude
        * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * sample_rate)) / sample_rate)
    )[None].astype(np.float32)


def test_gain_is_in_decibels():
    assert gain(tone(100, 0.1), 6.0206) == pytest.approx(2 * tone(100, 0.1), rel=1e-4)
    assert gain(tone(100, 0.1), -20).dtype == np.float32


def test_resampling_keeps_a_tone_and_removes_what_would_alias():
    both = tone(1000, 1, 0.5, 44100) + tone(12000, 1, 0.4, 44100)
    resampled = resample(both, 44100, RATE)
    assert resampled.shape == (1, RATE)
    middle = slice(2000, 14000)
    assert resampled[:, middle] == pytest.approx(tone(1000, 1)[:, middle], abs=2e-3)


def test_rates_without_a_common_factor_are_resampled_too():
    resampled = resample(tone(1000, 1, 0.5, 11127), 11127, RATE)
    assert resampled.shape == (1, RATE)
    assert resampled[:, 2000:14000] == pytest.approx(tone(1000, 1)[:, 2000:14000], abs=2e-3)


def test_frame_power_of_a_constant_with_a_padded_end():
    assert frame_power(np.full((2, 5), 2.0, np.float32), 2).tolist() == [4.0, 4.0, 2.0]


def test_active_rms_ignores_rests():
    sounding = tone(440, 1)
    with_rests = np.concatenate([sounding, np.zeros((1, 5 * RATE), np.float32)], axis=1)
    assert active_rms(sounding, RATE) == pytest.approx(0.5 / np.sqrt(2), rel=1e-3)
    assert active_rms(with_rests, RATE) == pytest.approx(active_rms(sounding, RATE), rel=1e-3)
    assert active_rms(np.zeros((1, 100), np.float32), RATE) == 0


@pytest.mark.parametrize("ratio", [2, 4, 20])
def test_compressor_reduces_a_steady_level_by_the_static_curve(ratio):
    # A square wave at -6 dB has an RMS of -6 dB, 12 dB above the threshold and beyond the knee.
    square = np.sign(tone(500, 1.5)) * np.float32(10 ** (-6 / 20))
    curve_db = 20 * np.log10(compressor_gain(square, RATE, ratio))
    assert curve_db[-1] == pytest.approx(12 / ratio - 12, abs=0.05)


def test_compressor_knee_is_quadratic():
    # At the threshold itself the quadratic knee takes (1 - 1/ratio) * knee / 8.
    square = np.sign(tone(500, 1.5)) * np.float32(10 ** (-18 / 20))
    curve_db = 20 * np.log10(compressor_gain(square, RATE, 4, knee_db=8))
    assert curve_db[-1] == pytest.approx(-0.75, abs=0.02)


def test_compressor_leaves_quiet_signals_alone_and_never_amplifies():
    assert (compressor_gain(tone(300, 1, 0.05), RATE, 20) == 1).all()
    noise = np.random.default_rng(0).normal(size=(1, RATE)).astype(np.float32)
    assert (compressor_gain(noise, RATE, 8) <= 1).all()


def test_compressor_attacks_faster_than_it_releases():
    burst = np.concatenate([np.zeros(RATE // 2), np.ones(RATE // 2), np.zeros(RATE // 2)])[
        None
    ].astype(np.float32)
    curve = compressor_gain(burst, RATE, 10, attack_ms=20, release_ms=250)
    final = curve[RATE - 1]
    # After the attack time the detector stands at 1 - exp(-4) = 98 % of the power.
    after_attack = curve[RATE // 2 + round(0.020 * RATE)]
    assert 20 * np.log10(after_attack / final) == pytest.approx(
        0.9 * -10 * np.log10(1 - np.exp(-4)), abs=0.02
    )
    assert (
        curve[RATE + round(0.020 * RATE)] < 0.5
    )  # the same time after the end it is still far from open


def test_compressor_detects_the_mean_power_over_channels():
    left = np.concatenate([tone(200, 1, 0.9), np.zeros((1, RATE), np.float32)])
    both = np.repeat(tone(200, 1, 0.9) / np.float32(np.sqrt(2)), 2, axis=0)
    assert compressor_gain(left, RATE, 4) == pytest.approx(compressor_gain(both, RATE, 4), abs=1e-4)


def filtered_by_ffmpeg(signal, name, settings):
    """What FFmpeg's filter makes of `[1, time]`; PyAV's wheels hold its libraries."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(
        format="flt", sample_rate=RATE, layout="mono", time_base=Fraction(1, RATE)
    )
    graph.link_nodes(
        source,
        graph.add(name, settings),
        graph.add("aformat", "sample_fmts=flt"),
        graph.add("abuffersink"),
    ).configure()
    frame = av.AudioFrame.from_ndarray(signal, format="flt", layout="mono")
    frame.sample_rate = RATE
    source.push(frame)
    source.push(None)
    frames = []
    while sum(map(np.size, frames)) < signal.size:
        frames.append(graph.pull().to_ndarray())
    return np.concatenate(frames, axis=1)


@pytest.mark.parametrize("ratio", [2, 8, 20])
def test_compressor_agrees_with_ffmpeg(ratio):
    # Noise with levels in the knee and far above it. The settings are those of the paper's likely
    # tool.
    rng = np.random.default_rng(ratio)
    steps = np.repeat([0.02, 0.1, 0.3, 0.05, 0.7, 0.01], RATE // 2)
    signal = (rng.normal(size=steps.size) * steps * 0.4).clip(-1, 1).astype(np.float32)[None]
    settings = (
        f"ratio={ratio}:threshold=0.1258925:attack=20:release=250:knee=2.828427"
        ":detection=rms:makeup=1"
    )
    theirs = filtered_by_ffmpeg(signal, "acompressor", settings)
    curve = compressor_gain(
        signal,
        RATE,
        ratio,
        threshold_db=-18,
        attack_ms=20,
        release_ms=250,
        knee_db=20 * np.log10(2.828427),
    )
    assert np.abs(curve).min() < 0.8  # it does compress here
    assert np.abs(signal * curve - theirs).max() < 1e-5 * peak(signal)
