"""The input channels, besides the spectrogram, of a network that uses the score.

They tell where the partials of the notes are, and what factorizations make of the notes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bespoke.audio.stft import STFT
from bespoke.models.nmf import ScoreInformedFactorization, harmonic_templates, piano_roll
from bespoke.score.midi import Note

FACTORIZATIONS = 3
CHANNELS = FACTORIZATIONS + 7
AROUND = FACTORIZATIONS + 1  # the channel of the target's bands around its notes
TOLD = FACTORIZATIONS + 5  # the channel that says whether the other parts are known
_WINDOWS = (0.5, 1.0, 2.0)  # of the factorizations, in windows of the STFT
_WIDTH_CENTS, _FLOOR_HZ = 50.0, 30.0  # of a partial's band
_BEFORE_SECONDS, _AFTER_SECONDS = 0.06, 0.3  # a note may sound so much earlier and later
_ATTACK_BEFORE_SECONDS, _ATTACK_DECAY_SECONDS = 0.04, 0.1

Factorizations = dict[frozenset, dict[tuple[tuple[Note, ...], int], list[np.ndarray]]]
"""Of one mixture: the masks of each part, by the set of parts that were factorized together."""


class ScoreFeatures:
    """Makes the channels from a mix and its notes.

    In this order:

    - three masks of score-informed factorizations, with windows of half, one and two times the
      STFT's; together they beat any one of them;
    - the bands of the target's partials while its notes last;
    - the same bands from a little before to a little after each note;
    - the target's attacks, which jump to 1 and decay, at all frequencies alike;
    - the other parts' share in the factorizations, the mean of the three windows;
    - the bands of the other parts' partials, from a little before to a little after each note;
    - whether the other parts are known, 0 or 1 throughout;
    - the magnitude with a window a quarter as long, which shows when a note is struck.

    Args:
        stft: the transform of the network's spectrogram.
        tuning_cents: how much sharper than A4 = 440 Hz the mixture is.

    >>> features = ScoreFeatures(STFT(8000, 0.064, 0.016))
    >>> features(np.zeros((1, 8000), np.float32), [Note(0.2, 0.6, 69)]).shape
    torch.Size([10, 257, 63])
    """

    def __init__(self, stft: STFT, tuning_cents: float = 0.0):
        self.stft, self.tuning_cents = stft, tuning_cents
        window, hop = (stft.hyperparameters[key] for key in ("window_seconds", "hop_seconds"))
        self._stfts = [STFT(stft.sample_rate, factor * window, hop) for factor in _WINDOWS]
        self._short = STFT(stft.sample_rate, window / 4, hop / 4)
        self._factorization = ScoreInformedFactorization(tuning_cents=tuning_cents)

    @torch.inference_mode()
    def __call__(
        self,
        mixture: np.ndarray,
        notes: Sequence[Note],
        others: Sequence[Sequence[Note]] = (),
        made: Factorizations | None = None,
    ) -> Tensor:
        """Make the channels.

        Args:
            mixture: `[1, time]` at the STFT's rate, of any level.
            notes: the target's, in seconds of the mixture; they may lie partly or wholly outside
                it.
            others: the notes of each other part, likewise, where they are known.
            made: the factorizations of this mixture that were made before, and are to be kept: with
                one target after the other of the same parts, there is one factorization for all.

        Returns:
            `[CHANNELS, freq, frames]`: from 0 to 1, but for the magnitude in the last channel.
        """
        frequencies_hz = self.stft.frequencies_hz.numpy()
        signal = torch.from_numpy(np.ascontiguousarray(mixture, dtype=np.float32))[None]
        channels: list[np.ndarray] = []
        shares: list[np.ndarray] = []
        masks = self._masks(signal, [notes, *filter(None, others)], {} if made is None else made)
        for own, *rest in zip(*masks, strict=True):
            channels.append(own)
            shares.append(np.sum(rest, axis=0) / len(_WINDOWS) if rest else np.zeros_like(own))
        others_share = np.sum(shares, axis=0)
        times = self.stft.times_seconds(others_share.shape[1]).numpy()
        in_tune_hz = frequencies_hz / 2 ** (self.tuning_cents / 1200)
        channels += [
            _bands(notes, in_tune_hz, times, 0.0, 0.0),
            _bands(notes, in_tune_hz, times, _BEFORE_SECONDS, _AFTER_SECONDS),
            np.broadcast_to(_attacks(notes, times), others_share.shape),
            others_share,
            _bands(
                [note for part in others for note in part],
                in_tune_hz,
                times,
                _BEFORE_SECONDS,
                _AFTER_SECONDS,
            ),
            np.full(others_share.shape, bool(others), np.float32),
            self.short_magnitude(signal)[:, : len(times)],
        ]
        return torch.from_numpy(np.stack(channels).astype(np.float32, copy=False))

    def _masks(
        self, signal: Tensor, parts: Sequence[Sequence[Note]], made: Factorizations
    ) -> list[list[np.ndarray]]:
        """Each part's masks, one a window, `[freq, frames]` of the network's spectrogram."""
        notes = [tuple(part) for part in parts]
        # Parts with the same notes are told apart by their number.
        names = [(part, notes[:index].count(part)) for index, part in enumerate(notes)]
        key = frozenset(names)
        if key not in made:
            made[key] = {name: [] for name in names}
            for stft in self._stfts:
                magnitude = stft(signal)[0, 0].abs().numpy()
                masks = self._factorization.masks(magnitude, stft, notes)
                for name, mask in zip(names, masks, strict=True):
                    made[key][name].append(
                        _interpolated(
                            mask, stft.frequencies_hz.numpy(), self.stft.frequencies_hz.numpy()
                        )
                    )
        return [made[key][name] for name in names]

    def short_magnitude(self, mixture: Tensor) -> np.ndarray:
        """The last channel alone, `[freq, frames]`, from `[1, 1, time]`."""
        magnitude = self._short(mixture)[0, 0, :, ::4].abs().numpy()
        return _interpolated(
            magnitude, self._short.frequencies_hz.numpy(), self.stft.frequencies_hz.numpy()
        )


def _bands(
    notes: Sequence[Note],
    frequencies_hz: np.ndarray,
    times_seconds: np.ndarray,
    before_seconds: float,
    after_seconds: float,
) -> np.ndarray:
    """The bands of the notes' partials, `[freq, frames]`, 0 to 1."""
    bands = np.zeros((len(frequencies_hz), len(times_seconds)), np.float32)
    pitches = sorted({note.pitch for note in notes})
    combs = harmonic_templates(pitches, frequencies_hz, _WIDTH_CENTS, _FLOOR_HZ, decay=0.0)
    roll = piano_roll(notes, pitches, times_seconds, before_seconds, after_seconds)
    for comb, active in zip(combs.T, roll, strict=True):
        (sounding,) = np.nonzero(active)
        bands[:, sounding] = np.maximum(bands[:, sounding], comb[:, None])
    return bands


def _attacks(notes: Sequence[Note], times_seconds: np.ndarray) -> np.ndarray:
    """1 where a note begins, and a decay after it, `[frames]`."""
    attack = np.zeros(len(times_seconds), np.float32)
    for note in notes:
        since = times_seconds - note.start_seconds
        decayed = np.exp(-np.maximum(since, 0) / _ATTACK_DECAY_SECONDS)
        attack = np.maximum(attack, np.where(since > -_ATTACK_BEFORE_SECONDS, decayed, 0))
    return attack


def _interpolated(
    values: np.ndarray, source_hz: np.ndarray, destination_hz: np.ndarray
) -> np.ndarray:
    """Carry `[freq, frames]` to other frequencies, linearly."""
    position = np.interp(destination_hz, source_hz, np.arange(len(source_hz)))
    lower = np.minimum(position.astype(int), len(source_hz) - 2)
    weight = (position - lower)[:, None].astype(np.float32)
    return (1 - weight) * values[lower] + weight * values[lower + 1]
