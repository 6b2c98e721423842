"""Bespoke separates one instrument from one recording, with a small network trained for it.

The names in `__all__` are the public interface. Each is imported when it is first used, so that
`import bespoke` is fast.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "BespokeError": "utils.errors",
    "BespokeSystem": "training.system",
    "MaskBLSTM": "models.networks",
    "MaskNetwork": "models.networks",
    "Mix": "data.mixer",
    "MixDataModule": "data.stream",
    "MixParams": "data.augment",
    "MixStream": "data.stream",
    "Note": "score.midi",
    "Part": "score.midi",
    "Patch": "score.synth",
    "Policy": "data.augment",
    "STFT": "audio.stft",
    "Separator": "models.separator",
    "Song": "data.song",
    "SoundFont": "score.synth",
    "TPSALoss": "models.losses",
    "load_separator": "models.separator",
    "mix": "data.mixer",
    "oracle": "evaluation.metrics",
    "read_audio": "audio.io",
    "read_score": "score.midi",
    "render": "score.synth",
    "si_sdr": "evaluation.metrics",
    "tpsa_target": "models.losses",
    "write_wav": "audio.io",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bespoke' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bespoke.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
