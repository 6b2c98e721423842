"""Files whose headers do not tell how long they are: all of the sound is read, or none."""

import io
import struct

import numpy as np
import pytest
import soundfile

from bespoke.audio.io import open_audio, read_audio
from bespoke.audio.pieces import _frame
from bespoke.utils.errors import BespokeError

pytestmark = pytest.mark.slow  # encodes and decodes

RATE = 8000
SECONDS = 1.5
TONE = (0.3 * np.sin(np.arange(int(SECONDS * RATE)) / 7)).astype(np.float32)


def sound(kind, subtype=None, samples=TONE, rate=RATE):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def replaced(content, place, form, *values):
    field = struct.pack(form, *values)
    return content[:place] + field + content[place + len(field) :]


def read(content, tmp_path):
    (tmp_path / "song.x").write_bytes(content)
    return read_audio(tmp_path / "song.x")[0]


def alone(content):
    return soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)[0].T


KINDS = [
    *(("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("WAV", "FLOAT"), ("RF64", "PCM_16")),
    *(("AIFF", "PCM_16"), ("CAF", "PCM_16"), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS")),
    ("MP3", None),
]


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_files_that_were_joined_are_read_one_after_the_other(kind, subtype, tmp_path):
    first, second = (sound(kind, subtype, TONE * gain) for gain in (1, 0.5))
    heard = read(first + second + first, tmp_path)
    expected = np.concatenate(list(map(alone, (first, second, first))), axis=1)
    assert heard == pytest.approx(expected, abs=1e-6)  # MP3 is not decoded alike to the last bit


@pytest.mark.parametrize(("kind", "subtype"), [("MP3", None), ("OGG", "VORBIS"), ("WAV", "PCM_16")])
def test_joined_files_of_different_rates_are_refused(kind, subtype, tmp_path):
    with pytest.raises(BespokeError, match="different sample rates"):
        read(sound(kind, subtype) + sound(kind, subtype, rate=16000), tmp_path)


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_a_cut_after_the_join_is_noticed(kind, subtype, tmp_path):
    content = sound(kind, subtype, np.tile(TONE, 8))
    with pytest.raises(BespokeError, match=r"incomplete|cannot be read"):
        read(content + content[: len(content) // 2], tmp_path)


@pytest.mark.parametrize("size", [0, 0x7FFFFF00, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF])
@pytest.mark.parametrize("with_riff", [False, True])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
def test_wav_whose_length_was_never_written_is_read_to_its_end(subtype, with_riff, size, tmp_path):
    content = sound("WAV", subtype)
    broken = replaced(content, content.index(b"data") + 4, "<I", size)
    broken = replaced(broken, 4, "<I", size) if with_riff else broken
    heard = read(broken, tmp_path)
    # What libsndfile writes after the samples of a float WAV cannot be told from them.
    assert np.array_equal(heard[:, : len(TONE)], alone(content))
    assert heard.shape[1] <= len(TONE) + 100


@pytest.mark.parametrize("sizes", [(0, 0, 0), (2**64 - 1, 2**64 - 1, 2**64 - 1), (0, 2**64 - 1, 0)])
def test_rf64_whose_length_was_never_written_is_read_to_its_end(sizes, tmp_path):
    content = sound("RF64", "PCM_16")
    assert content[12:16] == b"ds64"
    assert np.array_equal(read(replaced(content, 20, "<QQQ", *sizes), tmp_path), alone(content))


@pytest.mark.parametrize("size", [0, 8, 0xFFFFFFFF])
def test_aiff_whose_length_was_never_written_is_read_to_its_end(size, tmp_path):
    content = sound("AIFF", "PCM_16")
    broken = replaced(content, content.index(b"SSND") + 4, ">I", size)
    assert np.array_equal(read(broken, tmp_path), alone(content))


@pytest.mark.parametrize("size", [0, 4, 2**64 - 1])
def test_caf_whose_length_was_never_written_is_read_to_its_end(size, tmp_path):
    content = sound("CAF", "PCM_16")
    broken = replaced(content, content.index(b"data") + 4, ">Q", size)
    assert np.array_equal(read(broken, tmp_path), alone(content))


@pytest.mark.parametrize("size", [0, 1000, 0xFFFFFFFF])
def test_au_is_read_to_its_end(size, tmp_path):
    content = sound("AU", "PCM_16")
    assert np.array_equal(read(replaced(content, 8, ">I", size), tmp_path), alone(content))


@pytest.mark.parametrize("announced", [0, 1000])
@pytest.mark.parametrize("samples", [len(TONE), 4096 * 2, 4096 + 1])
def test_flac_is_read_to_its_last_frame(samples, announced, tmp_path):
    content = sound("FLAC", samples=TONE[:samples])
    field = int.from_bytes(content[18:26], "big")
    assert field & (1 << 36) - 1 == samples
    broken = replaced(content, 18, ">Q", field >> 36 << 36 | announced)
    assert np.array_equal(read(broken, tmp_path), alone(content))


@pytest.mark.parametrize(
    ("kind", "name", "form"),
    [("WAV", b"data", "<I"), ("AIFF", b"SSND", ">I"), ("CAF", b"data", ">Q")],
)
def test_sound_beyond_the_announced_length_is_not_lost_without_a_word(kind, name, form, tmp_path):
    content = sound(kind, "PCM_16")
    broken = replaced(content, content.index(name) + 4, form, 4000)
    with pytest.raises(BespokeError, match=r"song\.x says that 4000 bytes .*-ignore_length"):
        read(broken, tmp_path)


@pytest.mark.parametrize(
    "tail", [b"LIST\x06\0\0\0INFOab", b"TAG" + bytes(125), b"ID3\3" + bytes(200), bytes(5000), b"x"]
)
def test_what_may_follow_the_samples_is_no_sound(tail, tmp_path):
    content = sound("WAV", "PCM_16")
    assert np.array_equal(read(content + tail, tmp_path), alone(content))


def frames(content):
    """The frames of an MP3, one by one."""
    place, found = 0, []
    while frame := _frame(content[place : place + 4]):
        found.append(content[place : place + frame.length])
        place += frame.length
    return found


def varying(rate, channels):
    """An MP3 of very different bit rates, soft first, with the table that its encoder writes."""
    noise = np.random.default_rng(0).normal(0, 0.2, (3 * rate, channels))
    return sound("MP3", samples=noise * np.linspace(0, 1, 3 * rate)[:, None] ** 4, rate=rate)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (22050, 2), (44100, 1), (48000, 2)])
@pytest.mark.parametrize("tag", [b"", b"ID3\4\0\0\0\0\1\0" + bytes(128)])
def test_mp3_without_a_table_is_read_to_its_last_frame(rate, channels, tag, tmp_path):
    table, *rest = frames(varying(rate, channels))
    assert b"Xing" in table
    content = tag + b"".join(rest) + b"TAG" + bytes(125)
    heard = read(content, tmp_path)
    assert heard.shape == (channels, len(rest) * _frame(rest[0][:4]).samples)
    # As far as libsndfile reads it, nothing is moved.
    assert heard[:, : alone(content).shape[1]] == pytest.approx(alone(content), abs=1e-6)


def test_mp3_whose_table_counts_too_few_frames_is_read_to_its_last(tmp_path):
    content = varying(22050, 1)
    place = content.index(b"Xing") + 8
    assert int.from_bytes(content[place : place + 4], "big") == len(frames(content)) - 1
    heard = read(replaced(content, place, ">I", 20), tmp_path)
    assert heard.shape[1] >= 3 * 22050
    assert heard[:, : 20 * 576] == pytest.approx(alone(content)[:, : 20 * 576], abs=1e-6)


def test_garbage_between_two_mp3_streams_is_passed_over(tmp_path):
    one = sound("MP3")
    heard = read(one + bytes(300) + b"\xff\xfb" + bytes(50) + one, tmp_path)
    assert heard.shape[1] == 2 * alone(one).shape[1]


def test_a_sound_file_that_tells_the_truth_is_read_as_it_is(tmp_path):
    for kind, subtype in KINDS:
        content = sound(kind, subtype)
        assert read(content, tmp_path) == pytest.approx(alone(content), abs=1e-6), kind


def test_a_part_of_a_joined_file_can_be_read(tmp_path):
    one = sound("WAV", "PCM_16")
    (tmp_path / "song.wav").write_bytes(one + one)
    part = open_audio(tmp_path / "song.wav").cut(len(TONE) - 10, len(TONE) + 20).read()
    assert np.array_equal(part, np.concatenate([alone(one)[:, -10:], alone(one)[:, :20]], axis=1))
