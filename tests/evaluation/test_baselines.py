"""Baselines on mixtures with known answers, and on edge cases."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bespoke.evaluation.baselines import (
    BASELINES,
    Demucs,
    HarmonicComb,
    OpenUnmix,
    ScoreInformedNMF,
    harmonic_templates,
    piano_roll,
)
from bespoke.evaluation.metrics import rests, si_sdr
from bespoke.score.midi import Note
from bespoke.utils.errors import BespokeError

RATE = 16000
TARGET = (Note(0.25, 1.0, 60), Note(1.5, 2.25, 64), Note(2.25, 3.0, 67))
OTHER = (Note(0.0, 0.9, 54), Note(1.0, 2.0, 57), Note(2.0, 3.0, 62))
SCORE_INFORMED = ["comb", "nmf"]
HERE = ["mixture", "comb", "nmf", "hpss"]


def tones(notes, seconds=3.0, partials=10):
    """Harmonic tones that fade in and out over 10 ms, `[1, time]`."""
    time = np.arange(round(seconds * RATE)) / RATE
    signal = np.zeros_like(time)
    for note in notes:
        envelope = np.clip(
            np.minimum(time - note.start_seconds, note.end_seconds - time) / 0.01, 0, 1
        )
        hz = 440 * 2 ** ((note.pitch - 69) / 12)
        signal += envelope * sum(
            np.sin(2 * np.pi * hz * partial * time) / partial for partial in range(1, partials + 1)
        )
    return 0.1 * signal[None].astype(np.float32)


@pytest.fixture(scope="module")
def duet():
    """Mixture and target: two instruments and a little noise."""
    target = tones(TARGET)
    return target + tones(OTHER) + np.random.default_rng(0).normal(0, 0.002, target.shape).astype(
        np.float32
    ), target


@pytest.fixture(scope="module")
def estimates(duet):
    return {name: BASELINES[name](40).separate(duet[0], RATE, TARGET) for name in HERE}


def test_each_rival_gives_a_finite_estimate_of_the_mixtures_shape(duet, estimates):
    for name, estimate in estimates.items():
        assert estimate.shape == duet[0].shape, name
        assert estimate.dtype == np.float32, name
        assert np.isfinite(estimate).all(), name


def test_who_needs_the_score_says_so():
    assert [name for name in HERE if BASELINES[name](40).uses_score] == SCORE_INFORMED


def test_the_mixture_is_the_mixture(duet, estimates):
    assert (estimates["mixture"] == duet[0]).all()


@pytest.mark.parametrize(("name", "floor_db"), [("comb", 10), ("nmf", 12)])
def test_the_score_separates_two_tones(duet, estimates, name, floor_db):
    mixture, target = duet
    assert si_sdr(mixture, target) < 1
    assert si_sdr(estimates[name], target) > floor_db


def test_nmf_that_is_told_the_other_part_leaves_it_its_partials():
    # A louder fifth above shares every third partial with the target.
    fifth = tuple(replace(note, pitch=note.pitch + 7) for note in TARGET)
    target = tones(TARGET)
    mixture = target + 2 * tones(fifth)
    alone, told = (
        si_sdr(ScoreInformedNMF().separate(mixture, RATE, TARGET, others=others), target)
        for others in ([], [fifth])
    )
    assert told > alone + 6
    assert [name for name in HERE if BASELINES[name](40).uses_others] == ["nmf"]


def test_learned_spectra_beat_the_fixed_comb_where_partials_meet():
    # A fifth: every third partial of the lower tone coincides with every second of the upper one,
    # which is four times as loud.
    target, other = (
        tones((Note(0.2, 1.2, 60), Note(1.8, 2.8, 60))),
        4 * tones((Note(0.7, 2.3, 67),)),
    )
    score = (Note(0.2, 1.2, 60), Note(1.8, 2.8, 60))
    comb, nmf = (
        si_sdr(BASELINES[name](0).separate(target + other, RATE, score), target)
        for name in ("comb", "nmf")
    )
    assert nmf > comb + 3


@pytest.mark.parametrize("name", SCORE_INFORMED)
def test_nothing_passes_where_the_score_rests(duet, estimates, name):
    mixture, _ = duet
    middle = slice(
        round(1.3 * RATE), round(1.35 * RATE)
    )  # more than the tolerance and half a window from the notes
    assert np.square(estimates[name][:, middle]).sum() < 1e-3 * np.square(mixture[:, middle]).sum()


@pytest.mark.parametrize(
    "baseline", [HarmonicComb(attack_mask=0), ScoreInformedNMF()], ids=SCORE_INFORMED
)
@pytest.mark.parametrize(
    "notes", [(), (Note(60, 61, 60),), (Note(0, 1, 127),)], ids=["none", "outside", "above Nyquist"]
)
def test_a_score_that_is_silent_here_gives_silence(duet, baseline, notes):
    assert not baseline.separate(duet[0], RATE, notes).any()


@pytest.mark.parametrize("name", HERE)
def test_silence_stays_silence(name):
    assert not BASELINES[name](0).separate(np.zeros((2, RATE), np.float32), RATE, TARGET).any()


@pytest.mark.parametrize("name", HERE)
def test_a_recording_shorter_than_a_window_is_separated(name):
    short = tones(TARGET)[:, 5000:5600]
    estimate = BASELINES[name](0).separate(short, RATE, [Note(0, 1, 60)])
    assert estimate.shape == short.shape
    assert np.isfinite(estimate).all()


@pytest.mark.parametrize("name", HERE)
def test_the_same_call_gives_the_same_estimate(duet, estimates, name):
    assert (BASELINES[name](40).separate(duet[0], RATE, TARGET) == estimates[name]).all()


@pytest.mark.parametrize("name", HERE)
def test_channels_share_the_mask_of_their_mean(duet, estimates, name):
    mixture, _ = duet
    stereo = BASELINES[name](40).separate(
        np.concatenate([1.5 * mixture, 0.5 * mixture]), RATE, TARGET
    )
    np.testing.assert_allclose(
        stereo, np.concatenate([1.5 * estimates[name], 0.5 * estimates[name]]), atol=1e-4
    )


@pytest.mark.parametrize("name", HERE)
def test_the_level_of_the_recording_does_not_matter(duet, estimates, name):
    quiet = BASELINES[name](40).separate(duet[0] * np.float32(1e-3), RATE, TARGET)
    np.testing.assert_allclose(1e3 * quiet, estimates[name], atol=1e-3)


def test_the_harmonic_part_loses_the_clicks():
    tone, clicks = tones((Note(0, 3, 60),)), np.zeros((1, 3 * RATE), np.float32)
    clicks[:, 4000::8000] = 1
    estimate = BASELINES["hpss"](0).separate(tone + clicks, RATE, ())
    assert si_sdr(estimate, tone) > si_sdr(tone + clicks, tone) + 6


def test_a_soft_comb_lets_less_through_than_a_hard_one(duet):
    hard, soft = (HarmonicComb(soft=soft).separate(duet[0], RATE, TARGET) for soft in (False, True))
    assert np.square(soft).sum() < np.square(hard).sum()


def test_an_attack_passes_at_all_frequencies(duet):
    click = np.zeros((1, RATE), np.float32)
    click[0, RATE // 2] = 1
    note = [Note(0.5, 0.9, 100)]
    without, with_attack = (
        HarmonicComb(attack_mask=mask).separate(click, RATE, note) for mask in (0.0, 1.0)
    )
    assert np.square(with_attack).sum() > 5 * np.square(without).sum()


def test_the_templates_are_bands_around_the_partials():
    frequencies = np.arange(0, 2000, 1.0)
    template = harmonic_templates([69], frequencies, width_cents=50, floor_hz=30, decay=1)[:, 0]
    assert template[[440, 880, 1320, 1760]] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert (template[440 - 29 : 440 + 30] > 0).all()
    assert template[[440 - 30, 440 + 30, 0, 660]] == pytest.approx(0)
    # 50 cents of the fourth partial are more than the floor.
    edge_hz = 1760 * 2 ** (50 / 1200)
    assert template[int(edge_hz)] > 0
    assert template[int(edge_hz) + 1] == 0


def test_the_roll_reaches_beyond_the_notes_by_the_tolerance():
    roll = piano_roll(
        [Note(0.2, 0.4, 60), Note(0.3, 0.5, 62)],
        [60, 62],
        np.arange(10) / 10,
        before_seconds=0.101,
        after_seconds=0.201,
    )
    assert roll.tolist() == [[0, 1, 1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]]


def test_the_target_leaks_less_through_nmf_than_through_the_mixture(duet, estimates):
    mixture, target = duet
    assert rests(estimates["nmf"], mixture, target, RATE)["rest_leak_db"] < -20


@pytest.mark.parametrize(
    ("name", "package"), [("demucs", "demucs.api"), ("openunmix", "openunmix")]
)
def test_a_model_that_is_not_installed_is_one_sentence(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        BespokeError,
        match=f"^The baseline {name} is not installed .*: pip install .*leave it out\\.$",
    ):
        BASELINES[name](0)


def test_a_model_without_weights_is_one_sentence(monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "demucs", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "demucs.api", SimpleNamespace(Separator=no_network))
    monkeypatch.setitem(sys.modules, "openunmix", SimpleNamespace(umxl=no_network))
    for name in ("demucs", "openunmix"):
        with pytest.raises(
            BespokeError,
            match=f"^The weights of the baseline {name} are missing .*leave it out\\.$",
        ):
            BASELINES[name](0)


STEMS = {"drums": 0.1, "bass": 0.2, "other": 0.3, "vocals": 0.4}


class StandIn:
    """Stands for both packages' separators: every stem is the mixture by a factor of its own."""

    def __init__(self, *_, **__):
        pass

    def separate_tensor(self, stereo, rate):
        assert (stereo.shape[0], stereo.dtype, rate) == (2, torch.float32, 44100)
        return stereo, {name: factor * stereo for name, factor in STEMS.items()}

    def __call__(self, stereo):
        assert (stereo.shape[:2], stereo.dtype) == ((1, 2), torch.float32)
        return torch.stack([factor * stereo for factor in STEMS.values()], dim=1)

    def to_dict(self, estimates):
        return dict(zip(STEMS, estimates.unbind(1), strict=True))


@pytest.mark.parametrize("baseline", [Demucs, OpenUnmix])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_model_gives_the_stem_of_the_instrument_in_the_recordings_shape(
    monkeypatch, duet, baseline, channels
):
    monkeypatch.setitem(sys.modules, "demucs", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "demucs.api", SimpleNamespace(Separator=StandIn))
    monkeypatch.setitem(sys.modules, "openunmix", SimpleNamespace(umxl=StandIn))
    recording = (
        np.repeat(duet[0], channels, axis=0) * np.array([[1.0], [0.5]], np.float32)[:channels]
    )
    for program, factor in ((33, 0.2), (52, 0.4), (118, 0.1), (29, 0.3)):
        estimate = baseline(program).separate(recording, RATE, ())
        assert estimate.shape == recording.shape
        assert np.abs(estimate - factor * recording)[:, 500:-500].max() < 1e-2 * factor
