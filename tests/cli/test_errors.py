"""Errors of users: one sentence that names problem and remedy, exit code 2, and no results.

Most commands run in this process through train.py's `main`, which is faster; some run in a new one.
"""

import copy
import dataclasses
import errno
import json
import logging
import re
import resource
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from bespoke.audio import dsp
from bespoke.audio.io import read_audio, write_wav
from bespoke.cli import app, train
from bespoke.data.song import Song
from bespoke.models import separator
from bespoke.models.separator import load_separator
from bespoke.score import synth
from bespoke.score.midi import Note, Part, write_midi
from bespoke.training import build, preflight
from bespoke.utils.errors import BespokeError
from conftest import ROOT

pytestmark = pytest.mark.slow  # each composes a config

TRAIN = ROOT / "train.py"
NOTES = (Note(0.0, 0.5, 60), Note(0.5, 1.0, 64))


@dataclasses.dataclass
class Result:
    """What a command left: its exit code, what it printed, and its folder."""

    returncode: int
    stdout: str
    stderr: str
    folder: Path | None = None

    @property
    def error(self):
        """The one sentence, if that is all there is on stderr."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("error: ")
        assert "Traceback" not in self.stdout + self.stderr
        assert self.returncode == 2
        return lines[0].removeprefix("error: ")

    @property
    def results(self):
        """The names under which a run leaves results, and half-written files."""
        names = [path.name for path in self.folder.rglob("*")] if self.folder.is_dir() else []
        return [name for name in names if name in preflight.RESULTS or name.startswith(".")]


@pytest.fixture
def command(tiny_song, tmp_path, monkeypatch, capfd):
    """Run `python train.py OVERRIDES` for the tiny song, in this process, in an empty folder."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def execute(*overrides):
        given = [str(override) for override in overrides]
        folder = next(
            (
                given_one.split("=", 1)[1]
                for given_one in given
                if given_one.startswith("hydra.run.dir=")
            ),
            "out",
        )
        monkeypatch.setattr(
            sys, "argv", ["train.py", *tiny_song.overrides, f"hydra.run.dir={folder}", *given]
        )
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(TRAIN), run_name="__main__")
        return Result(caught.value.code, *capfd.readouterr(), tmp_path / folder)

    yield execute
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def files(tmp_path):
    """What users have given to programs like this one."""
    tone = 0.1 * np.sin(np.arange(22050) / 10)[None]
    sounds = {"empty": tone[:, :0], "silent": 0 * tone, "nan": np.nan * tone, "short": tone}
    for name, waveform in sounds.items():
        write_wav(tmp_path / f"{name}.wav", waveform, 22050)
    band = [
        Part("Lead Guitar", 29, False, NOTES),
        Part("Rhythm Guitar", 25, False, NOTES),
        Part("", 0, True, NOTES),
    ]
    write_midi(tmp_path / "band.mid", band)
    write_midi(tmp_path / "rest.mid", [])
    whole = (tmp_path / "band.mid").read_bytes()
    contents = {
        "text.wav": b"la la la",
        "text.mid": b"C major",
        "random.mid": np.random.default_rng(0).bytes(1000),
        "truncated.mid": whole[: len(whole) // 2],
        "text.sf2": b"strings",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


LISTING = (
    "0: Lead Guitar (Overdriven Guitar, 2 notes); "
    "1: Rhythm Guitar (Acoustic Guitar (steel), 2 notes); 2: unnamed (Drums, 2 notes)"
)
WRONG = {
    "a path that needs quotes": (
        ["song.mixture=My Song (live) = 1.mp3"],
        ["song.mixture=My Song (live) = 1.mp3", "quotes of its own"],
    ),
    "recording missing": (
        ["song.mixture=nosuch.wav"],
        ["recording nosuch.wav does not exist", "check the path"],
    ),
    "recording not given": (["song.mixture=???"], ["needs a recording", "set song.mixture"]),
    "recording is no audio": (
        ["song.mixture=text.wav"],
        ["recording text.wav cannot be read as audio", "convert it to WAV"],
    ),
    "recording is empty": (["song.mixture=empty.wav"], ["recording empty.wav is empty"]),
    "recording is silent": (["song.mixture=silent.wav"], ["recording silent.wav is silent"]),
    "recording is NaN": (
        ["song.mixture=nan.wav"],
        ["recording nan.wav contains NaN", "export it again"],
    ),
    "score missing": (
        ["song.target.score=nosuch.mid"],
        ["score nosuch.mid does not exist", "check the path"],
    ),
    "score is text": (
        ["song.target.score=text.mid"],
        ["score text.mid cannot be read as MIDI", "export it again"],
    ),
    "score is random": (
        ["song.target.score=random.mid"],
        ["score random.mid cannot be read as MIDI"],
    ),
    "score is truncated": (
        ["song.target.score=truncated.mid"],
        ["score truncated.mid cannot be read as MIDI (it ends too early)"],
    ),
    "score without notes": (
        ["song.target.score=rest.mid"],
        ["score rest.mid has no notes", "export the part"],
    ),
    "instrument not chosen": (
        ["song.target.score=band.mid"],
        ["has several instruments", "set song.target.instrument", LISTING],
    ),
    "instrument ambiguous": (
        ["song.target.score=band.mid", "song.target.instrument=guitar"],
        ["has more than one instrument 'guitar'", "index:N", LISTING],
    ),
    "instrument not found": (
        ["song.target.score=band.mid", "song.target.instrument=oboe"],
        ["has no instrument 'oboe'", LISTING],
    ),
    "soundfont missing": (
        ["song.target.soundfonts=nosuch"],
        ["soundfont nosuch was not found", "BESPOKE_SOUNDFONTS"],
    ),
    "soundfont is none": (
        ["song.target.soundfonts=[text.sf2]"],
        ["text.sf2 is not a soundfont", "SF2 or SF3"],
    ),
    "patch missing": (
        ["song.target.patches=[{program:0,bank:7}]"],
        ["TimGM6mb.sf2 has no patch 0 in bank 7", "choose"],
    ),
    "patch beyond 127": (
        ["song.target.patches=[128]"],
        ["128 is not a General MIDI program", "from 0 to 127"],
    ),
    "score and audio": (
        ["song.target.audio=short.wav"],
        ["exactly one of song.target.score", "song.target.audio"],
    ),
    "neither score nor audio": (
        ["song.target.score=null"],
        ["exactly one of song.target.score", "song.target.audio"],
    ),
    "reference of another length": (
        ["song.reference=short.wav"],
        ["reference short.wav (22050 samples", "export both"],
    ),
    "excerpt outside": (["song.excerpt=[5,6]"], ["song.excerpt [5, 6]", "3.0 seconds"]),
    "synth background without others": (
        ["background=synth"],
        ["background=synth needs the other parts", "song.others"],
    ),
    "audio background without files": (
        ["background=audio"],
        ["background=audio found no audio", "set background.paths"],
    ),
    "audio background missing": (
        ["background=audio", "background.paths=[nosuch]"],
        ["background nosuch does not exist"],
    ),
    "mixed background of nothing": (
        ["background=mixed", "background.weights.mixture=x"],
        ["background.weights must be numbers"],
    ),
    "unknown key": (["trainr.max_steps=3"], ["trainr.max_steps"]),
    "unknown setting": (["trainer.max_stepz=3"], ["trainer.max_stepz"]),
    "unknown song": (["song=nosuch"], ["song=nosuch", "feelings"]),
    "unknown policy": (["aug=nosuch"], ["aug=nosuch", "heavy"]),
    "half an override": (["trainer.max_steps"], ["trainer.max_steps"]),
    "no steps": (["trainer.max_steps=0"], ["trainer.max_steps=0"]),
    "keep what is not known": (["keep=first"], ["keep=first is not possible", "last or best"]),
    "keep the best of no curve": (["keep=best"], ["keep=best", "set curve_steps"]),
    "keep the best without a score": (
        ["keep=best", "curve_steps=1", "song.target.score=null", "song.target.audio=short.wav"],
        ["keep=best needs a score", "keep=last"],
    ),
    "no run to continue": (["ckpt=last"], ["no run to continue in", "out", "hydra.run.dir"]),
    "checkpoint as a file": (["ckpt=other.ckpt"], ["ckpt=other.ckpt is not known", "ckpt=last"]),
    "song that runs code": (
        ["+song.target.evil._target_=bespoke.models.networks.MaskBLSTM"],
        ["song.target.evil._target_", "not allowed"],
    ),
    "model that runs code": (
        ["model._target_=os.system"],
        ["model._target_=os.system is not allowed"],
    ),
    "setting that runs code": (
        ["+loss.evil._target_=torch.hub.load"],
        ["loss.evil._target_=torch.hub.load is not allowed"],
    ),
    "interpolation that runs code": (
        ["+loss.evil='${oc.create:{_target_:builtins.print}}'"],
        ["builtins.print is not allowed"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_one_sentence_names_the_thing_and_the_remedy(wrong, command, files):
    overrides, words = WRONG[wrong]
    result = command(*overrides)
    assert [word for word in words if word not in result.error] == [], result.error
    assert result.results == []


QUICK, AUTO = ["recipe=quick", "model.hidden_size=8"], ["recipe=auto"]
MIXED = [*QUICK, "background=mixed", "background.weights.synth=0", "song.others=null"]
NOISE = "+aug.target.x._target_=audiomentations.AddBackgroundNoise"
LOW = "+aug.target.x._target_=audiomentations.LowPassFilter"
# What no run can be made of, by what it is set on; the first is what the sentence has to name.
SETTINGS = [
    (QUICK, ["seed=abc", "seed=-1", "seed=1.5", "seed=99999999999", "seed=nan"]),
    (
        QUICK,
        [
            "checkpoint_steps=0",
            "curve_steps=-1",
            "log_audio_steps=abc",
            "align=maybe",
            "report=1",
            "keep=first",
            "keep=best",
        ],
    ),
    (
        QUICK,
        [
            "optimizer.lr=-1",
            "optimizer.lr=nan",
            "optimizer.lr=inf",
            "optimizer.lr=fast",
            "optimizer.lr=[1]",
            "optimizer.lr=true",
        ],
    ),
    (
        QUICK,
        [
            "+optimizer.momentum=0.9",
            "+optimizer.betas=0.9",
            "+optimizer.betas=[2,2]",
            "+optimizer.fused=true +optimizer.foreach=true",
        ],
    ),
    (
        AUTO,
        [
            "aug.target_gain_db=5",
            "aug.target_gain_db=[5]",
            "aug.target_gain_db=[1,2,3]",
            "aug.target_gain_db=[6,-12]",
        ],
    ),
    (
        QUICK,
        [
            "aug.background_gain_db=null",
            "aug.background_gain_db=[a,b]",
            "aug.background_gain_db=[0,5000]",
            "+aug.volume=3",
        ],
    ),
    (
        QUICK,
        [
            "aug.compressor.ratios=5",
            "aug.compressor.ratios=[0.5]",
            "aug.compressor.ratios=[a]",
            "aug.compressor=soft",
        ],
    ),
    (
        QUICK,
        [
            "aug.compressor.attack_ms=-5",
            "aug.compressor.release_ms=nan",
            "aug.compressor.knee_db=abc",
            "+aug.compressor.hold_ms=3",
        ],
    ),
    (
        AUTO,
        [
            "aug.target=5",
            "aug.target.eq=3",
            "aug.target.eq.p=2",
            "aug.target.eq.p=often",
            "aug.target.eq.min_gain_db=20",
        ],
    ),
    (
        AUTO,
        [
            "aug.target.reverb.max_decay_seconds=-3",
            "aug.target.reverb.max_decay_seconds=1e9",
            "aug.target.reverb.max_wet_db=nan",
        ],
    ),
    (
        QUICK,
        [
            f"{NOISE} +aug.target.x.sounds_path=/nosuch",
            NOISE,
            f"{LOW} +aug.target.x.min_cutoff_freq=low",
        ],
    ),
    (
        QUICK,
        [
            "trainer.devices=0",
            "trainer.devices=100000",
            "trainer.devices=some",
            "trainer.accelerator=tpu",
            "trainer.accelerator=abc",
        ],
    ),
    (
        QUICK,
        [
            "trainer.precision=17",
            "+trainer.strategy=abc",
            "+trainer.strategy=fsdp",
        ],
    ),
    (
        QUICK,
        [
            "trainer.gradient_clip_val=-1",
            "trainer.accumulate_grad_batches=0",
            "trainer.log_every_n_steps=-1",
            "trainer.max_steps=0",
        ],
    ),
    (
        QUICK,
        [
            "trainer.val_check_interval=0",
            "trainer.check_val_every_n_epoch=1 trainer.max_steps=3",
            "trainer.val_check_interval=1.5",
            "trainer.num_sanity_val_steps=abc",
            "+trainer.nosuch=1",
        ],
    ),
    (
        QUICK,
        [
            "+trainer.limit_train_batches=2",
            "+trainer.limit_train_batches=0.5",
            "+trainer.overfit_batches=1",
            "+trainer.fast_dev_run=true",
            "+trainer.max_epochs=5",
            "+trainer.num_nodes=2",
            "+trainer.limit_predict_batches=1",
            "+trainer.use_distributed_sampler=false",
            "+trainer.logger=false",
            "+trainer.barebones=true",
        ],
    ),
    (
        QUICK,
        [
            "+trainer.max_time=soon",
            "+trainer.deterministic=abc",
            "+trainer.enable_checkpointing=false",
            "trainer._target_=os.system",
        ],
    ),
    (
        MIXED,
        [
            "background.weights.mixture=-1",
            "background.weights.mixture=nan",
            "background.weights.mixture=0",
            "background.weights=null",
        ],
    ),
    (
        MIXED,
        [
            "+background.weights.nosuch=1",
            "background.weights.audio=1",
            "background.weights.audio=1 background.audio.paths=[/nosuch]",
        ],
    ),
    (MIXED, ["background.weights.synth=1"]),
    (
        [*QUICK, "background=audio"],
        ["background.paths=[/nosuch]", "background.paths=[]", "background.paths=null"],
    ),
    ([*QUICK, "background=synth"], ["background.in_time=perhaps", "song.others=null"]),
    (
        QUICK,
        ["+background.nosuch=1", "background._target_=bespoke.data.background.ResidualBackground"],
    ),
    (
        QUICK,
        [
            "model.hidden_size=0",
            "model.hidden_size=abc",
            "model.hidden_size=1.5",
            "model.layers=-1",
            "model.dropout=2",
        ],
    ),
    (
        QUICK,
        [
            "+model.floor_db=5",
            "+model.nosuch=1",
            "model._target_=bespoke.models.networks.Path",
            "loss.distance=l3",
            "loss.distance=3",
        ],
    ),
    (
        AUTO,
        [
            "model.doubt_db=5",
            "model.doubt_db=[0,-4]",
            "model.doubt_db=[a,b]",
            "+loss.floor_db=5",
            "+loss.floor_db=abc",
            "align=false",
        ],
    ),
    (
        AUTO,
        ["aug._target_=bespoke.models.losses.TPSALoss", "model=null", "separate=null", "data=[1]"],
    ),
    (
        QUICK,
        [
            "stft.window_seconds=0",
            "stft.window_seconds=10",
            "stft.window_seconds=inf",
            "stft.hop_seconds=abc",
            "+stft.nosuch=1",
        ],
    ),
    (
        QUICK,
        [
            "data.sample_rate=0",
            "data.sample_rate=100",
            "data.sample_rate=1e9",
            "data.batch_size=0",
            "data.batch_size=1000000000",
        ],
    ),
    (
        QUICK,
        [
            "data.segment_seconds=nan",
            "data.silent_share=2",
            "data.listen_seconds=1",
            "data.label=damp",
            "+data.nosuch=1",
        ],
    ),
    (
        QUICK,
        [
            "data.workers=true",
            "data.workers=1000000",
            "data.validation_batches=1000000",
            "data.self_training=maybe",
        ],
    ),
    (
        QUICK,
        [
            "separate.overlap_seconds=100",
            "separate.block_seconds=abc",
            "separate.strength=0",
            "separate.strength=true",
        ],
    ),
    (
        QUICK,
        [
            "separate.resolutions=[1,2]",
            "separate.resolutions=1",
            "separate.panning=2",
            "+separate.nosuch=1",
        ],
    ),
    (
        [*QUICK, "logger=wandb"],
        [
            "logger.timeout_seconds=-1",
            "logger.timeout_seconds=abc",
            "logger.project=a/b",
            "logger.artifacts=maybe",
        ],
    ),
    (
        QUICK,
        [
            "callbacks=1",
            "callbacks.step_log=1",
            "callbacks.step_log.every_seconds=abc",
            "+callbacks.step_log.nosuch=1",
            "callbacks.step_log._target_=bespoke.training.callbacks.LossCurve",
            "callbacks.step_log._target_=torch.optim.Adam",
        ],
    ),
    (QUICK, ["callbacks=null curve_steps=1 keep=best", "curve_steps=true", "threads=0"]),
]


@pytest.fixture(scope="module")
def sentence(compose_config):
    """The error of a config with these overrides, of which Hydra checks only the first itself."""
    configs = {}

    def check(cfg):
        preflight.check(cfg)
        build.make_parts(cfg)

    def say(base, overrides):
        if str(base) not in configs:
            configs[str(base)] = compose_config(*base, "song=custom", "song.mixture=nosuch.wav")
        cfg = copy.deepcopy(configs[str(base)])
        for override in overrides:
            parsed = OverridesParser.create().parse_override(override)
            OmegaConf.update(cfg, parsed.key_or_group, parsed.value(), merge=False, force_add=True)
        with pytest.raises(BespokeError) as caught:
            check(cfg)
        return str(caught.value)

    return say


@pytest.mark.parametrize(("base", "wrongs"), SETTINGS, ids=[wrongs[0] for _, wrongs in SETTINGS])
def test_wrong_setting_is_named_with_its_remedy_before_the_song_is_read(base, wrongs, sentence):
    for wrong in wrongs:
        said = sentence(base, wrong.split())
        setting = wrong.lstrip("+").partition("=")[0].removesuffix("._target_")
        name = next(
            name
            for name in (setting, setting.rpartition(".")[0], setting.partition(".")[0])
            if name in said
        )
        assert name, said
        assert re.search(
            "give|set|check|change|choose|leave|takes|needs|must|at least|there|known|allowed", said
        ), said
        assert said.isprintable()
        assert len(said) < 500


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer=gpu"], ["trainer.accelerator=gpu", "trainer=cpu"]),
        (["optimizer.lr=-1"], ["optimizer.lr=-1", "from 0"]),
        (["aug.target_gain_db=5"], ["aug.target_gain_db=5", "give a list of 2"]),
        (["stft.hop_seconds=0"], ["stft", "hop"]),
        (["aug=null"], ["chosen by name"]),
        (["~logger"], ["logger=none"]),
        (["+trainer.limit_train_batches=2"], ["trainer.limit_train_batches=2", "max_steps"]),
        (["song.mixture='My ${song}.wav'"], ["song.mixture", r"\${...}"]),
        (["song.mixture='a ${b c}.wav'"], ["song.mixture", r"\${...}"]),
        (["song.name='${nosuch}'"], ["song.name", "nosuch", r"\${...}"]),
        (
            ["+aug.background.x={_target_:audiomentations.AddBackgroundNoise,sounds_path:nosuch}"],
            ["aug.background.x.sounds_path=nosuch does not exist"],
        ),
        (
            ["+aug.background.x={_target_:audiomentations.AddBackgroundNoise,sounds_path:[.]}"],
            ["aug.background.x.sounds_path=. has no sounds"],
        ),
    ],
)
def test_wrong_setting_ends_the_command(overrides, words, command, monkeypatch):
    def never(*_):
        raise AssertionError("the song was read")

    monkeypatch.setattr(Song, "load", never)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    result = command(*overrides)
    assert [word for word in words if word not in result.error] == [], result.error
    assert not result.folder.exists()


@pytest.mark.parametrize(
    "options", [["-m", "--cfg", "job"], ["--multirun", "--info"], ["--run", "-m"]]
)
def test_options_that_exclude_each_other_are_named(options, capsys):
    assert train.main(options) == 2
    assert capsys.readouterr().err.startswith("error: --cfg and --info show one run's config")


def test_package_that_a_transform_needs_is_named(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    room = "+aug.target.x={_target_:audiomentations.RoomSimulator,p:1.0}"
    error = command(room).error
    assert "aug.target.x needs pyroomacoustics" in error
    assert "pip install" in error


@pytest.mark.parametrize("name", ["BESPOKE_CACHE", "HOME"])
def test_cache_that_cannot_be_written_is_named(name, command, files, monkeypatch):
    monkeypatch.delenv("BESPOKE_CACHE")
    monkeypatch.setenv(name, str(files / "text.wav"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    error = command().error
    assert f"The cache {files / 'text.wav'}" in error
    assert "set BESPOKE_CACHE" in error


@pytest.mark.parametrize(
    "overrides",
    [
        [f"hydra.run.dir={'x' * 300}"],
        [
            "hydra.mode=MULTIRUN",
            f"song.name={'x' * 250}",
            "hydra.sweep.dir=sweep",
            "hydra.sweep.subdir=${hydra.job.override_dirname}",
        ],
    ],
)
def test_folder_name_that_is_too_long_is_explained(overrides, command):
    result = command(*overrides)
    assert result.returncode == 2
    error = result.stderr.splitlines()[-1]
    assert [word for word in ("too long", "255", "hydra.sweep.subdir") if word not in error] == []
    assert "Traceback" not in result.stderr
    assert len(error) < 400


def test_folder_that_hydra_would_take_for_a_setting_is_refused(command):
    result = command(r"hydra.run.dir='a \${song.name}'")
    assert "a ${song.name} has ${ in its name" in result.stderr
    assert result.returncode == 2


def test_relative_paths_are_from_where_the_command_started_whatever_hydra_does(
    command, tiny_song, tmp_path
):
    write_wav(tmp_path / "mine.wav", *read_audio(tiny_song.mixture))
    result = command("song.mixture=mine.wav", "hydra.job.chdir=True", "trainer.max_steps=1")
    assert result.returncode == 0, result.stderr
    assert (result.folder / "target.wav").is_file()
    assert Path.cwd() == tmp_path


def test_stems_are_made_of_what_was_trained_when_the_time_is_over(command):
    limit = ["+trainer.max_time={seconds: 1}", "trainer.max_steps=100000", "checkpoint_steps=10"]
    result = command(*limit)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert 0 < metrics["steps"] < 100_000
    assert any("trainer.max_time" in warning for warning in metrics["warnings"])
    before = (result.folder / "target.wav").read_bytes()
    result = command(*limit, "ckpt=last")  # there is no more time
    assert result.returncode == 0, result.stderr
    again = json.loads((result.folder / "metrics.json").read_text())
    assert (again["steps"], again["resumed_from_step"]) == (metrics["steps"], metrics["steps"])
    assert (result.folder / "target.wav").read_bytes() == before
    more = ["+trainer.max_time={milliseconds: 1100}", *limit[1:], "ckpt=last"]
    result = command(*more)  # which is no other config
    assert "another config" not in result.stderr


def test_time_that_is_over_before_the_first_step_is_named(command):
    error = command("+trainer.max_time=00:00:00:00").stderr.splitlines()[-1]
    assert "trainer.max_time=00:00:00:00" in error


def test_profile_is_written_into_the_runs_folder(command):
    result = command("+trainer.profiler=simple", "trainer.max_steps=1")
    assert result.returncode == 0, result.stderr
    (profile,) = result.folder.glob("*profile*")
    assert "run_training_batch" in profile.read_text()


def test_folder_of_a_run_that_failed_before_it_trained_can_be_used_again(command, monkeypatch):
    def fail(*_, **__):
        raise BespokeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("bespoke.training.logs.log_config", fail)
        assert "the disk is full" in command().stderr
    folder = command("seed=1", "trainer.max_steps=1").folder
    assert json.loads((folder / "metrics.json").read_text())["seed"] == 1
    assert "already has results" in command("seed=1").error


@pytest.mark.slow
def test_put_right_command_works_in_the_same_folder(command, tiny_song):
    assert command("song.mixture=nosuch.wav").returncode == 2
    result = command()
    assert result.returncode == 0, result.stderr
    assert {"target.wav", "residual.wav", "metrics.json", "config.yaml"} <= {
        path.name for path in result.folder.iterdir()
    }


@pytest.mark.slow
def test_results_are_never_overwritten(command):
    first = command()
    assert first.returncode == 0, first.stderr
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    second = command("seed=1")
    assert "already has results" in second.error
    assert "another hydra.run.dir" in second.error
    other = command("seed=1", "ckpt=last")
    assert "has another config (seed: 0 there, 1 now)" in other.error
    assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_no_fluidsynth_is_explained_and_a_rendered_target_needs_none(
    command, tiny_song, monkeypatch
):
    monkeypatch.setitem(sys.modules, "fluidsynth", None)
    synth._presets.cache_clear()
    result = command()
    assert "FluidSynth is not installed: apt install libfluidsynth3" in result.error
    assert result.results == []
    rendered = command(
        "song.target.score=null",
        f"song.target.audio={tiny_song.reference}",
        "hydra.run.dir=rendered",
    )
    assert rendered.returncode == 0, rendered.stderr


@pytest.fixture
def without_cuda(monkeypatch):
    """PyTorch as its CPU-only wheels have it, as far as Python sees."""
    monkeypatch.setattr(
        torch,
        "__version__",
        torch.torch_version.TorchVersion(f"{torch.__version__.partition('+')[0]}+cpu"),
    )
    monkeypatch.setattr(torch.version, "cuda", None)
    for name in [name for name in dir(torch._C) if name.startswith(("_cuda_", "_cudnn"))]:
        monkeypatch.delattr(torch._C, name)
    for name in ("_has_cuda", "_has_cudnn", "has_cuda", "has_cudnn"):
        monkeypatch.setattr(torch._C, name, False, raising=False)


@pytest.mark.slow
def test_pytorch_without_cuda_trains_and_separates(command, without_cuda, compose_config):
    assert not torch.cuda.is_available()
    with pytest.raises(AssertionError, match="not compiled with CUDA"):
        torch.zeros(1).cuda()
    result = command(
        "trainer.accelerator=auto", "trainer.precision=auto", "data.workers=auto", "curve_steps=3"
    )
    assert result.returncode == 0, result.stderr
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert (metrics["device"], metrics["precision"]) == ("cpu", "32-true")
    build.make_parts(compose_config("recipe=auto"))
    assert (
        "trainer.accelerator=gpu" in command("trainer.accelerator=gpu", "hydra.run.dir=gpu").error
    )
    with pytest.raises(BespokeError, match="no device cuda"):
        load_separator(result.folder / "checkpoints" / "last.ckpt", "cuda")
    assert (
        load_separator(
            result.folder / "checkpoints" / "last.ckpt", app._torch_device("auto")
        ).stft.window.device.type
        == "cpu"
    )
    with pytest.raises(BespokeError, match="no device cuda"):
        app._check_device("cuda")
    assert dsp.resample(np.ones((1, 441), np.float32), 44100, 22050).shape == (1, 221)


@pytest.mark.slow
def test_full_disk_leaves_no_half_stem(command, monkeypatch):
    def full(separators, recording, *_):
        part = next(iter(recording))
        yield [(part, part)]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(separator, "stream_together", full)
    result = command()
    assert (
        "residual.wav cannot be written (No space left on device): free some space" in result.error
    )
    assert {"target.wav", "residual.wav", "metrics.json"}.isdisjoint(result.results)
    assert not [name for name in result.results if name.startswith(".")]


def test_stems_that_the_disk_cannot_hold_are_not_begun(command, monkeypatch):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    result = command()
    assert "The stems need 0.5 MB" in result.error
    assert "has room for 0.1 MB: free some space" in result.error
    assert result.results == []


@pytest.mark.slow
def test_full_disk_leaves_no_half_checkpoint(command):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    command(
        "song.mixture=nosuch.wav", "hydra.run.dir=warm"
    )  # whatever is written once is written before the disk is full
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        result = command()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "last.ckpt cannot be written" in result.error
    assert [path.name for path in (result.folder / "checkpoints").iterdir()] == []


def test_folder_that_cannot_be_made_is_named(command, files):
    result = command("hydra.run.dir=text.wav/out")
    assert "text.wav/out" in result.error
    assert "hydra.run.dir" in result.error
    assert (files / "text.wav").read_bytes() == b"la la la"


# From here on as a user runs it. The sentences are tested above.


def as_user(run_train, tiny_song, *overrides, **options):
    result = run_train(*tiny_song.overrides, *overrides, **options)
    return Result(result.returncode, result.stdout, result.stderr, options["cwd"] / "out")


def test_user_sees_one_sentence_about_a_file(run_train, tiny_song, tmp_path):
    result = as_user(
        run_train, tiny_song, "hydra.run.dir=out", "song.reference=nosuch.wav", cwd=tmp_path
    )
    assert result.error.startswith("The reference nosuch.wav does not exist: check the path")
    assert result.results == []


def test_user_sees_one_sentence_about_a_typo(run_train, tiny_song, tmp_path):
    result = as_user(run_train, tiny_song, "trainr.max_steps=3", cwd=tmp_path)
    assert "trainr.max_steps" in result.error
    assert list(tmp_path.iterdir()) == []


def test_user_sees_one_sentence_about_a_folder(run_train, tiny_song, tmp_path):
    (tmp_path / "file").touch()
    result = as_user(run_train, tiny_song, "hydra.run.dir=file/out", cwd=tmp_path)
    assert "file/out" in result.error
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.slow
def test_user_sees_one_sentence_about_a_missing_library(run_train, tiny_song, tmp_path):
    library = tmp_path / "library"
    library.mkdir()
    (library / "fluidsynth.py").write_text(
        'raise ImportError("Couldn\'t find the FluidSynth library.")\n'
    )
    result = as_user(
        run_train, tiny_song, "hydra.run.dir=out", cwd=tmp_path, env={"PYTHONPATH": str(library)}
    )
    assert result.error.startswith(
        "FluidSynth is not installed: apt install libfluidsynth3 (Debian, Ubuntu), brew install "
        "fluid-synth"
    )
    assert result.results == []
