"""Plots of alignments at any sample rate."""

import numpy as np
import pytest
from PIL import Image

from bespoke.evaluation.report.summary import plot_alignment
from bespoke.score.midi import Note


@pytest.mark.parametrize("sample_rate", [8000, 11025, 22050, 44100])
def test_the_alignment_is_drawn_at_any_rate(sample_rate, tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * sample_rate) / sample_rate)[None].astype(
        np.float32
    )
    plot_alignment(
        tmp_path / "alignment.png", [Note(0.0, 1.0, 69)], [Note(0.5, 1.5, 69)], tone, sample_rate
    )
    pixels = np.asarray(Image.open(tmp_path / "alignment.png").convert("RGB")).astype(int)
    cyan = (pixels[..., 0] < 80) & (pixels[..., 1] > 200) & (pixels[..., 2] > 200)
    before, after = (np.flatnonzero(half.any(axis=0)).mean() for half in np.array_split(cyan, 2))
    assert before < after  # the note is drawn where it was, and further to the right where it is
