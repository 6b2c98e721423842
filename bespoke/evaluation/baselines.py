"""Baseline methods behind one small interface.

A baseline takes the recording and the target's notes, in seconds of the recording, and returns an
estimate of the target. Some use the notes of the other parts, too. The caller decides whether the
notes come from a true alignment or an automatic one, and says so in the baseline's label.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from bespoke.audio.dsp import resample
from bespoke.audio.stft import STFT
from bespoke.models.nmf import ScoreInformedFactorization, harmonic_templates, piano_roll
from bespoke.score.midi import Note
from bespoke.utils.errors import BespokeError

_STEM_RATE = 44100  # of all published 4-stem models below
_INSTALL = {"demucs": "pip install 'demucs>=4.1'", "openunmix": "pip install openunmix"}


class Baseline(Protocol):
    """Interface of a baseline method."""

    uses_score: ClassVar[bool]
    """Whether the method uses the notes. If so, its label names the alignment they come from."""
    uses_others: ClassVar[bool]
    """Whether it uses the notes of the other parts, too."""

    def separate(
        self,
        mixture: np.ndarray,
        sample_rate: int,
        notes: Sequence[Note],
        others: Sequence[Sequence[Note]] = (),
    ) -> np.ndarray:
        """Estimate the target.

        Args:
            mixture: float32 `[channel, time]`, at any level.
            sample_rate: in Hz.
            notes: notes of the target, in seconds of the recording. They may lie partly or wholly
                outside the recording.
            others: notes of each other part, likewise.

        Returns:
            float32 of the mixture's shape. Methods that use the score give silence where it rests.
        """


@dataclass(frozen=True)
class Mixture:
    """The recording itself, unprocessed."""

    uses_score: ClassVar[bool] = False
    uses_others: ClassVar[bool] = False

    def separate(
        self,
        mixture: np.ndarray,
        sample_rate: int,
        notes: Sequence[Note],
        others: Sequence[Sequence[Note]] = (),
    ) -> np.ndarray:
        return mixture.astype(np.float32)


@dataclass(frozen=True)
class HarmonicComb:
    """Keep only the partials of sounding notes, up to the Nyquist frequency.

    Args:
        window_seconds: window of the STFT, whose hop is a quarter.
        width_cents, floor_hz: half width of a partial's band; the larger of the two applies.
        soft: whether the mask falls off towards the edges of a band as a cosine. Else it is 1.
        before_seconds, after_seconds: how much earlier and later than written a note may sound.
        attack_seconds: duration of the attack after a note's start.
        attack_mask: least value of the mask at all frequencies during an attack, for its noise.

    >>> tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)[None].astype(np.float32)
    >>> for pitch in (69, 73):
    ...     estimate = HarmonicComb().separate(tone, 8000, [Note(0, 1, pitch)])
    ...     print(round(float(estimate.std() / tone.std()), 1))
    1.0
    0.0
    """

    uses_score: ClassVar[bool] = True
    uses_others: ClassVar[bool] = False

    window_seconds: float = 4096 / 44100
    width_cents: float = 50.0
    floor_hz: float = 30.0
    soft: bool = True
    before_seconds: float = 0.05
    after_seconds: float = 0.1
    attack_seconds: float = 0.02
    attack_mask: float = 0.1

    def separate(
        self,
        mixture: np.ndarray,
        sample_rate: int,
        notes: Sequence[Note],
        others: Sequence[Sequence[Note]] = (),
    ) -> np.ndarray:
        def mask(magnitude: np.ndarray, stft: STFT) -> np.ndarray:
            pitches = sorted({note.pitch for note in notes})
            combs = harmonic_templates(
                pitches, stft.frequencies_hz.numpy(), self.width_cents, self.floor_hz, decay=0.0
            )
            combs = combs if self.soft else (combs > 0).astype(np.float32)
            times = stft.times_seconds(magnitude.shape[1]).numpy()
            kept = np.zeros_like(magnitude)
            for comb, active in zip(
                combs.T,
                piano_roll(notes, pitches, times, self.before_seconds, self.after_seconds),
                strict=True,
            ):
                np.maximum(kept, comb[:, None] * active, out=kept)
            starts = [Note(note.start_seconds, note.start_seconds, note.pitch) for note in notes]
            attacks = piano_roll(starts, pitches, times, self.before_seconds, self.attack_seconds)
            return np.maximum(kept, self.attack_mask * attacks.max(axis=0, initial=0.0))

        return apply_mask(mixture, sample_rate, self.window_seconds, mask)


@dataclass(frozen=True)
class ScoreInformedNMF(ScoreInformedFactorization):
    """Score-informed NMF (`bespoke.models.nmf`) at several resolutions.

    The mask of each STFT is applied separately and the estimates are averaged. The average is
    better than any single resolution, and than the average of several seeds.

    Args:
        window_seconds: windows of the STFTs, whose hop is a quarter.
    """

    uses_score: ClassVar[bool] = True
    uses_others: ClassVar[bool] = True

    window_seconds: tuple[float, ...] = (2048 / 44100, 4096 / 44100, 8192 / 44100)

    def separate(
        self,
        mixture: np.ndarray,
        sample_rate: int,
        notes: Sequence[Note],
        others: Sequence[Sequence[Note]] = (),
    ) -> np.ndarray:
        def mask(magnitude: np.ndarray, stft: STFT) -> np.ndarray:
            return self.masks(magnitude, stft, [notes, *others])[0]

        return np.mean(
            [apply_mask(mixture, sample_rate, seconds, mask) for seconds in self.window_seconds],
            axis=0,
        )


@dataclass(frozen=True)
class HarmonicPercussive:
    """Harmonic part of the recording by median filtering (Fitzgerald, DAFx 2010), by librosa.

    It is what is steady in time, whichever instrument plays it. Uses no score.

    Args:
        window_seconds: window of the STFT, whose hop is a quarter.
        kernel_frames: length of both median filters, in frames and bins (librosa's default).
    """

    uses_score: ClassVar[bool] = False
    uses_others: ClassVar[bool] = False

    window_seconds: float = 2048 / 44100
    kernel_frames: int = 31

    def separate(
        self,
        mixture: np.ndarray,
        sample_rate: int,
        notes: Sequence[Note],
        others: Sequence[Sequence[Note]] = (),
    ) -> np.ndarray:
        import librosa  # slow to import

        def mask(magnitude: np.ndarray, stft: STFT) -> np.ndarray:
            return librosa.decompose.hpss(magnitude, kernel_size=self.kernel_frames, mask=True)[0]

        return apply_mask(mixture, sample_rate, self.window_seconds, mask)


class Demucs:
    """One stem of a Demucs model (Rouard et al., ICASSP 2023) installed by the user. Uses no score.

    Written against demucs 4.1 and tested with a fake package, not yet with real weights.

    Args:
        program: the target's General MIDI program, which selects the stem.
        model: name of the Demucs model.

    Raises:
        BespokeError: demucs is not installed, or its weights are missing and cannot be downloaded.
    """

    uses_score: ClassVar[bool] = False
    uses_others: ClassVar[bool] = False

    def __init__(self, program: int, model: str = "htdemucs"):
        self.stem = stem_of(program)
        # Without random shifts, the same recording always gives the same stems.
        self._separator = _load(
            "demucs", lambda: import_module("demucs.api").Separator(model, device="cpu", shifts=0)
        )

    def separate(
        self,
        mixture: np.ndarray,
        sample_rate: int,
        notes: Sequence[Note],
        others: Sequence[Sequence[Note]] = (),
    ) -> np.ndarray:
        return _apply_stereo(
            mixture,
            sample_rate,
            lambda stereo: self._separator.separate_tensor(stereo, _STEM_RATE)[1][self.stem],
        )


class OpenUnmix:
    """One stem of Open-Unmix's UMX-L (Stöter et al., JOSS 2019) installed by the user.

    Uses no score. Written against openunmix 1.3 and tested with a fake package, not yet with real
    weights.

    Args:
        program: the target's General MIDI program, which selects the stem.

    Raises:
        BespokeError: openunmix is not installed, or its weights are missing and cannot be
            downloaded.
    """

    uses_score: ClassVar[bool] = False
    uses_others: ClassVar[bool] = False

    def __init__(self, program: int):
        self.stem = stem_of(program)
        self._separator = _load("openunmix", lambda: import_module("openunmix").umxl(device="cpu"))

    def separate(
        self,
        mixture: np.ndarray,
        sample_rate: int,
        notes: Sequence[Note],
        others: Sequence[Sequence[Note]] = (),
    ) -> np.ndarray:
        return _apply_stereo(
            mixture,
            sample_rate,
            lambda stereo: self._separator.to_dict(self._separator(stereo[None]))[self.stem][0],
        )


BASELINES: dict[str, Callable[[int], Baseline]] = {
    "mixture": lambda program: Mixture(),
    "comb": lambda program: HarmonicComb(),
    "nmf": lambda program: ScoreInformedNMF(),
    "hpss": lambda program: HarmonicPercussive(),
    "demucs": Demucs,
    "openunmix": OpenUnmix,
}
"""Constructors of the baselines by name; each takes the target's General MIDI program.

`demucs` and `openunmix` need packages and weights that Bespoke does not install.
"""


def stem_of(program: int) -> str:
    """Stem of a 4-stem model that contains an instrument, by General MIDI program (0-127).

    >>> [stem_of(program) for program in (33, 53, 118, 29)]
    ['bass', 'vocals', 'drums', 'other']
    """
    if 32 <= program <= 39:
        return "bass"
    if program in (52, 53, 54, 85):  # choir, voice, synth voice, voice lead
        return "vocals"
    return "drums" if 112 <= program <= 119 else "other"


def apply_mask(
    mixture: np.ndarray,
    sample_rate: int,
    window_seconds: float,
    make_mask: Callable[[np.ndarray, STFT], np.ndarray],
) -> np.ndarray:
    """Compute a mask from the channel mean and apply it to every channel.

    Args:
        mixture: `[channel, time]`.
        sample_rate: in Hz.
        window_seconds: window of the STFT, whose hop is a quarter.
        make_mask: takes magnitudes `[freq, frames]` and the transform, returns a mask of that
            shape.

    Returns:
        float32 of the mixture's shape.
    """
    stft = STFT(sample_rate, window_seconds, window_seconds / 4)
    spectrogram = stft(torch.from_numpy(np.ascontiguousarray(mixture, dtype=np.float32))[None])
    mask = torch.from_numpy(make_mask(spectrogram[0].mean(dim=0).abs().numpy(), stft))
    return stft.inverse(mask * spectrogram, mixture.shape[-1])[0].numpy()


def _load(package: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ImportError as error:
        raise BespokeError(
            f"The baseline {package} is not installed ({error}): "
            f"{_INSTALL[package]}, or leave it out."
        ) from error
    except Exception as error:  # whatever the package raises without weights and network
        raise BespokeError(
            f"The weights of the baseline {package} are missing and cannot be downloaded "
            f"({type(error).__name__}): leave it out."
        ) from error


@torch.inference_mode()
def _apply_stereo(
    mixture: np.ndarray, sample_rate: int, separate: Callable[[torch.Tensor], torch.Tensor]
) -> np.ndarray:
    """Run a model for stereo at 44.1 kHz.

    A recording with another number of channels is reduced to its channel mean, and the estimate is
    the same in all channels.
    """
    stereo = (
        mixture if len(mixture) == 2 else np.repeat(mixture.mean(axis=0, keepdims=True), 2, axis=0)
    )
    separated = separate(torch.from_numpy(resample(stereo, sample_rate, _STEM_RATE))).cpu().numpy()
    estimate = resample(separated, _STEM_RATE, sample_rate)[:, : mixture.shape[-1]]
    return (
        estimate
        if len(mixture) == 2
        else np.repeat(estimate.mean(axis=0, keepdims=True), len(mixture), axis=0)
    )
