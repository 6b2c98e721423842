"""Bootstrap intervals and paired differences, on values whose answer is known."""

import numpy as np
import pytest

from bespoke.evaluation.statistics import bootstrap, excludes_zero, paired_difference


def source(case):
    return case.partition("_")[0]


def test_the_bootstrap_covers_the_mean_and_sources_are_drawn_whole():
    rng = np.random.default_rng(0)
    values = {f"s{index}_case": value for index, value in enumerate(rng.normal(3.0, 1.0, 400))}
    low, high = bootstrap(values)
    assert low < np.mean(list(values.values())) < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    # Two sources of equal values within: drawing whole sources leaves only three possible means.
    clustered = {f"{name}_{index}": float(name == "b") for name in "ab" for index in range(50)}
    assert bootstrap(clustered, cluster=source) == (0.0, 1.0)
    assert bootstrap(clustered)[1] < 0.7
    assert np.isnan(
        bootstrap({"x_0": 1.0, "x_1": 3.0}, cluster=source)
    ).all()  # one source says nothing of others


def test_widened_intervals_of_three_values_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = {False: 0, True: 0}
    for _ in range(400):
        values = dict(enumerate(rng.normal(size=3)))
        for widen in held:
            held[widen] += not excludes_zero(bootstrap(values, resamples=300, widen=widen))
    assert held[False] / 400 == pytest.approx(0.76, abs=0.05)
    assert held[True] / 400 == pytest.approx(0.95, abs=0.03)


def test_pairs_are_what_both_have_and_the_difference_is_theirs():
    first = {"x_0": 3.0, "x_1": 4.0, "y_0": 8.0, "z_0": 100.0}
    second = {"x_0": 1.0, "x_1": 2.0, "y_0": 9.0, "w_0": -100.0}
    found = paired_difference(first, second, cluster=source, test=True)
    assert (found["cases"], found["mean"], found["median"], found["better"]) == (3, 1.0, 2.0, 2)
    assert found["interval_by_source"] == (-1.0, 2.0)  # the sources' means are 2 and -1
    assert found["p_wilcoxon"] == pytest.approx(0.75, abs=0.3)
    assert paired_difference({"a": 1.0}, {"b": 1.0}, cluster=source) is None
    (one,) = ({"a": 1.0},)
    assert not excludes_zero(paired_difference(one, {"a": 0.0}, cluster=source)["interval"])
