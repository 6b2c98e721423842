"""The benchmark's metrics against other implementations, on random and edge inputs."""

import sys

import librosa
import numpy as np
import pytest
from scipy.signal import fftconvolve
from torch_log_wmse.freq_weighting_filter import load_bundled_impulse_response

from bespoke.evaluation import metrics as evaluate_module
from bespoke.evaluation.metrics import (
    bss_eval,
    evaluate,
    evaluate_fully,
    gap_closed,
    log_wmse,
    oracle,
    ratio_oracle,
    rests,
    si_sdr,
)
from bespoke.utils.errors import BespokeError

RATE = 2000  # seconds of few samples keep the second implementation quick
TAPS = 512


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scene(seed=0, seconds=2.5):
    """Mixture, reference and an estimate with interference, artifacts and a filter."""
    reference, rest, artifacts = noise(3, 1, int(seconds * RATE), seed=seed)
    estimate = 0.8 * reference + 0.2 * np.roll(reference, 3, axis=-1) + 0.3 * rest + 0.1 * artifacts
    return reference + rest, reference, estimate


def bss_by_hand(estimate, mixture, reference, rate):
    """BSS Eval v4 of one of two mono sources from its definition.

    Least squares on all delayed copies, then medians over seconds.
    """
    signals = [reference[0].astype(float), (mixture - reference)[0].astype(float)]
    target = np.append(estimate[0].astype(float), np.zeros(TAPS - 1))

    def delayed(signal):
        return np.stack(
            [np.pad(signal, (delay, TAPS - 1 - delay)) for delay in range(TAPS)], axis=1
        )

    filters = {}
    for name, chosen in (("own", signals[:1]), ("all", signals)):
        matrix = np.concatenate([delayed(signal) for signal in chosen], axis=1)
        filters[name] = np.linalg.solve(matrix.T @ matrix, matrix.T @ target).reshape(
            len(chosen), TAPS
        )
    figures = []
    for start in range(0, len(signals[0]) - rate + 1, rate):
        pieces = [signal[start : start + rate] for signal in signals]
        true = np.append(pieces[0], np.zeros(TAPS - 1))
        estimated = np.append(estimate[0, start : start + rate], np.zeros(TAPS - 1))
        own, both = (
            sum(np.convolve(piece, taps) for piece, taps in zip(pieces, chosen, strict=False))
            for chosen in filters.values()
        )
        powers = [
            np.square(signal).sum()
            for signal in (true, true - estimated, own, both - own, both, estimated - both)
        ]
        figures.append([10 * np.log10(powers[index] / powers[index + 1]) for index in (0, 2, 4)])
    return np.median(figures, axis=0)


def figures_of(*arguments):
    figures = bss_eval(*arguments)
    return [figures[name] for name in ("bss_sdr", "bss_sir", "bss_sar")]


@pytest.mark.parametrize(
    ("seed", "change"),
    [(0, 1.0), (1, 1.0), (1, 0.1), (1, -1.0)],
    ids=["plain", "other", "scaled", "sign-flipped"],
)
def test_bss_eval_agrees_with_its_definition(seed, change):
    mixture, reference, estimate = scene(seed)
    estimate = np.float32(change) * estimate
    expected = bss_by_hand(estimate, mixture, reference, RATE)
    assert figures_of(estimate, mixture, reference, RATE) == pytest.approx(expected, abs=1e-3)


def test_bss_eval_of_the_mixture():
    mixture, reference, _ = scene()
    sdr, sir, sar = figures_of(mixture, mixture, reference, RATE)
    assert [sdr, sir] == pytest.approx(bss_by_hand(mixture, mixture, reference, RATE)[:2], abs=1e-3)
    assert sar > 100  # it has no artifacts


def test_bss_eval_of_a_recording_shorter_than_a_second():
    mixture, reference, estimate = scene(seconds=1)
    expected = bss_by_hand(estimate, mixture, reference, RATE)
    assert figures_of(estimate, mixture, reference, 2 * RATE) == pytest.approx(expected, abs=1e-3)


def test_bss_eval_of_a_perfect_estimate_is_out_of_reach():
    mixture, reference, _ = scene()
    assert min(figures_of(reference, mixture, reference, RATE)) > 100


@pytest.mark.parametrize("level", [1e-6, 1e4])
def test_bss_eval_does_not_depend_on_the_level(level):
    signals = scene()
    expected = figures_of(signals[2], *signals[:2], RATE)
    mixture, reference, estimate = (np.float32(level) * signal for signal in signals)
    assert figures_of(estimate, mixture, reference, RATE) == pytest.approx(expected, abs=1e-3)


def test_bss_eval_measures_every_estimate_on_the_same_seconds():
    reference, rest, artifacts = noise(3, 1, 5 * RATE)
    reference[:, :RATE] = 0
    reference[:, RATE : 2 * RATE] *= 1e-5  # not zero, and still silent
    mixture, estimate = reference + rest, reference + 0.3 * rest + 0.1 * artifacts
    figures = bss_eval(estimate, mixture, reference, RATE)
    assert figures["bss_silent"] == pytest.approx(2 / 5)
    assert figures["bss_missed"] == 0
    quiet_at_times = estimate.copy()
    quiet_at_times[:, : 2 * RATE] = 0
    assert bss_eval(quiet_at_times, mixture, reference, RATE)["bss_silent"] == pytest.approx(2 / 5)
    missing_two = estimate.copy()
    missing_two[:, 2 * RATE : 4 * RATE] = 0
    figures = bss_eval(missing_two, mixture, reference, RATE)
    assert figures["bss_missed"] == pytest.approx(2 / 3)
    assert figures["bss_sdr"] == 0
    assert figures["bss_sir"] is not None


def test_bss_eval_of_silence():
    mixture, reference, estimate = scene()
    silence = np.zeros_like(mixture)
    none = {"bss_sdr": None, "bss_sir": None, "bss_sar": None, "bss_silent": 1, "bss_missed": None}
    assert bss_eval(estimate, mixture, silence, RATE) == none
    assert bss_eval(estimate, mixture, mixture, RATE) == none
    assert bss_eval(silence, mixture, reference, RATE) == {
        "bss_sdr": 0,
        "bss_sir": None,
        "bss_sar": None,
        "bss_silent": 0,
        "bss_missed": 1,
    }


def test_bss_eval_survives_sources_that_are_the_same_or_an_impulse():
    reference = np.zeros((1, 2 * RATE), np.float32)
    reference[0, [100, 100 + RATE]] = 1e4
    estimate = reference + noise(1, 2 * RATE)
    assert np.isfinite(bss_eval(estimate, 2 * reference, reference, RATE)["bss_sdr"])


def log_wmse_by_hand(estimate, mixture, reference):
    """The definition in the time domain: -4 ln(weighted error / weighted mixture energy + 1e-8)."""
    weighting = load_bundled_impulse_response().double().numpy()

    def energy(signal):
        return np.square(fftconvolve(signal[0].astype(float), weighting)).sum()

    return -4 * np.log(
        energy(estimate - reference) / max(energy(mixture), 1e-16 * mixture.shape[-1]) + 1e-8
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "change", [1.0, 0.1, -1.0, 0.0], ids=["plain", "scaled", "sign-flipped", "silent estimate"]
)
def test_log_wmse_agrees_with_its_definition(seed, change):
    mixture, reference, estimate = scene(seed)
    estimate = np.float32(change) * estimate
    assert log_wmse(estimate, mixture, reference, 44100) == pytest.approx(
        log_wmse_by_hand(estimate, mixture, reference), abs=1e-4
    )


def test_log_wmse_stands_silence():
    mixture, reference, estimate = scene()
    silence = np.zeros_like(mixture)
    assert log_wmse(estimate, mixture, silence, 44100) == pytest.approx(
        log_wmse_by_hand(estimate, mixture, silence), abs=1e-4
    )
    for perfect in (
        (silence, mixture, silence),
        (reference, mixture, reference),
        (silence, silence, silence),
    ):
        assert log_wmse(*perfect, 44100) == pytest.approx(-4 * np.log(1e-8), abs=1e-3)
    assert log_wmse(mixture, mixture, silence, 44100) == pytest.approx(0, abs=1e-3)


def test_log_wmse_is_measured_at_one_rate():
    time = np.arange(44100) / 44100
    tone, hum = (np.sin(2 * np.pi * hz * time)[None].astype(np.float32) for hz in (440, 100))
    at_full, at_half = (
        log_wmse(
            (tone + 0.1 * hum)[:, ::step], (tone + hum)[:, ::step], tone[:, ::step], 44100 // step
        )
        for step in (1, 2)
    )
    assert at_half == pytest.approx(at_full, abs=0.2)


def test_rests_have_known_answers():
    mixture = noise(1, 4 * RATE)
    reference = mixture.copy()
    reference[:, 2 * RATE :] = 0
    figures = rests(np.float32(0.1) * mixture, mixture, reference, RATE)
    assert figures == {"rest_share": 0.5, "rest_leak_db": pytest.approx(-20, abs=1e-4)}
    assert rests(-mixture, mixture, reference, RATE)["rest_leak_db"] == pytest.approx(0, abs=1e-6)
    assert rests(reference, mixture, reference, RATE)["rest_leak_db"] == -120
    assert rests(mixture, mixture, mixture, RATE) == {"rest_share": 0, "rest_leak_db": None}
    assert rests(mixture, mixture, np.zeros_like(mixture), RATE) == {
        "rest_share": 1,
        "rest_leak_db": pytest.approx(0),
    }
    assert rests(*3 * [np.zeros_like(mixture)], RATE) == {"rest_share": 1, "rest_leak_db": None}


def test_the_ratio_oracle_agrees_with_librosas_transform():
    rate = 44100
    reference, rest = noise(2, 1, rate, seed=1)
    rest = np.cumsum(rest, axis=-1) / 10  # another spectrum than the reference's
    mixture = reference + rest
    transform = {
        "hop_length": 512,
        "window": np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)),
    }
    spectra = [
        librosa.stft(signal[0], n_fft=2048, pad_mode="constant", **transform)
        for signal in (mixture, reference)
    ]
    mask = abs(spectra[1]) / (abs(spectra[1]) + abs(spectra[0] - spectra[1]))
    expected = librosa.istft(mask * spectra[0], length=rate, **transform)[None]
    estimate = ratio_oracle(mixture, reference, rate)
    np.testing.assert_allclose(estimate, expected, atol=1e-4)
    assert (
        si_sdr(mixture, reference)
        < si_sdr(estimate, reference)
        < si_sdr(oracle(mixture, reference, rate), reference)
    )


@pytest.mark.parametrize("mask", [oracle, ratio_oracle])
def test_oracles_at_the_edges(mask):
    mixture = noise(2, RATE)
    assert not mask(mixture, np.zeros_like(mixture), RATE).any()
    assert not mask(np.zeros_like(mixture), np.zeros_like(mixture), RATE).any()
    np.testing.assert_allclose(
        mask(mixture, mixture, RATE), mixture.mean(axis=0, keepdims=True), atol=1e-5
    )


def test_gap_closed():
    assert gap_closed(0.0, -10.0, 10.0) == 0.5
    assert gap_closed(-10.0, -10.0, 10.0) == 0
    assert gap_closed(-20.0, -10.0, 10.0) == -0.5
    assert gap_closed(None, -10.0, 10.0) is None
    assert gap_closed(1.0, 2.0, 2.0) is None


def test_all_figures_in_one():
    mixture, reference, estimate = scene()
    figures = evaluate_fully(estimate, mixture, reference, RATE)
    assert set(evaluate(estimate, mixture, reference, RATE).items()) <= set(figures.items())
    assert figures["gap_closed"] == gap_closed(
        figures["si_sdr"], figures["si_sdr_mixture"], figures["si_sdr_oracle"]
    )
    assert all(np.isfinite(figure) for figure in figures.values() if figure is not None)
    silent = evaluate_fully(estimate, mixture, np.zeros_like(reference), RATE)
    assert {name for name, figure in silent.items() if figure is not None} == {
        "bss_silent",
        "log_wmse",
        "rest_share",
        "rest_leak_db",
    }


@pytest.mark.parametrize(
    ("metric", "package"), [(bss_eval, "museval"), (log_wmse, "torch_log_wmse")]
)
def test_a_metric_whose_package_is_missing_is_one_sentence(monkeypatch, metric, package):
    monkeypatch.setitem(sys.modules, package, None)
    evaluate_module._museval.cache_clear()
    with pytest.raises(BespokeError, match=r"pip install 'bespoke-separation\[benchmark\]'\.$"):
        metric(*scene()[::-1], RATE)


def test_the_arguments_are_numpy_and_stay_as_they_are():
    signals = scene()
    before = [signal.copy() for signal in signals]
    mixture, reference, estimate = signals
    evaluate_fully(estimate, mixture, reference, RATE)
    assert all((signal == copy).all() for signal, copy in zip(signals, before, strict=True))
