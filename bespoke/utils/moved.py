"""Renamed modules: old configs, run folders and command lines still use the former names."""

from collections.abc import Mapping
from typing import Any

_MODULES = {
    "bespoke.augment": "bespoke.data.augment",
    "bespoke.background": "bespoke.data.background",
    "bespoke.benchmark": "bespoke.evaluation.benchmark",
    "bespoke.launch": "bespoke.cli.launch",
    "bespoke.logs": "bespoke.training.logs",
    "bespoke.loss": "bespoke.models.losses",
    "bespoke.model": "bespoke.models.networks",
}
_GONE = (("song", "target", "equalize"),)  # settings that no longer do anything


def current_name(target: Any) -> Any:
    """Current name of a `_target_`. Names that have not changed are returned as they are.

    >>> current_name("bespoke.model.MaskBLSTM"), current_name("torch.optim.Adam")
    ('bespoke.models.networks.MaskBLSTM', 'torch.optim.Adam')
    """
    module, _, name = str(target).rpartition(".")
    return f"{_MODULES[module]}.{name}" if module in _MODULES else target


def as_now(config: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of a plain config of a run, with current names and without settings that are gone."""
    now: dict[str, Any] = _with_current_names(config)
    for *path, gone in _GONE:
        section: Any = now
        for key in path:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.pop(gone, None)
    return now


def _with_current_names(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {
            key: current_name(value) if key == "_target_" else _with_current_names(value)
            for key, value in config.items()
        }
    return [_with_current_names(item) for item in config] if isinstance(config, list) else config
