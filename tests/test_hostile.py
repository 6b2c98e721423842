"""Invalid and hostile input: a clear error, bounded time and memory, and no changed files.

All files are made here. Errors of users on the command line are in test_errors.py.
"""

import gzip
import io
import logging
import os
import pickle
import re
import resource
import runpy
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from bespoke.audio import io as audio
from bespoke.audio.io import open_audio
from bespoke.cli.launch import as_folder, guard
from bespoke.cli.train import job
from bespoke.data.song import Song
from bespoke.models.separator import load_separator
from bespoke.score import midi as score
from bespoke.score.midi import read_score
from bespoke.training.allowlist import check_hydra
from bespoke.utils.errors import BespokeError
from conftest import ROOT

RATE = 8000
TONE = 0.3 * np.sin(np.arange(2 * RATE) / 7)
AT_MOST_SECONDS, AT_MOST_BYTES = 20.0, 1 << 30


# Audio


def sound(kind, subtype=None, samples=TONE, rate=RATE):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def wav(
    samples=b"\x00\x10" * 4000, channels=1, rate=RATE, bits=16, coding=1, size=None, align=None
):
    """A WAV whose header may say anything."""
    align = channels * bits // 8 if align is None else align
    form = struct.pack(
        "<4sIHHIIHH", b"fmt ", 16, coding, channels, rate, (rate * align) & 0xFFFFFFFF, align, bits
    )
    data = struct.pack("<4sI", b"data", len(samples) if size is None else size) + samples
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data


def floats(*values):
    return wav(np.array([0.5, *values] * 1000, np.float32).tobytes(), bits=32, coding=3)


def m4a(seconds=2.0):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        samples = np.sin(np.arange(int(seconds * 44100)) / 20, dtype=np.float32)[None]
        frame = av.AudioFrame.from_ndarray(0.3 * samples, format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return buffer.getvalue()


def film():
    """A film without sound."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def zip_bomb():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(50_000_000))
    return buffer.getvalue()


def half(content):
    return content[: len(content) // 2]


UNREADABLE, INCOMPLETE = "cannot be read as audio: convert it to WAV or FLAC", "is incomplete"
AUDIO = {
    "nothing.wav": (b"", UNREADABLE),
    "text.mp3": (b"I am a song", UNREADABLE),
    "random.flac": (np.random.default_rng(0).bytes(5000), UNREADABLE),
    "zeros.ogg": (bytes(5000), UNREADABLE),
    "picture.mp3": (b"\x89PNG\r\n\x1a\n" + bytes(500), UNREADABLE),
    "program.wav": (b"\x7fELF" + bytes(500), UNREADABLE),
    "zipbomb.wav": (zip_bomb(), UNREADABLE),
    "gzipbomb.flac": (gzip.compress(bytes(50_000_000)), UNREADABLE),
    "header_only.wav": (wav()[:12], UNREADABLE),
    "header_cut.wav": (wav()[:30], UNREADABLE),
    "no_samples.wav": (wav(b""), "is empty"),
    "one_sample.wav": (wav(b"\x00\x10"), "lasts 0.000 seconds"),
    "one_sample.flac": (sound("FLAC", samples=TONE[1:2]), "lasts 0.000 seconds"),
    "silence.wav": (wav(bytes(8000)), "is silent"),
    "nan.wav": (floats(np.nan), "NaN or infinite"),
    "inf.wav": (floats(np.inf), "NaN or infinite"),
    "minus_inf.wav": (floats(-np.inf), "NaN or infinite"),
    "truncated.wav": (half(sound("WAV", "PCM_16")), INCOMPLETE),
    "truncated.aiff": (half(sound("AIFF", "PCM_16")), INCOMPLETE),
    "truncated.flac": (half(sound("FLAC")), UNREADABLE),
    "truncated.ogg": (half(sound("OGG", samples=np.tile(TONE, 20))), INCOMPLETE),
    "truncated.opus": (half(sound("OGG", "OPUS", samples=np.tile(TONE, 20))), INCOMPLETE),
    "truncated.mp3": (half(sound("MP3", samples=np.tile(TONE, 5))), INCOMPLETE),
    "truncated.caf": (half(sound("CAF", "PCM_16")), UNREADABLE),
    "truncated.m4a": (half(m4a()), UNREADABLE),
    "says_1_gb.wav": (wav(size=1 << 30), INCOMPLETE),
    "rate_0.wav": (wav(rate=0), "at 0 Hz|cannot be read as audio"),
    "rate_1.wav": (wav(rate=1), "channels at 1 Hz: convert it"),
    "rate_4_ghz.wav": (wav(rate=0xFFFFFFFF), "Hz: convert it|cannot be read as audio"),
    "no_channels.wav": (wav(channels=0, align=2), UNREADABLE),
    "channels_500.wav": (wav(bytes(100_000), channels=500), "has 500 channels"),
    "channels_65535.wav": (wav(channels=65535, align=65534), UNREADABLE),
    "bits_70.wav": (wav(bits=70, align=9), UNREADABLE),
    "unknown_coding.wav": (wav(coding=0x7777), UNREADABLE),
    "playlist.m4a": (
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n",
        UNREADABLE,
    ),
    "script.aac": (b"ffconcat version 1.0\nfile /etc/passwd\n", UNREADABLE),
    "garbage.m4a": (b"\x00\x00\x00\x18ftypM4A " + np.random.default_rng(1).bytes(3000), UNREADABLE),
    "box_of_4_gb.m4a": (
        b"\x00\x00\x00\x18ftypM4A \x00\x00\x00\x00M4A isom\xff\xff\xff\xffmoov" + bytes(100),
        UNREADABLE,
    ),
    "garbage.webm": (b"\x1aE\xdf\xa3" + np.random.default_rng(2).bytes(3000), UNREADABLE),
    "garbage.wma": (b"0&\xb2u\x8ef\xcf\x11" + np.random.default_rng(3).bytes(3000), UNREADABLE),
    "garbage.aac": (b"\xff\xf1" + bytes(3000), "is empty"),
    "film.mp4": (film(), UNREADABLE),
    "opposite.wav": (
        wav(np.array([[9000, -9000, 9000, -9000]] * 4000, "<i2").tobytes(), channels=4),
        "cancel each other",
    ),
}


# MIDI


def chunk(name, content, size=None):
    return struct.pack(">4sI", name, len(content) if size is None else size) + content


def midi(*tracks, kind=1, division=480, count=None, header_size=None):
    """A MIDI file of these tracks' bytes."""
    head = struct.pack(">HHh", kind, len(tracks) if count is None else count, division)
    return chunk(b"MThd", head, header_size) + b"".join(chunk(b"MTrk", track) for track in tracks)


END = b"\x00\xff\x2f\x00"
NOTE = b"\x00\x90\x3c\x40\x83\x60\x80\x3c\x00"
HUGE = b"\x88\x80\x80\x80\x00"  # 2**31, as a number of MIDI
NOT_MIDI, NO_NOTES = "cannot be read as MIDI .*: export it again", "has no notes"
MIDI = {
    "nothing.mid": (b"", NOT_MIDI),
    "text.mid": (b"do re mi", NOT_MIDI),
    "random.mid": (np.random.default_rng(0).bytes(5000), NOT_MIDI),
    "zipbomb.mid": (zip_bomb(), NOT_MIDI),
    "gzip.mid": (gzip.compress(midi(NOTE + END)), NOT_MIDI),
    "header_only.mid": (midi(), NO_NOTES),
    "header_cut.mid": (midi(NOTE)[:9], NOT_MIDI),
    "track_cut.mid": (midi(NOTE * 9 + END)[:-20], NOT_MIDI),
    "track_of_4_gb.mid": (midi(count=1) + chunk(b"MTrk", NOTE, 0xFFFFFFFF), NOT_MIDI),
    "kind_9.mid": (
        midi(NOTE, kind=9)[:8] + b"\xff\xff" + midi(NOTE)[10:14] + b"\x00\x00",
        NOT_MIDI,
    ),
    "division_0.mid": (midi(NOTE, division=0), NOT_MIDI),
    "film_division_0.mid": (midi(NOTE, division=-6400), NOT_MIDI),
    "status_undefined.mid": (midi(b"\x00\xf4\x00"), NOT_MIDI),
    "running_status_of_nothing.mid": (midi(b"\x00\x3c\x40"), NOT_MIDI),
    "text_of_256_mb.mid": (midi(b"\x00\xff\x01\xff\xff\xff\x7fla"), NOT_MIDI),
    "sysex_of_256_mb.mid": (midi(b"\x00\xf0\xff\xff\xff\x7fla"), NOT_MIDI),
    "endless_number.mid": (midi(b"\xff" * 1_000_000 + NOTE), NOT_MIDI),
    "note_of_2_31_ticks.mid": (
        midi(b"\x00\x90\x3c\x40" + HUGE + b"\x80\x3c\x00"),
        "lasts 621 hours",
    ),
    "rest_of_2_31_ticks.mid": (midi(HUGE + NOTE[1:]), "lasts 621 hours"),
    "slowest_tempo.mid": (
        midi(
            b"\x00\xff\x51\x03\xff\xff\xff" + b"\x00\x90\x3c\x40\xff\xff\x7f\x80\x3c\x00",
            division=24,
        ),
        "hours",
    ),
    "rests_only.mid": (midi(END), NO_NOTES),
    "ends_only.mid": (midi(b"\x00\x80\x3c\x00" * 5 + END), NO_NOTES),
    "notes_of_no_length.mid": (midi(b"\x00\x90\x3c\x40\x00\x80\x3c\x00" * 5 + END), NO_NOTES),
    "bends_only.mid": (midi(b"\x00\xe0\x00\x50" * 5 + END), NO_NOTES),
    "black.mid": (
        midi(b"\x00\x90" + b"\x3c\x40\x01\x3c\x00\x00" * 2001 + END[1:]),
        "has 2001 notes",
    ),
    "tracks_5000.mid": (midi(*[NOTE] * 5000), NOT_MIDI),
    "of_3_mb.mid": (midi(NOTE * 350_000), "has 3.2 MB, which no MIDI file of a song has"),
    "dressed.mid": (sound("WAV"), NOT_MIDI),
}


# Scores of notation programs


def musicxml(inside, head=""):
    return (
        f'<?xml version="1.0"?>{head}<score-partwise version="4.0">{inside}</score-partwise>'
    ).encode()


def mxl(root="score.xml", **files):
    """Compressed MusicXML, whose container names this file as the score."""
    container = (
        f'<container><rootfiles><rootfile full-path="{root}"/></rootfiles></container>'
        if root
        else "<container/>"
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", container)
        for name, content in files.items():
            archive.writestr(name.replace("_", "."), content)
    return buffer.getvalue()


def locked(archive):
    """A ZIP that says it is encrypted."""
    place = archive.rindex(b"PK\x01\x02")
    return archive[: place + 8] + b"\x01" + archive[place + 9 :]


PITCH = "<note><pitch><step>C</step><octave>4</octave></pitch><duration>1</duration></note>"
TUNE = musicxml(
    f'<part-list><score-part id="P"/></part-list><part id="P"><measure>{PITCH}</measure></part>'
)
LAUGHS = "".join(
    f'<!ENTITY l{number} "{f"&l{number - 1};" * 10 if number else "la"}">' for number in range(10)
)
NOT_XML, NOT_PACKED, NOT_TAB = (
    f"cannot be read as {kind} .*open it in its own program"
    for kind in ("MusicXML", "a compressed score", "Guitar Pro")
)
NOTATION = {
    "nothing.musicxml": (b"", NOT_MIDI),
    "text.gp5": (b"do re mi", NOT_MIDI),
    "laughs.musicxml": (musicxml("&l9;", f"<!DOCTYPE x [{LAUGHS}]>"), "it defines entities"),
    "laughs_of_16_bits.musicxml": (
        musicxml("&l9;", f"<!DOCTYPE x [{LAUGHS}]>").decode().encode("utf-16"),
        "it defines entities",
    ),
    "entity.xml": (
        musicxml("&e;", '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'),
        "it defines entities",
    ),
    "entity_of_a_type.xml": (
        musicxml("", '<!DOCTYPE x [<!ENTITY % e SYSTEM "file:///etc/passwd"> %e;]>'),
        "it defines entities",
    ),
    "type_elsewhere.xml": (
        musicxml("", '<!DOCTYPE x SYSTEM "file:///dev/zero">'),
        "it has no notes",
    ),
    "unknown_entity.xml": (musicxml("&nosuch;"), NOT_XML),
    "truncated.musicxml": (TUNE[:-30], NOT_XML),
    "deep.musicxml": (musicxml("<a>" * 100_000), "nested too deep"),
    "rests.musicxml": (TUNE.replace(b"pitch>", b"rest>"), "it has no notes"),
    "timewise.xml": (TUNE.replace(b"partwise", b"timewise"), "it is timewise"),
    "black.xml": (musicxml(PITCH * 100_001), "it has more than 100000 notes"),
    "bomb.mxl": (mxl(score_xml=bytes(50_000_000)), "unpacks to more than 20 MB"),
    "truncated.mxl": (half(mxl(score_xml=TUNE)), NOT_PACKED),
    "locked.mxl": (locked(mxl(score_xml=TUNE)), NOT_PACKED),
    "no_root.mxl": (mxl(root=""), "its container names no score"),
    "lost_root.mxl": (mxl(), NOT_PACKED),
    "root_above.mxl": (mxl(root="../../../etc/passwd"), NOT_PACKED),
    "laughs.mxl": (
        mxl(score_xml=musicxml("&l9;", f"<!DOCTYPE x [{LAUGHS}]>")),
        "it defines entities",
    ),
    "picture.mxl": (mxl(score_xml=b"\x89PNG"), NOT_XML),
    "truncated.gp5": (
        b"\x18FICHIER GUITAR PRO v5.10" + bytes(200),
        f"{NOT_TAB}|bespoke-separation.scores",
    ),
    "random.gp4": (
        b"\x18FICHIER GUITAR PRO v4.06" + np.random.default_rng(0).bytes(5000),
        f"{NOT_TAB}|bespoke-separation.scores",
    ),
}


@pytest.fixture
def bounded():
    """Less than a second's worth of patience and a GB more memory than there is."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(
            resource.RLIMIT_AS, (pages * resource.getpagesize() + AT_MOST_BYTES, limits[1])
        )
    began = time.process_time()
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.process_time() - began < AT_MOST_SECONDS


def tree(folder):
    return {
        path: path.read_bytes() if path.is_file() else path.lstat().st_mtime_ns
        for path in folder.rglob("*")
    }


@pytest.fixture
def refused(tiny_song, tmp_path, bounded):
    """Loads a song with something wrong; gives the sentence."""

    def load(**files):
        before = tree(tmp_path)
        config = {
            "mixture": files.get("mixture", tiny_song.mixture),
            "target": {"score": files.get("score", tiny_song.score)},
        }
        config |= {key: files[key] for key in files if key not in ("mixture", "score")}
        with pytest.raises(BespokeError) as caught:
            Song.load(config)
        assert tree(tmp_path) == before
        sentence = str(caught.value)
        assert sentence.isprintable()
        assert len(sentence) < 1000
        return sentence

    return load


def says(pattern, sentence):
    return re.search(pattern, sentence) is not None


@pytest.mark.parametrize("name", AUDIO)
def test_bad_audio_is_refused(name, refused, tmp_path):
    content, complaint = AUDIO[name]
    (tmp_path / name).write_bytes(content)
    sentence = refused(mixture=tmp_path / name)
    assert name in sentence or "The recording" in sentence
    assert says(complaint, sentence), sentence


@pytest.mark.parametrize("name", MIDI)
def test_bad_midi_is_refused(name, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(score, "MAX_NOTES", 2000)
    content, complaint = MIDI[name]
    (tmp_path / name).write_bytes(content)
    sentence = refused(score=tmp_path / name)
    assert name in sentence
    assert says(complaint, sentence), sentence


@pytest.mark.parametrize("name", NOTATION)
def test_bad_score_of_a_notation_program_is_refused(name, refused, tmp_path):
    content, complaint = NOTATION[name]
    (tmp_path / name).write_bytes(content)
    sentence = refused(score=tmp_path / name)
    assert name in sentence
    assert says(complaint, sentence), sentence


def test_the_matrix_has_at_least_60_rows():
    assert len(AUDIO) + len(MIDI) + len(NOTATION) + len(PLACES) + len(HYDRA) >= 60


def test_audio_that_unpacks_to_years_is_left_after_hours(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "MAX_VALUES", 3_000_000)
    soundfile.write(tmp_path / "bomb.flac", np.full(10_000_000, 0.1), RATE)
    assert (tmp_path / "bomb.flac").stat().st_size < 100_000
    assert "is longer than 0.1 hours: cut it" in refused(mixture=tmp_path / "bomb.flac")


def dangling(folder):
    (folder / "link.wav").symlink_to(folder / "nosuch.wav")
    return folder / "link.wav"


def loop(folder):
    (folder / "a.wav").symlink_to(folder / "b.wav")
    (folder / "b.wav").symlink_to(folder / "a.wav")
    return folder / "a.wav"


def pipe(folder):
    os.mkfifo(folder / "pipe.wav")
    return folder / "pipe.wav"


PLACES = {
    "a folder": lambda folder: folder,
    "a link to nothing": dangling,
    "a link to itself": loop,
    "a pipe": pipe,
    "a device": lambda folder: Path("/dev/zero"),
    "a name of two lines": lambda folder: folder / "one\ntwo\r\x1b[31m.wav",
    "a name with quotes": lambda folder: folder / 'it\'s "so" `rm`.wav',
    "a name with dots": lambda folder: folder / "../../../nosuch.wav",
    "a name with an emoji": lambda folder: folder / "🎸.wav",
    "a name that is too long": lambda folder: folder / ("long" * 100),
    "a name with a zero": lambda folder: "nul\0.wav",
    "below a file": lambda folder: Path(__file__) / "song.wav",
    "not Unicode": lambda folder: os.fsdecode(b"\xff\xfe.wav"),
    "a protocol": lambda folder: "http://127.0.0.1:9/song.wav",
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_is_refused(place, refused, tmp_path):
    path = PLACES[place](tmp_path)
    assert "does not exist: check the path" in refused(mixture=path)
    assert "does not exist: check the path" in refused(score=path)


@pytest.mark.parametrize(
    "name",
    ["two\nlines", 'it\'s "so"', "🎸 émoji", "a,b=c[1]{2}", "-dash", "%s %(x)s", "$HOME `x`"],
)
def test_good_files_of_any_name_are_read(name, tiny_song, tmp_path):
    for file, ending in ((tiny_song.mixture, "wav"), (tiny_song.score, "mid")):
        shutil.copy(file, tmp_path / f"{name}.{ending}")
    (tmp_path / "link.wav").symlink_to(tmp_path / f"{name}.wav")
    song = Song.load(
        {"mixture": tmp_path / "link.wav", "target": {"score": tmp_path / f"{name}.mid"}}
    )
    assert song.seconds == pytest.approx(3.0)


def test_wav_whose_writer_did_not_know_its_length_is_read(tmp_path):
    (tmp_path / "streamed.wav").write_bytes(wav(size=0xFFFFFFFF))
    assert open_audio(tmp_path / "streamed.wav").samples == 4000


# Checkpoints


class Payload:
    def __reduce__(self):
        return os.mkdir, ("owned",)


SMALL_NETWORK = {"name": "MaskBLSTM", "bins": 17, "hidden_size": 4, "layers": 1}
TRANSFORM = {"sample_rate": 2000, "window_seconds": 0.016, "hop_seconds": 0.004}


def checkpoint(network=SMALL_NETWORK, transform=TRANSFORM, weights=None, separate=None):
    return {
        "hyper_parameters": {"stft": transform, "model": network, "separate": separate or {}},
        "state_dict": weights or {},
    }


CHECKPOINTS = {
    "payload": {**checkpoint(), "state_dict": Payload()},
    "payload among the settings": checkpoint(separate={"notes": Payload()}),
    "another program's": {"state_dict": {"model.x": torch.zeros(3)}},
    "a list": [1, 2, 3],
    "no weights": checkpoint(),
    "an unknown network": checkpoint({"name": "os.system", "command": "mkdir owned"}),
    "a huge network": checkpoint({**SMALL_NETWORK, "hidden_size": 60_000}),
    "a huge transform": checkpoint(transform={**TRANSFORM, "window_seconds": 1e6}),
    "a transform of no hop": checkpoint(transform={**TRANSFORM, "hop_seconds": 0.0}),
    "weights of nothing": checkpoint(weights={"model.norm.weight": torch.zeros(1).expand(1 << 40)}),
    "notes of text": checkpoint(separate={"notes": ["la", "la"]}),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_bad_checkpoint_is_refused(name, tmp_path, monkeypatch, bounded):
    monkeypatch.chdir(tmp_path)
    torch.save(CHECKPOINTS[name], "bad.ckpt")
    before = tree(tmp_path)
    with pytest.raises(
        BespokeError, match=r"bad\.ckpt is not a checkpoint of Bespoke, or is damaged"
    ):
        load_separator("bad.ckpt")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "content",
    [b"", b"weights", zip_bomb(), np.random.default_rng(0).bytes(3000)],
    ids=["", "text", "bomb", "random"],
)
def test_what_is_no_checkpoint_is_refused(content, tmp_path, bounded):
    (tmp_path / "bad.ckpt").write_bytes(content)
    with pytest.raises(BespokeError, match=r"bad\.ckpt is not a checkpoint"):
        load_separator(tmp_path / "bad.ckpt")


def test_checkpoint_cut_or_fuzzed_is_refused_or_the_same_shape(tmp_path):
    model = torch.nn.Linear(3, 3)
    torch.save(
        checkpoint(weights={f"model.{name}": value for name, value in model.state_dict().items()}),
        tmp_path / "whole.ckpt",
    )
    content = (tmp_path / "whole.ckpt").read_bytes()
    rng = np.random.default_rng(0)
    for length in rng.integers(1, len(content), 20):
        (tmp_path / "cut.ckpt").write_bytes(content[:length])
        with pytest.raises(BespokeError):
            load_separator(tmp_path / "cut.ckpt")


# Configs

HYDRA = {
    "callback": "callbacks: {evil: {_target_: os.system, command: touch owned}}",
    "callback within": "callbacks: {table: {_target_: bespoke.cli.launch.SweepTable, x: {_target_: "
    "builtins.exec}}}",
    "launcher": "launcher: {_target_: subprocess.Popen, args: [touch, owned]}",
    "interpolation": "callbacks: {evil: '${oc.create:{_target_:os.system}}'}",
    "callback from elsewhere": "callbacks: {evil: '${payload}'}",
    "callbacks from elsewhere": "callbacks: '${payload}'",
    "handler from elsewhere": "job_logging: {handlers: {y: '${payload}'}}",
    "launcher's shell lines": "launcher: {setup: [touch owned]}",
    "launcher's options": "launcher: {additional_parameters: {prolog: /tmp/evil}}",
    "launcher's second line": 'launcher: {partition: "a\\ntouch owned #"}',
    "launcher's expression": "launcher: {pre_dispatch: __import__('os').system('touch owned')}",
    "launcher's cluster": "launcher: {ray: {init: {address: 'ray://127.0.0.1:9'}}}",
    "launcher's folder": "launcher: {submitit_folder: '${hydra.sweep.dir}/../../x'}",
    "launcher by way of a folder": "launcher: {x: '${hydra.sweep.dir}'}",
    "sweeper by way of a resolver": "sweeper: {x: '${hydra.sweep.dir}/${oc.env:HOME}'}",
    "what a module imports": "callbacks: {evil: {_target_: hydra._internal.utils.os.system, "
    "command: touch owned}}",
    "what a core plugin imports": "launcher: {_target_: "
    "hydra._internal.core_plugins.basic_sweeper.itertools.chain}",
    "what a plugin imports": "launcher: {_target_: "
    "hydra_plugins.hydra_joblib_launcher._core.Path.home}",
    "search space": "sweeper: {custom_search_space: evil.configure}",
    "environment": "job: {env_set: {WANDB_BASE_URL: 'http://127.0.0.1:9'}}",
    "environment copied": "job: {env_copy: [WANDB_API_KEY]}",
    "environment from elsewhere": "job: {env_set: '${payload}'}",
    "job from elsewhere": "job: '${payload}'",
    "job above": "job: {name: ../../x}",
    "job below": "job: {name: a/b}",
    "job by interpolation": "job: {name: '${payload}'}",
    "target by interpolation": "callbacks: {evil: {_target_: '${oc.env:EVIL}'}}",
    "logging factory": "job_logging: {handlers: {file: {'()': os.system}}}",
    "logging class": "job_logging: {handlers: {file: {class: subprocess.Popen}}}",
    "log elsewhere": "job_logging: {handlers: {file: {class: logging.FileHandler, filename: "
    "/etc/cron.d/evil}}}",
    "log above": "hydra_logging: {handlers: {file: {class: logging.FileHandler, filename: "
    "'${hydra.runtime.output_dir}/../../x'}}}",
}


@pytest.mark.parametrize("name", HYDRA)
def test_config_that_has_hydra_run_code_is_refused(name):
    with pytest.raises(BespokeError, match="is not allowed"):
        check_hydra(OmegaConf.create(HYDRA[name]))


@pytest.mark.parametrize(
    "target",
    [
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
        "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
        "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    ],
)
def test_launchers_and_sweepers_are_allowed(target):
    plugin = {
        "_target_": target,
        "submitit_folder": "${hydra.sweep.dir}/.submitit/%j",
        "name": "${hydra.job.name}",
    }
    job = {"name": "train", "env_set": {}, "env_copy": []}
    check_hydra(
        OmegaConf.create(
            {"launcher": plugin, "sweeper": {**plugin, "custom_search_space": None}, "job": job}
        )
    )


@pytest.mark.parametrize(
    ("choice", "plugin"),
    [
        ("launcher=basic", None),
        ("launcher=joblib", "joblib_launcher"),
        ("launcher=submitit_local", "submitit_launcher"),
        ("launcher=slurm", "submitit_launcher"),
        ("launcher=ray_cluster", "ray_launcher"),
        ("sweeper=optuna", "optuna_sweeper"),
    ],
)
def test_hydras_part_of_our_config_is_allowed(choice, plugin):
    if plugin:
        pytest.importorskip(f"hydra_plugins.hydra_{plugin}", reason="an extra")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [f"hydra/{choice}"], return_hydra_config=True)
    check_hydra(cfg.hydra)


def test_own_command_line_may_have_a_launcher_run_lines():
    launcher = OmegaConf.create(
        {"launcher": {"setup": ["module load cuda"], "additional_parameters": {"mail_type": "END"}}}
    )
    given = {
        "hydra.launcher.setup": ["module load cuda"],
        "hydra.launcher.additional_parameters": {"mail_type": "END"},
    }
    check_hydra(launcher, given)
    for changed in (
        {},
        {**given, "hydra.launcher.setup": ["module load gcc"]},
        {"hydra.launcher.setup": given["hydra.launcher.setup"]},
    ):
        with pytest.raises(BespokeError, match="on the command line, not in a config"):
            check_hydra(launcher, changed)


def test_settings_of_the_command_line_are_told_from_those_of_files(tmp_path):
    (tmp_path / "own.yaml").write_text("defaults: [override hydra/launcher: mine]")
    (tmp_path / "hydra" / "launcher").mkdir(parents=True)
    target = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    (tmp_path / "hydra" / "launcher" / "mine.yaml").write_text(
        f"{{_target_: {target}, setup: [touch owned]}}"
    )
    guard()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        with pytest.raises(
            BespokeError, match=r"hydra\.launcher\.setup\.0=touch owned is not allowed"
        ):
            compose("own", return_hydra_config=True)
        cfg = compose(
            "own", ["hydra.launcher.setup=['module load cuda','x=1']"], return_hydra_config=True
        )
    assert cfg.hydra.launcher.setup == ["module load cuda", "x=1"]


def test_worker_of_a_launcher_looks_at_its_jobs_configs(tmp_path):
    function = tmp_path / "function.pickle"
    function.write_bytes(
        pickle.dumps(job.__wrapped__)
    )  # what Hydra hands to joblib, submitit and Ray, by its name
    program = """
import pickle, sys
from hydra import compose, initialize_config_dir
pickle.load(open(sys.argv[1], "rb"))
with initialize_config_dir(sys.argv[2], version_base="1.3"):
    compose("config", ["+hydra.job.env_set.X=1"])
"""
    command = [sys.executable, "-c", program, str(function), str(ROOT / "conf")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "BespokeError: hydra.job.env_set.X=1 is not allowed" in result.stderr


@pytest.fixture
def own_logging(monkeypatch):
    """Restore logging, which Hydra configures with a file in the run's folder, for other tests."""
    monkeypatch.setattr(logging.root, "handlers", list(logging.root.handlers))
    level, disabled = logging.root.level, logging.root.manager.disable
    yield
    logging.root.setLevel(level)
    logging.disable(disabled)


@pytest.mark.slow
@pytest.mark.usefixtures("own_logging")
def test_a_song_from_a_stranger_runs_no_code_and_stays_in_its_folder(tmp_path, monkeypatch, capfd):
    (tmp_path / "conf" / "song").mkdir(parents=True)
    for name, lines in {
        "hydra": [
            "# @package _global_",
            "hydra:",
            "  callbacks:",
            "    evil: {_target_: os.mkdir, path: owned}",
        ],
        "elsewhere": [
            "defaults: [custom]",
            "name: ../../../owned",
            "mixture: nosuch.wav",
            "target: {score: nosuch.mid}",
        ],
    }.items():
        (tmp_path / "conf" / "song" / f"{name}.yaml").write_text("\n".join(lines))
    (tmp_path / "below" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "below" / "here")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    errors = []
    for name in ("hydra", "elsewhere"):
        monkeypatch.setattr(
            sys, "argv", ["train.py", "--config-dir", "../../conf", f"song={name}", "logger=none"]
        )
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        assert caught.value.code == 2
        errors.append(capfd.readouterr().err)
    assert "hydra.callbacks.evil._target_=os.mkdir is not allowed" in errors[0]
    assert errors[1].startswith("error: The recording nosuch.wav does not exist: check the path")
    assert not list(tmp_path.rglob("owned*"))


@pytest.mark.parametrize(
    ("name", "folder"),
    [("../x", ".._x"), ("a/b\\c", "a_b_c"), ("two\nlines", "two_lines"), (1999, "1999"), ("", "_")],
)
def test_folder_of_any_song_is_below_the_results(name, folder):
    assert as_folder(name) == folder


# Fuzzing: whatever the bytes, a reader gives its result or one sentence.

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6
)
SOUNDS = [
    sound("WAV", "PCM_16"), sound("WAV", "FLOAT"), sound("FLAC"), sound("OGG"),
    sound("AIFF", "PCM_24"), sound("CAF", "PCM_16"), m4a(0.5),
]  # fmt: skip
SCORE = midi(
    b"\x00\xff\x51\x03\x07\xa1\x20\x00\xff\x03\x04Lead" + b"\x00\xc0\x1d" + NOTE * 8 + END,
    b"\x00\x99\x24\x40\x60\x89\x24\x00" + END,
)


def edited(content, edits, length):
    changed = bytearray(content)
    for place, new in edits:
        start = int(place * (len(changed) - 1))
        changed[start : start + len(new)] = new
    return bytes(changed[: max(1, int(length * len(changed)))])


@FUZZ
@given(content=st.sampled_from(SOUNDS), edits=EDITS, length=st.sampled_from([1.0, 1.0, 0.9, 0.3]))
def test_fuzzed_audio_is_read_or_refused(content, edits, length, tmp_path_factory, bounded):
    path = tmp_path_factory.getbasetemp() / "fuzzed.audio"
    path.write_bytes(edited(content, edits, length))
    try:
        recording = open_audio(path)
    except BespokeError:
        return
    assert np.isfinite(recording.read()).all()


@FUZZ
@given(
    content=st.one_of(
        st.builds(edited, st.just(SCORE), EDITS, st.sampled_from([1.0, 1.0, 0.7])),
        st.binary(max_size=200).map(midi),
    )
)
def test_fuzzed_midi_is_read_or_refused(content, tmp_path_factory, bounded):
    path = tmp_path_factory.getbasetemp() / "fuzzed.mid"
    path.write_bytes(content)
    try:
        parts = read_score(path)
    except BespokeError:
        return
    for part in parts:
        assert part.notes
        assert all(
            0 <= note.start_seconds < note.end_seconds <= 3600 * score.MAX_HOURS
            for note in part.notes
        )
