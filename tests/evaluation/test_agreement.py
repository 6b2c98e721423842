"""Agreement: higher for better estimates, independent of level, and computed in blocks."""

import numpy as np
import pytest

from bespoke.evaluation import agreement
from bespoke.evaluation.agreement import Agreement
from bespoke.score.midi import Note

RATE = 8000
TIME = np.arange(4 * RATE) / RATE
TARGET = np.stack([np.sin(2 * np.pi * 440 * TIME)] * 2).astype(np.float32)
REST = np.stack([np.sin(2 * np.pi * hz * TIME) for hz in (150, 151)]).astype(np.float32)
NOTES = [Note(0.0, 4.0, 69)]


def test_the_more_is_left_of_the_rest_the_less_it_agrees():
    judge = Agreement(TARGET + REST, RATE, NOTES)
    found = [judge(TARGET + share * REST) for share in (0.0, 0.1, 0.3, 1.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] + 10
    assert judge(0.01 * TARGET) == pytest.approx(found[0], abs=1e-3)


def test_what_cannot_be_judged_has_no_figure():
    judge = Agreement(TARGET + REST, RATE, NOTES)
    assert judge(np.zeros_like(TARGET)) is None
    assert judge(np.nan * TARGET) is None
    assert Agreement(0 * TARGET, RATE, NOTES)(TARGET) is None


def test_a_long_recording_is_factorized_in_blocks(monkeypatch):
    silent_start = np.concatenate([np.zeros_like(TARGET), TARGET + REST], axis=1)
    whole = Agreement(TARGET + REST, RATE, NOTES).expected
    monkeypatch.setattr(agreement, "LONG_SAMPLES", TARGET.shape[1])
    blocks = Agreement(silent_start, RATE, [Note(4.0, 8.0, 69)]).expected
    assert np.abs(blocks[:, : TARGET.shape[1]]).max() == 0
    np.testing.assert_allclose(blocks[:, TARGET.shape[1] :], whole, atol=1e-5)
