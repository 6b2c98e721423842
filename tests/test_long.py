"""Long recordings: blocks give the same as the whole, and training uses the relevant spans."""

import base64
import io
import json
import re
import runpy
import sys

import numpy as np
import pytest
import soundfile
import torch

from bespoke.audio.dsp import resample, resample_blocks
from bespoke.audio.io import Recording, read_audio, wav_writer, write_wav
from bespoke.audio.stft import STFT
from bespoke.data import song as song_module
from bespoke.data.song import Song
from bespoke.evaluation.report import comparison
from bespoke.evaluation.report.sweep import read_results
from bespoke.models.features import CHANNELS
from bespoke.models.networks import MaskNetwork
from bespoke.models.separator import Separator
from bespoke.score.align import _FRAMES, _LATENESS_SECONDS, _PITCHES, _anchors, _pooled, _warp
from bespoke.score.crop import choose_spans, take_audio, take_notes
from bespoke.score.midi import Note
from bespoke.utils.errors import BespokeError
from conftest import ROOT

pytestmark = pytest.mark.slow  # whole runs


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("rate", "new_rate"),
    [(44100, 22050), (44100, 16000), (8000, 22050), (192000, 16000), (16000, 16000)],
)
def test_resampling_in_blocks_is_resampling(rate, new_rate):
    waveform = RNG.normal(size=(2, 5 * rate + 17)).astype(np.float32)
    blocks = np.split(waveform, np.sort(RNG.integers(0, waveform.shape[1], 7)), axis=1)
    joined = np.concatenate(list(resample_blocks(blocks, rate, new_rate)), axis=1)
    assert np.abs(joined - resample(waveform, rate, new_rate)).max() < 1e-6
    assert len(list(resample_blocks(blocks, rate, new_rate))) > 1


def test_recording_is_read_in_parts(tmp_path, monkeypatch):
    waveform = RNG.uniform(-1, 1, (2, 10_000)).astype(np.float32)
    write_wav(tmp_path / "song.wav", waveform, 8000)
    monkeypatch.setattr("bespoke.audio.io.BLOCK_VALUES", 2000)
    part = Recording(tmp_path / "song.wav", 8000, 2, 0, 10_000).cut(1234, 7654)
    assert len(list(part.blocks())) == 7
    assert np.array_equal(part.read(), waveform[:, 1234:7654])
    assert part.levels() == (np.abs(part.read()).max(), np.abs(part.read().mean(axis=0)).max())
    assert part.read_mono(4000) == pytest.approx(
        resample(part.read().mean(axis=0, keepdims=True), 8000, 4000), abs=1e-6
    )


def test_wav_is_the_same_bytes_in_blocks(tmp_path):
    waveform = RNG.normal(size=(3, 999)).astype(np.float32)
    write_wav(tmp_path / "whole.wav", waveform, 44100)
    with wav_writer(tmp_path / "blocks.wav", 44100, 3, 999) as write:
        for block in np.split(waveform, [100, 101, 800], axis=1):
            write(block)
    assert (tmp_path / "blocks.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()


def test_wav_above_4_gb_says_its_length(tmp_path):
    with wav_writer(tmp_path / "long.wav", 96000, 8, 1 << 31) as write:
        write(np.zeros((8, 10), np.float32))
    head = (tmp_path / "long.wav").read_bytes()[:48]
    assert (head[:4], head[12:16]) == (b"RF64", b"ds64")
    assert int.from_bytes(head[28:36], "little") == 32 << 31
    assert int.from_bytes(head[36:44], "little") == 1 << 31


class Halves(MaskNetwork):
    """A mask that depends on the place."""

    def forward(self, magnitude):
        return torch.linspace(0, 1, magnitude.shape[-1]).expand_as(magnitude)


class Everything(MaskNetwork):
    """Passes all there is, if it is asked."""

    uses_score = True

    def forward(self, magnitude, features):
        assert features.shape[1] == CHANNELS
        return torch.full_like(magnitude, 0.5)


def test_stream_of_any_parts_is_the_same_separation():
    recording = RNG.normal(size=(2, 16000 * 5)).astype(np.float32)
    separator = Separator(STFT(8000), Halves(), block_seconds=2, overlap_seconds=0.5)
    target, residual = separator.separate(recording, 16000)
    parts = np.split(recording, np.sort(RNG.integers(0, recording.shape[1], 11)), axis=1)
    level = float(np.abs(recording.mean(axis=0)).max())
    streamed = list(separator.stream(parts, recording.shape[1], 16000, level))
    assert len(streamed) == 3
    assert np.array_equal(np.concatenate([part for part, _ in streamed], axis=1), target)
    assert np.array_equal(np.concatenate([part for _, part in streamed], axis=1), residual)
    with pytest.raises(BespokeError, match="shorter than when it was opened"):
        list(separator.stream(parts[:-1], recording.shape[1], 16000, level))


def test_where_the_score_rests_the_target_is_silent():
    recording = RNG.normal(size=(1, 8000 * 20)).astype(np.float32)
    separator = Separator(
        STFT(8000), Everything(), 6.0, 1.0, notes=[Note(4.0, 5.0, 69), Note(16.0, 17.0, 69)]
    )
    target, residual = separator.separate(recording, 8000)
    assert not target[:, : int(2.9 * 8000)].any()
    assert target[:, int(3.6 * 8000) : int(6.8 * 8000)] == pytest.approx(
        recording[:, int(3.6 * 8000) : int(6.8 * 8000)] / 2, abs=1e-4
    )
    assert not target[:, int(7.6 * 8000) : 15 * 8000 - 200].any()
    assert target + residual == pytest.approx(recording, abs=1e-6)


def test_strength_trades_bleed_against_artefacts():
    recording = RNG.normal(size=(1, 8000)).astype(np.float32)
    quiet, usual, loud = (
        Separator(STFT(8000), Halves(), strength=strength).separate(recording, 8000)[0].std()
        for strength in (2, 1, 0.5)
    )
    assert quiet < 0.9 * usual < 0.9 * 0.9 * loud
    for strength in (0, -1, 11, "x"):
        with pytest.raises(BespokeError, match="strength"):
            Separator(STFT(8000), Halves(), strength=strength)


def test_short_song_is_heard_whole():
    assert choose_spans([Note(3.0, 17.0, 60)], 20.0, 180.0) == [(0.0, 20.0)]
    assert choose_spans([], 170.0, 180.0) == [(0.0, 170.0)]


def test_long_song_is_heard_where_the_target_plays():
    notes = [
        Note(time, time + 0.5, 60)
        for start in (100, 1000, 2200)
        for time in np.arange(start, start + 60, 0.5)
    ]
    spans = choose_spans(notes, 3600.0, 120.0)
    assert sum(last - first for first, last in spans) == pytest.approx(120)
    heard = take_notes(notes, spans)
    assert sum(note.end_seconds - note.start_seconds for note in heard) > 0.75 * 120
    assert min(note.start_seconds for note in heard) >= 0
    assert max(note.end_seconds for note in heard) <= 120
    assert len(choose_spans([], 3600.0, 120.0)) > 2  # without notes from all over
    assert choose_spans(notes, 3600.0, 120.0) == spans


def test_excerpts_of_notes_and_audio_stay_in_time():
    rate, spans = 1000, [(2.0, 3.0), (7.0, 9.0)]
    audio = np.zeros((1, 10 * rate), np.float32)
    audio[:, [2500, 8250]] = 1
    notes = [Note(2.5, 2.75, 60), Note(5.0, 6.0, 61), Note(8.25, 9.5, 62)]
    assert np.flatnonzero(take_audio(audio, rate, spans)).tolist() == [500, 2250]
    assert take_notes(notes, spans) == (Note(0.5, 0.75, 60), Note(2.25, 3.0, 62))


def test_long_scores_are_cut_with_the_other_parts(tiny_song):
    song = Song.load(
        {
            "mixture": tiny_song.mixture,
            "target": {"score": tiny_song.score},
            "others": [{"score": str(tiny_song.score)}],
        }
    )
    assert song.to_train_on(180, is_aligned=False) is song
    assert song.to_train_on(180, is_aligned=True) is song


def test_a_wander_of_seconds_is_followed():
    """Evidence as of a clear recording, whose tempo sways by four seconds."""
    notes = [
        Note(0.5 * index, 0.5 * index + 0.45, 60 + int(RNG.integers(0, 12))) for index in range(400)
    ]

    def place(seconds):
        return 3.0 + seconds + 4 * np.sin(2 * np.pi * seconds / 150)

    sounding, starting = np.zeros((2, _PITCHES, round(215 * _FRAMES)))
    for note in notes:
        first, last = (
            round(place(seconds) * _FRAMES) for seconds in (note.start_seconds, note.end_seconds)
        )
        sounding[note.pitch - 24, first:last] = 3
        starting[note.pitch - 24, first - 2 : first + 3] = 3
    onsets = np.array([note.start_seconds for note in notes])
    rows = [_pooled(evidence, 8) for evidence in (sounding - sounding.mean(), starting)]
    _, times = _warp(*rows, notes, 1.0, onsets + 3.0, window_seconds=6.0, rate=_FRAMES / 8)
    _, times = _warp(sounding - sounding.mean(), starting, notes, 1.0, times + _LATENESS_SECONDS)
    errors = np.abs(times + _LATENESS_SECONDS - place(onsets))
    assert np.percentile(errors, 95) < 0.06
    assert errors.max() < 0.5


def test_long_score_is_searched_for_at_three_places():
    notes = [Note(float(second), second + 0.5, 60) for second in range(3600) if second % 600 > 300]
    anchors = _anchors(notes)
    assert len(anchors) == 3
    assert all(115 <= len(anchor) <= 120 for anchor in anchors)
    assert _anchors(notes[:200]) == [notes[:200]]


@pytest.fixture
def train(tiny_song, tmp_path, monkeypatch):
    """Run train.py in this process; gives its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def run(folder, *overrides):
        monkeypatch.setattr(
            sys,
            "argv",
            ["train.py", *tiny_song.overrides, f"hydra.run.dir={folder}", *map(str, overrides)],
        )
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        assert caught.value.code == 0
        return tmp_path / folder

    return run


def test_recording_that_is_not_held_in_memory_gives_the_same_stems(
    train, make_song, tmp_path, monkeypatch
):
    stereo = make_song(tmp_path, channels=2)
    files = [
        f"song.mixture={stereo.mixture}",
        f"song.reference={stereo.reference}",
        "separate.block_seconds=1",
        "separate.overlap_seconds=0.3",
    ]
    short = train("short", *files)
    monkeypatch.setattr(song_module, "MAX_HELD_VALUES", 1000)
    long = train("long", *files)
    for name in ("target.wav", "residual.wav"):
        assert (long / name).read_bytes() == (short / name).read_bytes()
    mixture = read_audio(stereo.mixture)[0]
    target, residual = (read_audio(long / name)[0] for name in ("target.wav", "residual.wav"))
    assert np.abs(target + residual - mixture).max() <= 1e-6 * np.abs(mixture).max()


def test_pages_of_a_recording_that_is_not_held_play_at_its_speed(
    train, tiny_song, tmp_path, monkeypatch
):
    files = []
    for name in ("mixture", "reference"):
        write_wav(
            tmp_path / f"{name}.wav", read_audio(getattr(tiny_song, name))[0], 16000
        )  # below the working rate
        files.append(f"song.{name}={tmp_path / name}.wav")
    monkeypatch.setattr(song_module, "MAX_HELD_VALUES", 1000)
    run = train("run", *files, "report=true")
    seconds = 3 * 22050 / 16000

    def lanes(path):
        [data] = re.findall(
            r'class="player-data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL
        )
        data = json.loads(data)
        assert data["duration"] == pytest.approx(seconds, abs=1e-3)
        return {lane["name"]: lane["audio"] for lane in data["lanes"] if lane["audio"]}

    report = lanes(run / "report.html")
    assert list(report) == ["Mixture", "Target", "Residual", "Reference", "Synthesized", "Score"]
    for audio in report.values():
        sound = soundfile.info(io.BytesIO(base64.b64decode(audio.partition(",")[2])))
        assert sound.duration == pytest.approx(seconds, abs=0.03)
    side_by_side = lanes(
        comparison.write_comparison(read_results([run]), tmp_path / "comparison.html")
    )
    assert list(side_by_side) == [
        "Mixture",
        "run",
    ]  # which has no room for a reference at another rate
