"""Metrics with known answers, and the oracle as an upper bound."""

import numpy as np
import pytest

from bespoke.evaluation.metrics import evaluate, oracle, ratio_oracle, si_sdr

RNG = np.random.default_rng(0)


def by_hand(estimate, reference):
    """The definition: the projection on the reference against what is left."""
    projection = np.dot(estimate, reference) / np.dot(reference, reference) * reference
    return 10 * np.log10(np.square(projection).sum() / np.square(estimate - projection).sum())


def test_si_sdr_agrees_with_its_definition_and_ignores_scale():
    estimate, reference = RNG.normal(size=(2, 1, 5000)).astype(np.float32)
    expected = by_hand(estimate[0].astype(float), reference[0].astype(float))
    assert si_sdr(estimate, reference) == pytest.approx(expected, abs=1e-6)
    assert si_sdr(estimate * np.float32(7), reference) == pytest.approx(expected, abs=1e-4)


def test_si_sdr_is_of_the_channel_mean():
    reference = RNG.normal(size=(1, 5000)).astype(np.float32)
    difference = RNG.normal(size=(1, 5000)).astype(np.float32)
    estimate = reference + 0.1 * RNG.normal(size=(1, 5000)).astype(np.float32)
    stereo = np.concatenate([estimate + difference, estimate - difference])
    assert si_sdr(stereo, reference) == pytest.approx(si_sdr(estimate, reference), abs=1e-4)


def test_a_silent_reference_has_no_figure():
    noise, silence = RNG.normal(size=(1, 8000)).astype(np.float32), np.zeros((1, 8000), np.float32)
    assert si_sdr(noise, silence) is None
    assert set(evaluate(noise, noise, silence, 16000).values()) == {None}


def test_a_silent_estimate_has_no_figure_either():
    target, rest = RNG.normal(size=(2, 1, 8000)).astype(np.float32)
    silence = np.zeros_like(target)
    assert si_sdr(silence, target) is None
    figures = evaluate(silence, target + rest, target, 16000)
    assert figures["si_sdr"] is figures["si_sdr_improvement"] is None
    assert figures["si_sdr_oracle"] > figures["si_sdr_mixture"]


@pytest.mark.parametrize("sample_rate", [16000, 44100])
def test_the_oracle_separates_what_does_not_overlap_and_is_a_ceiling(sample_rate):
    time = np.arange(sample_rate) / sample_rate
    low, high = (np.sin(2 * np.pi * hz * time)[None].astype(np.float32) for hz in (300, 3000))
    assert si_sdr(oracle(low + high, low, sample_rate), low) > 40
    target, rest = RNG.normal(size=(2, 1, sample_rate)).astype(np.float32)
    figures = evaluate(target + rest, target + rest, target, sample_rate)
    assert figures["si_sdr_oracle"] > figures["si_sdr_mixture"] + 3
    assert figures["si_sdr"] == figures["si_sdr_mixture"]
    assert figures["si_sdr_improvement"] == 0


def test_a_long_recording_is_measured_in_blocks_to_the_same_figures(monkeypatch):
    target, rest = RNG.normal(size=(2, 2, 50_001)).astype(np.float32)
    estimate, mixture = target + 0.3 * rest, target + rest
    whole = evaluate(estimate, mixture, target, 8000)
    masked = ratio_oracle(mixture, target, 8000)
    monkeypatch.setattr("bespoke.evaluation.metrics.LONG_SAMPLES", 7001)
    assert evaluate(estimate, mixture, target, 8000) == pytest.approx(whole, abs=1e-4)
    assert ratio_oracle(mixture, target, 8000) == pytest.approx(masked, abs=1e-5)
    assert si_sdr(target, target) > 100
