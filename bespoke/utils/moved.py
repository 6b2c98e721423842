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


def current_name(target: Any) -> Any:
    """Current name of a `_target_`. Names that have not changed are returned as they are.

    >>> current_name("bespoke.model.MaskBLSTM"), current_name("torch.optim.Adam")
    ('bespoke.models.networks.MaskBLSTM', 'torch.optim.Adam')
    """
    module, _, name = str(target).rpartition(".")
    return f"{_MODULES[module]}.{name}" if module in _MODULES else target


def with_current_names(config: Any) -> Any:
    """Copy of a plain config in which every `_target_` has its current name."""
    if isinstance(config, Mapping):
        return {
            key: current_name(value) if key == "_target_" else with_current_names(value)
            for key, value in config.items()
        }
    return [with_current_names(item) for item in config] if isinstance(config, list) else config
