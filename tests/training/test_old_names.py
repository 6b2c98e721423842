"""Configs, command lines and run folders made before the packages still work."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from bespoke.cli import train
from bespoke.evaluation.report.runs import differing_settings, read_runs
from bespoke.training import preflight
from bespoke.training.allowlist import check_hydra, check_targets, rename_targets
from bespoke.utils.errors import BespokeError
from bespoke.utils.moved import current_name
from conftest import ROOT

BEFORE = {
    "bespoke.data.augment.": "bespoke.augment.",
    "bespoke.data.background.": "bespoke.background.",
    "bespoke.models.losses.": "bespoke.loss.",
    "bespoke.models.networks.": "bespoke.model.",
    "bespoke.training.logs.": "bespoke.logs.",
}


def as_before(text):
    for now, before in BEFORE.items():
        text = text.replace(now, before)
    return text


@pytest.mark.parametrize(
    "name",
    [
        *(f"augment.{name}" for name in ("Policy", "DecayingNoiseReverb")),
        *(
            f"background.{name}Background"
            for name in ("Audio", "Mixed", "Mixture", "Residual", "Synth")
        ),
        *("benchmark.RowWriter", "launch.SweepTable", "loss.RelativeErrorLoss", "loss.TPSALoss"),
        *("logs.auto", "logs.csv", "logs.none", "logs.tensorboard", "logs.wandb"),
        *("model.MaskBLSTM", "model.ScoreUNet", "model.pretrained_score_unet"),
    ],
)
def test_every_name_that_a_config_could_give_is_still_one(name):
    assert get_object(current_name(f"bespoke.{name}")).__name__ == name.partition(".")[2]


def test_own_configs_and_command_lines_may_have_the_names_of_before(tmp_path, monkeypatch):
    (tmp_path / "conf" / "aug").mkdir(parents=True)
    here = (ROOT / "conf" / "aug" / "light.yaml").read_text(encoding="utf-8")
    (tmp_path / "conf" / "aug" / "mine.yaml").write_text(as_before(here), encoding="utf-8")
    assert "bespoke.augment.DecayingNoiseReverb" in as_before(here)
    monkeypatch.chdir(tmp_path)
    mine = train.compose(
        [
            "recipe=paper",
            "aug=mine",
            "model._target_=bespoke.model.ScoreUNet",
            "~model.hidden_size",
            "~model.layers",
        ]
    )
    ours = train.compose(["recipe=paper", "aug=light"])
    assert mine.aug == ours.aug
    assert mine.model._target_ == "bespoke.models.networks.ScoreUNet"
    check_targets(mine)


def test_a_hook_of_before_is_found_and_nothing_else_is_let_in():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        given = "+hydra.callbacks.table._target_=bespoke.launch.SweepTable"
        cfg = compose("config", [given.replace("+", "")], return_hydra_config=True)
        assert cfg.hydra.callbacks.table._target_ == "bespoke.cli.launch.SweepTable"
        check_hydra(cfg.hydra)
        with pytest.raises(BespokeError, match="is not allowed"):
            compose(
                "config",
                ["+hydra.callbacks.other._target_=bespoke.launch.quieten"],
                return_hydra_config=True,
            )


def test_names_are_put_right_wherever_they_are_and_nothing_else_is():
    before = {
        "a": [{"_target_": "bespoke.loss.TPSALoss", "note": "bespoke.loss.TPSALoss"}, 1],
        "a.b": {"_target_": "bespoke.logs.none", "x": None, "y": "???", "z": "${a}"},
        "torch": {"_target_": "torch.optim.Adam"},
    }
    cfg = OmegaConf.create(before, flags={"readonly": True})
    rename_targets(cfg)
    now = {
        "a": [{"_target_": "bespoke.models.losses.TPSALoss", "note": "bespoke.loss.TPSALoss"}, 1],
        "a.b": {"_target_": "bespoke.training.logs.none", "x": None, "y": "???", "z": "${a}"},
        "torch": {"_target_": "torch.optim.Adam"},
    }
    assert OmegaConf.to_container(cfg, resolve=False) == now
    assert OmegaConf.is_readonly(cfg)


def test_a_name_that_nobody_put_right_is_an_error_that_gives_the_present_one():
    with pytest.raises(BespokeError, match=r"write bespoke\.models\.networks\.MaskBLSTM\."):
        check_targets(OmegaConf.create({"model": {"_target_": "bespoke.model.MaskBLSTM"}}))


def test_a_run_of_before_goes_on_and_is_compared_by_what_differs(compose_config, tmp_path):
    cfg = compose_config("recipe=paper", "aug=light", "logger=csv")
    folders = [tmp_path / "before", tmp_path / "now"]
    for folder in folders:
        folder.mkdir()
        preflight.write_config(cfg, folder, {})
    written = folders[0] / "config.yaml"
    written.write_text(as_before(written.read_text()).replace("seed: 0", "seed: 1"))
    assert written.read_text().count("_target_: bespoke.model.MaskBLSTM") == 1
    assert preflight.changes(cfg, folders[0]) == ["seed: 1 there, 0 now"]
    differing = differing_settings(read_runs(folders))
    assert differing == {"seed": ["1", "0"]}


def test_a_setting_that_is_gone_does_not_make_another_config(compose_config, tmp_path):
    cfg = compose_config("recipe=paper")
    preflight.write_config(cfg, tmp_path, {})
    written = tmp_path / "config.yaml"
    before = OmegaConf.load(written)
    before.song.target.equalize = True  # as every run wrote it
    OmegaConf.save(before, written)
    assert preflight.changes(cfg, tmp_path) == []
    assert preflight.changes(cfg, tmp_path / "nowhere") != []


@pytest.mark.parametrize("name", ["feelings", "reelin_in_the_years"])
def test_a_run_whose_song_chose_the_background_itself_goes_on(compose_config, tmp_path, name):
    """Songs overrode the group `background`; now they name it, and the default looks there."""
    cfg = compose_config(f"song={name}", "recipe=quick")
    before = compose_config(
        f"song={name}",
        "recipe=quick",
        f"background={'synth' if name == 'reelin_in_the_years' else 'mixture'}",
        "~song.background",
    )
    OmegaConf.save(before, tmp_path / "config.yaml", resolve=True)
    assert [line for line in preflight.changes(cfg, tmp_path) if "background" in line] == []
    other = compose_config(f"song={name}", "recipe=quick", "background=residual")
    assert preflight.changes(other, tmp_path)[0].startswith("background._target_:")
