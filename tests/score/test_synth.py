"""FluidSynth against known pitches, lengths and sums; the cache; how soundfonts are found."""

import shutil
import sys

import numpy as np
import pytest

from bespoke.score import synth
from bespoke.score.midi import Note
from bespoke.score.synth import DRUM_BANK, Patch, SoundFont, is_silent, render
from bespoke.utils.errors import BespokeError

RATE = 16000
PIANO, OCARINA, SAWTOOTH, BASS_LEAD = 0, 79, 81, 87
A4 = (Note(0.0, 1.0, 69),)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache for one test, and a count of what is synthesized."""
    monkeypatch.setenv("BESPOKE_CACHE", str(tmp_path / "cache"))
    synthesized = []
    original = synth._synthesize
    monkeypatch.setattr(
        synth,
        "_synthesize",
        lambda *arguments: synthesized.append(arguments) or original(*arguments),
    )
    return tmp_path / "cache" / "renders", synthesized


def pitch_hz(waveform, sample_rate):
    spectrum = np.abs(np.fft.rfft(waveform[0, sample_rate // 4 : sample_rate]))
    return spectrum.argmax() * sample_rate / (sample_rate - sample_rate // 4)


@pytest.mark.parametrize(("pitch", "frequency_hz"), [(69, 440.0), (57, 220.0), (81, 880.0)])
@pytest.mark.parametrize("sample_rate", [RATE, 44100])
def test_note_sounds_at_its_pitch(pitch, frequency_hz, sample_rate):
    waveform = render([Note(0.0, 1.0, pitch)], Patch(OCARINA), sample_rate)
    assert pitch_hz(waveform, sample_rate) == pytest.approx(frequency_hz, rel=0.01)


def test_notes_sound_when_they_should():
    waveform = render([Note(0.5, 0.7, 69), Note(1.5, 1.7, 69)], Patch(SAWTOOTH), RATE)
    loudness = (
        np.abs(waveform[0, : 2 * RATE]).reshape(-1, RATE // 20).max(axis=1)
    )  # frames of 50 ms
    assert loudness[:10].max() < 1e-6
    assert loudness[10:14].min() > 100 * loudness[24:29].max()
    assert loudness[30:34].min() > 100 * loudness[24:29].max()
    assert (waveform.dtype, waveform.shape[0]) == (np.float32, 1)


def test_render_ends_with_the_release():
    short, long = (render([Note(0.0, end, 69)], Patch(SAWTOOTH), RATE) for end in (0.5, 1.5))
    assert (long.shape[-1] - short.shape[-1]) / RATE == pytest.approx(1.0, abs=0.11)
    assert 0.5 * RATE < short.shape[-1] <= 3.6 * RATE
    assert render([], Patch(SAWTOOTH), RATE).max() == 0


def test_repeated_note_sounds_again():
    twice = render([Note(0.0, 0.5, 69), Note(0.5, 1.0, 69)], Patch(PIANO), RATE)
    once = render([Note(0.0, 1.0, 69)], Patch(PIANO), RATE)
    second_half = slice(round(0.52 * RATE), round(0.7 * RATE))
    assert np.abs(twice[0, second_half]).max() > 1.3 * np.abs(once[0, second_half]).max()


def test_note_that_was_struck_again_outlasts_the_end_of_the_first():
    again = render([Note(0.0, 0.7, 69), Note(0.4, 2.0, 69)], Patch(SAWTOOTH), RATE)
    once = render([Note(0.0, 2.0, 69)], Patch(SAWTOOTH), RATE)
    late = slice(round(1.2 * RATE), round(1.9 * RATE))
    assert np.abs(again[0, late]).max() > 0.9 * np.abs(once[0, late]).max()
    end = slice(round(2.5 * RATE), None)
    assert np.abs(again[0, end]).max(initial=0) < 0.01 * np.abs(once).max()


@pytest.mark.slow
def test_dense_loud_chord_is_the_sum_of_its_notes():
    notes = [Note(0.0, 0.3, pitch, 127) for pitch in range(36, 84)]
    chord = render(notes, Patch(BASS_LEAD), RATE)
    singles = [render([note], Patch(BASS_LEAD), RATE) for note in notes]
    length = min(single.shape[-1] for single in (*singles, chord))
    total = sum(single[:, :length] for single in singles)
    assert np.abs(chord).max() > 1  # beyond full scale, unclipped
    assert np.linalg.norm(chord[:, :length] - total) < 1e-5 * np.linalg.norm(total)


def test_velocity_and_patch_are_heard():
    loud, quiet = (
        render([Note(0.0, 0.5, 69, velocity)], Patch(PIANO), RATE) for velocity in (120, 30)
    )
    assert np.abs(loud).max() > 4 * np.abs(quiet).max() > 0
    assert not np.array_equal(loud, render([Note(0.0, 0.5, 69, 120)], Patch(SAWTOOTH), RATE))


def test_drum_kit_plays():
    hits = render([Note(0.0, 0.1, 38), Note(0.5, 0.6, 42)], Patch(0, DRUM_BANK).check(), RATE)
    snare, hat = (
        np.abs(np.fft.rfft(hits[0, start : start + RATE // 4])) for start in (0, RATE // 2)
    )
    high = RATE // 4 * 5000 // RATE
    assert (hat[high:] ** 2).sum() / (hat**2).sum() > 2 * (snare[high:] ** 2).sum() / (
        snare**2
    ).sum()
    assert is_silent(render([Note(0.0, 0.1, 1)], Patch(0, DRUM_BANK), RATE))  # no drum is there
    assert not is_silent(hits)


def test_two_renders_are_identical(own_cache):
    folder, synthesized = own_cache
    first = render(A4, Patch(SAWTOOTH), RATE)
    shutil.rmtree(folder)
    assert np.array_equal(first, render(A4, Patch(SAWTOOTH), RATE))
    assert len(synthesized) == 2


def test_second_render_comes_from_the_cache(own_cache):
    folder, synthesized = own_cache
    notes = [Note(0.5, 1.0, 60), *A4]
    first = render(notes, Patch(SAWTOOTH), RATE)
    assert np.array_equal(first, render(iter(notes[::-1]), Patch(SAWTOOTH), RATE))
    assert len(synthesized) == len(list(folder.iterdir())) == 1


def altered_soundfont(path):
    """The default soundfont with another title."""
    content = bytearray(SoundFont.find().path.read_bytes())
    content[content.index(b"INAM") + 8] ^= 1
    path.write_bytes(content)
    return SoundFont(path)


def test_whatever_goes_into_a_render_is_in_its_key(own_cache, tmp_path):
    _, synthesized = own_cache
    font = SoundFont.find()
    shutil.copy(font.path, tmp_path / "copy.sf2")
    render(A4, Patch(SAWTOOTH), RATE)
    render(
        A4, Patch(SAWTOOTH, soundfont=SoundFont(tmp_path / "copy.sf2")), RATE
    )  # the content counts, not the name
    assert len(synthesized) == 1
    others = [
        ((Note(0.0, 1.0, 70),), Patch(SAWTOOTH), RATE),
        ((Note(0.0, 1.0, 69, 91),), Patch(SAWTOOTH), RATE),
        ((Note(0.0, 1.1, 69),), Patch(SAWTOOTH), RATE),
        (A4, Patch(OCARINA), RATE),
        (A4, Patch(0, DRUM_BANK), RATE),
        (A4, Patch(SAWTOOTH), 8000),
        (A4, Patch(SAWTOOTH, soundfont=altered_soundfont(tmp_path / "other.sf2")), RATE),
    ]
    for arguments in others:
        render(*arguments)
    assert len(synthesized) == 1 + len(others)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda content: content[:50],
        lambda content: b"",
        lambda content: b"x" * 99,
    ],
)
def test_damaged_cache_is_rendered_again(own_cache, damage):
    folder, synthesized = own_cache
    first = render(A4, Patch(SAWTOOTH), RATE)
    [cached] = folder.iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(damage(whole))
    assert np.array_equal(first, render(A4, Patch(SAWTOOTH), RATE))
    assert len(synthesized) == 2
    assert cached.read_bytes() == whole


def test_cache_drops_the_least_recently_used(own_cache, monkeypatch):
    folder, synthesized = own_cache
    patches = [Patch(program) for program in (80, 81, 82)]
    for patch in patches[:2]:
        render(A4, patch, 8000)
    size = max(file.stat().st_size for file in folder.iterdir())
    for file in folder.iterdir():  # as if long ago
        synth.os.utime(file, (1, 1))
    render(A4, patches[0], 8000)  # used again just now
    monkeypatch.setattr(synth, "CACHE_BYTES", 2.5 * size)
    render(A4, patches[2], 8000)
    assert len(list(folder.iterdir())) == 2
    render(A4, patches[0], 8000)
    assert len(synthesized) == 3
    render(A4, patches[1], 8000)
    assert len(synthesized) == 4


def test_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BESPOKE_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        BespokeError,
        match=r"The cache of renders .*file.renders cannot be written: set BESPOKE_CACHE",
    ):
        render(A4, Patch(SAWTOOTH), 8000)


def test_soundfont_is_found_by_path_and_by_name(tmp_path, monkeypatch):
    folder, single = tmp_path / "My Fonts", tmp_path / "Single.SF2"
    folder.mkdir()
    shutil.copy(SoundFont.find().path, folder / "Grand Piano.sf2")
    shutil.copy(SoundFont.find().path, single)
    assert SoundFont.find(single).path == single
    monkeypatch.setenv("BESPOKE_SOUNDFONTS", synth.os.pathsep.join([str(folder), str(single)]))
    assert SoundFont.find("Grand Piano.sf2").path == folder / "Grand Piano.sf2"
    assert SoundFont.find("grand piano").path == folder / "Grand Piano.sf2"
    assert SoundFont.find("single").path == single
    with pytest.raises(
        BespokeError,
        match=r"Organ was not found: give a path .*BESPOKE_SOUNDFONTS \(found by name: .*Grand "
        r"Piano\.sf2",
    ):
        SoundFont.find("Organ")


def test_what_is_no_soundfont_is_refused(tmp_path):
    whole = SoundFont.find().path.read_bytes()
    files = {
        "text.sf2": (b"a soundfont, really", "is not a soundfont: give an SF2 or SF3 file"),
        "wave.sf2": (b"RIFF\x24\x00\x00\x00WAVEfmt ", "is not a soundfont"),
        "cut.sf2": (whole[: len(whole) // 2], "is incomplete, .*download it again"),
    }
    for name, (content, complaint) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BespokeError, match=rf"{name} {complaint}"):
            SoundFont.find(tmp_path / name)
    (tmp_path / "hollow.sf2").write_bytes(b"RIFF\xf8\x01\x00\x00sfbk" + bytes(500))
    with pytest.raises(BespokeError, match=r"cannot load the soundfont .*hollow\.sf2"):
        Patch(0, soundfont=SoundFont.find(tmp_path / "hollow.sf2")).check()


def test_patch_that_is_not_there_is_refused():
    assert SoundFont.find().preset_name(0, 0).startswith("Piano")
    for missing in (Patch(0, bank=7), Patch(128), Patch(7, DRUM_BANK)):
        with pytest.raises(
            BespokeError, match=r"TimGM6mb\.sf2 has no patch \d+ in bank \d+: choose"
        ):
            missing.check()
    with pytest.raises(BespokeError, match=r"has no patch 0 in bank 7"):
        render(A4, Patch(0, bank=7), RATE)


def test_missing_fluidsynth_is_explained(own_cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "fluidsynth", None)
    with pytest.raises(
        BespokeError,
        match=r"apt install libfluidsynth3 .*brew install fluid-synth .*song\.target\.audio",
    ):
        render([Note(0.0, 0.2, 61)], Patch(SAWTOOTH), RATE)


def test_cached_render_needs_no_fluidsynth(own_cache, monkeypatch):
    first = render(A4, Patch(SAWTOOTH), RATE)
    monkeypatch.setitem(sys.modules, "fluidsynth", None)
    assert np.array_equal(first, render(A4, Patch(SAWTOOTH), RATE))
