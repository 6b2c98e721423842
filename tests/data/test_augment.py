"""Augmentation: policies draw all parameters, and effects depend only on their seed."""

import random

import audiomentations
import numpy as np
import pytest

from bespoke.data.augment import LINEAR, MOVES_TIME, DecayingNoiseReverb, Effect, Policy
from bespoke.utils.errors import BespokeError

RATE = 16000
SIGNAL = np.random.default_rng(0).normal(size=(1, RATE)).astype(np.float32) * 0.1

# Every linear transform that is allowed on the mix and needs no files.
LINEAR_TRANSFORMS = [
    DecayingNoiseReverb(p=1)
    if name == "DecayingNoiseReverb"
    else getattr(audiomentations, name)(p=1)
    for name in sorted(
        LINEAR - {"AirAbsorption"}
    )  # which compiles for seconds; a bank of filters of the kinds below
]


def test_paper_policy_draws_uniform_gains_and_every_ratio():
    policy = Policy((-12, 6), (-12, 6), {"ratios": [2, 4, 8, 12, 16, 20], "attack_ms": 5})
    rng = np.random.default_rng(0)
    draws = [policy.sample(rng) for _ in range(4000)]
    for gains in (
        [draw.target_gain_db for draw in draws],
        [draw.background_gain_db for draw in draws],
    ):
        assert -12 <= min(gains) < -11.9
        assert 5.9 < max(gains) <= 6
        assert np.mean(gains) == pytest.approx(-3, abs=0.3)
    ratios, counts = np.unique([draw.compressor.ratio for draw in draws], return_counts=True)
    assert ratios.tolist() == [2, 4, 8, 12, 16, 20]
    assert counts.min() > 500
    assert {draw.compressor.attack_ms for draw in draws} == {5}


def test_the_default_policy_changes_nothing():
    draw = Policy().sample(np.random.default_rng(0))
    described = draw.describe(SIGNAL, SIGNAL, RATE)
    assert (described.pop("target_gain_db"), described.pop("background_gain_db")) == (0, 0)
    assert not any(described.values())


def test_the_same_generator_draws_the_same_parameters():
    def policy():
        return Policy(
            (-3, 3),
            target={"eq": audiomentations.SevenBandParametricEQ(p=0.5)},
            mix={"gain": audiomentations.Gain(p=0.5)},
        )

    first, second = (
        [
            policy().sample(np.random.default_rng(seed)).describe(SIGNAL, SIGNAL, RATE)
            for seed in range(20)
        ]
        for _ in range(2)
    )
    assert first == second
    assert len({str(draw) for draw in first}) == 20


def test_an_effect_is_drawn_as_often_as_its_p_says_and_independently_of_the_others():
    def seeds(share):
        policy = Policy(
            target={
                "low": audiomentations.LowPassFilter(p=share),
                "high": audiomentations.HighPassFilter(p=0.5),
            }
        )
        rng = np.random.default_rng(4)
        return [
            {drawn.effect.name: drawn.seed for drawn in policy.sample(rng).target_effects}
            for _ in range(2000)
        ]

    rare, frequent = seeds(0.1), seeds(0.9)
    assert np.mean(["low" in draw for draw in rare]) == pytest.approx(0.1, abs=0.03)
    assert np.mean(["low" in draw for draw in frequent]) == pytest.approx(0.9, abs=0.03)
    assert [draw.get("high") for draw in rare] == [draw.get("high") for draw in frequent]


@pytest.mark.parametrize(
    "transform",
    [
        audiomentations.AddGaussianNoise(p=1),  # draws while it is applied, from NumPy
        audiomentations.SevenBandParametricEQ(p=1),  # draws in transforms inside it, from Python
        audiomentations.PitchShift(p=1),
        audiomentations.TimeStretch(p=1),
        audiomentations.OneOf(
            [audiomentations.Gain(p=1), audiomentations.TanhDistortion(p=1)], p=1
        ),
        DecayingNoiseReverb(p=1),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_an_effect_is_a_function_of_its_seed_and_leaves_the_global_generators_alone(transform):
    effect = Effect("effect", transform)
    states = random.getstate(), np.random.get_state()[1].tolist()
    first, again, other = (effect.apply(SIGNAL, seed, RATE) for seed in (7, 7, 8))
    assert (first == again).all()
    assert not np.array_equal(first, other)
    assert first.shape == SIGNAL.shape
    assert first.dtype == np.float32
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


@pytest.mark.parametrize(
    "transform", LINEAR_TRANSFORMS, ids=lambda transform: type(transform).__name__
)
def test_what_is_called_linear_is(transform):
    effect = Effect("effect", transform)
    other = np.random.default_rng(9).normal(size=SIGNAL.shape).astype(np.float32)
    for seed in range(5):
        parts, whole = (
            effect.apply(SIGNAL, seed, RATE) + effect.apply(other, seed, RATE),
            effect.apply(SIGNAL + other, seed, RATE),
        )
        assert np.abs(parts - whole).max() < 1e-4 * np.abs(whole).max()


@pytest.mark.parametrize(
    "transform",
    [audiomentations.PitchShift(), audiomentations.TanhDistortion(), audiomentations.Normalize()],
)
def test_an_effect_that_would_break_the_sum_is_refused_on_the_mix(transform):
    with pytest.raises(BespokeError, match=r"aug\.mix\.bad.*sum of target and background"):
        Policy(mix={"bad": transform})
    Policy(target={"good": transform})


def test_one_transform_can_serve_two_policies():
    transform = audiomentations.LowPassFilter(p=0.2)
    assert [Policy(target={"low": transform}).target[0].probability for _ in range(2)] == [0.2, 0.2]
    assert transform.p == 0.2


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(BespokeError, match="lower end first"):
        Policy(target_gain_db=(6, -12))
    with pytest.raises(BespokeError, match="at least 1"):
        Policy(compressor={"ratios": [0.5]})
    with pytest.raises(BespokeError, match="_target_"):
        Policy(target={"eq": {"p": 0.5}})


def test_effects_that_change_the_length_are_cut_or_padded():
    longer = Effect("double", audiomentations.Padding(min_fraction=0.5, max_fraction=0.5, p=1))
    shorter = Effect("trim", audiomentations.AdjustDuration(duration_seconds=0.5, p=1))
    assert (
        longer.apply(SIGNAL, 0, RATE).shape == shorter.apply(SIGNAL, 0, RATE).shape == SIGNAL.shape
    )


def test_drawn_parameters_can_be_read():
    effect = Effect(
        "low", audiomentations.LowPassFilter(min_cutoff_freq=1000, max_cutoff_freq=1001, p=0.2)
    )
    assert effect.parameters(SIGNAL, 5, RATE)["cutoff_freq"] == pytest.approx(1000.5, abs=2)
    assert effect.parameters(SIGNAL, 5, RATE) == effect.parameters(SIGNAL, 5, RATE)


def test_reverb_has_the_energy_and_decay_it_says():
    impulse = np.zeros((1, RATE), np.float32)
    impulse[0, 0] = 1
    room = DecayingNoiseReverb(
        min_decay_seconds=0.5, max_decay_seconds=0.5, min_wet_db=-6, max_wet_db=-6, p=1
    )
    tail = Effect("room", room).apply(impulse, 1, RATE)[0, 1:]
    assert 10 * np.log10(np.square(tail).sum()) == pytest.approx(-6, abs=0.1)
    early, late = np.square(tail[:400]).sum(), np.square(tail[4000:4400]).sum()
    assert 10 * np.log10(late / early) == pytest.approx(-60 * 4000 / (0.5 * RATE), abs=2)


def test_a_policy_knows_what_moves_the_target_away_from_its_notes():
    from audiomentations import Gain, OneOf, Shift, TimeStretch

    stretch = TimeStretch(p=0.5)
    assert Policy().moving == []
    assert Policy(target={"gain": Gain()}, background={"time": Shift()}).moving == []
    assert Policy(target={"time": stretch}).moving == []  # the notes follow it
    either = OneOf([Gain(), OneOf([stretch, Gain()])])
    assert Policy(target={"either": either, "later": Shift()}).moving == [
        "aug.target.either",
        "aug.target.later",
    ]


@pytest.mark.parametrize(
    ("method", "blur_seconds"), [("signalsmith_stretch", 0.03), ("librosa_phase_vocoder", 0.06)]
)
def test_sound_is_where_the_rate_of_a_stretch_says(method, blur_seconds):
    tone = np.sin(np.arange(RATE) * 0.2).astype(np.float32)[None]
    tone[:, : RATE // 2] = 0  # it begins at 0.5 s
    policy = Policy(
        target={"time": audiomentations.TimeStretch(min_rate=0.8, max_rate=1.25, method=method)}
    )
    rng, rates = np.random.default_rng(0), set()
    for _ in range(30):
        params = policy.sample(rng)
        for drawn in params.target_effects:
            stretched = np.abs(drawn.apply(tone, RATE)[0])
            begins = np.argmax(stretched > 0.5 * stretched.max()) / RATE
            assert begins == pytest.approx(0.5 / params.target_rate, abs=blur_seconds)
            rates.add(params.target_rate)
            drawn_rate = params.describe(tone, tone, RATE)["target_effects"]["time"]["rate"]
            assert params.target_rate == drawn_rate
        if not params.target_effects:
            assert params.target_rate == 1
    assert len(rates) > 5


def test_effects_that_move_time_are_known():
    """A sound does not begin or end where it did."""
    burst = np.zeros((1, RATE), np.float32)
    burst[0, RATE // 4 : RATE // 2] = SIGNAL[0, : RATE // 4]
    needs = {"AdjustDuration": {"duration_seconds": 0.7, "padding_position": "start"}}
    needs |= {"Padding": {"pad_section": "start"}, "TimeStretch": {"min_rate": 1.2}}
    needs |= {"Resample": {"max_sample_rate": 12000}}
    for name in sorted(MOVES_TIME):
        effect = Effect(name, getattr(audiomentations, name)(p=1, **needs.get(name, {})))
        moved = []
        for seed in range(10):
            loud = np.flatnonzero(np.abs(effect.apply(burst, seed, RATE)[0]) > 0.05)
            moved += [abs(loud[0] - RATE // 4), abs(loud[-1] - RATE // 2)] if loud.size else [RATE]
        assert max(moved) > 0.02 * RATE, name
