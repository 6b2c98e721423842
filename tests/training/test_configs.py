"""Configs compose and match their classes; precedence; contents and strength of the policies."""

import inspect
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.signal
import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from bespoke.models.networks import MaskBLSTM, ScoreUNet
from bespoke.score.midi import Note
from bespoke.score.synth import Patch, render
from bespoke.training import build, preflight
from conftest import ROOT

CONF = ROOT / "conf"
CHOICES = [
    (file.parent.name, file.stem)
    for file in sorted(CONF.glob("*/*.yaml"))
    if file.parent.name != "hydra"
]
SONGS = [name for group, name in CHOICES if group == "song"]
RATE = 16000


def nodes(value, name=""):
    """Every dictionary of a config with a `_target_`, by its place."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield name, value
        for key, item in value.items():
            yield from nodes(item, f"{name}.{key}".strip("."))


def composed(compose_config, *overrides):
    return OmegaConf.to_container(compose_config(*overrides), resolve=True)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_choice_composes_and_names_only_settings_that_exist(compose_config, group, choice):
    if choice == "aug_optuna":
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra optuna")
    # The default trains no step, which is not possible with every network.
    cfg = compose_config(
        f"{group}={choice}", *([] if group == "recipe" else ["trainer.max_steps=60"])
    )
    preflight.check(cfg)
    for place, node in nodes(OmegaConf.to_container(cfg, resolve=True)):
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            settings = {key for key in node if key not in ("_target_", "_partial_")}
            assert settings <= set(parameters), (
                f"{place} has settings that {node['_target_']} does not take"
            )


@pytest.mark.parametrize("name", SONGS)
def test_song_has_every_key_of_custom_and_no_other(compose_config, name):
    song, custom = (
        composed(compose_config, f"song={choice}")["song"] for choice in (name, "custom")
    )
    assert set(song) == set(custom)
    assert set(song["target"]) == set(custom["target"])
    assert song["name"] == name


@pytest.mark.parametrize("name", ["feelings", "lithium"])
def test_shipped_song_has_its_files_and_its_licence(compose_config, name):
    song = composed(compose_config, f"song={name}")["song"]
    files = [
        CONF.parent / path for path in (song["mixture"], song["target"]["score"], song["reference"])
    ]
    assert all(file.is_file() for file in [*files, files[0].parent / "LICENCE.txt"])


def test_default_is_the_best_we_know(compose_config):
    cfg = composed(compose_config)
    assert (cfg["song"]["name"], cfg["recipe"], cfg["align"]) == ("feelings", "auto", True)
    assert cfg == composed(compose_config, "recipe=auto")
    # The shipped network was trained on this transform.
    assert cfg["data"]["sample_rate"] == 22050
    assert cfg["stft"] == pytest.approx(
        {"window_seconds": 2048 / 22050, "hop_seconds": 512 / 22050}
    )
    for song in ("take_on_me", "reelin_in_the_years"):
        assert background(compose_config, f"song={song}") == "Residual"


def test_quick_is_the_papers_network_and_mixes_in_few_steps(compose_config):
    cfg = composed(compose_config, "recipe=quick")
    assert (cfg["song"]["name"], cfg["recipe"], cfg["data"]["sample_rate"]) == (
        "feelings",
        "quick",
        16000,
    )
    assert cfg["model"] == {
        "_target_": "bespoke.models.networks.MaskBLSTM",
        "hidden_size": 300,
        "layers": 2,
        "dropout": 0.3,
    }
    assert [round(seconds * 16000) for seconds in cfg["stft"].values()] == [512, 128]
    assert cfg["trainer"]["max_steps"] < 1000
    assert composed(compose_config, "recipe=paper")["trainer"]["max_steps"] == 2000
    for setting in ("background", "aug", "model", "loss"):
        assert composed(compose_config, "recipe=paper")[setting] == cfg[setting]


def background(compose_config, *overrides):
    """The background that a run writes into its config.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        preflight.write_config(compose_config(*overrides), Path(folder), {})
        target = OmegaConf.load(Path(folder) / "config.yaml").background._target_
    return target.removeprefix("bespoke.data.background.").removesuffix("Background")


@pytest.mark.slow
def test_song_beats_the_default_and_the_command_line_beats_the_song(compose_config):
    reelin = "song=reelin_in_the_years"
    quick = "recipe=quick"
    assert (
        background(compose_config, quick)
        == background(compose_config, quick, "song=take_on_me")
        == "Mixture"
    )
    assert (
        background(compose_config, reelin, quick)
        == background(compose_config, reelin, "recipe=paper")
        == "Synth"
    )
    assert background(compose_config, reelin, quick, "background=mixture") == "Mixture"
    assert background(compose_config, "background=mixture", reelin) == "Mixture"


def test_recipe_beats_the_song_and_the_command_line_beats_the_recipe(compose_config, tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "own.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /background: audio\n  - override /aug: "
        "heavy\nrecipe: own\ntrainer:\n  max_steps: 7\n"
    )
    own = [f"hydra.searchpath=[file://{tmp_path}]", "song=reelin_in_the_years", "recipe=own"]
    assert background(compose_config, *own) == "Audio"
    assert background(compose_config, *own, "background=mixture") == "Mixture"
    assert composed(compose_config, *own)["aug"] == composed(compose_config, "aug=heavy")["aug"]
    assert composed(compose_config, *own)["trainer"]["max_steps"] == 7
    assert composed(compose_config, *own, "trainer.max_steps=9")["trainer"]["max_steps"] == 9


def test_paper_policy_is_section_3(compose_config):
    assert composed(compose_config, "aug=paper")["aug"] == {
        "_target_": "bespoke.data.augment.Policy",
        "target_gain_db": [-12, 6],
        "background_gain_db": [-12, 6],
        "compressor": {
            "ratios": [2, 4, 8, 12, 16, 20],
            "threshold_db": -18,
            "attack_ms": 20,
            "release_ms": 250,
            "knee_db": 9.03,
        },
        "target": {},
        "background": {},
        "mix": {},
    }


def test_policy_none_is_0_db_and_no_compressor(compose_config):
    assert composed(compose_config, "aug=none")["aug"] == {
        "_target_": "bespoke.data.augment.Policy",
        "target_gain_db": [0, 0],
        "background_gain_db": [0, 0],
        "compressor": None,
        "target": {},
        "background": {},
        "mix": {},
    }


def policy(compose_config, name):
    return instantiate(compose_config(f"aug={name}").aug, _convert_="all")


@pytest.mark.parametrize("name", ["light", "heavy"])
def test_light_and_heavy_add_effects_to_the_papers_draws(compose_config, name):
    paper, own = (
        composed(compose_config, "aug=paper")["aug"],
        composed(compose_config, f"aug={name}")["aug"],
    )
    roles = ("target", "background", "mix")
    assert {key: own[key] for key in own if key not in roles} == {
        key: paper[key] for key in paper if key not in roles
    }
    made = policy(compose_config, name)
    drawn = [made.sample(np.random.default_rng(seed)) for seed in range(200)]
    assert {params.compressor.ratio for params in drawn} == {2, 4, 8, 12, 16, 20}
    assert (
        -12
        <= min(params.target_gain_db for params in drawn)
        < -11
        < 5
        < max(params.target_gain_db for params in drawn)
        <= 6
    )
    for role in roles:
        assert {
            effect.effect.name for params in drawn for effect in getattr(params, f"{role}_effects")
        } == set(own[role])


@pytest.mark.parametrize("name", sorted(file.stem for file in (CONF / "aug").glob("*.yaml")))
def test_no_policy_of_ours_moves_the_target_away_from_its_notes(compose_config, name):
    assert policy(compose_config, name).moving == []


@pytest.mark.parametrize("factor", ["eq", "pitch", "time", "reverb", "distortion", "noise"])
def test_one_factor_is_the_papers_policy_and_one_effect_of_heavy(compose_config, factor):
    choices = ("aug=paper",), ("aug=heavy",), ("experiment=aug_factors", f"factor={factor}")
    paper, heavy, own = (composed(compose_config, *choice)["aug"] for choice in choices)
    role = "mix" if factor == "noise" else "target"
    assert own == {**paper, role: {factor: heavy[role][factor]}}


def test_gains_alone_are_the_papers_without_its_compression(compose_config):
    paper, gains = (composed(compose_config, f"aug={name}")["aug"] for name in ("paper", "gains"))
    assert gains == {**paper, "compressor": None}


def test_callbacks_are_those_that_the_config_names(compose_config, tmp_path):
    song = SimpleNamespace(reference=None)

    def made(*overrides):
        cfg = compose_config(*overrides)
        return build.make_callbacks(cfg, tmp_path, [], song, {"notes": ()}, None)

    always = ["LossCurve", "ModelCheckpoint"]
    kinds = [type(callback).__name__ for callback in made("log_audio_steps=7", "curve_steps=5")]
    assert kinds == [*always, "StepLog", "TrainingFigures", "Listening", "QualityCurve"]
    listening, curve = made("log_audio_steps=7", "curve_steps=5")[-2:]
    assert (listening.every_steps, listening.song, listening.settings) == (7, song, {"notes": ()})
    assert (curve.every_steps, curve.path, curve.best) == (5, tmp_path / "curve.csv", None)
    assert [type(one).__name__ for one in made("callbacks=none")] == always
    fewer = made("callbacks.figures=null", "callbacks.step_log.every_seconds=5")
    assert [type(one).__name__ for one in fewer] == [
        *always,
        "StepLog",
        "Listening",
        "QualityCurve",
    ]
    assert fewer[2].every_seconds == 5
    # A file's place is the run's to say, not a config's.
    other = made("+callbacks.quality_curve.path=/elsewhere.csv", "keep=best")[-1]
    assert (other.path, other.best) == (
        tmp_path / "curve.csv",
        tmp_path / "checkpoints" / "best.ckpt",
    )


def test_stft_experiment_keeps_the_overlap():
    sweep = OmegaConf.load(CONF / "experiment" / "stft.yaml").hydra.sweeper.params.stft
    windows = [
        [float(number) for number in re.findall(r"[\d.]+", text)] for text in sweep.split("},")
    ]
    assert windows == [[samples / 16000, samples / 64000] for samples in (512, 1024, 2048)]


def distance_db(one, other):
    """Log-spectral distance, 60 dB deep: RMS over frequency, then mean over frames."""
    levels = []
    for waveform in (one, other):
        power = np.abs(scipy.signal.stft(waveform[0], nperseg=512, noverlap=384)[2]) ** 2
        levels.append(10 * np.log10(np.maximum(power / power.max(), 1e-6)))
    return np.sqrt(np.square(levels[0] - levels[1]).mean(axis=0)).mean()


@pytest.mark.slow
def test_heavy_is_recognizably_stronger_than_light(compose_config):
    melody = render([Note(0.0, 0.5, 60), Note(0.5, 1.0, 67), Note(1.0, 1.5, 64)], Patch(81), RATE)[
        :, : 3 * RATE // 2
    ]
    means = {}
    for name in ("none", "paper", "light", "heavy"):
        made, distances = policy(compose_config, name), []
        for seed in range(50):
            augmented = melody
            for effect in made.sample(np.random.default_rng(seed)).target_effects:
                augmented = effect.apply(augmented, RATE)
            distances.append(distance_db(melody, augmented))
        means[name] = np.mean(distances)
    assert means["none"] == means["paper"] == 0
    assert means["light"] > 0.5
    assert means["heavy"] > 2 * means["light"]


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 0), "16-mixed"), ((7, 5), "16-mixed"), ((8, 0), "bf16-mixed"), ((9, 0), "bf16-mixed")],
)
def test_precision_suits_the_card(compose_config, monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    for name in ("gpu", "ddp", "auto"):
        trainer = compose_config(f"trainer={name}").trainer
        assert trainer.precision == "auto"
        assert build.precision(trainer.accelerator) == precision
    assert compose_config("trainer=cpu").trainer.precision == "32-true"
    assert build.precision("cpu") == "32-true"


def test_precision_without_a_card_is_full_but_for_what_was_trained_in_less(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert build.precision("auto") == "32-true"
    for is_there in (False, True):
        monkeypatch.setattr(
            "bespoke.utils.processor.multiplies_bfloat16", lambda is_there=is_there: is_there
        )
        found = [build.precision("auto", network) for network in (MaskBLSTM(9), ScoreUNet())]
        assert found == ["32-true", "bf16-mixed" if is_there else "32-true"]


def test_several_cards_train_together(compose_config):
    ddp, gpu = (composed(compose_config, f"trainer={name}")["trainer"] for name in ("ddp", "gpu"))
    assert ddp == {**gpu, "devices": "auto", "strategy": "ddp"}
    assert (gpu["accelerator"], gpu["devices"]) == ("gpu", 1)
