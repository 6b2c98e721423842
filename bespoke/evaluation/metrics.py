"""Metrics on waveforms, and oracle masks. All use the channel mean; ratios are in dB."""

import functools
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from bespoke.audio.dsp import frame_power, import_torchaudio, resample
from bespoke.audio.stft import STFT
from bespoke.models.losses import tpsa_target
from bespoke.utils.errors import BespokeError

# The same for every recipe, so that oracle figures are comparable.
ORACLE_WINDOW_SECONDS = 2048 / 44100
# A frame is silent this far below the reference's loudest frame. The value is below the noise floor
# of real stems and above that of codecs.
SILENCE_DB = -60.0
REST_FLOOR_DB = -120.0
_NO_LOG_WMSE = "logWMSE needs torch-log-wmse: pip install 'bespoke-separation[benchmark]'."
LONG_SAMPLES = 60 * 96000  # longer recordings are measured in blocks: 2 minutes at 44.1 kHz


def si_sdr(estimate: np.ndarray, reference: np.ndarray) -> float | None:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al., ICASSP 2019), by torchmetrics.

    Args:
        estimate, reference: `[channel, time]`; their channel means are compared.

    Returns:
        dB, or None if the reference or the estimate is silent, for which the ratio is undefined.
        (The small constants of common implementations turn a silent estimate's 0 / 0 into 0 dB,
        which is better than many a useful estimate.)
    >>> reference = np.array([[1.0, 1.0, -1.0, -1.0]], np.float32)
    >>> noise = np.array([[0.1, -0.1, 0.1, -0.1]], np.float32)
    >>> round(si_sdr(3 * (reference + noise), reference), 3)
    20.0
    """
    if not reference.any() or not estimate.any():
        return None
    if estimate.shape[-1] <= LONG_SAMPLES:
        # slow to import
        from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

        return float(scale_invariant_signal_distortion_ratio(_mono(estimate), _mono(reference)))

    # In blocks: an hour in float64 would take several times the memory of the rest of a run.
    def total(product: Callable[[Tensor, Tensor], Tensor]) -> float:
        blocks = (
            slice(start, start + LONG_SAMPLES)
            for start in range(0, estimate.shape[-1], LONG_SAMPLES)
        )
        return sum(
            float(product(_mono(estimate[:, block]), _mono(reference[:, block])))
            for block in blocks
        )

    energy = total(lambda _, true: true @ true)
    scale = total(lambda ours, true: ours @ true) / energy
    error = total(lambda ours, true: (ours - scale * true).square().sum())
    eps = torch.finfo(torch.float64).eps  # as in torchmetrics
    return 10 * math.log10((scale**2 * energy + eps) / (error + eps))


def oracle(mixture: np.ndarray, reference: np.ndarray, sample_rate: int) -> np.ndarray:
    """Apply the tPSA mask of the true target to the mixture's channel mean.

    This is the upper bound for separation with one mask for all channels.

    Args:
        mixture, reference: `[channel, time]`.
        sample_rate: in Hz.

    Returns:
        `[1, time]`.
    """

    def mask(target: Tensor, mixture: Tensor) -> Tensor:
        return tpsa_target(target, mixture) / mixture.abs().clamp(min=1e-12)

    return _apply_ideal(mask, mixture, reference, sample_rate)


def ratio_oracle(mixture: np.ndarray, reference: np.ndarray, sample_rate: int) -> np.ndarray:
    """Apply the ideal ratio mask `|S| / (|S| + |X - S|)` to the mixture's channel mean.

    This is IRM1 of SiSEC 2018 (Stöter, Liutkus & Ito, LVA/ICA 2018), with the STFT of `oracle`. It
    ignores the phase, so its SI-SDR is below that of the tPSA mask.

    Args:
        mixture, reference: `[channel, time]`.
        sample_rate: in Hz.

    Returns:
        `[1, time]`.
    """

    def mask(target: Tensor, mixture: Tensor) -> Tensor:
        return target.abs() / (target.abs() + (mixture - target).abs()).clamp(min=1e-12)

    return _apply_ideal(mask, mixture, reference, sample_rate)


def _apply_ideal(
    make_mask: Callable[[Tensor, Tensor], Tensor],
    mixture: np.ndarray,
    reference: np.ndarray,
    sample_rate: int,
) -> np.ndarray:
    stft = STFT(sample_rate, ORACLE_WINDOW_SECONDS, ORACLE_WINDOW_SECONDS / 4)
    estimates = []
    for block, kept in stft.blocks(mixture.shape[-1], LONG_SAMPLES):
        spectrograms = (
            stft(_mono(signal[:, block]).float()[None, None]) for signal in (mixture, reference)
        )
        mixture_spectrogram, reference_spectrogram = spectrograms
        mask = make_mask(reference_spectrogram, mixture_spectrogram)
        estimate = stft.inverse(mask * mixture_spectrogram, block.stop - block.start)
        estimates.append(estimate[0].numpy()[:, kept])
    return np.concatenate(estimates, axis=1) if len(estimates) > 1 else estimates[0]


def evaluate(
    estimate: np.ndarray, mixture: np.ndarray, reference: np.ndarray, sample_rate: int
) -> dict[str, float | None]:
    """Compute the figures of metrics.json that need a reference.

    Args:
        estimate, mixture, reference: `[channel, time]` of one shape.
        sample_rate: in Hz.

    Returns:
        `si_sdr`, `si_sdr_mixture`, `si_sdr_improvement` and `si_sdr_oracle` in dB. All are None if
        the reference is silent; `si_sdr` and `si_sdr_improvement` are None if the estimate is.
    """
    score, baseline = si_sdr(estimate, reference), si_sdr(mixture, reference)
    return {
        "si_sdr": score,
        "si_sdr_mixture": baseline,
        "si_sdr_improvement": None if score is None or baseline is None else score - baseline,
        "si_sdr_oracle": None
        if baseline is None
        else si_sdr(oracle(mixture, reference, sample_rate), reference),
    }


def gap_closed(estimate: float | None, mixture: float | None, oracle: float | None) -> float | None:
    """Share of the gap between mixture (0) and oracle mask (1) that the estimate closes.

    Args:
        estimate, mixture, oracle: their SI-SDR in dB.

    Returns:
        The share, negative if the estimate is worse than the mixture. None if a figure is missing
        or the oracle is not better than the mixture.

    >>> gap_closed(estimate=2.0, mixture=-4.0, oracle=8.0)
    0.5
    """
    if estimate is None or mixture is None or oracle is None or oracle <= mixture:
        return None
    return (estimate - mixture) / (oracle - mixture)


def bss_eval(
    estimate: np.ndarray, mixture: np.ndarray, reference: np.ndarray, sample_rate: int
) -> dict[str, float | None]:
    """BSS Eval v4 of the target by museval, with the rest (mixture - reference) as second source.

    museval is the reference implementation of version 4 (Stöter, Liutkus & Ito, "The 2018 Signal
    Separation Evaluation Campaign", LVA/ICA 2018): pure Python, runs on numpy 2.4, takes 0.7 s for
    20 s of audio. fast_bss_eval (2022) implements version 3 only and has no wheel; mir_eval's
    module is version 3 and deprecated. Filters of 512 taps are fitted to the whole recording. The
    figures are medians over whole seconds, as is customary.

    museval skips every second in which any signal is all zeros, the estimate included, so a method
    with silent passages would be measured on other seconds than one without. Here the seconds are
    the same for every estimate: those in which reference and rest are both less than 60 dB below
    their loudest second. By definition, an estimate that is all zeros there has an SDR of 0 dB, and
    neither SIR nor SAR.

    Args:
        estimate, mixture, reference: `[channel, time]` of one shape.
        sample_rate: in Hz.

    Returns:
        - `bss_sdr`, `bss_sir`, `bss_sar`: in dB, None if no second has a figure
        - `bss_silent`: share of seconds left out because reference or rest is silent
        - `bss_missed`: share of the other seconds in which the estimate is all zeros

    Raises:
        BespokeError: museval is not installed.
    """
    museval_bss_eval = _museval().bss_eval
    sources = np.stack([_mono(reference).numpy(), _mono(mixture - reference).numpy()])
    # The figures of the first source do not depend on the second source's estimate.
    estimates = np.stack([_mono(estimate).numpy()] * 2)
    powers = [
        frame_power(source[None], sample_rate)[: max(1, source.size // sample_rate)]
        for source in sources
    ]
    sounding = np.logical_and.reduce([power > _silence(power) for power in powers])
    sdr = sir = sar = np.full(sounding.shape, np.nan)
    if sounding.any() and estimates.any():
        # museval's regularization is absolute: unit energy makes figures independent of the level.
        scale = math.sqrt(np.square(sources).sum(axis=1).max())
        figures = museval_bss_eval(
            sources[..., None] / scale,
            estimates[..., None] / scale,
            window=sample_rate,
            hop=sample_rate,
        )
        sdr, _, sir, sar = (figure[0] for figure in figures[:4])
    missed = sounding & np.isnan(sdr)
    return {
        "bss_sdr": _median(np.where(missed, 0.0, sdr)[sounding]),
        "bss_sir": _median(sir[sounding & ~missed]),
        "bss_sar": _median(sar[sounding & ~missed]),
        "bss_silent": float(1 - sounding.mean()),
        "bss_missed": float(missed.sum() / sounding.sum()) if sounding.any() else None,
    }


def log_wmse(
    estimate: np.ndarray, mixture: np.ndarray, reference: np.ndarray, sample_rate: int
) -> float:
    """logWMSE (Jordal, Nomono 2023) by torch-log-wmse.

    It is -4 ln of the error's energy, weighted by the ear's sensitivity to frequency, relative to
    the mixture's energy. Unlike the other metrics it is defined for a silent reference, and it
    depends on the level of the estimate. It ranges from below 0 (an error above the mixture's
    level) to 73.7 (perfect). Always computed at 44.1 kHz, because the weighting depends on the
    sample rate.

    Args:
        estimate, mixture, reference: `[channel, time]` of one shape.
        sample_rate: in Hz.

    Raises:
        BespokeError: torch-log-wmse is not installed.
    """
    import_torchaudio()  # torch-log-wmse imports it
    try:
        from torch_log_wmse import LogWMSE
    except ImportError as error:
        raise BespokeError(_NO_LOG_WMSE) from error
    signals = (
        resample(_mono(signal)[None].numpy(), sample_rate, 44100)
        for signal in (mixture, estimate, reference)
    )
    mixture_mono, estimate_mono, reference_mono = (
        torch.from_numpy(signal).double() for signal in signals
    )
    return float(
        LogWMSE(sample_rate=44100)(
            mixture_mono[None], estimate_mono[None, None], reference_mono[None, None]
        )
    )


def rests(
    estimate: np.ndarray, mixture: np.ndarray, reference: np.ndarray, sample_rate: int
) -> dict[str, float | None]:
    """Leakage where the target is silent, which ratios to the reference cannot measure.

    This follows the "predicted energy at silence" of Schulze-Forster et al. (WASPAA 2019), but
    relative to the mixture, so that it does not depend on the level: at 0 dB everything leaks.
    Frames are 50 ms long; a frame is silent 60 dB below the reference's loudest frame.

    Args:
        estimate, mixture, reference: `[channel, time]` of one shape.
        sample_rate: in Hz.

    Returns:
        - `rest_share`: share of frames in which the reference is silent
        - `rest_leak_db`: energy of the estimate relative to the mixture in these frames, at least
          -120 dB; None if there are no such frames or the mixture is silent in them
    """
    frames = [
        frame_power(_mono(signal)[None].numpy(), max(1, round(0.05 * sample_rate)))
        for signal in (estimate, mixture, reference)
    ]
    estimate_power, mixture_power, reference_power = frames
    silent = reference_power <= _silence(reference_power)
    through, possible = estimate_power[silent].sum(), mixture_power[silent].sum()
    leak_db = (
        10 * math.log10(max(through / possible, 10 ** (REST_FLOOR_DB / 10)))
        if possible > 0
        else None
    )
    return {"rest_share": float(silent.mean()), "rest_leak_db": leak_db}


def evaluate_fully(
    estimate: np.ndarray, mixture: np.ndarray, reference: np.ndarray, sample_rate: int
) -> dict[str, float | None]:
    """All figures of the benchmark.

    Those of `evaluate`, `si_sdr_oracle_ratio`, `gap_closed`, `bss_eval`, `log_wmse` and `rests`.

    Args:
        estimate, mixture, reference: `[channel, time]` of one shape.
        sample_rate: in Hz.

    Raises:
        BespokeError: museval or torch-log-wmse is not installed.
    """
    figures = evaluate(estimate, mixture, reference, sample_rate)
    return {
        **figures,
        "si_sdr_oracle_ratio": si_sdr(ratio_oracle(mixture, reference, sample_rate), reference),
        "gap_closed": gap_closed(
            figures["si_sdr"], figures["si_sdr_mixture"], figures["si_sdr_oracle"]
        ),
        **bss_eval(estimate, mixture, reference, sample_rate),
        "log_wmse": log_wmse(estimate, mixture, reference, sample_rate),
        **rests(estimate, mixture, reference, sample_rate),
    }


def check_packages() -> None:
    """Check that what `evaluate_fully` needs is installed.

    Raises:
        BespokeError: museval or torch-log-wmse is not installed.
    """
    _museval()
    if importlib.util.find_spec("torch_log_wmse") is None:
        raise BespokeError(_NO_LOG_WMSE)


@functools.cache
def _museval() -> ModuleType:
    """museval's metrics module, without the rest of the package.

    The package is slow to import and raises a RuntimeError if FFmpeg is missing.
    """
    package = importlib.util.find_spec("museval")
    if package is None or package.origin is None:
        raise BespokeError("BSS Eval needs museval: pip install 'bespoke-separation[benchmark]'.")
    spec = importlib.util.spec_from_file_location(
        "museval_metrics", Path(package.origin).with_name("metrics.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _silence(power: np.ndarray) -> float:
    """Highest power of a silent frame."""
    return power.max(initial=0.0) * 10 ** (SILENCE_DB / 10)


def _median(figures: np.ndarray) -> float | None:
    return float(np.median(figures)) if figures.size else None


def _mono(waveform: np.ndarray) -> torch.Tensor:
    # float64: the metric of a very good estimate is a difference of nearly equal numbers.
    return torch.from_numpy(waveform.mean(axis=0, dtype=np.float64))
