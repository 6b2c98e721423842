"""Sources: notes get their place by name and their pitch by ear."""

import numpy as np
import pytest
import soundfile

from bespoke.score.midi import pitch_hz
from recipes.prior import sources
from recipes.prior.instruments import Sampler

RATE = 22050


def tone(pitch, seconds, partials=(1.0, 0.5, 0.3)):
    """A held note that fades in and out within 50 ms."""
    time = np.arange(int(seconds * RATE)) / RATE
    sound = sum(
        amplitude * np.sin(2 * np.pi * number * pitch_hz(pitch) * time + number)
        for number, amplitude in enumerate(partials, 1)
    )
    return 0.2 * sound * np.clip(np.minimum(time, seconds - time) / 0.05, 0, 1)


@pytest.mark.parametrize("pitch", range(21, 109))
def test_names_of_pitches_are_read_back(pitch):
    assert sources.pitch_of(sources.name_of(pitch)) == pitch


@pytest.mark.parametrize("off", [-12, -1.3, -0.2, 0, 0.4, 1.7, 12])
@pytest.mark.parametrize("pitch", [36, 60, 84])
def test_the_deviation_of_a_note_is_heard(pitch, off):
    heard = sources.deviation(tone(pitch + off, 1.0), RATE, pitch)
    assert heard == pytest.approx(off, abs=0.05)


def test_noise_has_no_pitch():
    noise = np.random.default_rng(0).standard_normal(RATE)
    assert np.isnan(sources.deviation(noise, RATE, 60))


def test_a_note_is_held_in_tune_and_without_gaps():
    held = sources.sustain(tone(60, 1.2), RATE, 3.0, np.random.default_rng(0))
    assert 3.0 * RATE <= len(held) < 4.5 * RATE
    steady = held[RATE // 10 : int(2.8 * RATE)]
    level = np.sqrt(np.mean(steady[: len(steady) // 500 * 500].reshape(-1, 500) ** 2, axis=1))
    assert level.max() / level.min() < 1.2
    assert abs(sources.deviation(held[RATE:], RATE, 60)) < 0.05


def test_notes_are_brought_in_tune_renamed_or_left_out_and_a_sampler_reads_them(tmp_path):
    """One is sharp, one is named an octave too high, one is another pitch, one is no audio."""
    notes = []
    for number, (named, sounding) in enumerate([(60, 60.5), (74, 62), (64, 69.5), (65, None)]):
        file = tmp_path / f"{number}.wav"
        file.write_bytes(b"damaged")
        if sounding is not None:
            soundfile.write(file, tone(sounding, 1.5), RATE)
        notes.append((file, tmp_path / "notes" / "horn.loud", named, 0))
    sources._write(notes, lambda sound, rate: sound)
    written = sorted(file.name for file in (tmp_path / "notes" / "horn.loud").iterdir())
    assert written == ["C4.0.flac", "D4.0.flac"]
    recorded = Sampler(tmp_path / "notes" / "horn.loud", RATE).recorded
    for pitch in (60, 62):
        assert abs(sources.deviation(recorded[pitch][0], RATE, pitch)) < 0.05


def test_the_guitars_octaves_and_loudness_become_folders(tmp_path):
    """Karoryfer calls the lowest string of a guitar E3."""
    for name in ("twang_e3_f_rr2", "twang_e3_p_rr1", "twang_f3_p_rr1"):
        folder = tmp_path / "Samples" / "green" / "ord"
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{name}.wav", tone(40, 0.5), RATE)
    sources.guitars(tmp_path / "Samples", tmp_path / "notes")
    written = sorted(str(f.relative_to(tmp_path / "notes")) for f in tmp_path.rglob("*.flac"))
    assert written == [
        "guitar-electric.green-loud/E2.1.flac",
        "guitar-electric.green-soft/E2.0.flac",
    ]


def test_a_preset_counts_as_in_tune_only_at_its_keys_partials_and_while_it_sounds():
    def heard(sound, pitch=60):
        return sources.in_tune(np.asarray(sound), RATE, pitch)

    sharp_and_flat = tone(60.15, 4.0) + tone(59.85, 4.0)
    assert heard(sharp_and_flat)
    assert heard(tone(72, 4.0))  # the second partial
    assert not heard(tone(65, 4.0))
    assert not heard(np.random.default_rng(0).standard_normal(4 * RATE))
    assert not heard(np.zeros(4 * RATE))
    assert not heard(np.concatenate([tone(60, 1.0), np.zeros(3 * RATE)]))


@pytest.mark.parametrize(
    ("repository", "file", "sounding", "written"),
    [
        ("karoryfer.emilyguitar", "notes/gb3_mf_rr2", 54, "guitar-electric.emily-mf/Fs3.1"),
        ("karoryfer.emilyguitar", "notes/gb3_mp_rr2", 54, None),
        (
            "karoryfer.shinyguitar",
            "Samples/acoustic/a2_vl3_rr1_1",
            45,
            "guitar-acoustic.shiny-3/A2.0",
        ),
        ("karoryfer.war-tuba", "Samples/f0_sus_dyn", 29, "tuba.war/F1.0"),
        ("karoryfer.weresax", "Samples/alto/db2_f_rr1_dnm", 49, "saxophone.weresax-f/Cs3.0"),
        ("karoryfer.bear-sax", "Samples/eb1_looped_p", 39, "saxophone.bear-p/Ds2.0"),
        ("karoryfer.growlybass", "sustain/e2_ff_rr1", 28, "bass-electric.growly-ff/E1.0"),
        ("dsmolken.double-bass", "arco/arco_a1_f_down", 33, "contrabass.smolken-f/A1.0"),
        ("dsmolken.double-bass", "pizz/pizz_a2_mb", 45, "contrabass-pizz.smolken-m/A2.1"),
    ],
)
def test_files_of_repositories_become_notes(tmp_path, repository, file, sounding, written):
    path = tmp_path / repository / f"{file}.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, tone(sounding, 1.0), RATE)
    sources.karoryfer(tmp_path / repository, tmp_path / "notes")
    found = [f.relative_to(tmp_path / "notes").as_posix() for f in tmp_path.rglob("*.flac")]
    assert found == ([f"{written}.flac"] if written else [])
