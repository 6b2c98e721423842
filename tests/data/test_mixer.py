"""A mix is the sum of its parts after every step, with the drawn parameters."""

import numpy as np
import pytest
from audiomentations import AddGaussianSNR, LowPassFilter, SevenBandParametricEQ, TanhDistortion
from audiomentations.core.transforms_interface import BaseWaveformTransform

from bespoke.audio.compressor import compressor_gain
from bespoke.audio.dsp import peak
from bespoke.data.augment import (
    CompressorParams,
    DecayingNoiseReverb,
    Effect,
    EffectParams,
    MixParams,
)
from bespoke.data.mixer import mix

RATE = 16000
RNG = np.random.default_rng(1)
TARGET, BACKGROUND = (RNG.normal(size=(1, RATE)).astype(np.float32) * 0.1 for _ in range(2))


class MoveOut(BaseWaveformTransform):
    """Leaves 80 dB less of everything, as a stretch may of a late note."""

    def __init__(self):
        super().__init__(p=1)

    def apply(self, samples, sample_rate):
        return samples * np.float32(1e-4)


def drawn(transform, seed=3):
    return EffectParams(Effect(type(transform).__name__, transform), seed)


PARAMS = {
    "nothing": MixParams(),
    "gains": MixParams(-12, 6),
    "compression": MixParams(6, 6, CompressorParams(20)),
    "effects on the parts": MixParams(
        target_effects=(drawn(TanhDistortion(p=1)), drawn(DecayingNoiseReverb(p=1))),
        background_effects=(drawn(LowPassFilter(p=1)),),
    ),
    "linear effects on the mix": MixParams(
        0, -6, CompressorParams(8), mix_effects=(drawn(SevenBandParametricEQ(p=1)),)
    ),
    "noise on the mix": MixParams(
        mix_effects=(drawn(AddGaussianSNR(min_snr_db=5, max_snr_db=5, p=1)),)
    ),
}


@pytest.mark.parametrize("label", ["wet", "dry"])
@pytest.mark.parametrize("name", PARAMS)
def test_mixture_is_target_plus_background_and_peaks_at_one(name, label):
    made = mix(TARGET, BACKGROUND, PARAMS[name], RATE, label)
    assert np.abs(made.mixture - made.target - made.background).max() < 1e-6
    assert peak(made.mixture) == pytest.approx(1, abs=1e-6)
    assert made.mixture.dtype == made.target.dtype == made.background.dtype == np.float32


def test_gains_are_as_drawn():
    made = mix(TARGET, BACKGROUND, MixParams(-12, 6), RATE)
    ratio_db = 10 * np.log10(np.square(made.target).sum() / np.square(made.background).sum())
    assert ratio_db == pytest.approx(
        -18 + 10 * np.log10(np.square(TARGET).sum() / np.square(BACKGROUND).sum()), abs=1e-3
    )


def test_one_gain_curve_from_the_sum_is_applied_to_both_parts():
    loud, quiet = TARGET * 6, BACKGROUND
    made = mix(loud, quiet, MixParams(compressor=CompressorParams(8)), RATE)
    curve = compressor_gain(loud + quiet, RATE, 8)
    scale = 1 / peak((loud + quiet) * curve)
    assert made.target == pytest.approx(loud * curve * scale, abs=1e-6)
    assert made.background == pytest.approx(quiet * curve * scale, abs=1e-6)


def test_dry_label_is_the_target_before_compression():
    params = MixParams(compressor=CompressorParams(20))
    wet, dry = (
        mix(TARGET * 8, BACKGROUND, params, RATE),
        mix(TARGET * 8, BACKGROUND, params, RATE, "dry"),
    )
    assert wet.mixture == pytest.approx(dry.mixture, abs=1e-6)
    assert not np.allclose(wet.target, dry.target, atol=1e-3)
    shape = dry.target / peak(dry.target)
    assert shape == pytest.approx(TARGET / peak(TARGET), abs=1e-5)


def test_noise_on_the_mix_joins_the_background():
    plain = mix(TARGET, BACKGROUND, MixParams(), RATE)
    noisy = mix(TARGET, BACKGROUND, PARAMS["noise on the mix"], RATE)
    assert noisy.target / peak(noisy.target) == pytest.approx(
        plain.target / peak(plain.target), abs=1e-5
    )
    ratio = np.dot(noisy.target[0], plain.target[0]) / np.dot(plain.target[0], plain.target[0])
    noise = noisy.background - plain.background * ratio
    snr_db = 10 * np.log10(np.square(plain.mixture * ratio).sum() / np.square(noise).sum())
    assert snr_db == pytest.approx(5, abs=0.2)


def test_effects_on_a_part_keep_its_level_so_that_the_gain_decides():
    changed = mix(TARGET, BACKGROUND, PARAMS["effects on the parts"], RATE)
    ratio_db = 10 * np.log10(np.square(changed.target).sum() / np.square(changed.background).sum())
    assert ratio_db == pytest.approx(
        10 * np.log10(np.square(TARGET).sum() / np.square(BACKGROUND).sum()), abs=0.01
    )
    assert not np.allclose(changed.target / peak(changed.target), TARGET / peak(TARGET), atol=0.05)


def test_a_sound_that_an_effect_moves_out_of_the_segment_is_not_blown_up():
    late = np.zeros_like(TARGET)
    late[:, -2000:] = 0.1
    loud = mix(late, TARGET, MixParams(target_effects=(drawn(MoveOut()),)), RATE)
    assert peak(loud.target) / peak(loud.background) == pytest.approx(
        1e-4 * 0.1 * 10 ** (12 / 20) / peak(TARGET), rel=1e-3
    )


def test_mixing_is_deterministic_and_leaves_its_inputs_alone():
    before = TARGET.copy(), BACKGROUND.copy()
    for params in PARAMS.values():
        first, second = mix(TARGET, BACKGROUND, params, RATE), mix(TARGET, BACKGROUND, params, RATE)
        assert (first.mixture == second.mixture).all()
        assert (first.target == second.target).all()
    assert (before[0] == TARGET).all()
    assert (before[1] == BACKGROUND).all()


def test_silence_stays_silence_and_stereo_is_mixed_like_mono():
    silent = np.zeros((1, 100), np.float32)
    assert not mix(silent, silent, PARAMS["compression"], RATE).mixture.any()
    stereo = mix(np.repeat(TARGET, 2, 0), np.repeat(BACKGROUND, 2, 0), PARAMS["compression"], RATE)
    assert stereo.target[1] == pytest.approx(
        mix(TARGET, BACKGROUND, PARAMS["compression"], RATE).target[0], abs=1e-5
    )


def test_unknown_label_is_refused():
    with pytest.raises(ValueError, match="wet"):
        mix(TARGET, BACKGROUND, MixParams(), RATE, "damp")
