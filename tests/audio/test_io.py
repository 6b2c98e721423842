"""Reading audio files of users, and atomic writing."""

import errno
import hashlib

import numpy as np
import pytest
import soundfile

from bespoke.audio.io import open_audio, read_audio, write_like, write_wav
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import atomic_path, file_hash, read_csv, write_csv

RATE = 8000


@pytest.fixture
def stereo():
    return np.random.default_rng(0).uniform(-0.9, 0.9, (2, 1000)).astype(np.float32)


def test_wav_keeps_every_bit_beyond_full_scale(stereo, tmp_path):
    write_wav(tmp_path / "loud.wav", 3 * stereo, 44100)
    again, sample_rate = read_audio(tmp_path / "loud.wav")
    assert np.array_equal(again, 3 * stereo)
    assert (again.dtype, sample_rate, soundfile.info(tmp_path / "loud.wav").subtype) == (
        np.float32,
        44100,
        "FLOAT",
    )


def test_same_waveform_is_the_same_bytes(stereo, tmp_path):
    for name in ("one.wav", "two.wav"):
        write_wav(tmp_path / name, stereo, RATE)
    assert (tmp_path / "one.wav").read_bytes() == (tmp_path / "two.wav").read_bytes()


def test_mono_is_read_as_one_channel(tmp_path):
    write_wav(tmp_path / "mono.wav", np.array([[0.5, -0.25]]), RATE)
    assert read_audio(tmp_path / "mono.wav")[0].tolist() == [[0.5, -0.25]]


@pytest.mark.parametrize(
    ("ending", "tolerance"), [("flac", 1e-6), ("aiff", 1e-6), ("ogg", 0.5), ("mp3", 0.5)]
)
def test_other_formats_are_read(ending, tolerance, tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    soundfile.write(
        tmp_path / f"tone.{ending}",
        tone,
        RATE,
        **({"subtype": "PCM_24"} if ending in ("flac", "aiff") else {}),
    )
    waveform, sample_rate = read_audio(tmp_path / f"tone.{ending}")
    assert sample_rate == RATE
    assert waveform.shape[0] == 1
    assert np.abs(np.fft.rfft(waveform[0, :RATE])).argmax() == 440
    assert np.abs(waveform[0, :RATE] - tone).max() < tolerance


@pytest.mark.parametrize(
    ("samples", "complaint"),
    [
        (np.zeros((1, 0)), "is empty"),
        (np.zeros((2, 100)), "is silent"),
        (np.array([[0.1, np.nan]]), "NaN"),
        (np.array([[0.1, np.inf]]), "infinite"),
    ],
    ids=["empty", "silent", "nan", "inf"],
)
def test_unusable_samples_are_refused(samples, complaint, tmp_path):
    write_wav(tmp_path / "bad.wav", samples, RATE)
    with pytest.raises(BespokeError, match=rf"The reference .*bad\.wav .*{complaint}"):
        read_audio(tmp_path / "bad.wav", "reference")


@pytest.mark.parametrize(
    "content", [b"", b"not audio", b"RIFF\x24\x00\x00\x00WAVE", bytes(range(256)) * 20]
)
def test_what_is_no_audio_is_refused(content, tmp_path):
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(BespokeError, match=r"bad\.wav cannot be read as audio: convert it"):
        read_audio(tmp_path / "bad.wav")


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "nosuch.wav", tmp_path):
        with pytest.raises(BespokeError, match="does not exist: check the path"):
            read_audio(path)


def test_atomic_path_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "result.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with atomic_path(path) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert [file.name for file in path.parent.iterdir()] == ["result.txt"]


def test_failure_leaves_the_file_before(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def fill_up():
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise OSError(errno.ENOSPC, "No space left on device")

    def interrupt():
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(
        BespokeError,
        match=r"result\.txt cannot be written \(No space left on device\): free some space",
    ):
        fill_up()
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["result.txt"]


def test_folder_that_cannot_be_made_is_refused(stereo, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BespokeError, match=r"out\.wav cannot be written .*choose another folder"):
        write_wav(tmp_path / "file" / "out.wav", stereo, RATE)
    assert (tmp_path / "file").read_text() == "in the way"


def test_results_are_ordinary_files(stereo, tmp_path):
    (tmp_path / "ordinary").touch()
    write_wav(tmp_path / "out.wav", stereo, RATE)
    assert (tmp_path / "out.wav").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_file_hash_is_sha256_of_the_content(tmp_path):
    content = bytes(3_000_000) + b"end"
    (tmp_path / "big").write_bytes(content)
    assert file_hash(tmp_path / "big") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("sample_rate", [8000, 11025, 22050, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_depth_and_rate_is_read(subtype, sample_rate, tmp_path):
    waveform = np.random.default_rng(0).uniform(-0.9, 0.9, (3, 100))
    soundfile.write(tmp_path / "song.wav", waveform.T, sample_rate, subtype)
    read, rate = read_audio(tmp_path / "song.wav")
    assert (read.shape, rate) == ((3, 100), sample_rate)
    assert read == pytest.approx(waveform, abs=1e-2 if subtype == "PCM_U8" else 1e-4)


def tagged(path, stereo, subtype, sample_rate=44100):
    with soundfile.SoundFile(path, "w", sample_rate, 2, subtype) as file:
        file.title, file.artist = "Größe 🎸", "Nobody"
        file.write(stereo.T)


@pytest.mark.parametrize(
    ("like", "subtype"),
    [("wav", "PCM_16"), ("flac", "PCM_24"), ("aiff", "PCM_16"), ("ogg", "VORBIS")],
)
@pytest.mark.parametrize("ending", ["wav", "flac", "aiff", "ogg", "mp3", "m4a"])
def test_stems_are_written_like_the_recording(like, subtype, ending, tmp_path):
    time = np.arange(22050) / 44100
    stereo = np.stack(
        [0.4 * np.sin(2 * np.pi * 441 * time), 0.2 * np.sin(2 * np.pi * 882 * time)]
    ).astype(np.float32)
    tagged(tmp_path / f"song.{like}", stereo, subtype)
    write_wav(tmp_path / "target.wav", stereo, 44100)
    write_like(
        tmp_path / f"song.target.{ending}", tmp_path / "target.wav", tmp_path / f"song.{like}"
    )
    recording = open_audio(tmp_path / f"song.target.{ending}")
    assert (recording.sample_rate, recording.channels) == (44100, 2)
    is_lossy = ending in ("ogg", "mp3", "m4a")
    middle = slice(6000, 16000)  # an encoder takes a while for a sudden start
    assert np.abs(recording.read()[:, middle] - stereo[:, middle]).max() < (
        0.03 if is_lossy else 1e-4
    )
    if not is_lossy:
        info = soundfile.info(tmp_path / f"song.target.{ending}")
        assert (info.subtype, info.frames) == (subtype if subtype != "VORBIS" else "PCM_24", 22050)
    if ending != "m4a":
        with soundfile.SoundFile(tmp_path / f"song.target.{ending}") as file:
            assert (file.title, file.artist) == ("Größe 🎸", "Nobody")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_tags_go_in_and_out_of_m4a(stereo, tmp_path):
    tagged(tmp_path / "song.flac", stereo, "PCM_16")
    write_wav(tmp_path / "target.wav", stereo, 44100)
    write_like(tmp_path / "song.m4a", tmp_path / "target.wav", tmp_path / "song.flac")
    write_like(tmp_path / "again.flac", tmp_path / "target.wav", tmp_path / "song.m4a")
    with soundfile.SoundFile(tmp_path / "again.flac") as file:
        assert (file.title, file.artist, file.subtype) == ("Größe 🎸", "Nobody", "PCM_24")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("out.opus", "cannot hold 2 channels at 44100 Hz"), ("out.doc", "ends in no format")],
)
def test_format_that_cannot_hold_the_stem_is_refused(name, complaint, stereo, tmp_path):
    write_wav(tmp_path / "target.wav", stereo, 44100)
    with pytest.raises(BespokeError, match=complaint):
        write_like(tmp_path / name, tmp_path / "target.wav", tmp_path / "target.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["target.wav"]


def test_a_table_comes_back_with_numbers_words_and_gaps(tmp_path):
    rows = [
        {"case": "a, b", "step": 1, "si_sdr": -0.25},
        {"case": "c", "step": 2, "agreement": 3.5},
    ]
    write_csv(tmp_path / "rows.csv", rows)
    first, second = read_csv(tmp_path / "rows.csv")
    assert first == {"case": "a, b", "step": 1.0, "si_sdr": -0.25, "agreement": None}
    assert second == {"case": "c", "step": 2.0, "si_sdr": None, "agreement": 3.5}
    assert read_csv(tmp_path / "none.csv") == []
