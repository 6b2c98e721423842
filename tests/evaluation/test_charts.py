"""The curves of a page: the loss, smoothed."""

import pytest

from bespoke.evaluation.report.page import _smooth


@pytest.mark.parametrize(("steps", "width"), [(20, 2), (60, 6), (1000, 50)])
def test_the_loss_is_smoothed_over_a_tenth_of_the_steps_or_50(steps, width):
    smooth = _smooth([(step, float(step % width == 0)) for step in range(1, steps + 1)])
    assert (smooth[0], smooth[-1][0]) == ((1, 0.0), steps)
    # One step in `width` is 1.
    settled = [value for step, value in smooth if step >= width]
    assert settled == pytest.approx([1 / width] * len(settled))


def test_a_few_steps_are_left_as_they_are():
    points = [(step, float(step)) for step in range(1, 20)]
    assert _smooth(points) == points
