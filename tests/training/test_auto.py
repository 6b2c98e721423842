"""Runs of recipe=auto through the command line, on a three-second song, with few small steps."""

import json
import shutil

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from bespoke.audio.io import read_audio, write_wav
from bespoke.cli import app as cli
from bespoke.evaluation.metrics import si_sdr
from bespoke.models.separator import load_separator
from bespoke.score.midi import Note, Part, read_score, write_midi
from bespoke.score.synth import SYNTH_RATE, Patch, render
from conftest import MELODY

pytestmark = pytest.mark.slow  # whole runs


AUTO = [
    "recipe=auto",
    "data.batch_size=1",
    "data.segment_seconds=1",
    "data.workers=0",
    "trainer.max_steps=2",
    "trainer=cpu",
    "logger=none",
]


@pytest.fixture(scope="module")
def auto(run_train, make_song, tmp_path_factory):
    """A run whose score is too slow by a fifth and starts half a second late."""
    folder = tmp_path_factory.mktemp("auto")
    song = make_song(folder)
    shifted = tuple(
        Note(1.2 * note.start_seconds + 0.5, 1.2 * note.end_seconds + 0.5, note.pitch)
        for note in MELODY
    )
    write_midi(song.score, [Part("Melody", 80, False, shifted)])
    files = [
        f"song.mixture={song.mixture}",
        f"song.target.score={song.score}",
        f"song.reference={song.reference}",
    ]
    result = run_train(
        *AUTO, "song=custom", *files, f"hydra.run.dir={folder / 'run'}", "curve_steps=1", cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return song, folder / "run", result


def test_the_notes_are_put_in_time_and_written(auto):
    _, folder, _ = auto
    (part,) = read_score(folder / "aligned.mid")
    assert [note.pitch for note in part.notes] == [note.pitch for note in MELODY]
    assert [note.start_seconds for note in part.notes] == pytest.approx(
        [note.start_seconds for note in MELODY], abs=0.08
    )
    facts = json.loads((folder / "metrics.json").read_text())
    assert facts["alignment"]["used"]
    assert facts["alignment"]["tempo_factor"] == pytest.approx(1 / 1.2, rel=0.05)
    assert (folder / "alignment.png").stat().st_size > 10_000
    assert len((folder / "curve.csv").read_text().splitlines()) == 3
    assert '"file": "first_estimate"' in (folder / "report.html").read_text(encoding="utf-8")


def test_the_melody_comes_out_of_the_noise(auto):
    _, folder, _ = auto
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["recipe"] == "auto"
    assert metrics["si_sdr_improvement"] > 3


def test_the_checkpoint_is_enough_and_holds_no_code(auto, tmp_path):
    song, folder, _ = auto
    mixture, sample_rate = read_audio(song.mixture)
    # As many NumPy threads as in the run: others round differently, which bfloat16 magnifies.
    with threadpool_limits(1):
        target, residual = load_separator(folder / "checkpoints" / "last.ckpt").separate(
            mixture, sample_rate
        )
    np.testing.assert_allclose(target, read_audio(folder / "target.wav")[0], atol=1e-6)
    np.testing.assert_allclose(target + residual, mixture, atol=1e-6)
    assert (
        cli.main(
            [
                "apply",
                str(folder / "checkpoints" / "last.ckpt"),
                str(song.mixture),
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    (stem,) = (read_audio(file)[0] for file in tmp_path.rglob("*target*.wav"))
    np.testing.assert_array_equal(stem, read_audio(folder / "target.wav")[0])


def test_the_reference_is_for_metrics_only_and_a_run_goes_on(auto, run_train, tmp_path):
    song, folder, _ = auto
    files = [
        "song=custom",
        f"song.mixture={song.mixture}",
        f"song.target.score={song.score}",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    result = run_train(*AUTO, *files, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "target.wav").read_bytes() == (folder / "target.wav").read_bytes()
    again = run_train(*AUTO, *files, "ckpt=last", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "target.wav").read_bytes() == (folder / "target.wav").read_bytes()


def test_the_default_separates_without_training_and_can_be_trained_later(auto, run_train, tmp_path):
    song, _, _ = auto
    files = ["song=custom", f"song.mixture={song.mixture}", f"song.target.score={song.score}"]
    files += [f"song.reference={song.reference}", "trainer=cpu", "logger=none"]
    files += ["hydra.run.dir=run", "data.segment_seconds=1", "data.workers=0"]
    result = run_train("recipe=auto", *files, "aug=heavy", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (warning,) = json.loads((tmp_path / "run" / "metrics.json").read_text())["warnings"]
    assert "aug=heavy" in warning
    assert "recipe=bespoke" in warning
    facts = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert facts["steps"] == 0
    assert facts["si_sdr_improvement"] > 3
    assert not {"train", "render", "estimate"} & facts["seconds"].keys()
    assert "0 steps" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    target = (tmp_path / "run" / "target.wav").read_bytes()
    mixture, sample_rate = read_audio(song.mixture)
    with threadpool_limits(1):
        separator = load_separator(tmp_path / "run" / "checkpoints" / "last.ckpt")
        found = separator.separate(mixture, sample_rate)[0]
    np.testing.assert_allclose(found, read_audio(tmp_path / "run" / "target.wav")[0], atol=1e-6)
    result = run_train(
        "recipe=auto", *files, "aug=heavy", "ckpt=last", "trainer.max_steps=2", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    facts = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert facts["steps"] == 2
    assert "aug=heavy" not in str(facts["warnings"])
    assert (tmp_path / "run" / "target.wav").read_bytes() != target


def test_a_score_that_is_said_to_be_in_time_keeps_its_times(auto, run_train, tmp_path):
    song, _, _ = auto  # its score is too slow, and stays so
    files = [f"song.mixture={song.mixture}", f"song.target.score={song.score}", "hydra.run.dir=run"]
    result = run_train(*AUTO, "song=custom", *files, "align=given", "report=false", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (given,), (used,) = (
        read_score(path) for path in (song.score, tmp_path / "run" / "aligned.mid")
    )
    assert [note.start_seconds for note in used.notes] == pytest.approx(
        [note.start_seconds for note in given.notes if note.start_seconds < 3], abs=0.002
    )
    facts = json.loads((tmp_path / "run" / "metrics.json").read_text())["alignment"]
    assert (facts["used"], facts["tempo_factor"], facts["confidence"]) == (True, 1.0, 1.0)


def test_a_score_that_does_not_fit_ends_with_a_warning_and_without_its_times(
    auto, run_train, tmp_path
):
    song, _, _ = auto
    rng = np.random.default_rng(0)
    wrong = tuple(
        Note(index * 0.21, index * 0.21 + 0.1, int(pitch))
        for index, pitch in enumerate(rng.integers(40, 80, 14))
    )
    write_midi(tmp_path / "wrong.mid", [Part("Wrong", 80, False, wrong)])
    files = [f"song.mixture={song.mixture}", "song.target.score=wrong.mid", "hydra.run.dir=run"]
    result = run_train(*AUTO, "song=custom", *files, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    facts = json.loads((tmp_path / "run" / "metrics.json").read_text())["alignment"]
    assert facts["confidence"] < 0.5
    assert "fit" in result.stdout.lower()
    assert facts["used"] == (tmp_path / "run" / "aligned.mid").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["song.target.score=null", "song.target.audio=target.wav"], "needs a score"),
        (["align=false"], "align=true"),
        (["align=false", "model=blstm", "separate.resolutions=[1.0,1.25]"], "separate.resolutions"),
        (["align=false", "model=blstm", "separate.resolutions=[1.0]"], "align=true"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(
    auto, run_train, tmp_path, overrides, words
):
    song, _, _ = auto
    shutil.copy(song.reference, tmp_path / "target.wav")
    files = [f"song.mixture={song.mixture}", f"song.target.score={song.score}", "hydra.run.dir=run"]
    result = run_train(*AUTO, "song=custom", *files, *overrides, cwd=tmp_path)
    assert result.returncode == 2
    assert words in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "target.wav").exists()


def test_the_weights_are_plain(auto):
    checkpoint = torch.load(auto[1] / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["separate"]["notes"][0][2] == MELODY[0].pitch


@pytest.fixture(scope="module")
def together(run_train, tmp_path_factory):
    """A run of two instruments, whose score has both, a doubled track, drums and a stranger."""
    folder, rng = tmp_path_factory.mktemp("together"), np.random.default_rng(0)

    def line(low, seconds):
        starts = np.arange(0.5, 9.0, seconds)
        return tuple(
            Note(start, start + 0.9 * seconds, int(low + rng.choice([0, 2, 4, 5, 7, 9])))
            for start in starts.tolist()
        )

    lead, bass, stranger = line(67, 0.5), line(48, 0.75), line(61, 0.6)
    waveforms = [render(part, Patch(program))[0] for part, program in ((lead, 80), (bass, 33))]
    mixture = sum(np.pad(0.3 * w / np.abs(w).max(), (0, 480_000 - len(w))) for w in waveforms)
    write_wav(folder / "mix.wav", mixture[None, ::2].astype(np.float32), SYNTH_RATE // 2)
    parts = [("Lead", 80, lead), ("Bass", 33, bass), ("Double", 81, lead), ("Other", 0, stranger)]
    parts = [Part(name, program, False, notes) for name, program, notes in parts]
    write_midi(folder / "band.mid", [*parts, Part("Drums", 0, True, (Note(1.0, 1.1, 38),))])
    result = run_train(
        *AUTO,
        "song=custom",
        f"song.mixture={folder / 'mix.wav'}",
        f"song.target.score={folder / 'band.mid'}",
        "song.target.instrument=Lead",
        f"hydra.run.dir={folder / 'run'}",
        "report=false",
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    return folder, result, bass


def test_the_other_parts_are_used_where_they_play_and_are_told_apart(together):
    folder, result, bass = together
    facts = json.loads((folder / "run" / "metrics.json").read_text())["alignment"]
    assert {part["name"]: part["used"] for part in facts["others"]} == {
        "Bass": True,
        "Other": False,
    }
    assert "that are used: Bass." in result.stderr + result.stdout
    assert "double the target: Double." in result.stderr + result.stdout
    separator = load_separator(folder / "run" / "checkpoints" / "last.ckpt")
    (other,) = separator.others
    assert [note.pitch for note in other] == [note.pitch for note in bass]
    assert [note.start_seconds for note in other] == pytest.approx(
        [note.start_seconds for note in bass], abs=0.08
    )


def test_the_command_applies_a_network_with_the_other_parts(together):
    folder, _, _ = together
    checkpoint, song = str(folder / "run" / "checkpoints" / "last.ckpt"), str(folder / "mix.wav")
    out = folder / "applied"
    command = ["apply", checkpoint, song, str(folder / "band.mid"), "--instrument", "Lead"]
    assert cli.main([*command, "--out", str(out)]) == 0
    stem, expected = (
        read_audio(file)[0] for file in (out / "mix.target.wav", folder / "run/target.wav")
    )
    assert si_sdr(stem, expected) > 20
