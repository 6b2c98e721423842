"""Errors name the user's file that a setting is in, and files that are not used are told."""

import sys

import pytest

from bespoke.cli import train
from bespoke.cli.origins import shadowed
from bespoke.data.song import Song

EFFECT = "defaults: [paper, _self_]\ntarget:\n  eq: {_target_: audiomentations.%s}\n"
POLICIES = {
    "key": ("defaults: [paper, _self_]\ntaget: {}\n", ["aug.taget", "takes target"]),
    "transform": (EFFECT % "LowPasFilter", ["aug.target.eq._target_", "but LowPassFilter"]),
    "module": (
        EFFECT.replace("audiomentations.", "") % "LowPassFilter",
        ["aug.target.eq._target_", "write audiomentations.LowPassFilter"],
    ),
    "setting": (EFFECT % "LowPassFilter, low: 3", ["aug.target.eq.low", "min_cutoff_freq"]),
    "share": (EFFECT % "LowPassFilter, p: 2", ["aug.target.eq.p=2", "from 0 to 1"]),
    "ratio": (
        "defaults: [paper, _self_]\ncompressor: {ratio: 4}\n",
        ["aug.compressor.ratio", "ratios"],
    ),
    "alone": ("target_gain_db: [0, 1]\n", ["aug._target_", "defaults: [paper, _self_]"]),
    "mp3": (EFFECT % "Mp3Compression", ["aug.target.eq needs fast_mp3_augment", "pip install"]),
    "room": (EFFECT % "RoomSimulator", ["aug.target.eq needs pyroomacoustics", "pip install"]),
    "inside": (
        EFFECT % "OneOf, transforms: [{_target_: audiomentations.Gain},"
        " {_target_: audiomentations.RoomSimulator}]",
        ["aug.target.eq (RoomSimulator) needs pyroomacoustics"],
    ),
    "base": ("defaults: [papr, _self_]\n", ["no aug/papr", "paper"]),
    "yaml": ("defaults: [paper, _self_\ntarget: {}\n", ["line 2 is not YAML"]),
    "tab": ("defaults: [paper, _self_]\ntarget:\n\teq: 3\n", ["line 3 is not YAML"]),
    "twice": ("defaults: [paper, _self_]\nmix: {}\nmix: {}\n", ["line 3", "duplicate key mix"]),
    "list": (
        "defaults: [paper, _self_]\ntarget:\n  - {_target_: audiomentations.Gain}\n",
        ["target: there is a list"],
    ),
}


@pytest.fixture
def sentence(run_train, tmp_path, monkeypatch):
    """The one sentence with which a run in this folder ends, before the song is read."""

    def never(*_):
        raise AssertionError("the song was read")

    for name in ("fast_mp3_augment", "pyroomacoustics"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(Song, "load", never)
    (tmp_path / "conf" / "aug").mkdir(parents=True)

    def run(*overrides):
        given = ["recipe=quick", "logger=none", "hydra.run.dir=out", *overrides]
        result = run_train(*given, cwd=tmp_path)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        return line.removeprefix("error: ")

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_an_error_in_a_policy_names_its_file_and_key(name, sentence, tmp_path):
    content, words = POLICIES[name]
    (tmp_path / "conf" / "aug" / f"{name}.yaml").write_text(content)
    said = sentence(f"aug={name}")
    assert said.startswith(f"conf/aug/{name}.yaml: ")
    assert [word for word in words if word not in said] == [], said


@pytest.mark.slow
def test_the_file_is_the_one_that_holds_the_setting(sentence, tmp_path):
    own = tmp_path / "conf" / "aug"
    (own / "base.yaml").write_text("defaults: [paper, _self_]\ntarget_gain_db: [3, 0]\n")
    (own / "mine.yaml").write_text("defaults: [base, _self_]\nbackground_gain_db: [0, 0]\n")
    assert sentence("aug=mine").startswith("conf/aug/base.yaml: aug.target_gain_db")
    # What the command line gives is in no file, and Bespoke's own files are not the user's.
    assert sentence("aug=mine", "aug.target_gain_db=[9,1]").startswith("aug.target_gain_db")
    assert sentence("aug=paper", "aug.compressor.knee_db=-1").startswith("aug.compressor.knee_db")
    (tmp_path / "conf" / "recipe").mkdir()
    recipe = "# @package _global_\nrecipe: own\naug: {background_gain_db: [3, 0]}\n"
    (tmp_path / "conf" / "recipe" / "own.yaml").write_text(recipe)
    said = sentence("recipe=own")
    assert said.startswith("conf/recipe/own.yaml: aug.background_gain_db")


def test_a_config_that_is_not_used_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "aug").mkdir(parents=True)
    for name in ("light", "mine"):
        (tmp_path / "conf" / "aug" / f"{name}.yaml").write_text("defaults: [paper, _self_]\n")
    (said,) = shadowed(tmp_path / "conf", train.CONF)
    assert said.startswith("conf/aug/light.yaml is not used: Bespoke has a config aug=light")
    train._command_line("train.py", ["aug=mine"])
    assert capsys.readouterr().err == f"warning: {said}\n"
    (tmp_path / "conf").rename(tmp_path / "other")
    train._command_line("train.py", ["--config-dir", "other", "aug=mine"])
    assert capsys.readouterr().err.startswith("warning: other/aug/light.yaml is not used")
    train._command_line("train.py", ["aug=light"])
    assert capsys.readouterr().err == ""
