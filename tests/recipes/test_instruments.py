"""Instruments play the given pitches at the given times."""

import numpy as np
import pytest

from bespoke.audio.io import write_wav
from bespoke.score.midi import Note
from recipes.prior.instruments import Sampler, oscillate, sing

RATE = 16000
NOTES = [Note(0.5, 1.5, 57, 100)]  # A3, 220 Hz


def fundamental_hz(waveform, start_seconds, end_seconds):
    """The lag at which the waveform is most like itself, as a frequency."""
    segment = waveform[int(start_seconds * RATE) : int(end_seconds * RATE)]
    correlation = np.correlate(segment, segment, "full")[len(segment) - 1 :]
    shortest = int(RATE / 2000)
    return RATE / (shortest + correlation[shortest : int(RATE / 60)].argmax())


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    """Recordings of A4 and C6 that start with 0.1 s of silence, and a file that is no note."""
    folder = tmp_path_factory.mktemp("instrument")
    time = np.arange(2 * RATE) / RATE
    for name, pitch_hz in (("A4", 440.0), ("Cs6", 1108.73)):
        tone = np.sin(2 * np.pi * pitch_hz * time) + 0.5 * np.sin(4 * np.pi * pitch_hz * time)
        write_wav(
            folder / f"{name}.wav",
            np.concatenate([np.zeros(RATE // 10), 0.3 * tone])[None].astype(np.float32),
            RATE,
        )
    (folder / "README.txt").write_text("A4")
    return Sampler(folder, RATE)


def test_a_sampler_reads_pitches_from_names_and_cuts_the_silence(sampler):
    assert sorted(sampler.recorded) == [69, 85]
    assert np.abs(sampler.recorded[69][: RATE // 100]).max() > 0.5


@pytest.mark.parametrize("pitch", [57, 69, 72, 79])
def test_a_sampler_plays_the_nearest_note_at_the_pitch_asked_for(sampler, pitch):
    waveform = sampler.play([Note(0.5, 1.5, pitch, 100)], 2.0, np.random.default_rng(3))
    assert waveform.shape == (2 * RATE,)
    assert np.abs(waveform[: RATE // 2 - 10]).max() == 0
    assert np.abs(waveform[int(1.8 * RATE) :]).max() == 0
    strongest_hz = np.abs(np.fft.rfft(waveform[RATE * 7 // 10 : RATE * 13 // 10])).argmax() / 0.6
    assert strongest_hz == pytest.approx(440 * 2 ** ((pitch - 69) / 12), rel=0.03)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("instrument", [oscillate, sing])
def test_oscillators_and_the_voice_are_in_tune_and_in_time(instrument, seed):
    waveform = instrument(NOTES, 3.0, RATE, np.random.default_rng(seed))
    assert waveform.shape == (3 * RATE,)
    before, during = (
        np.mean(waveform[int(a * RATE) : int(b * RATE)] ** 2) for a, b in ((0, 0.35), (0.7, 1.3))
    )
    assert before < 0.02 * during
    ratio = fundamental_hz(waveform, 0.8, 1.4) / 220
    assert (
        min(abs(ratio - harmonic) for harmonic in (0.5, 1, 2, 3)) < 0.06 * ratio
    )  # frequency modulation moves it by octaves
