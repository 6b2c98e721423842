"""Configs as plain values."""

from collections.abc import Mapping
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf


def as_dict(cfg: DictConfig | ListConfig, resolve: bool = True) -> dict[str, Any]:
    """A config as a dictionary of plain values; with `resolve`, what it refers to is filled in."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=resolve))


def group_choices(choices: Mapping[str, Any]) -> dict[str, str]:
    """What was chosen of each group, without Hydra's own.

    >>> group_choices({"aug": "heavy", "experiment": None, "hydra/launcher": "basic"})
    {'aug': 'heavy'}
    """
    return {
        name: str(choice)
        for name, choice in choices.items()
        if choice is not None and not name.startswith("hydra/")
    }
