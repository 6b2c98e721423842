"""Checkpoints made before the packages: they name the network's class, not its module."""

import numpy as np
import pytest

from bespoke.models.networks import MaskBLSTM, ScoreUNet
from bespoke.models.separator import load_separator
from conftest import ROOT

CHECKPOINTS = ROOT / "tests" / "models" / "checkpoints"

RATE = 11025
TIME = np.arange(RATE) / RATE
# The note of the checkpoint's song, while it sounds, and a tone that is none.
RECORDING = (
    0.3 * np.sin(2 * np.pi * 262 * TIME) * (TIME < 0.8) + 0.1 * np.sin(2 * np.pi * 1000 * TIME)
)[None].astype(np.float32)


@pytest.mark.parametrize(
    ("name", "network", "weights", "rms", "samples"),
    [
        # A full checkpoint like last.ckpt, and one of the network alone like best.ckpt and W&B's.
        (
            "blstm",
            MaskBLSTM,
            890,
            0.1108271,
            [-0.2175746, 0.1861128, -0.1536695, 0.1162008, 0.0094153],
        ),
        (
            "unet",
            ScoreUNet,
            1261,  # three channels that it never saw have zeros
            0.1400422,
            [-0.2366656, 0.2288440, -0.2100888, 0.1865018, 0.0066009],
        ),
    ],
)
def test_a_checkpoint_of_before_separates_as_it_did(name, network, weights, rms, samples):
    separator = load_separator(CHECKPOINTS / f"{name}_before_packages.ckpt")
    assert type(separator.model) is network
    assert sum(value.numel() for value in separator.model.state_dict().values()) == weights
    target, residual = separator.separate(RECORDING, RATE)
    assert target[0, [1000, 3000, 5000, 7000, 10000]] == pytest.approx(samples, abs=1e-4)
    assert np.sqrt(np.mean(target**2)) == pytest.approx(rms, abs=1e-5)
    assert target + residual == pytest.approx(RECORDING, abs=1e-6)
