"""Bespoke: train a small network, from nothing or further, for one recording, to take one instrument out of it.

The names below are the public interface; each is imported when it is first used, so that `import bespoke` is quick.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "BespokeError": "errors",
    "BespokeSystem": "system",
    "MaskBLSTM": "model",
    "MaskNetwork": "model",
    "Mix": "mixer",
    "MixDataModule": "data",
    "MixParams": "augment",
    "MixStream": "data",
    "Note": "score",
    "Part": "score",
    "Patch": "synth",
    "Policy": "augment",
    "STFT": "stft",
    "Separator": "separate",
    "Song": "song",
    "SoundFont": "synth",
    "TPSALoss": "loss",
    "load_separator": "separate",
    "mix": "mixer",
    "oracle": "evaluate",
    "read_audio": "audio",
    "read_score": "score",
    "render": "synth",
    "si_sdr": "evaluate",
    "tpsa_target": "loss",
    "write_wav": "audio",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bespoke' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bespoke.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
