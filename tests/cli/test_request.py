"""Requests: their results, what they do not repeat, and what they do not overwrite."""

import base64
import errno
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from bespoke.audio.io import read_audio, write_wav
from bespoke.audio.stft import STFT
from bespoke.cli import train
from bespoke.cli.app import main
from bespoke.cli.launch import setting
from bespoke.data.song import Song
from bespoke.evaluation.report.song_page import write_song_page
from bespoke.models.losses import TPSALoss
from bespoke.models.networks import MaskBLSTM
from bespoke.models.separator import load_separator
from bespoke.score.midi import Note, Part, choose_part, read_score, write_midi
from bespoke.training import preflight
from bespoke.training.system import BespokeSystem
from bespoke.utils.files import write_json
from conftest import MELODY

pytestmark = pytest.mark.slow  # whole runs


LOW = (Note(0.1, 0.8, 40), Note(0.9, 1.6, 43), Note(1.7, 2.5, 36))
WAV = ["song.target.wav", "song.residual.wav", "song.report.html"]


@pytest.fixture
def bespoke(tiny_song, tmp_path, monkeypatch, capsys):
    """Run the command in a folder with `song.wav` and `melody.mid`, with untrained networks.

    Returns exit code, lines of stdout, and stderr. `runs` lists the runs that were started.
    """
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(tiny_song.mixture, "song.wav")
    shutil.copyfile(tiny_song.score, "melody.mid")
    write_midi("band.mid", [Part("Lead Guitar", 29, False, MELODY), Part("Bass", 33, False, LOW)])

    def fake(arguments):
        values = dict(argument.split("=", 1) for argument in arguments)
        folder = Path(values.pop("hydra.run.dir").strip("'"))
        run.began.append(folder.name)
        cfg = train.compose(
            [
                argument
                for argument in arguments
                if not argument.startswith(("hydra.run.dir", "ckpt"))
            ]
        )
        song = Song.load(OmegaConf.to_container(cfg.song, resolve=True), 22050)
        stft = STFT(16000)
        torch.manual_seed(cfg.seed)
        system = BespokeSystem(stft, MaskBLSTM(stft.bins, 8, 1), TPSALoss(), torch.optim.Adam)
        torch.nn.init.constant_(system.model.linear.bias, 2.0)  # most of the recording
        checkpoint = folder / "checkpoints" / "last.ckpt"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "state_dict": system.state_dict(),
                "hyper_parameters": dict(system.hparams),
                "global_step": 3,
            },
            checkpoint,
        )
        preflight.write_config(cfg, folder, song.hashes)
        load_separator(checkpoint).write_stems(
            song.source, folder / "target.wav", folder / "residual.wav"
        )
        write_midi(
            folder / "aligned.mid",
            [choose_part(read_score(cfg.song.target.score), cfg.song.target.instrument)],
        )
        alignment = {"confidence": 0.9, "used": True, "tempo_factor": 1.0, "offset_seconds": 0.0}
        metrics = {
            "song": song.name,
            "steps": 3,
            "seconds": {"total": 1.0},
            "device": "cpu",
            "alignment": alignment,
        }
        write_json(folder / "metrics.json", {**metrics, "warnings": ["song.excerpt is short"]})
        (folder / "report.html").write_text(f"the run's page of {folder.name}")

    monkeypatch.setattr(train, "train", fake)

    def fake_parts(overrides, folder, parts):
        for label, settings in parts.items():
            own = [setting(*item) for item in settings.items()]
            fake([*own, *overrides, setting("hydra.run.dir", folder / label)])
        return []

    monkeypatch.setattr(train, "train_parts", fake_parts)

    def run(*arguments, score="melody.mid"):
        capsys.readouterr()
        run.began = []
        code = main(["separate", "song.wav", score, "--quality=quick", "--device=cpu", *arguments])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


def state(*names):
    """What the files hold and when they were written."""
    return {name: (Path(name).read_bytes(), os.stat(name).st_mtime_ns) for name in names}


def links(page):
    """The addresses in a page that are neither inside it nor on the network, as paths."""
    found = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.extend(value for name, value in attributes if name in ("href", "src"))

    Links().feed(page.read_text(encoding="utf-8"))
    return [unquote(link) for link in found if not link.startswith(("data:", "http"))]


def lanes(page):
    """Tracks of a page: samples of the channel mean at 48 kHz, and the notes drawn over them."""
    [data] = re.findall(
        r'class="player-data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL
    )
    played = {}
    for lane in json.loads(data)["lanes"]:
        if lane["audio"]:
            samples, rate = soundfile.read(
                io.BytesIO(base64.b64decode(lane["audio"].partition(",")[2])), always_2d=True
            )
            assert rate == 48000
            played[lane["name"]] = (
                samples.mean(axis=1),
                lane["score"].count("M"),
                lane["together"],
            )
    return played


def level_db(signal):
    return 10 * np.log10(np.mean(np.square(signal)))


def test_one_part_has_a_page_whose_links_work_from_where_it_lies(bespoke, tmp_path):
    code, out, err = bespoke()
    assert (code, out) == (0, WAV), err
    page = tmp_path / "song.report.html"
    found = links(page)
    assert {
        "song.target.wav",
        "song.residual.wav",
        "song.bespoke/metrics.json",
        "song.bespoke/report.html",
    } <= {*found}
    assert [link for link in found if not (page.parent / link).is_file()] == []
    played = lanes(page)
    assert [*played] == ["Recording", "Target", "Residual", "Score"]
    assert {name for name, (_, _, together) in played.items() if together} == {"Target", "Residual"}
    for name, file in {
        "Recording": "song.wav",
        "Target": "song.target.wav",
        "Residual": "song.residual.wav",
    }.items():
        assert level_db(played[name][0]) == pytest.approx(level_db(read_audio(file)[0]), abs=0.2)
    assert played["Target"][1] == 3  # notes
    text = page.read_text()
    assert "0:00 to 0:02" in text  # where it plays
    assert "--start and --end is short" in text  # a run's warning, in a musician's words


def test_all_parts_have_one_page_that_plays_them_as_delivered(bespoke, tmp_path):
    (tmp_path / "my music #1").mkdir()
    code, out, err = bespoke("--instrument=all", "--out=my music #1", score="band.mid")
    folder = tmp_path / "my music #1"
    names = ["song.lead-guitar.wav", "song.bass.wav", "song.residual.wav", "song.report.html"]
    assert (code, out) == (0, [os.path.join("my music #1", name) for name in names]), err
    assert sorted(file.name for file in folder.iterdir() if file.is_file()) == sorted(names)
    found = links(folder / "song.report.html")
    assert {
        "song.bass.wav",
        "song.bespoke-parts/bass/report.html",
        "song.bespoke-parts/lead-guitar/metrics.json",
    } <= {*found}
    assert [link for link in found if not (folder / link).is_file()] == []
    played = lanes(folder / "song.report.html")
    assert [*played] == ["Recording", "lead-guitar", "bass", "Residual"]
    assert [notes for _, notes, _ in played.values()] == [0, 3, 3, 0]
    for name, file in zip(["lead-guitar", "bass", "Residual"], names, strict=False):
        assert level_db(played[name][0]) == pytest.approx(
            level_db(read_audio(folder / file)[0]), abs=0.2
        )
    # Each run took most of the recording: what they share is less, and that is what is heard.
    unshared = level_db(read_audio(folder / "song.bespoke-parts" / "bass" / "target.wav")[0])
    assert level_db(played["bass"][0]) < unshared - 3


def test_several_parts_with_commas_are_one_stem(bespoke):
    code, out, err = bespoke("--instrument=lead,bass", score="band.mid")
    assert (code, out[:2]) == (0, ["song.target.wav", "song.residual.wav"]), err
    assert "Lead Guitar, Bass (" in err
    assert "6 notes" in err
    notes = read_score(Path("song.bespoke", "aligned.mid"))[0].notes
    assert {note.pitch for note in notes} == {note.pitch for note in (*MELODY, *LOW)}
    several = ["--instrument=lead,bass", "--instrument=bass"]
    code, out, err = bespoke(*several, score="band.mid")
    assert (code, "song.report.html" in err) == (2, True)  # which is of the one part
    code, out, err = bespoke(*several, "--force", score="band.mid")
    assert (code, out[:2]) == (0, ["song.lead-guitar-bass.wav", "song.bass.wav"]), err


def test_a_page_plays_stems_as_soft_as_they_were_delivered(bespoke, tmp_path):
    bespoke()
    sources = {name: Path(f"song.bespoke/{name}.wav") for name in ("target", "residual")}
    write_song_page(
        tmp_path / "page.html", "song", sources, sources, {"target": Path("song.bespoke")}, gain=0.5
    )
    for name, (played, *_) in list(lanes(tmp_path / "page.html").items())[1:3]:
        assert level_db(played) == pytest.approx(
            level_db(0.5 * read_audio(sources[name.lower()])[0]), abs=0.2
        )


def test_another_format_is_written_at_once_and_nothing_else_is_touched(bespoke, tmp_path):
    bespoke()
    before = state(*WAV)
    code, out, err = bespoke("--format=flac")
    assert (code, out) == (0, ["song.target.flac", "song.residual.flac", "song.report.html"]), err
    assert bespoke.began == []
    assert state(*WAV) == before
    assert read_audio("song.target.flac")[0] == pytest.approx(
        read_audio("song.target.wav")[0], abs=2e-7
    )


@pytest.mark.parametrize("arguments", [[], ["--instrument=all"]])
def test_the_same_again_is_done_already(bespoke, arguments):
    _, out, _ = bespoke(*arguments, score="band.mid" if arguments else "melody.mid")
    before = state(*out)
    code, again, err = bespoke(*arguments, score="band.mid" if arguments else "melody.mid")
    assert (code, again, bespoke.began) == (0, out, [])
    assert "done already" in err
    assert state(*out) == before


def test_a_page_that_is_gone_or_whose_links_are_dead_is_made_again_without_training(bespoke):
    for arguments, score in (([], "melody.mid"), (["--instrument=all"], "band.mid")):
        _, out, _ = bespoke(*arguments, score=score)
        stems = state(*out[:-1])
        os.remove("song.report.html")
        assert bespoke(*arguments, score=score)[:2] == (0, out)
        assert bespoke.began == []
        assert lanes(Path("song.report.html"))
        assert state(*out[:-1]) == stems
        for file in out:
            os.remove(file)
    bespoke()
    bespoke("--format=flac")
    for name in WAV[:2]:
        os.remove(name)
    assert bespoke("--format=flac")[0] == 0
    assert {"song.target.flac", "song.residual.flac"} <= {*links(Path("song.report.html"))}


def test_what_is_not_ours_or_was_changed_is_not_overwritten_without_force(bespoke):
    Path("song.residual.wav").write_text("mine")
    code, _, err = bespoke()
    assert (code, bespoke.began) == (2, [])
    assert (
        "song.residual.wav is already there: choose another --out, or replace with --force" in err
    )
    assert not Path("song.bespoke").exists()
    os.remove("song.residual.wav")
    bespoke()
    write_wav(
        "song.target.wav", 0.5 * read_audio("song.target.wav")[0], 22050
    )  # as an editor does that replaces the file
    before = state(*WAV)
    code, _, err = bespoke()
    assert (code, "song.target.wav is already there (song.target.wav changed since" in err) == (
        2,
        True,
    )
    assert state(*WAV) == before
    assert bespoke("--format=flac")[0] == 0  # which it is not in the way of
    assert state(*WAV) == before
    code, out, _ = bespoke("--force")
    assert (code, out, bespoke.began) == (0, WAV, [])
    assert os.path.samefile("song.target.wav", "song.bespoke/target.wav")
    assert state("song.target.wav") != {name: before[name] for name in WAV[:1]}


def test_a_page_that_was_changed_is_left_alone(bespoke):
    bespoke()
    with open("song.report.html", "a") as page:
        page.write("<!-- mine -->")
    before = state(*WAV)
    assert bespoke("--format=flac")[0] == 0
    assert state(*WAV) == before


def test_force_starts_over_where_something_changed_and_only_there(bespoke):
    bespoke()
    first = state("song.target.wav", "song.bespoke/target.wav")
    assert bespoke("--force")[0] == 0
    assert bespoke.began == []
    assert Path("song.target.wav").read_bytes() == first["song.target.wav"][0]
    code, _, err = bespoke("--seed=1")
    assert (code, bespoke.began, "seed: 0 there, 1 now" in err) == (2, [], True)
    assert bespoke("--seed=1", "--force")[0] == 0
    assert bespoke.began == ["song.bespoke"]
    assert Path("song.target.wav").read_bytes() != first["song.target.wav"][0]
    assert bespoke("--seed=1")[0] == 0
    assert bespoke.began == []
    # What train.py made is nobody's to replace.
    os.remove("song.bespoke/inputs.json")
    before = state("song.bespoke/target.wav")
    code, _, err = bespoke("--seed=2", "--force")
    assert (code, "choose another --out" in err, "--force" in err.splitlines()[-1]) == (
        2,
        True,
        False,
    )
    assert state("song.bespoke/target.wav") == before


def test_a_stem_and_the_runs_own_are_one_file_where_that_can_be(bespoke, monkeypatch):
    bespoke()
    for name in ("target", "residual"):
        assert os.path.samefile(f"song.{name}.wav", f"song.bespoke/{name}.wav")

    def link(source, destination):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    assert bespoke("--out=elsewhere")[0] == 0
    for name in ("target", "residual"):
        final, own = Path(f"elsewhere/song.{name}.wav"), Path(f"elsewhere/song.bespoke/{name}.wav")
        assert final.read_bytes() == own.read_bytes()
        assert not os.path.samefile(final, own)
    assert not list(Path("elsewhere").glob(".*"))


def test_a_stem_that_is_edited_in_place_is_no_source_for_another(bespoke):
    bespoke()
    made = read_audio("song.target.wav")[0]
    with open("song.target.wav", "r+b") as file:  # which is the run's own too
        file.seek(1000)
        file.write(bytes(40000))
    edited = state("song.target.wav")
    assert not np.array_equal(read_audio("song.bespoke/target.wav")[0], made)
    code, _, err = bespoke("--format=flac")
    assert (code, bespoke.began, "changed since they were made" in err) == (0, [], True)
    assert read_audio("song.target.flac")[0] == pytest.approx(made, abs=2e-7)
    assert np.array_equal(read_audio("song.bespoke/target.wav")[0], made)
    assert state("song.target.wav") == edited
    assert bespoke()[0] == 2  # it is the user's now
    assert bespoke("--force")[0] == 0
    assert np.array_equal(read_audio("song.target.wav")[0], made)


def test_what_an_earlier_version_left_is_known_as_ours(bespoke):
    bespoke()
    for name in ("stems.json", "published.json"):
        os.remove(f"song.bespoke/{name}")
    shutil.copyfile("song.bespoke/report.html", "song.report.html")  # as it was published then
    code, out, err = bespoke()
    assert (code, out, bespoke.began) == (0, WAV, []), err
    assert [link for link in links(Path("song.report.html")) if not Path(link).is_file()] == []


def test_a_run_whose_stems_were_deleted_makes_them_again_without_training(bespoke):
    bespoke()
    made = Path("song.target.wav").read_bytes()
    for name in ("target", "residual"):
        os.remove(f"song.bespoke/{name}.wav")
    assert bespoke()[0] == 0  # nothing is wanting
    assert not Path("song.bespoke/target.wav").exists()
    assert bespoke("--format=flac")[0] == 0
    assert bespoke.began == []
    assert Path("song.bespoke/target.wav").read_bytes() == made
