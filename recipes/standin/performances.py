"""Recordings that stand in for the two songs of the paper: its arrangements, performed from our own
compositions. From the project's folder:

    python -m recipes.standin.performances      # writes data/standins/

What is separated must differ from what is trained on, as a recording differs from a synthesized
score. Therefore the performance has other patches than those given for training, effects on every
stem, another tempo, which drifts, a lead-in, and a human's inaccuracy. The score that the method
gets has mistakes, as a transcription has.

What ships was performed with TimGM6mb and FluidSynth 2.3.1 (Debian 12).
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.signal import oaconvolve

from bespoke.audio.dsp import active_rms, import_torchaudio, peak
from bespoke.score.midi import Note, Part, write_midi
from bespoke.score.synth import DRUM_BANK, Patch, render
from bespoke.utils.files import atomic_path
from recipes.standin.compositions import Composition, compose

torchaudio = import_torchaudio()

FOLDER = Path(__file__).resolve().parents[2] / "data" / "standins"
SAMPLE_RATE = 44100
TARGET_DB = -8.0  # the target re the sum of the rest, RMS of the channel mean over the whole stem
MIX_PEAK = 0.9
TAIL_SECONDS, FADE_SECONDS = 2.0, 0.5
# The tempo swings by about 1.5 % in a phrase of several bars.
DRIFT_SECONDS, DRIFT_PERIOD_SECONDS = 0.04, 17.0


@dataclass(frozen=True)
class Stem:
    """How one part is played and produced."""

    programs: tuple[int, ...]  # the patches, in layers of equal level; the kit, for drums
    level_db: float  # active RMS among the stems; the target's follows from TARGET_DB instead
    pan: float = 0.0  # from -1, left, to 1, right
    drive_db: float = 0.0  # gain into the overdrive; 0 is none
    band_hz: tuple[float, float] = (
        30.0,
        16000.0,
    )  # what the filter, or the amplifier's loudspeaker, lets through
    peaking: tuple[tuple[float, float, float], ...] = ()  # equalizer bands in Hz, dB and Q
    chorus: tuple[float, float, float] = (
        1.0,
        0.0,
        0.0,
    )  # rate in Hz, depth in ms, share of wet signal; a share of 1 is vibrato
    reverb_db: float = -18.0  # relative to the dry signal
    loose_ms: float = 6.0  # standard deviation of the timing


@dataclass(frozen=True)
class Performance:
    """A take of a composition.

    Attributes:
        tempo: relative to the score's.
        lead_in_seconds: of silence before the take.
        seed: of what is drawn at random.
        stems: by part.
    """

    tempo: float
    lead_in_seconds: float
    seed: int
    stems: dict[str, Stem]


_SYNTH_POP = {
    "Lead Synth": Stem(
        (80, 62), 0, 0.1, 3, (150, 7000), ((900, 3, 1.0), (2500, -3, 0.8)), (0.9, 3.0, 0.45), -14
    ),
    "Counter Synth": Stem(
        (84, 11), -15, -0.35, 0, (120, 5000), ((600, 2, 1.0),), (0.6, 2.0, 0.3), -12
    ),
    "Pad": Stem((51, 95), -19, 0.25, 0, (120, 4500), ((300, -3, 0.7),), (0.35, 5.0, 0.5), -10, 12),
    "Bass": Stem((39,), -14, 0, 6, (30, 2500), ((90, 2, 1.0),), reverb_db=-30, loose_ms=4),
    "Drums": Stem((24,), -14, 0, 8, peaking=((3500, 2, 0.7),), reverb_db=-17, loose_ms=3),
}
_ROCK = {
    "Lead Guitar 1": Stem(
        (27,), -17, 0.4, 26, (120, 4800), ((1200, 4, 0.9), (400, -2, 1.0)), (5.6, 0.10, 1.0), -16, 8
    ),
    "Lead Guitar 2": Stem(
        (27, 28),
        0,
        -0.3,
        30,
        (120, 4000),
        ((800, 4, 0.8), (2600, 2, 1.0)),
        (5.2, 0.12, 1.0),
        -15,
        8,
    ),
    "Piano": Stem(
        (3,), -18, 0.3, 5, (60, 12000), ((250, -3, 0.8), (3000, 3, 0.8)), (0.8, 1.5, 0.25), -15, 8
    ),
    "Rhythm Guitar": Stem(
        (25,), -19, -0.5, 14, (120, 6500), ((220, -6, 0.8), (2500, 4, 0.8)), (0.5, 1.2, 0.4), -18, 8
    ),
    "Bass": Stem((35,), -14, 0, 8, (30, 2500), ((110, 2, 0.8),), reverb_db=-30),
    "Drums": Stem(
        (8,), -14, 0, 12, peaking=((200, 2, 0.8), (6000, 2, 0.7)), reverb_db=-16, loose_ms=5
    ),
}
PERFORMANCES = {
    "take_on_me": Performance(0.91, 1.37, 1984, _SYNTH_POP),
    "reelin_in_the_years": Performance(1.08, 0.83, 1972, _ROCK),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    for name in PERFORMANCES:
        write(name, folder / name)


def write(name: str, folder: Path) -> None:
    """Perform a stand-in into a folder.

    `mix.flac` and `target.flac` are stereo, with 16 bits at 44.1 kHz. `score.mid` is the score of
    all parts that a user would have.
    """
    mixture, target, score = perform(name)
    folder.mkdir(parents=True, exist_ok=True)
    write_midi(folder / "score.mid", score)
    for stem, waveform in (("mix", mixture), ("target", target)):
        with atomic_path(folder / f"{stem}.flac") as temporary:
            soundfile.write(temporary, in_16_bits(waveform).T, SAMPLE_RATE, format="FLAC")


def perform(name: str) -> tuple[np.ndarray, np.ndarray, tuple[Part, ...]]:
    """Perform a stand-in: mixture and target, float32 `[2, time]` at `SAMPLE_RATE`, and the score.

    Raises:
        BespokeError: there is no such stand-in, or FluidSynth is not installed.
    """
    composition, performance = compose(name), PERFORMANCES[name]
    mixture, target = mix_down(play(composition, performance), composition.target, performance)
    return mixture, target, transcribe(composition, performance.seed)


def in_16_bits(waveform: np.ndarray) -> np.ndarray:
    """The nearest 16-bit values, as a reader scales them: 32768 is 1."""
    return np.round(32768 * waveform).astype(np.int16)


def play(composition: Composition, performance: Performance) -> tuple[Part, ...]:
    """What the players play.

    It is the composition with the take's tempo, drift and lead-in, and with a human's timing,
    lengths and velocities.
    """

    def played_at(seconds: float) -> float:
        drift = DRIFT_SECONDS * np.sin(2 * np.pi * seconds / DRIFT_PERIOD_SECONDS)
        return float(performance.lead_in_seconds + seconds / performance.tempo + drift)

    played = []
    for index, part in enumerate(composition.parts):
        rng = np.random.default_rng([performance.seed, index])
        loose_seconds = performance.stems[part.name].loose_ms / 1000
        notes = []
        for note in part.notes:
            start = played_at(note.start_seconds)
            length = (played_at(note.end_seconds) - start) * float(rng.uniform(0.85, 1.05))
            start += loose_seconds * float(np.clip(rng.standard_normal(), -2, 2))
            velocity = int(np.clip(note.velocity + round(rng.normal(0, 5)), 30, 127))
            notes.append(Note(start, start + length, note.pitch, velocity))
        played.append(replace(part, notes=_release(notes)))
    return tuple(played)


def _release(notes: list[Note]) -> tuple[Note, ...]:
    """End each note before its key is struck again, which would else cut the new note short."""
    struck_again, released = {}, []
    for note in sorted(notes, reverse=True):
        end = min(note.end_seconds, struck_again.get(note.pitch, np.inf) - 0.005)
        released.append(replace(note, end_seconds=float(max(end, note.start_seconds + 0.01))))
        struck_again[note.pitch] = note.start_seconds
    return tuple(sorted(released))


def transcribe(composition: Composition, seed: int) -> tuple[Part, ...]:
    """The score that the method gets.

    In each part but the drums, a few notes have a wrong pitch, are missing, or are added.
    """
    parts = []
    for index, part in enumerate(composition.parts):
        rng = np.random.default_rng([seed, 1000 + index])
        share = 0.05 if part.name == composition.target else 0.02
        count = 0 if part.is_drum else max(2, round(share * len(part.notes)))
        mistaken = rng.choice(len(part.notes), count, replace=False).tolist()
        notes = [note for number, note in enumerate(part.notes) if number not in mistaken]
        for turn, number in enumerate(mistaken):
            note, step = part.notes[number], int(rng.choice([-2, -1, 1, 2]))
            if turn % 3 == 0:
                notes.append(replace(note, pitch=note.pitch + step))
            elif turn % 3 == 2:  # and at 1 the note is missing
                notes += [
                    note,
                    Note(
                        note.end_seconds, note.end_seconds + 0.15, note.pitch + step, note.velocity
                    ),
                ]
        parts.append(replace(part, notes=tuple(sorted(notes))))
    return tuple(parts)


def mix_down(
    parts: tuple[Part, ...], target: str, performance: Performance
) -> tuple[np.ndarray, np.ndarray]:
    """Produce all parts and add them.

    Returns:
        The mixture and its target, float32 `[2, time]`, the target at its level below the rest.
    """
    samples = round(
        (max(note.end_seconds for part in parts for note in part.notes) + TAIL_SECONDS)
        * SAMPLE_RATE
    )
    fade = np.interp(np.arange(samples), [samples - FADE_SECONDS * SAMPLE_RATE, samples], [1, 0])
    stems = {
        part.name: fade * produce(part, performance.stems[part.name], samples) for part in parts
    }
    lead = stems.pop(target)
    rest = sum(stems.values())
    lead *= (
        10 ** (TARGET_DB / 20)
        * np.linalg.norm(rest.mean(axis=0))
        / np.linalg.norm(lead.mean(axis=0))
    )
    scale = MIX_PEAK / peak(lead + rest)
    return (scale * (lead + rest)).astype(np.float32), (scale * lead).astype(np.float32)


def produce(part: Part, stem: Stem, samples: int) -> np.ndarray:
    """Synthesize one part and put it through its effects.

    Returns:
        Float64 `[2, samples]`, with an active RMS of `stem.level_db`.
    """
    signal = np.zeros(samples)
    for program in stem.programs:
        layer = render(
            part.notes, Patch(program, DRUM_BANK if part.is_drum else 0).check(), SAMPLE_RATE
        )[:, :samples]
        signal[: layer.shape[-1]] += layer[0] / active_rms(layer, SAMPLE_RATE)
    signal = torch.from_numpy(0.5 * signal / peak(signal))
    if stem.drive_db:
        signal = torchaudio.functional.overdrive(signal, stem.drive_db, colour=0)
    signal *= 0.25 / peak(signal.numpy())  # torchaudio's filters clip at 1
    signal = torchaudio.functional.highpass_biquad(signal, SAMPLE_RATE, stem.band_hz[0])
    signal = torchaudio.functional.lowpass_biquad(signal, SAMPLE_RATE, stem.band_hz[1])
    for frequency, gain_db, quality in stem.peaking:
        signal = torchaudio.functional.equalizer_biquad(
            signal, SAMPLE_RATE, frequency, gain_db, quality
        )
    angle = (stem.pan + 1) * np.pi / 4
    stereo = _reverberate(_chorus(signal.numpy(), *stem.chorus), stem.reverb_db) * [
        [np.cos(angle)],
        [np.sin(angle)],
    ]
    return stereo * 10 ** (stem.level_db / 20) / active_rms(stereo, SAMPLE_RATE)


def _chorus(signal: np.ndarray, rate_hz: float, depth_ms: float, wet: float) -> np.ndarray:
    """Mix in a copy whose delay swings between 0 and `depth_ms`, which bends its pitch.

    Args:
        signal: `[time]`.

    Returns:
        `[2, time]`.
    """
    time = np.arange(signal.size)
    apart = (
        np.pi / 2 if wet < 1 else 0.0
    )  # a chorus is wide; a vibrato is in the player's hand, the same in both channels
    swings = [
        1 + np.sin(2 * np.pi * rate_hz / SAMPLE_RATE * time + phase) for phase in (0.0, apart)
    ]
    copies = [
        np.interp(time - depth_ms / 2000 * SAMPLE_RATE * swing, time, signal) for swing in swings
    ]
    return (1 - wet) * signal + wet * np.stack(copies)


def _reverberate(stereo: np.ndarray, reverb_db: float) -> np.ndarray:
    """Add the response of a room; the length stays the same.

    The response is seeded noise that decays by 60 dB in 1.1 seconds. It is 15 ms late and without
    its lows.
    """
    late, decay = round(0.015 * SAMPLE_RATE), round(1.1 * SAMPLE_RATE)
    noise = np.random.default_rng(2020).standard_normal((2, decay)) * np.logspace(-1, -4, decay)
    room = torchaudio.functional.highpass_biquad(
        torch.from_numpy(noise), SAMPLE_RATE, 250.0
    ).numpy()
    room *= 10 ** (reverb_db / 20) / np.sqrt(np.square(room).sum(axis=-1, keepdims=True))
    response = np.concatenate(
        [np.ones((2, 1)), np.zeros((2, late - 1)), room], axis=-1
    )  # the dry signal is its first sample
    return oaconvolve(stereo, response, axes=-1)[:, : stereo.shape[-1]]


if __name__ == "__main__":
    main()
