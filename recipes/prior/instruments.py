"""Instruments for random ensembles: recorded single notes, oscillators, and a wordless voice."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.signal import butter, istft, sosfilt, stft

from bespoke.audio.dsp import resample
from bespoke.audio.io import read_audio
from bespoke.score.midi import Note, pitch_hz

# First three formants of vowels, in Hz (after Peterson & Barney, JASA 1952).
VOWELS_HZ = (
    (730, 1090, 2440),
    (270, 2290, 3010),
    (300, 870, 2240),
    (530, 1840, 2480),
    (570, 840, 2410),
    (440, 1020, 2240),
)
_PITCH_CLASSES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


class Sampler:
    """Instrument of recorded notes.

    Each file holds one note and is named by its pitch: `A4.mp3`, `Cs3.wav`; several takes of a note
    are `A4.0.wav`, `A4.1.wav`. A note uses the nearest pitch, played at another speed, and a random
    take, since a player's notes are never alike.

    Args:
        folder: contains the files.
        sample_rate: of the results, in Hz.
    """

    def __init__(self, folder: Path, sample_rate: int):
        self.sample_rate = sample_rate
        self.recorded: dict[int, list[np.ndarray]] = {}
        for file in sorted(folder.iterdir()):
            named = re.fullmatch(r"([A-G])(s?)(-?\d)(?:\..+)?", file.stem)
            if named and file.suffix in (".mp3", ".wav", ".flac", ".ogg"):
                pitch = 12 * (int(named[3]) + 1) + _PITCH_CLASSES[named[1]] + len(named[2])
                waveform, rate = read_audio(file)
                sound = resample(waveform.mean(axis=0, keepdims=True), rate, sample_rate)[0]
                start = int(np.argmax(np.abs(sound) > 0.02 * np.abs(sound).max()))
                self.recorded.setdefault(pitch, []).append(
                    (sound[start:] / np.abs(sound).max()).astype(np.float32)
                )

    def play(
        self, notes: Sequence[Note], seconds: float, rng: np.random.Generator, single: bool = False
    ) -> np.ndarray:
        """Play notes. Some start softly, tied to the previous one; some slide up to their pitch.

        Args:
            notes: within `seconds`.
            seconds: length of the result.
            rng: determines how the notes are played.
            single: whether one recorded note plays all pitches, as in tracker music.

        Returns:
            float32 `[time]`.
        """
        waveform = np.zeros(int(seconds * self.sample_rate), np.float32)
        pitches = np.array(sorted(self.recorded))
        if single:
            middle = np.median([note.pitch for note in notes])
            pitches = pitches[np.argsort(np.abs(pitches - middle))][:3]
            pitches = pitches[rng.integers(len(pitches))][None]
        release_seconds, bound, sliding = (
            rng.uniform(0.02, 0.25),
            rng.uniform(0, 0.9) * (rng.random() < 0.5),
            0.3 * (rng.random() < 0.3),
        )
        sharp, end_before = rng.normal(0, 0.08), -1.0  # semitones
        for note in notes:
            source = int(pitches[np.abs(pitches - note.pitch).argmin()])
            takes = self.recorded[source]
            recorded = takes[0 if single else rng.integers(len(takes))]
            held = note.end_seconds - note.start_seconds
            time = np.arange(int((held + release_seconds) * self.sample_rate))
            semitones = note.pitch + sharp - source + np.zeros(len(time))
            if rng.random() < sliding:
                semitones -= rng.uniform(0.3, 2) * np.exp(
                    -time / (rng.uniform(0.02, 0.06) * self.sample_rate)
                )
            position = np.cumsum(2 ** (semitones / 12))
            is_bound = note.start_seconds - end_before < 0.05 and rng.random() < bound
            if is_bound:
                position += rng.uniform(0.05, 0.15) * self.sample_rate
            sound = (
                np.interp(position, np.arange(len(recorded)), recorded, right=0.0)
                * (note.velocity / 100) ** 1.5
            )
            sound *= np.clip(
                (held * self.sample_rate - time) / (release_seconds * self.sample_rate) + 1, 0, 1
            )
            if is_bound:
                sound *= np.minimum(time / (0.02 * self.sample_rate), 1)
            first = int(note.start_seconds * self.sample_rate)
            length = max(0, min(len(waveform) - first, len(sound)))
            waveform[first : first + length] += sound[:length]
            end_before = note.end_seconds
        return waveform


def oscillate(
    notes: Sequence[Note], seconds: float, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Play notes with an additive or FM sound and an envelope, as of simple synthesizers.

    Args:
        notes: within `seconds`.
        seconds: length of the result.
        sample_rate: in Hz.
        rng: determines the sound.

    Returns:
        float32 `[time]`.
    """
    samples = int(seconds * sample_rate)
    waveform = np.zeros(samples, np.float32)
    kind = rng.choice(
        ["pulse", "saw", "triangle", "fm", "detuned", "drawn"], p=[0.15, 0.15, 0.1, 0.15, 0.1, 0.35]
    )
    duty, cutoff, attack, release = (
        rng.uniform(0.1, 0.5),
        rng.uniform(2, 24),
        rng.uniform(0.001, 0.04),
        rng.uniform(0.01, 0.4),
    )
    decay, sustain = rng.choice([rng.uniform(0.08, 0.5), rng.uniform(0.5, 4)]), rng.uniform(0, 1)
    vibrato, vibrato_hz = rng.uniform(0, 0.2) * (rng.random() < 0.4), rng.uniform(4, 7)  # semitones
    index, ratio, detune = (
        rng.uniform(0.5, 5),
        rng.choice([0.5, 1, 1.5, 2, 3]),
        2 ** (rng.uniform(0, 12) / 1200),
    )
    drawn = rng.uniform(0, 1, 60) * np.arange(1, 61) ** -rng.uniform(0.5, 2)
    drawn[0] += 0.3
    for note in notes:
        held, first = note.end_seconds - note.start_seconds, int(note.start_seconds * sample_rate)
        time = np.arange(int((held + 2.5 * release) * sample_rate)) / sample_rate
        bend = vibrato * np.sin(2 * np.pi * vibrato_hz * time) * np.minimum(time / 0.3, 1)
        frequency_hz = pitch_hz(note.pitch + bend)
        phase = np.cumsum(frequency_hz) / sample_rate
        if kind == "fm":
            sound = np.sin(
                2 * np.pi * phase + index * np.exp(-time / 0.5) * np.sin(2 * np.pi * phase * ratio)
            )
        else:
            number = np.arange(1, max(2, int(min(40, 0.45 * sample_rate / frequency_hz.mean()))))
            amplitudes = {
                "pulse": np.sin(np.pi * number * duty) / number,
                "triangle": number % 2 / number**2.0,
            }.get(kind, 1 / number)
            amplitudes = drawn[: len(number)] if kind == "drawn" else amplitudes
            amplitudes = amplitudes / np.sqrt(1 + (number / cutoff) ** 4)
            sound = _partials(phase, amplitudes)
            if kind == "detuned":
                sound = sound + np.interp(
                    np.arange(len(sound)) * detune, np.arange(len(sound)), sound
                )
        envelope = np.minimum(time / attack, 1) * (sustain + (1 - sustain) * np.exp(-time / decay))
        envelope *= np.where(time > held, np.exp(-2 * (time - held) / release), 1)
        length = max(0, min(samples - first, len(time)))
        waveform[first : first + length] += (sound * envelope)[:length] * note.velocity / 127
    return waveform


def _partials(phase: np.ndarray, amplitudes: Sequence[float]) -> np.ndarray:
    """Sum of sines at the multiples 1, 2, 3, ... of a phase in turns.

    Each sine follows from the two before, which is much cheaper than computing it.
    """
    before, partial = np.zeros_like(phase), np.sin(2 * np.pi * phase)
    twice_cosine, total = 2 * np.cos(2 * np.pi * phase), np.zeros_like(phase)
    for amplitude in amplitudes:
        total += amplitude * partial
        before, partial = partial, twice_cosine * partial - before
    return total


def sing(
    notes: Sequence[Note], seconds: float, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Sing notes with one wordless voice.

    It is a sawtooth that slides between pitches, with vibrato, breath, vowels and the noise of
    consonants.

    Args:
        notes: within `seconds`.
        seconds: length of the result.
        sample_rate: in Hz.
        rng: determines the voice.

    Returns:
        `[time]`.
    """
    samples = int(seconds * sample_rate)
    time = np.arange(samples) / sample_rate
    semitones, loud, hiss = np.zeros(samples), np.zeros(samples), np.zeros(samples)
    window, hop = 512, 256
    frames = samples // hop + 2
    formants_hz = np.zeros((frames, 3))
    scale = rng.uniform(0.9, 1.25)  # of the formants
    ends = [*(note.start_seconds for note in notes[1:]), seconds]
    for note, end in zip(notes, ends, strict=True):
        first, last = (
            int(note.start_seconds * sample_rate),
            int(min(note.end_seconds, end) * sample_rate),
        )
        semitones[first:] = note.pitch
        loud[first:last] = note.velocity / 100
        formants_hz[first // hop :] = scale * np.array(VOWELS_HZ[rng.integers(len(VOWELS_HZ))])
        if rng.random() < 0.5:
            hiss[max(0, first - int(rng.uniform(0.03, 0.1) * sample_rate)) : first] = rng.uniform(
                0.02, 0.25
            )

    def smooth(values: np.ndarray, smoothing_seconds: float) -> np.ndarray:
        return sosfilt(butter(1, 0.16 / smoothing_seconds, fs=sample_rate, output="sos"), values)

    semitones = np.where(time < notes[0].start_seconds, notes[0].pitch, semitones)
    semitones = notes[0].pitch + smooth(semitones - notes[0].pitch, rng.uniform(0.01, 0.05))
    depth = rng.uniform(0.1, 0.6) * np.interp(
        time, np.linspace(0, seconds, 24), rng.uniform(0, 1, 24)
    )
    semitones += depth * np.sin(
        2 * np.pi * np.cumsum(rng.uniform(4.5, 6.5) + 0 * time) / sample_rate
    )
    semitones += smooth(rng.standard_normal(samples), 0.05) * rng.uniform(0.5, 3)
    phase = np.cumsum(pitch_hz(semitones)) / sample_rate
    breath = rng.uniform(0.01, 0.1) * rng.standard_normal(samples)
    source = (2 * (phase % 1) - 1 + breath) * smooth(loud, 0.03)
    frequencies_hz, _, spectrogram = stft(
        source, sample_rate, nperseg=window, noverlap=window - hop
    )
    formants_hz = np.apply_along_axis(np.convolve, 0, formants_hz, np.ones(7) / 7, "same")[
        : spectrogram.shape[1]
    ]
    gains = np.full(spectrogram.shape, 0.02)
    for number, width_hz, height in zip(
        range(3), (90, 120, 180), (1.0, rng.uniform(0.2, 0.7), rng.uniform(0.05, 0.4)), strict=True
    ):
        gains += height / (
            1 + ((frequencies_hz[:, None] - formants_hz[None, :, number]) / width_hz) ** 2
        )
    voiced = istft(spectrogram * gains, sample_rate, nperseg=window, noverlap=window - hop)[1][
        :samples
    ]
    consonants = sosfilt(
        butter(
            2,
            min(rng.uniform(2500, 5000), 0.45 * sample_rate),
            "high",
            fs=sample_rate,
            output="sos",
        ),
        rng.standard_normal(samples) * hiss,
    )
    return voiced + consonants * np.abs(voiced).max()
