"""Tracker modules: stems and notes are those of a module that the test itself writes."""

import ctypes.util

import numpy as np
import pytest

from bespoke.audio.stft import STFT
from bespoke.models.features import ScoreFeatures
from recipes.prior.modules import (
    RATE,
    Line,
    Module,
    Row,
    excerpt,
    make_examples,
    pitch_of,
    read_lines,
    render,
)
from recipes.prior.train_prior import STFT_SETTINGS, _crop

needs_libopenmpt = pytest.mark.skipif(
    ctypes.util.find_library("openmpt") is None, reason="libopenmpt is not installed"
)
ROW_SECONDS = 6 * 2.5 / 125  # the speed and the tempo with which a MOD file starts
PERIODS = {0: 428, 2: 381, 4: 339, 5: 320, 7: 285}  # semitones above a MOD file's C-2
CYCLE = 32  # samples of a period; C-2 is played at 8287 Hz, so that this is C 4, -18 cents
LOW, HIGH, NOISE = 0, 1, 2  # instruments: an octave apart


def mod(pattern):
    """The bytes of a MOD file with three instruments and one pattern, played four times.

    Args:
        pattern: cells by row and channel: semitones (None without a note), instrument (from 1;
            0 for none), effect and its parameter.
    """
    angle = 2 * np.pi * np.arange(CYCLE) / CYCLE
    loops = [
        np.round(90 * np.sin(angle) + 30 * np.sin(2 * angle)),
        np.round(90 * np.sin(2 * angle) + 30 * np.sin(4 * angle)),
        np.random.default_rng(0).integers(-100, 100, 4000),
    ]
    header = b"test".ljust(20, b"\0")
    for number in range(31):
        words, looped = (len(loops[number]) // 2 if number < 3 else 0), number < 2
        header += b"\0" * 22 + words.to_bytes(2, "big") + bytes([0, 64 if number < 3 else 0])
        header += b"\0\0" + (words if looped else 1).to_bytes(2, "big")
    header += bytes([4, 127, *[0] * 128]) + b"M.K."
    cells = b""
    for row in range(64):
        for channel in range(4):
            note, instrument, effect, parameter = pattern.get((row, channel), (None, 0, 0, 0))
            period = 0 if note is None else PERIODS[note]
            cells += bytes(
                [
                    instrument & 0xF0 | period >> 8,
                    period & 0xFF,
                    (instrument & 0x0F) << 4 | effect,
                    parameter,
                ]
            )
    return header + cells + b"".join(loop.astype(np.int8).tobytes() for loop in loops)


@pytest.fixture
def path(tmp_path):
    """Two voices and a drum: the low one ends after 3 rows of each 4, by a volume of 0."""
    pattern, scale = {}, (0, 2, 4, 5, 7)
    for row in range(0, 64, 4):
        pattern[row, 0] = scale[row // 4 % 5], LOW + 1, 0, 0
        pattern[row + 3, 0] = None, 0, 0xC, 0
        pattern[row + 2, 1] = scale[(row // 4 + 2) % 5], HIGH + 1, 0, 0
        pattern[row, 2] = 0, NOISE + 1, 0, 0
    file = tmp_path / "modules" / "some" / "song.mod"
    file.parent.mkdir(parents=True)
    file.write_bytes(mod(pattern))
    return file


@needs_libopenmpt
def test_stems_add_up_to_the_mixture_and_have_their_notes(path):
    mixture, stems = render(path, 0)
    low, high, noise = stems
    error = mixture - sum(stem.waveform for stem in stems)
    assert 10 * np.log10(np.mean(error**2) / np.mean(mixture**2)) < -60
    assert not noise.notes
    expected = [60, 62, 64, 65, 67]
    assert [note.pitch for note in low.notes[:6]] == [*expected, expected[0]]
    assert [note.pitch for note in high.notes[:3]] == [76, 77, 79]
    starts = [note.start_seconds for note in low.notes]
    np.testing.assert_allclose(starts, 4 * ROW_SECONDS * np.arange(len(starts)), atol=0.005)
    for note in low.notes[:5]:
        np.testing.assert_allclose(
            note.end_seconds - note.start_seconds, 3 * ROW_SECONDS, atol=0.02
        )
    # The stem is what its notes say, alone and at 440 Hz although the samples are flat.
    second = slice(int(4.2 * ROW_SECONDS * RATE), int(6.8 * ROW_SECONDS * RATE))
    assert pitch_of(low.waveform[second]) == pytest.approx(62, abs=0.1)
    silent = slice(int(3.3 * ROW_SECONDS * RATE), int(3.9 * ROW_SECONDS * RATE))
    assert np.abs(low.waveform[silent]).max() < 1e-3 * np.abs(low.waveform).max()


@needs_libopenmpt
def test_transposes_sound_and_notes_but_not_time(path):
    (_, (plain, *_)), (_, (higher, *_)) = render(path, 0), render(path, 3)
    assert [note.pitch for note in higher.notes] == [note.pitch + 3 for note in plain.notes]
    assert higher.notes[7].start_seconds == pytest.approx(plain.notes[7].start_seconds, abs=0.005)
    second = slice(int(4.2 * ROW_SECONDS * RATE), int(6.8 * ROW_SECONDS * RATE))
    assert pitch_of(higher.waveform[second]) == pytest.approx(65, abs=0.1)


@needs_libopenmpt
def test_excerpts_are_mixtures_of_a_part_and_the_rest(path):
    mixture, stems = render(path, 0)
    examples = excerpt(mixture, stems, 2 * RATE, np.random.default_rng(0))
    assert len(examples) == 2  # the two with notes
    for example in examples:
        assert np.abs(example.target + example.background).max() == pytest.approx(0.9, abs=1e-3)
        level = 10 * np.log10(np.mean(example.target**2) / np.mean(example.background**2))
        assert -20.1 < level < 3.1
        assert len(example.others) == 1
        assert all(0 <= note.start_seconds < note.end_seconds <= 20 for note in example.notes)
    wrong = mixture + 0.3 * np.random.default_rng(1).standard_normal(len(mixture))
    assert not excerpt(wrong.astype(np.float32), stems, 0, np.random.default_rng(0))


@needs_libopenmpt
def test_examples_are_ones_that_the_prior_trains_on(path, tmp_path):
    (path.parent / "broken.mod").write_bytes(b"no module")
    files, folder = sorted(path.parent.iterdir()), tmp_path / "examples"
    folder.mkdir()
    make_examples(files, folder, rounds=1, seed=0)
    written = sorted(folder.iterdir())
    assert written
    features = ScoreFeatures(STFT(**STFT_SETTINGS))
    channels, target, mixture = _crop(written[0], features, np.random.default_rng(0))
    assert channels.shape[1:] == target.shape == mixture.shape
    times = [file.stat().st_mtime_ns for file in written]
    make_examples(files, folder, rounds=1, seed=0)  # goes on: nothing is left to do
    assert [file.stat().st_mtime_ns for file in sorted(folder.iterdir())] == times


@needs_libopenmpt
def test_what_is_no_module_is_an_error(tmp_path):
    (tmp_path / "text.xm").write_text("no module")
    with pytest.raises(ValueError, match=r"text\.xm"):
        Module(tmp_path / "text.xm")


def test_notes_end_at_the_next_one_where_they_are_released_or_silent():
    def row(start, *cell):
        return Row(start, ((*cell, *[0] * (6 - len(cell))),))

    rows = [
        row(0, 61, 1),
        row(100, 63),  # the same instrument
        row(200, 255),  # key off
        row(300, 65, 2),
        row(400, 0, 0, 0, 13, 0, 0),  # volume 0
        row(500, 66),
        row(600, 0, 0, 0, 2, 0, 8),  # slides
    ]
    assert read_lines(rows, 1000) == {
        0: Line([(0, 100, 60), (100, 200, 62)], rows=2, sliding=0),
        1: Line([(300, 400, 64), (500, 1000, 65)], rows=3, sliding=1),
    }


@pytest.mark.parametrize("pitch", [28.0, 60.4, 95.0])
def test_pitch_of_a_note_and_of_none(pitch):
    phase = 2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * np.arange(int(0.6 * RATE)) / RATE
    tone = sum(np.sin(partial * phase) / partial for partial in (1, 2, 3))
    assert pitch_of(tone * np.exp(-3 * np.arange(len(tone)) / RATE)) == pytest.approx(
        pitch, abs=0.1
    )
    assert pitch_of(np.random.default_rng(0).standard_normal(len(tone))) is None
    assert pitch_of(np.zeros(len(tone))) is None
