"""What is checked of a config and a run's folder before anything expensive, and what may be named in a config."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from bespoke.audio import atomic_path
from bespoke.errors import BespokeError, one_sentence
from bespoke.separate import Separator
from bespoke.stft import STFT

RESULTS = ("config.yaml", "checkpoints", "target.wav", "residual.wav", "metrics.json")
# A config names what it wants made; only these can be, so that a config from a stranger runs no code of its own.
ALLOWED_TARGETS = re.compile(
    r"audiomentations\.[A-Z]\w*|bespoke\.(background|augment|model|loss|logs)\.[A-Za-z]\w*"
    r"|torch\.optim\.(Adam|AdamW|NAdam|RAdam|SGD|RMSprop)|pytorch_lightning\.Trainer"
)


def check(cfg: DictConfig) -> None:
    """Find what no run can use, or should not be asked to make.

    Raises:
        BespokeError: a setting is out of range, or a `_target_` is not on the list.
    """
    _check_targets(cfg)
    _check_settings(cfg)


def prepare_folder(cfg: DictConfig, folder: Path, in_sweep: bool = False) -> bool:
    """Refuse to overwrite results, or to continue what is not there. Returns whether to go on from a checkpoint.

    A sweep that is continued may have jobs that never began.
    """
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        return (folder / "checkpoints" / "last.ckpt").exists() and cfg.ckpt == "last"
    written = folder / "config.yaml"
    if cfg.ckpt not in (None, "last"):
        raise BespokeError(
            f"ckpt={cfg.ckpt} is not known: ckpt=last continues the run in hydra.run.dir; scripts/separate.py applies a checkpoint."
        )
    if cfg.ckpt == "last":
        if not written.is_file():
            if in_sweep:
                return False
            raise BespokeError(f"There is no run to continue in {folder}: set hydra.run.dir to the folder of one, or leave ckpt=last out.")
        changed = _differences(OmegaConf.to_container(OmegaConf.load(written)), _plain(cfg))
        if changed:
            raise BespokeError(
                f"The run in {folder} has another config ({', '.join(changed[:5])}): repeat its overrides, or start a new run."
            )
        return (folder / "checkpoints" / "last.ckpt").is_file()
    present = [name for name in RESULTS if (folder / name).exists()]
    if present:
        raise BespokeError(
            f"{folder} already has results ({', '.join(present)}): choose another hydra.run.dir, or continue with ckpt=last."
        )
    return False


def write_config(cfg: DictConfig, folder: Path) -> None:
    """Write config.yaml, once all that the user may have got wrong is checked: a command that is put right works in the same folder."""
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        with atomic_path(folder / "config.yaml") as temporary:
            temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(_plain(cfg))), encoding="utf-8")


def _check_settings(cfg: DictConfig) -> None:
    """Find what no run can use before anything is rendered."""
    least = {
        "seed": 0,
        "trainer.max_steps": 1,
        "data.sample_rate": 1,
        "data.batch_size": 1,
        "data.validation_batches": 0,
        "checkpoint_steps": 1,
        "curve_steps": 0,
        "log_audio_steps": 0,
    }
    for name, lowest in least.items():
        value = OmegaConf.select(cfg, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise BespokeError(f"{name}={value} is not possible: give a whole number from {lowest}.")
    if cfg.seed >= 2**31:
        raise BespokeError(f"seed={cfg.seed} is not possible: give a whole number below 2147483648.")
    if cfg.data.workers != "auto" and not (isinstance(cfg.data.workers, int) and cfg.data.workers >= 0):
        raise BespokeError(f"data.workers={cfg.data.workers} is not possible: give auto, or a whole number from 0.")
    for name, lowest, highest in (("data.segment_seconds", 0.05, 600), ("data.silent_share", 0, 1)):
        value = OmegaConf.select(cfg, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
            raise BespokeError(f"{name}={value} is not possible: give a number from {lowest} to {highest}.")
    for name in ("align", "report", "data.self_training"):
        if not isinstance(OmegaConf.select(cfg, name), bool):
            raise BespokeError(f"{name}={OmegaConf.select(cfg, name)} is not possible: give true or false.")
    if cfg.data.label not in ("wet", "dry"):
        raise BespokeError(f"data.label={cfg.data.label} is not known: it is wet or dry.")
    try:
        Separator(STFT(cfg.data.sample_rate, **cfg.stft), _AnyNetwork(), **OmegaConf.to_container(cfg.separate))
    except (TypeError, ValueError) as error:
        raise BespokeError(f"stft or separate: {one_sentence(error)}.") from error


class _AnyNetwork(torch.nn.Module):
    """In place of the network, which is made later and checks for itself what it can take."""

    takes_any_bins = True


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config without what may differ when a run is continued."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    for name in ("ckpt", "log_audio_steps", "report"):
        plain.pop(name)
    return plain


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(set(old) | set(new), key=str)
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))]
    return [] if old == new else [f"{name}: {old} there, {new} now"]


def _check_targets(cfg: DictConfig) -> None:
    # Resolved too: an interpolation can make a dictionary with a _target_ (oc.create), or point to one.
    leaves = [leaf for resolve in (False, True) for leaf in _leaves(OmegaConf.to_container(cfg, resolve=resolve))]
    for name, value in leaves:
        if name.endswith("_target_") and (name.startswith("song.") or not ALLOWED_TARGETS.fullmatch(str(value))):
            raise BespokeError(
                f"{name}={value} is not allowed: configs may name audiomentations transforms, torch optimizers and Bespoke's own classes,"
                " and a song none."
            )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
