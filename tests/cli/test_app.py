"""The `bespoke` command, in this process or, where it is killed, in a new one."""

import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from bespoke.audio.io import read_audio, write_wav
from bespoke.audio.stft import STFT
from bespoke.cli import stems
from bespoke.cli.app import main
from bespoke.cli.launch import setting
from bespoke.evaluation.metrics import si_sdr
from bespoke.models.features import FACTORIZATIONS
from bespoke.models.nmf import ScoreInformedFactorization
from bespoke.score.align import Alignment, anywhere
from bespoke.score.midi import Note, Part, read_score, write_midi
from bespoke.score.synth import Patch, render
from bespoke.training import alignment
from bespoke.utils import progress
from conftest import MELODY, ROOT, SMALL

pytestmark = pytest.mark.slow  # whole runs


FAST = [f"--set={one}" for one in SMALL if not one.startswith("logger")]
LOW = (Note(0.1, 0.8, 40), Note(0.9, 1.6, 43), Note(1.7, 2.5, 36))


@pytest.fixture
def bespoke(tiny_song, tmp_path, monkeypatch, capsys):
    """Run the command in a folder with `song.wav` and `melody.mid`.

    Returns exit code, stdout and stderr.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for what runs in a process of its own
    shutil.copyfile(tiny_song.mixture, "song.wav")
    shutil.copyfile(tiny_song.score, "melody.mid")

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        root.handlers[:], root.level = handlers, level
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def band(tmp_path):
    """A score with two pitched parts and drums."""
    parts = [
        Part("Lead Guitar", 29, False, MELODY),
        Part("Bass", 33, False, LOW),
        Part("", 0, True, MELODY),
    ]
    write_midi(tmp_path / "band.mid", parts)
    return tmp_path / "band.mid"


def files(folder):
    """Its files, without those of the runs."""
    return sorted(
        file.name for file in folder.iterdir() if file.is_file() and file.suffix != ".mid"
    )


def test_stems_are_made_once_add_up_and_are_not_overwritten(bespoke, tmp_path):
    code, out, err = bespoke("separate", "song.wav", "melody.mid", *FAST)
    assert (code, out.splitlines()) == (0, ["song.target.wav", "song.residual.wav"]), err
    assert "synthesized with that sound" in err
    assert files(tmp_path) == ["song.residual.wav", "song.target.wav", "song.wav"]
    target, residual, mixture = (
        read_audio(f"song.{name}wav")[0] for name in ("target.", "residual.", "")
    )
    assert np.abs(target + residual - mixture).max() <= 1e-6 * np.abs(mixture).max()
    checkpoint = tmp_path / "song.bespoke" / "checkpoints" / "last.ckpt"
    before = {
        file: (file.read_bytes(), file.stat().st_mtime_ns)
        for file in (tmp_path / "song.target.wav", checkpoint)
    }

    code, out, err = bespoke("separate", "song.wav", "melody.mid", *FAST)
    assert (code, out.splitlines()) == (0, ["song.target.wav", "song.residual.wav"]), err
    assert "done already" in err
    code, _, err = bespoke("separate", "song.wav", "melody.mid", *FAST, "--seed=1", "--format=flac")
    assert (code, "seed: 0 there, 1 now" in err, "--force" in err) == (2, True, True)
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in before} == before

    # What is done is not done again, for another format say, until the recording is another.
    code, out, err = bespoke("separate", "song.wav", "melody.mid", *FAST, "--format=flac", "--json")
    result = json.loads(out)
    assert (code, result["stems"], result["residual"]) == (
        0,
        {"target": "song.target.flac"},
        "song.residual.flac",
    )
    assert result["metrics"]["target"]["steps"] == 3
    assert soundfile.info("song.target.flac").subtype == "PCM_24"
    assert read_audio("song.target.flac")[0] == pytest.approx(target, abs=2e-7)
    assert checkpoint.stat().st_mtime_ns == before[checkpoint][1]
    write_wav("song.wav", 0.5 * mixture, 22050)
    code, _, err = bespoke("separate", "song.wav", "melody.mid", *FAST, "--format=mp3")
    assert (code, "the recording is another" in err) == (2, True)
    code, _, err = bespoke("separate", "song.wav", "melody.mid", *FAST, "--force")
    assert code == 0, err
    assert checkpoint.stat().st_mtime_ns != before[checkpoint][1]

    # Another recording, without training.
    code, out, err = bespoke(
        "apply", checkpoint, "song.wav", "melody.mid", "--out=again", "--format=mp3"
    )
    assert (code, out.splitlines()) == (
        0,
        [os.path.join("again", f"song.{name}.mp3") for name in ("target", "residual")],
    ), err
    assert "The score is aligned" in err
    assert soundfile.info("again/song.target.mp3").format == "MP3"
    assert bespoke("apply", checkpoint, "song.wav", "--out=again", "--format=mp3")[0] == 2


def test_a_recording_may_be_called_like_a_setting(bespoke, tmp_path):
    os.rename("song.wav", name := "My ${song} ${nosuch}.wav")
    for _ in range(2):  # the second time nothing is left to do
        code, out, err = bespoke("separate", name, "melody.mid", *FAST)
        assert (code, out.splitlines()[0]) == (0, "My ${song} ${nosuch}.target.wav"), err
    folder = tmp_path / "My $(song} $(nosuch}.bespoke"
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert (folder / "train.log").is_file()


def test_apply_leaves_key_switches_out_and_says_when_stems_are_softer(bespoke, monkeypatch):
    melody = [Note(0.5 * index, 0.5 * index + 0.4, 60 + index) for index in range(5)]
    write_midi("switched.mid", [Part("Lead", 80, False, (Note(0.0, 0.1, 24), *melody))])
    seen = []

    def align(notes, *_, others):
        assert others == []
        seen.extend(note.pitch for note in notes)
        return Alignment(tuple(notes), 1.0, 1.0, 0.0, ())

    class Louder:
        notes = ()

        def place(self, notes, others, tuning_cents, view):
            assert (others, view) == ([], None)

        def write_stems(self, recording, *files):
            for file in files:
                write_wav(file, 2 * recording.read() / recording.levels()[0], recording.sample_rate)

    monkeypatch.setattr("bespoke.score.align.align", align)
    monkeypatch.setattr("bespoke.models.separator.load_separator", lambda *_, **__: Louder())
    code, _, err = bespoke("apply", "melody.mid", "song.wav", "switched.mid", "--format=flac")
    assert code == 0, err
    assert seen == [60, 61, 62, 63, 64]
    assert "The stems are softer by 6.0 dB, as FLAC holds nothing above full scale." in err


OTHER_SONG = (Note(0.1, 0.8, 65), Note(0.9, 1.6, 57), Note(1.7, 2.5, 62))


@pytest.fixture
def separator(monkeypatch):
    """In place of what a checkpoint holds: a separator with notes, which halves the recording."""

    class Halves:
        notes, others, tuning_cents, view = MELODY, ((Note(0.5, 1.0, 50),),), 3.0, None

        def place(self, notes, others, tuning_cents, view):
            self.notes, self.others, self.view = notes, others, view

        def write_stems(self, recording, *files):
            for file in files:
                write_wav(file, 0.5 * recording.read(), recording.sample_rate)

    found = Halves()
    monkeypatch.setattr("bespoke.models.separator.load_separator", lambda *_, **__: found)
    return found


def pad(name, seconds):
    waveform, rate = read_audio("song.wav")
    write_wav(name, np.pad(waveform, ((0, 0), (round(seconds * rate), 0))), rate)


def test_apply_leaves_notes_that_fit_and_moves_those_that_are_elsewhere(bespoke, separator):
    waveform, rate = read_audio("song.wav")
    write_wav("remaster.wav", np.tanh(8 * waveform), rate)
    code, out, err = bespoke("apply", "melody.mid", "remaster.wav")
    assert (code, out.split()) == (0, ["remaster.target.wav", "remaster.residual.wav"]), err
    assert err.splitlines() == ["Finding the notes ...", "Separating ...", "Writing the stems ..."]
    assert separator.notes == MELODY
    pad("later.wav", 14.5)
    code, _, err = bespoke("apply", "melody.mid", "later.wav")
    assert code == 0, err
    starts = [note.start_seconds for note in separator.notes]
    assert starts == pytest.approx([14.5 + note.start_seconds for note in MELODY], abs=0.03)
    assert separator.others[0][0].start_seconds == pytest.approx(15.0, abs=0.03)
    assert "are 14.5" in err
    assert "The score covers 0:15 to 0:17 of 0:18; the target is silent elsewhere." in err


def test_apply_hears_opposite_channels_in_their_difference(bespoke, separator):
    waveform, rate = read_audio("song.wav")
    write_wav("opposite.wav", np.concatenate([waveform, -0.99 * waveform]), rate)
    code, _, err = bespoke("apply", "melody.mid", "opposite.wav")
    assert (code, separator.notes, separator.view) == (0, MELODY, (0.5, -0.5)), err


def test_apply_refuses_notes_of_another_song_unless_they_are_to_be_trusted(
    bespoke, separator, monkeypatch
):
    separator.notes = OTHER_SONG
    code, out, err = bespoke("apply", "melody.mid", "song.wav", "--out", "stems")
    assert (code, out, os.path.exists("stems")) == (2, "", False)
    assert [
        word for word in ("song.wav", "MIDI", "--trust-notes") if word not in err.splitlines()[-1]
    ] == []
    code, _, err = bespoke("apply", "melody.mid", "song.wav", "--out", "stems", "--trust-notes")
    assert (code, separator.notes) == (0, OTHER_SONG), err
    code, _, err = bespoke("apply", "melody.mid", "song.wav", "melody.mid", "--out", "aligned")
    assert (code, [note.pitch for note in separator.notes]) == (
        0,
        [note.pitch for note in MELODY],
    ), err

    separator.notes = anywhere(MELODY, 3.0)  # of a run whose score did not fit its own recording
    code, _, err = bespoke("apply", "melody.mid", "song.wav", "--out", "pitches")
    assert (code, "MIDI" in err, os.path.exists("pitches")) == (2, True, False)

    separator.notes = ()  # of a network that uses none
    monkeypatch.setattr(
        "bespoke.score.align.find_offset", lambda *_: pytest.fail("there is nothing to look for")
    )
    assert bespoke("apply", "melody.mid", "song.wav", "--out", "free")[0] == 0


def test_separate_says_what_it_does_and_where_the_target_is(bespoke):
    """The recipe of the command, a step of it, on a song of which the score covers two seconds."""
    pad("late.wav", 12.0)
    small = [
        "data.batch_size=1",
        "data.segment_seconds=1",
        "trainer.max_steps=1",
        "trainer=cpu",
        "report=false",
        "data.validation_batches=1",
    ]
    code, out, err = bespoke(
        "separate", "late.wav", "melody.mid", "--patch=80", *(f"--set={one}" for one in small)
    )
    assert (code, out.splitlines()) == (0, ["late.target.wav", "late.residual.wav"]), err
    lines = err.splitlines()
    stages = ["load", "align", "estimate", "render", "train", "separate", "publish"]
    assert [line for line in lines if line.endswith(" ...")] == [
        f"{progress.STAGES[stage]} ..." for stage in stages
    ]
    notice = "The score covers 0:12 to 0:14 of 0:15; the target is silent elsewhere."
    assert sum(notice in line for line in lines) == 2  # as it is found, and in the summary
    metrics = json.loads(Path("late.bespoke", "metrics.json").read_text())
    assert (metrics["alignment"]["notice"], metrics["warnings"]) == (notice, [notice])
    assert [
        line
        for line in lines
        if re.search(r"\b(song|hydra|trainer|data)\.(?!wav)[a-z]|ckpt=|another mastering", line)
    ] == []
    assert "0 s left" not in err


def test_every_part_becomes_a_stem_and_all_add_up(bespoke, band, tmp_path):
    code, out, err = bespoke("separate", "song.wav", band, "--instrument=all", "--jobs=2", *FAST)
    assert (code, out.splitlines()) == (
        0,
        ["song.lead-guitar.wav", "song.bass.wav", "song.residual.wav"],
    ), err
    assert "The drums stay in the residual" in err
    assert "[bass] " in err
    mixture, *parts = (
        read_audio(f"song.{name}wav")[0] for name in ("", "lead-guitar.", "bass.", "residual.")
    )
    assert all(part.any() for part in parts)
    assert np.abs(sum(parts) - mixture).max() <= 1e-6 * np.abs(mixture).max()
    runs = tmp_path / "song.bespoke-parts"
    assert sorted(folder.name for folder in runs.iterdir()) == ["bass", "lead-guitar"]


@pytest.fixture
def duo(tmp_path):
    """`song.wav` of a melody and a bass, its score, and the true stems by the label of each."""
    rate = 22050
    parts = [Part("Lead", 80, False, MELODY), Part("Bass", 33, False, LOW)]
    write_midi(tmp_path / "duo.mid", parts)
    stems = [render(part.notes, Patch(part.program), rate)[:, : 3 * rate] for part in parts]
    length = max(stem.shape[-1] for stem in stems)
    stems = [np.pad(stem, ((0, 0), (0, length - stem.shape[-1]))) for stem in stems]
    stems = [0.3 * stem / abs(stem).max() for stem in stems]
    write_wav(tmp_path / "song.wav", sum(stems), rate)
    return dict(zip(["lead", "bass"], stems, strict=True))


def test_all_parts_come_from_one_alignment_and_one_factorization(
    bespoke, duo, tmp_path, monkeypatch
):
    counts = Counter()

    def counted(place, name):
        function = getattr(place, name)

        def count(*arguments, **settings):
            counts[name] += 1
            return function(*arguments, **settings)

        monkeypatch.setattr(place, name, count)

    counted(alignment, "align_parts")
    counted(ScoreInformedFactorization, "masks")
    code, out, err = bespoke("separate", "song.wav", "duo.mid", "--instrument=all", "--device=cpu")
    names = ["song.lead.wav", "song.bass.wav", "song.residual.wav", "song.report.html"]
    assert (code, out.splitlines()) == (0, names), err
    assert counts == {"align_parts": 1, "masks": FACTORIZATIONS}  # with a window each
    mixture = read_audio("song.wav")[0]
    parts = [read_audio(name)[0] for name in names[:3]]
    assert np.abs(sum(parts) - mixture).max() <= 1e-6 * np.abs(mixture).max()
    for estimate, true in zip(parts, duo.values(), strict=False):
        assert si_sdr(estimate, true) > si_sdr(mixture, true) + 5
    # Each run is whole: it has its log and figures, and its checkpoint separates by itself.
    for label, other in (("lead", "Bass"), ("bass", "Lead")):
        folder = tmp_path / "song.bespoke-parts" / label
        assert "The score is aligned" in (folder / "train.log").read_text()
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["steps"] == 0
        assert [part["name"] for part in metrics["alignment"]["others"]] == [other]
        checkpoint = folder / "checkpoints" / "last.ckpt"
        code, _, err = bespoke("apply", checkpoint, "song.wav", f"--out={label}", "--trust-notes")
        assert code == 0, err
        again = read_audio(f"{label}/song.target.wav")[0]
        assert again == pytest.approx(read_audio(folder / "target.wav")[0], abs=1e-4)


def test_a_part_that_fails_keeps_the_others_from_nothing(bespoke, duo, tmp_path):
    shrill = Part("Shrill", 80, False, (Note(0.1, 0.8, 110), Note(0.9, 1.6, 112)))
    parts = [*read_score("duo.mid"), shrill]
    write_midi("trio.mid", parts)
    every = ["separate", "song.wav", "trio.mid", "--instrument=all", "--device=cpu"]
    code, out, err = bespoke(*every)
    assert (code, out) == (2, "")
    assert "[shrill] error: The score has no note from C1 to B7" in err
    assert "as shrill failed" in err
    assert not list(tmp_path.glob("song.*.wav"))
    runs = tmp_path / "song.bespoke-parts"
    assert [file.name for file in (runs / "shrill").iterdir()] == ["train.log"]
    before = {file: file.stat().st_mtime_ns for file in runs.rglob("*.wav")}
    assert len(before) == 4
    bespoke(*every)  # only what is left
    assert {file: file.stat().st_mtime_ns for file in runs.rglob("*.wav")} == before


def test_training_that_is_asked_for_is_done_for_each_part(bespoke, duo):
    words = ["--instrument=all", "--device=cpu", "--set=data.segment_seconds=1"]
    steps = "--set=trainer.max_steps=1"
    code, out, err = bespoke("separate", "song.wav", "duo.mid", *words, steps, "--json")
    assert code == 0, err
    assert [part["steps"] for part in json.loads(out)["metrics"].values()] == [1, 1]


def test_parts_share_what_they_claim_together_whatever_the_blocks(tmp_path, monkeypatch):
    rate, rng = 8000, np.random.default_rng(0)
    mixture = rng.normal(0, 0.1, (2, 3 * rate)).astype(np.float32)
    estimates = {"one": 0.9 * mixture, "other": 0.6 * mixture, "nothing": 0 * mixture}
    for name, estimate in estimates.items():
        write_wav(tmp_path / name / "target.wav", estimate, rate)
        write_wav(tmp_path / name / "residual.wav", mixture - estimate, rate)
    runs = {name: tmp_path / name for name in estimates}
    whole = {
        label: read_raw(file)
        for label, file in stems.write_shared(runs, tmp_path / "whole").items()
    }
    # They want one and a half times what is there: each gets two thirds.
    expected = {
        "one": 0.6 * mixture,
        "other": 0.4 * mixture,
        "nothing": 0 * mixture,
        "residual": 0 * mixture,
    }
    assert list(whole) == list(expected)
    for label, stem in whole.items():
        assert stem == pytest.approx(expected[label], abs=1e-5)
    monkeypatch.setattr(stems, "_BLOCK_SECONDS", 0.5)
    for label, file in stems.write_shared(runs, tmp_path / "blocks").items():
        assert read_raw(file) == pytest.approx(whole[label], abs=1e-6)


def read_raw(file):
    return soundfile.read(file, dtype="float32", always_2d=True)[0].T


def test_parts_that_do_not_meet_stay_as_they_are():
    stft, time = STFT(8000), torch.arange(8000) / 8000
    tones = torch.stack([torch.sin(2 * torch.pi * hz * time)[None] for hz in (500, 2000)])
    shared = stems.share(tones, tones.sum(0), stft)
    # At the ends the tones begin and stop, which sounds at all frequencies.
    assert shared[..., 400:-400].numpy() == pytest.approx(tones[..., 400:-400].numpy(), abs=0.02)


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_interrupted_it_leaves_no_stem_and_goes_on(bespoke, tmp_path, name):
    command = [
        "separate",
        "song.wav",
        "melody.mid",
        *FAST,
        "--set=trainer.max_steps=60",
        "--set=checkpoint_steps=2",
    ]
    heeded = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a shell has its background jobs ignore it
    process = subprocess.Popen(
        [sys.executable, "-m", "bespoke", *command],
        text=True,
        stderr=subprocess.PIPE,
        preexec_fn=heeded,
    )
    checkpoint = tmp_path / "song.bespoke" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    err = process.communicate(timeout=60)[1]
    if name == "SIGINT":
        assert process.returncode == 130
        assert (
            "give the same command again to go on from the last checkpoint" in err.splitlines()[-1]
        )
        assert "Traceback" not in err
    assert files(tmp_path) == ["song.wav"]
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    code, _, err = bespoke(*command)
    assert code == 0, err
    assert files(tmp_path) == ["song.residual.wav", "song.target.wav", "song.wav"]
    metrics = json.loads((tmp_path / "song.bespoke" / "metrics.json").read_text())
    assert (metrics["steps"], metrics["resumed_from_step"]) == (60, step)


def test_a_full_disk_leaves_no_half_stem_and_no_second_training(bespoke, tmp_path, monkeypatch):
    def full(source, destination):
        if str(destination).endswith(".wav") and "residual" in str(destination):
            destination.write_bytes(b"RIFF")
            raise OSError(errno.ENOSPC, "No space left on device")
        return copyfile(source, destination)

    def no_links(source, destination):
        raise OSError(errno.EPERM, "Operation not permitted")

    copyfile = shutil.copyfile
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        patch.setattr(os, "link", no_links)
        code, _, err = bespoke("separate", "song.wav", "melody.mid", *FAST)
    assert code == 2
    assert err.splitlines()[-1].startswith(
        "error: song.residual.wav cannot be written (No space left on device): free some space"
    )
    assert files(tmp_path) == ["song.wav"]
    code, _, err = bespoke("separate", "song.wav", "melody.mid", *FAST)
    assert (code, "steps, into" in err) == (0, False)
    assert files(tmp_path) == ["song.residual.wav", "song.target.wav", "song.wav"]


WRONG = {
    "no such file": (
        ["separate", "nosuch.mp3", "melody.mid"],
        ["File 'nosuch.mp3' does not exist"],
    ),
    "several parts": (
        ["separate", "song.wav", "band.mid"],
        ["has several instruments; set --instrument", "0: Lead Guitar", "2: unnamed"],
    ),
    "no such part": (
        ["separate", "song.wav", "band.mid", "--instrument=oboe"],
        ["no instrument 'oboe'", "1: Bass"],
    ),
    "no such time": (
        ["separate", "song.wav", "melody.mid", "--start=1.02.3"],
        ["'1.02.3' is not a time", "1:02.5"],
    ),
    "time beyond the song": (
        ["separate", "song.wav", "melody.mid", "--start=1:02"],
        ["Nothing of song.wav is between --start and --end", "0:03.0"],
    ),
    "several patches fit": (
        ["separate", "song.wav", "melody.mid", "--patch=electric guitar"],
        ["26: Electric Guitar (jazz)", "28: "],
    ),
    "no such patch": (
        ["separate", "song.wav", "melody.mid", "--patch=kazoo"],
        ["no patch has that number or name", "bespoke patches"],
    ),
    "patch for several": (
        ["separate", "song.wav", "band.mid", "--instrument=all", "--patch=1"],
        ["--patch and --reference are for one"],
    ),
    "no such device": (
        ["separate", "song.wav", "melody.mid", "--device=mps"],
        ["no device mps here", "--device auto or cpu"],
    ),
    "no such setting": (
        ["separate", "song.wav", "melody.mid", "--set=trainr.max_steps=3"],
        ["trainr.max_steps"],
    ),
    "a quality misspelt": (
        ["separate", "song.wav", "melody.mid", "--quality=hifi"],
        ["'standard', 'best'"],
    ),
    "a rate that MP3 has not": (
        ["separate", "high.wav", "melody.mid", "--format=mp3"],
        ["at most 2 channels at 48000 Hz", "1 at 96000 Hz"],
    ),
    "a score that is none": (["inspect", "song.mid"], ["song.mid cannot be read as MIDI"]),
    "audio that is none": (["inspect", "text.wav"], ["text.wav cannot be read as audio"]),
    "no checkpoint": (["apply", "text.wav", "song.wav"], ["text.wav is not a checkpoint"]),
    "too much to hear": (["patches", "--render=melody.mid"], ["patches fit to render"]),
    "a name of ours": (["new", "lithium", "song.wav", "melody.mid"], ["a song lithium of its own"]),
    "a name that Hydra reads otherwise": (
        ["new", "a=b", "song.wav", "melody.mid"],
        ["'a=b' cannot be the name of a config"],
    ),
    "no command": (["seperate"], ["No such command 'seperate'"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence_before_any_work(bespoke, band, tmp_path, case, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    (tmp_path / "text.wav").write_text("la la la")
    write_midi(tmp_path / "rest.mid", [])
    shutil.copyfile("song.wav", "song.mid")
    write_wav("high.wav", 0.1 * np.sin(np.arange(9600) / 10)[None], 96000)
    before = sorted(tmp_path.rglob("*"))
    arguments, fragments = WRONG[case]
    code, out, err = bespoke(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    assert not [fragment for fragment in fragments if fragment not in err.splitlines()[-1]], err
    assert sorted(tmp_path.rglob("*")) == before


SLOW = ("torch", "scipy", "numba", "pytorch_lightning", "wandb")  # to import: a second or more
QUICK = {
    "help": (["--help"], (*SLOW, "numpy", "hydra")),
    "help of separate": (["separate", "--help"], (*SLOW, "numpy", "hydra")),
    "help of train": (["train", "--help"], SLOW),
    "a score": (["inspect", "band.mid"], (*SLOW, "hydra")),
    "a recording": (["inspect", "song.wav"], (*SLOW, "hydra")),
    "patches": (["patches", "guitar"], (*SLOW, "hydra")),
}


@pytest.mark.parametrize("case", QUICK)
def test_what_only_looks_imports_nothing_slow(bespoke, band, case):
    arguments, slow = QUICK[case]
    code = (
        "import atexit, sys; from bespoke.cli.app import main\n"
        f"atexit.register(lambda: print([name for name in {slow} if name in sys.modules], "
        "file=sys.stderr))\n"
        f"sys.exit(main({arguments}))"
    )
    environment = {**os.environ, "CI": "1"}  # where FluidSynth's binding prints when it is imported
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert (result.returncode, result.stderr) == (0, "[]\n")
    assert result.stdout


def test_there_is_help_where_nothing_is_asked(bespoke):
    assert bespoke()[0] == 0
    assert bespoke("--version")[1].startswith("bespoke, version ")


def test_inspect_tells_what_is_in_a_score_and_in_a_recording(bespoke, band):
    code, out, _ = bespoke("inspect", band)
    assert code == 0
    assert out.splitlines()[0].endswith("band.mid: 3 parts, 0:02.5")
    assert [line.split() for line in out.splitlines()[1:3]] == [
        [
            "0",
            "Lead",
            "Guitar",
            "Overdriven",
            "Guitar",
            "(29)",
            "3",
            "notes",
            "C4",
            "to",
            "G4",
            "0:00.1",
            "to",
            "0:02.5",
        ],
        [
            "1",
            "Bass",
            "Electric",
            "Bass",
            "(finger)",
            "(33)",
            "3",
            "notes",
            "C2",
            "to",
            "G2",
            "0:00.1",
            "to",
            "0:02.5",
        ],
    ]
    write_wav("stereo.wav", 0.5 * np.ones((2, 441000)), 44100)
    facts = json.loads(bespoke("inspect", "stereo.wav", "--json")[1])
    expected = {
        "format": "WAV FLOAT",
        "seconds": 10.0,
        "channels": 2,
        "sample_rate": 44100,
        "peak_db": -6.02,
    }
    assert facts == {"file": "stereo.wav", **expected}


def test_patches_are_listed_and_heard(bespoke, tmp_path):
    code, out, _ = bespoke("patches", "distortion")
    assert (code, out.split()) == (0, ["30", "Distortion", "Guitar"])
    assert len(bespoke("patches")[1].splitlines()) > 128
    assert [row["program"] for row in json.loads(bespoke("patches", "trumpet", "--json")[1])] == [
        56,
        59,
    ]
    code, out, _ = bespoke("patches", "distortion", "--render", "melody.mid")
    assert (code, out.split()[-1]) == (0, "melody.030-distortion-guitar.wav")
    waveform, rate = read_audio("melody.030-distortion-guitar.wav")
    assert (rate, float(abs(waveform).max())) == (44100, pytest.approx(0.7))
    assert 2.5 < waveform.shape[-1] / rate < 6
    assert bespoke("patches", "distortion", "--render", "melody.mid")[0] == 2


def test_a_song_of_ones_own_is_one_word_in_ones_folder(bespoke, band, tmp_path):
    name = "It's ${song} [live], = 100% \\{1}.wav"
    (tmp_path / "music").mkdir()
    shutil.copyfile("song.wav", tmp_path / "music" / name)
    arguments = [
        "mine",
        f"music/{name}",
        band,
        "--instrument=bass",
        "--patch=fretless bass",
        "--patch=33",
        "--start=0:01",
    ]
    code, out, err = bespoke("new", *arguments)
    assert (code, out.splitlines()) == (
        0,
        [os.path.join("conf", "song", "mine.yaml"), "bespoke train song=mine"],
    ), err
    assert bespoke("new", *arguments)[0] == 2
    for command in ([str(ROOT / "train.py")], ["-m", "bespoke", "train"]):
        shown = subprocess.run(
            [sys.executable, *command, "song=mine", "--cfg=job", "--resolve"],
            capture_output=True,
            text=True,
        )
        assert shown.returncode == 0, shown.stderr
        song = OmegaConf.to_container(OmegaConf.create(shown.stdout).song, resolve=False)
        assert (song["name"], song["target"]["patches"], song["target"]["instrument"]) == (
            "mine",
            [35, 33],
            "index:1",
        )
        assert song["excerpt"] == [1.0, 3.0]
    small = [one for one in SMALL if not one.startswith("trainer.max_steps")]
    code, _, err = bespoke("train", "song=mine", *small, "trainer.max_steps=1", "hydra.run.dir=run")
    assert code == 0, err
    assert read_audio("run/target.wav")[0].shape == (1, 2 * 22050)


@pytest.mark.parametrize(
    "name",
    [
        "plain.wav",
        "It's.wav",
        'a "b".wav',
        "a\\'b\\",
        "${a}\\${b}",
        "[1,2] {c: d}",
        "a=b,c",
        "new\nline",
        "null",
        "1999",
        " é🎸 ",
    ],
)
def test_a_setting_survives_hydra_whatever_is_in_it(compose_config, name):
    song = compose_config(
        "song=custom", setting("song.mixture", name), setting("song.target.patches", [29, name])
    ).song
    assert song.mixture == name
    assert list(song.target.patches) == [29, name]
