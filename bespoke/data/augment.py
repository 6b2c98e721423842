"""Augmentation policies: what is drawn for each mix, and how effects are applied as drawn.

`Policy.sample(rng)` draws all parameters; applying them is deterministic. Effects are
audiomentations transforms. These use the global generators of Python and NumPy, in part while they
are applied. Each drawn effect therefore has a seed: `Effect.apply` seeds the global generators with
it, applies the transform, and restores the generators.
"""

import contextlib
import copy
import io
import math
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from audiomentations.core.transforms_interface import BaseWaveformTransform
from scipy.signal import fftconvolve

from bespoke.utils.errors import BespokeError, one_sentence

MAX_GAIN_DB = 120
RATIOS = (1.0, 1e6)
# What the compressor's other settings may be.
COMPRESSOR_RANGES = {
    "threshold_db": (-MAX_GAIN_DB, 0),
    "attack_ms": (0, 60_000),
    "release_ms": (0, 60_000),
    "knee_db": (0, 60_000),
}
# An effect on the mix must keep it the sum of its parts. Linear effects are applied to each part.
LINEAR = {
    "AirAbsorption",
    "BandPassFilter",
    "BandStopFilter",
    "DecayingNoiseReverb",
    "Gain",
    "GainTransition",
    "HighPassFilter",
    "HighShelfFilter",
    "LowPassFilter",
    "LowShelfFilter",
    "PeakingFilter",
    "PolarityInversion",
    "SevenBandParametricEQ",
}
MOVES_TIME = {
    "AdjustDuration",
    "Padding",
    "RepeatPart",
    "Resample",
    "Reverse",
    "Shift",
    "TimeStretch",
    "Trim",
}
# Of these, what moves the sound at t seconds to t divided by its drawn `rate`.
STRETCHES = {"TimeStretch"}
# What a noise effect adds is part of the background.
NOISE = {
    "AddBackgroundNoise",
    "AddColorNoise",
    "AddGaussianNoise",
    "AddGaussianSNR",
    "AddShortNoises",
}


@dataclass(frozen=True)
class CompressorParams:
    """Settings of the compressor; see `bespoke.audio.compressor.compressor_gain`."""

    ratio: float
    threshold_db: float = -18.0
    attack_ms: float = 20.0
    release_ms: float = 250.0
    knee_db: float = 9.03


@dataclass(frozen=True)
class EffectParams:
    """A drawn effect, and the seed of its parameters."""

    effect: "Effect"
    seed: int

    def apply(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """See `Effect.apply`."""
        return self.effect.apply(waveform, self.seed, sample_rate)


@dataclass(frozen=True)
class MixParams:
    """Everything drawn for one mix. The defaults change nothing."""

    target_gain_db: float = 0.0
    background_gain_db: float = 0.0
    compressor: CompressorParams | None = None
    target_effects: tuple[EffectParams, ...] = ()
    background_effects: tuple[EffectParams, ...] = ()
    mix_effects: tuple[EffectParams, ...] = ()

    @property
    def target_rate(self) -> float:
        """How many times as fast the target is played by its effects: its notes have to be too."""
        return math.prod(drawn.effect.rate(drawn.seed) for drawn in self.target_effects)

    def describe(
        self, target: np.ndarray, background: np.ndarray, sample_rate: int
    ) -> dict[str, Any]:
        """Plain values for logs.

        Args:
            target, background: `[channel, time]`; some effects' parameters depend on the signal.
            sample_rate: in Hz.

        Returns:
            Gains in dB, the compressor's ratio, and the parameters of each effect.
        """
        signals = {"target": target, "background": background, "mix": target + background}
        effects = {
            f"{role}_effects": {
                drawn.effect.name: {
                    "seed": drawn.seed,
                    **drawn.effect.parameters(signal, drawn.seed, sample_rate),
                }
                for drawn in getattr(self, f"{role}_effects")
            }
            for role, signal in signals.items()
        }
        return {
            "target_gain_db": self.target_gain_db,
            "background_gain_db": self.background_gain_db,
            "ratio": self.compressor.ratio if self.compressor else None,
            **effects,
        }


class Effect:
    """An audiomentations transform with a seed as its only randomness.

    Args:
        name: for logs and messages.
        transform: a waveform transform, or a `OneOf`, `SomeOf` or `Compose` of such transforms. Its
            `p` is the share of mixes to which it is applied.
    """

    def __init__(self, name: str, transform: BaseWaveformTransform):
        self.name = name
        self.probability = transform.p
        self.transform = copy.deepcopy(transform)  # transforms have state
        self.transform.p = 1.0  # the policy draws whether the effect is applied

    @property
    def kind(self) -> str:
        """Class name of the transform, which determines whether it is linear or noise."""
        return type(self.transform).__name__

    @property
    def moves_time(self) -> bool:
        """Whether the effect moves sound in time so that notes cannot follow."""
        return self.kind not in STRETCHES and any(
            type(transform).__name__ in MOVES_TIME for transform in _single(self.transform)
        )

    def rate(self, seed: int) -> float:
        """How many times as fast sound is after the effect with this seed."""
        if self.kind not in STRETCHES:
            return 1.0
        with _global_seed(seed):  # it is drawn first, whatever the signal
            self.transform.randomize_parameters(np.zeros(1, np.float32), 1)
        return float(self.transform.parameters["rate"])

    def parts(self) -> list["Effect"]:
        """The effects among which a `OneOf` or `SomeOf` chooses; the effect itself if it is one."""
        singles = list(_single(self.transform))
        if singles == [self.transform]:
            return [self]
        return [Effect(f"{self.name} ({type(part).__name__})", part) for part in singles]

    def apply(self, waveform: np.ndarray, seed: int, sample_rate: int) -> np.ndarray:
        """Apply the transform with the parameters that follow from `seed`.

        Args:
            waveform: `[channel, time]`, float32; not changed.
            seed: 32 bits.
            sample_rate: in Hz.

        Returns:
            float32 `[channel, time]` of the same shape. A longer result is cut, a shorter one
            padded with zeros.
        """
        mono = len(waveform) == 1
        with _global_seed(seed):
            changed = self.transform(
                waveform[0].copy() if mono else waveform.copy(), sample_rate=sample_rate
            )
        changed = np.atleast_2d(changed).astype(np.float32, copy=False)[:, : waveform.shape[-1]]
        return np.pad(changed, ((0, 0), (0, waveform.shape[-1] - changed.shape[-1])))

    def parameters(self, waveform: np.ndarray, seed: int, sample_rate: int) -> dict[str, Any]:
        """Parameters that follow from `seed` for this waveform, as audiomentations names them."""
        self.apply(waveform, seed, sample_rate)
        drawn = getattr(self.transform, "parameters", {})  # OneOf and Compose have none
        return {
            key: value
            for key, value in drawn.items()
            if key != "should_apply" and isinstance(value, int | float | str | bool)
        }


class Policy:
    """An augmentation policy: the ranges from which the parameters of each mix are drawn.

    The default has gains of 0 dB, no compression and no effects. Mixes are peak-normalized under
    every policy.

    Args:
        target_gain_db, background_gain_db: lower and upper end of the gain in dB, drawn uniformly;
            at most 120 dB from 0.
        compressor: `ratios`, of which one is drawn, and fixed settings of `CompressorParams`. None:
            no compression.
        target, background, mix: effects by name, applied in this order to the target, the
            background, or both parts of the mix.

    Raises:
        BespokeError: a setting is out of range, or an effect on the mix is neither linear nor
            noise, so that the parts would no longer add up to the mix.
    """

    def __init__(
        self,
        target_gain_db: tuple[float, float] = (0.0, 0.0),
        background_gain_db: tuple[float, float] = (0.0, 0.0),
        compressor: Mapping[str, Any] | None = None,
        target: Mapping[str, BaseWaveformTransform] | None = None,
        background: Mapping[str, BaseWaveformTransform] | None = None,
        mix: Mapping[str, BaseWaveformTransform] | None = None,
    ):
        self.target_gain_db = _range(target_gain_db, "aug.target_gain_db")
        self.background_gain_db = _range(background_gain_db, "aug.background_gain_db")
        self.ratios, self.compressor_settings = _compressor(compressor)
        self.target, self.background, self.mix = (
            _effects(effects, role)
            for effects, role in ((target, "target"), (background, "background"), (mix, "mix"))
        )
        for effect in self.mix:
            if effect.kind not in LINEAR | NOISE:
                raise BespokeError(
                    f"aug.mix.{effect.name}: {effect.kind} would make the mix no longer the sum of "
                    "target and background; move it to aug.target or aug.background, or use one of "
                    f"{', '.join(sorted(LINEAR | NOISE))}."
                )

    @property
    def moving(self) -> list[str]:
        """The effects that move the target in time in a way that its notes cannot follow."""
        return [f"aug.target.{effect.name}" for effect in self.target if effect.moves_time]

    def check(self, sample_rate: int) -> None:
        """Apply every effect to a second of noise, because many check their settings only then.

        Args:
            sample_rate: of the mixes, in Hz.

        Raises:
            BespokeError: an effect cannot be applied, or its result is not finite.
        """
        noise = np.random.default_rng(0).normal(0, 0.1, (1, sample_rate)).astype(np.float32)
        for role in ("target", "background", "mix"):
            for effect in (part for whole in getattr(self, role) for part in whole.parts()):
                name = f"aug.{role}.{effect.name}"
                try:
                    # Where a library is missing, some print what is said below.
                    with np.errstate(all="ignore"), contextlib.redirect_stderr(io.StringIO()):
                        is_finite = np.isfinite(effect.apply(noise, 0, sample_rate)).all()
                except ModuleNotFoundError as error:
                    raise BespokeError(
                        f"{name} needs {error.name}, which is not installed: pip install"
                        f" 'audiomentations[extras]' {error.name}, or leave it out."
                    ) from error
                except Exception as error:  # transforms raise exceptions of all kinds
                    reason = one_sentence(error).rstrip(".")
                    raise BespokeError(
                        f"{name} cannot be applied at {sample_rate} Hz ({reason}): "
                        "change its settings."
                    ) from error
                if not is_finite:
                    raise BespokeError(
                        f"{name} makes samples that are no numbers at {sample_rate} Hz: "
                        "change its settings."
                    )

    def sample(self, rng: np.random.Generator) -> MixParams:
        """Draw the parameters of one mix."""
        return MixParams(
            target_gain_db=float(rng.uniform(*self.target_gain_db)),
            background_gain_db=float(rng.uniform(*self.background_gain_db)),
            compressor=CompressorParams(float(rng.choice(self.ratios)), **self.compressor_settings)
            if self.ratios
            else None,
            target_effects=_draw(self.target, rng),
            background_effects=_draw(self.background, rng),
            mix_effects=_draw(self.mix, rng),
        )


class DecayingNoiseReverb(BaseWaveformTransform):
    """Reverberation by exponentially decaying white noise, drawn for each mix.

    It is linear, so it can be used on the mix.

    Args:
        min_decay_seconds, max_decay_seconds: range of the time in which the reverberation decays by
            60 dB.
        min_wet_db, max_wet_db: range of the reverberation's energy relative to the direct sound.
        p: share of mixes to which it is applied.
    """

    supports_multichannel = True

    def __init__(
        self,
        min_decay_seconds: float = 0.1,
        max_decay_seconds: float = 0.8,
        min_wet_db: float = -20.0,
        max_wet_db: float = -6.0,
        p: float = 0.5,
    ):
        super().__init__(p)
        if not 0.001 <= min_decay_seconds <= max_decay_seconds <= 60:
            raise ValueError(
                "min_decay_seconds and max_decay_seconds are from 0.001 to 60, the lower first"
            )
        if not -120 <= min_wet_db <= max_wet_db <= 120:
            raise ValueError("min_wet_db and max_wet_db are from -120 to 120, the lower first")
        self.min_decay_seconds, self.max_decay_seconds = min_decay_seconds, max_decay_seconds
        self.min_wet_db, self.max_wet_db = min_wet_db, max_wet_db

    def randomize_parameters(self, samples: np.ndarray, sample_rate: int) -> None:
        super().randomize_parameters(samples, sample_rate)
        self.parameters["decay_seconds"] = random.uniform(
            self.min_decay_seconds, self.max_decay_seconds
        )
        self.parameters["wet_db"] = random.uniform(self.min_wet_db, self.max_wet_db)
        self.parameters["seed"] = random.getrandbits(32)

    def apply(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        decay_seconds = self.parameters["decay_seconds"]
        time_seconds = np.arange(1, max(2, round(decay_seconds * sample_rate))) / sample_rate
        noise = np.random.default_rng(self.parameters["seed"]).standard_normal(time_seconds.size)
        tail = noise * 10 ** (-3 * time_seconds / decay_seconds)
        tail *= 10 ** (self.parameters["wet_db"] / 20) / np.sqrt(np.square(tail).sum())
        impulse = np.concatenate(([1.0], tail)).astype(np.float32)
        room = impulse if samples.ndim == 1 else impulse[None]
        return fftconvolve(samples, room, axes=-1)[..., : samples.shape[-1]].astype(np.float32)


def _single(transform: Any) -> Iterator[Any]:
    """The transform itself, or the transforms inside a `OneOf`, `SomeOf` or `Compose`."""
    parts = getattr(transform, "transforms", None)
    if parts is None:
        yield transform
    for part in parts or ():
        yield from _single(part)


def _range(value: Sequence[float], name: str) -> tuple[float, float]:
    low, high = (float(edge) for edge in value)
    if low > high:
        raise BespokeError(f"{name} is {[low, high]}: give the lower end first.")
    if not (low >= -MAX_GAIN_DB and high <= MAX_GAIN_DB):
        raise BespokeError(
            f"{name} is {[low, high]}: give gains from {-MAX_GAIN_DB} to {MAX_GAIN_DB} dB."
        )
    return low, high


def _compressor(settings: Mapping[str, Any] | None) -> tuple[list[float], dict[str, float]]:
    """Ratios to draw from, and the other settings of `CompressorParams`.

    There are no ratios if there is no compression.
    """
    if not settings:
        return [], {}
    known = {"ratios", *(field.name for field in fields(CompressorParams))} - {"ratio"}
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise BespokeError(
            f"There is no setting aug.compressor.{unknown[0]}: it takes {', '.join(sorted(known))}."
        )
    fixed = {name: value for name, value in settings.items() if name != "ratios"}
    ratios = settings.get("ratios")
    if not isinstance(ratios, list | tuple) or not all(
        _is_number(ratio) and RATIOS[0] <= ratio <= RATIOS[1] for ratio in ratios
    ):
        raise BespokeError(
            f"aug.compressor.ratios={ratios} is not possible: "
            "give a list of numbers, each at least 1."
        )
    for name, value in fixed.items():
        lowest, highest = COMPRESSOR_RANGES[name]
        if not (_is_number(value) and lowest <= value <= highest):
            raise BespokeError(
                f"aug.compressor.{name}={value} is not possible: "
                f"give a number from {lowest} to {highest}."
            )
    return [float(ratio) for ratio in ratios], fixed


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _effects(effects: Mapping[str, BaseWaveformTransform] | None, role: str) -> list[Effect]:
    for name, transform in (effects or {}).items():
        if not callable(transform) or not hasattr(transform, "p"):
            raise BespokeError(
                f"aug.{role}.{name} is not an effect: "
                "give it a _target_ such as audiomentations.LowPassFilter."
            )
    return [Effect(name, transform) for name, transform in (effects or {}).items()]


def _draw(effects: Sequence[Effect], rng: np.random.Generator) -> tuple[EffectParams, ...]:
    # Drawing a seed for every effect, applied or not, keeps draws independent of other effects' p.
    draws = [
        (effect, rng.random() < effect.probability, int(rng.integers(2**32))) for effect in effects
    ]
    return tuple(EffectParams(effect, seed) for effect, applied, seed in draws if applied)


_lock = threading.Lock()


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators of Python and NumPy inside the block and restore them after it."""
    with _lock:
        python_state, numpy_state = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
