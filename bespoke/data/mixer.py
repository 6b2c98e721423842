"""Mixing of target and background with drawn parameters. The parts add up to the mixture."""

from dataclasses import dataclass

import numpy as np

from bespoke.audio.compressor import compressor_gain
from bespoke.audio.dsp import gain, peak
from bespoke.data.augment import NOISE, EffectParams, MixParams

MAX_RESTORED_GAIN = 10 ** (12 / 20)


@dataclass(frozen=True)
class Mix:
    """A training example with `mixture == target + background`, each float32 `[channel, time]`."""

    mixture: np.ndarray
    target: np.ndarray
    background: np.ndarray


def mix(
    target: np.ndarray,
    background: np.ndarray,
    params: MixParams,
    sample_rate: int,
    label: str = "wet",
) -> Mix:
    """Mix target and background with given parameters (PAPER section 3).

    The steps are effects and gains on each part, sum, compression, effects on the mix, and peak
    normalization. The compressor's gain curve is computed from the sum and applied to both parts,
    so that they still add up to the mixture.

    Args:
        target, background: float32 `[channel, time]` of one shape; not changed.
        params: drawn by `Policy.sample`.
        sample_rate: in Hz.
        label: `wet`: the target is as it sounds in the mix. `dry`: the target is as before
            compression, and the background is the rest.

    Returns:
        The mix, with the mixture's peak at 1. A silent mix stays silent.

    Raises:
        ValueError: `label` is neither `wet` nor `dry`.
    >>> tone = np.full((1, 4), 0.25, np.float32)
    >>> mix(tone, 3 * tone, MixParams(), 16000).target.tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    if label not in ("wet", "dry"):
        raise ValueError(f"label must be 'wet' or 'dry', not {label!r}")
    target = gain(chain(target, params.target_effects, sample_rate), params.target_gain_db)
    background = gain(
        chain(background, params.background_effects, sample_rate), params.background_gain_db
    )
    dry = target
    if params.compressor:
        curve = compressor_gain(target + background, sample_rate, **vars(params.compressor))
        target, background = target * curve, background * curve
    for drawn in params.mix_effects:
        if drawn.effect.kind in NOISE:
            mixture = target + background
            background = background + (drawn.apply(mixture, sample_rate) - mixture)
        else:
            target, background, dry = (
                drawn.apply(part, sample_rate) for part in (target, background, dry)
            )
    mixture = target + background
    if label == "dry":
        target, background = dry, mixture - dry
    scale = np.float32(1 / (peak(mixture) or 1.0))
    target, background = target * scale, background * scale
    return Mix(target + background, target, background)


def chain(waveform: np.ndarray, effects: tuple[EffectParams, ...], sample_rate: int) -> np.ndarray:
    """Apply effects to one part and restore its level, so that the drawn gain determines it.

    Args:
        waveform: float32 `[channel, time]`; not changed.
        effects: in the order in which they are applied.
        sample_rate: in Hz.

    Returns:
        `[channel, time]` of the same shape.
    """
    if not effects:
        return waveform
    changed = waveform
    for drawn in effects:
        changed = drawn.apply(changed, sample_rate)
    power, changed_power = np.square(waveform).mean(), np.square(changed).mean()
    # An effect in time can move most of the sound out of the segment. The small rest must not be
    # amplified to the original level.
    return (
        changed * np.float32(min(np.sqrt(power / changed_power), MAX_RESTORED_GAIN))
        if changed_power > 0
        else changed
    )
