"""What the score alone can tell of a recording.

Combs of partials, and a factorization of the spectrogram that is constrained to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from bespoke.audio.stft import STFT
from bespoke.score.midi import Note, pitch_hz

_TINY = 1e-9  # keeps quotients finite, on spectrograms whose mean is one


@dataclass(frozen=True)
class ScoreInformedFactorization:
    """Non-negative matrix factorization with constraints from the score.

    Source: Ewert & Müller, "Using score-informed constraints for NMF-based source separation"
    (ICASSP 2012).

    Each pitch of the target has one spectrum. It starts as a comb of partials and stays zero
    between them. Its activation stays zero where the score has no note of the pitch, because a zero
    remains zero under multiplicative updates. Free components model what else plays. The ratio of
    the target's part to the whole is the mask.

    The updates are those of Lee & Seung for the Kullback-Leibler divergence. scikit-learn's
    implementation lacks two things that help on real recordings: see `template_prior` and
    `smoothing_frames`.

    The prior, the smoothing and the absence of templates for onsets are ours and not in the
    article. (Templates for onsets pick up the drums.) All settings were chosen by the mean over the
    benchmark's recordings, so the benchmark's figures flatter this method a little.

    Args:
        components: number of free spectra.
        iterations: few: with more, the free components eat into the target.
        width_cents, floor_hz: a partial's band reaches this far on either side, whichever is more.
        decay: partial k starts at `k ** -decay`.
        before_seconds, after_seconds: how much earlier and later than written a note may sound,
            reverberation included.
        power: the magnitudes are raised to this before they are factorized.
        template_prior: weight, relative to that of the data, of a prior that pulls the target's
            spectra towards their start.
        smoothing_frames: standard deviation of a Gaussian that smooths the target's activations at
            each iteration.
        seed: of the free components' start.
        tuning_cents: how much sharper than A4 = 440 Hz the recording is.
    """

    components: int = 20
    iterations: int = 15
    width_cents: float = 50.0
    floor_hz: float = 30.0
    decay: float = 2.0
    before_seconds: float = 0.05
    after_seconds: float = 0.2
    power: float = 1.4
    template_prior: float = 0.1
    smoothing_frames: float = 1.0
    seed: int = 0
    tuning_cents: float = 0.0

    def mask(self, magnitude: np.ndarray, stft: STFT, notes: Sequence[Note]) -> np.ndarray:
        """The share of each bin that one part has, where the other parts' notes are not known.

        Args:
            magnitude: of the recording, `[freq, frames]`, of any level.
            stft: the transform it comes from.
            notes: the target's, in seconds of the recording; they may lie partly or wholly outside
                it.

        Returns:
            `[freq, frames]`, 0 to 1.
        """
        return self.masks(magnitude, stft, [notes])[0]

    def masks(
        self, magnitude: np.ndarray, stft: STFT, parts: Sequence[Sequence[Note]]
    ) -> np.ndarray:
        """The share of each bin that each of several parts has.

        Every part has spectra of its own, one a pitch; the free components are left with what no
        score tells.

        Args:
            magnitude: of the recording, `[freq, frames]`, of any level.
            stft: the transform it comes from.
            parts: the notes of each part, in seconds of the recording; they may lie partly or
                wholly outside it.

        Returns:
            `[part, freq, frames]`, 0 to 1; their sum is at most 1.
        """
        shares = np.zeros((len(parts), *magnitude.shape), np.float32)
        if not magnitude.any():
            return shares
        # A transform's frames lie one after the other in memory, the model's frequencies do.
        observed = np.ascontiguousarray(magnitude) ** self.power
        observed /= observed.mean()
        bins, frames = observed.shape
        start, allowed, slices = self._constraints(stft, frames, parts)

        # At the start the parts and the rest have half of the energy each.
        rng = np.random.default_rng(self.seed)
        free = _normalized(rng.uniform(0.1, 1.0, (bins, self.components)).astype(np.float32))
        free_activations = rng.uniform(0.1, 1.0, (self.components, frames)).astype(np.float32)
        free_activations *= observed.sum() / free_activations.sum() / 2
        scored = slice(start.shape[1])
        spectra = np.concatenate([start, free], axis=1)
        activations = np.concatenate(
            [
                allowed * observed.sum(axis=0) / 2 / np.maximum(allowed.sum(axis=0), 1),
                free_activations,
            ]
        )

        # The spectra sum to one, so that the divergence's usual denominators are too.
        for _ in range(self.iterations):
            activations *= spectra.T @ _quotient(observed, spectra, activations)
            activations[scored] = allowed * gaussian_filter1d(
                activations[scored], self.smoothing_frames, axis=1, mode="nearest"
            )
            spectra *= _quotient(observed, spectra, activations) @ activations.T
            spectra[:, scored] += self.template_prior * spectra[:, scored].sum(axis=0) * start
            spectra = _normalized(spectra)
        model = spectra @ activations + _TINY
        for share, part in zip(shares, slices, strict=True):
            np.divide(spectra[:, part] @ activations[part], model, out=share)
        return shares

    def _constraints(
        self, stft: STFT, frames: int, parts: Sequence[Sequence[Note]]
    ) -> tuple[np.ndarray, np.ndarray, list[slice]]:
        """The combs that the spectra start as, `[freq, pitch]`, where each may sound,
        `[pitch, frames]`, and which of them belong to each part."""
        frequencies_hz = stft.frequencies_hz.numpy() / 2 ** (self.tuning_cents / 1200)
        times = stft.times_seconds(frames).numpy()
        combs, rolls, slices, first = [], [], [], 0
        for notes in parts:
            pitches = sorted({note.pitch for note in notes})
            comb = harmonic_templates(
                pitches, frequencies_hz, self.width_cents, self.floor_hz, self.decay
            )
            combs.append(_normalized(comb))
            rolls.append(piano_roll(notes, pitches, times, self.before_seconds, self.after_seconds))
            slices.append(slice(first, first + len(pitches)))
            first += len(pitches)
        return np.concatenate(combs, axis=1), np.concatenate(rolls), slices


def _quotient(observed: np.ndarray, spectra: np.ndarray, activations: np.ndarray) -> np.ndarray:
    """The observed over the model, in the memory of the model: these arrays are large."""
    model = spectra @ activations
    model += _TINY
    return np.divide(observed, model, out=model)


def harmonic_templates(
    pitches: Sequence[int],
    frequencies_hz: np.ndarray,
    width_cents: float,
    floor_hz: float,
    decay: float,
) -> np.ndarray:
    """Combs of partials: bands that fall off as a cosine, zero between them.

    Args:
        pitches: MIDI pitches.
        frequencies_hz: of the bins, `[freq]`.
        width_cents, floor_hz: half a band's width, whichever is more.
        decay: partial k is `k ** -decay` high.

    Returns:
        `[freq, pitch]`, 0 to 1.
    """
    fundamental_hz = pitch_hz(np.asarray(pitches, dtype=np.float64))
    partial = np.maximum(np.round(frequencies_hz[:, None] / fundamental_hz), 1)
    half_width_hz = np.maximum(floor_hz, partial * fundamental_hz * (2 ** (width_cents / 1200) - 1))
    distance = np.abs(frequencies_hz[:, None] - partial * fundamental_hz) / half_width_hz
    return np.where(distance < 1, np.cos(np.pi / 2 * distance) * partial**-decay, 0).astype(
        np.float32
    )


def piano_roll(
    notes: Sequence[Note],
    pitches: Sequence[int],
    times_seconds: np.ndarray,
    before_seconds: float,
    after_seconds: float,
) -> np.ndarray:
    """Where each pitch may sound, `[pitch, frames]`.

    1 from `before_seconds` before its notes to `after_seconds` after them, else 0.
    """
    roll = np.zeros((len(pitches), len(times_seconds)), np.float32)
    for note in notes:
        sounds = (times_seconds >= note.start_seconds - before_seconds) & (
            times_seconds <= note.end_seconds + after_seconds
        )
        roll[pitches.index(note.pitch), sounds] = 1
    return roll


def _normalized(spectra: np.ndarray) -> np.ndarray:
    """Columns that sum to one; columns of zeros stay as they are."""
    return spectra / np.maximum(spectra.sum(axis=0), _TINY)
