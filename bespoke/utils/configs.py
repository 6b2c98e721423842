"""Configs as plain values."""

from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf


def as_dict(cfg: DictConfig | ListConfig, resolve: bool = True) -> dict[str, Any]:
    """A config as a dictionary of plain values; with `resolve`, what it refers to is filled in."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=resolve))
