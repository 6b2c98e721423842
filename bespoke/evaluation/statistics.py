"""Statistics of results: bootstrap intervals of means, and paired differences."""

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)


def bootstrap(
    values: Mapping[Key, float],
    resamples: int = 10000,
    seed: int = 0,
    cluster: Callable[[Key], Hashable] | None = None,
    widen: bool = False,
) -> tuple[float, float]:
    """95 % percentile interval of the mean, by bootstrap.

    Args:
        values: figure by case, run, or whatever is resampled.
        resamples: number of bootstrap samples.
        seed: seed of the sampling.
        cluster: what a key belongs to. Clusters are resampled with all of their values, since the
            values of one cluster are not independent. None: every value by itself.
        widen: correct the interval for few values, of which percentile intervals are too narrow
            (T. Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section 3.2): its
            distances from the mean are multiplied by `small_sample_factor`.

    Returns:
        Lower and upper bound; (nan, nan) for a single value or cluster.
    """
    groups: dict[Hashable, list[float]] = {}
    for key, value in values.items():
        groups.setdefault(cluster(key) if cluster else key, []).append(value)
    if len(groups) < 2:
        return math.nan, math.nan
    sums, counts = (
        np.array([function(group) for group in groups.values()], float) for function in (sum, len)
    )
    draws = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = map(float, np.percentile(means, [2.5, 97.5]))
    if widen:
        mean, factor = float(sums.sum() / counts.sum()), small_sample_factor(len(groups))
        low, high = mean - factor * (mean - low), mean + factor * (high - mean)
    return low, high


def small_sample_factor(count: int) -> float:
    """By how much the interval of the mean of so many values has to be wider than its bootstrap's.

    It is Student's quantile over the normal one, times the bias of the bootstrap's spread.

    >>> [round(small_sample_factor(count), 2) for count in (3, 6, 30)]
    [2.69, 1.44, 1.06]
    """
    from scipy.special import ndtri, stdtrit  # scipy.stats takes seconds to import

    return float(stdtrit(count - 1, 0.975) / ndtri(0.975) * math.sqrt(count / (count - 1)))


def paired_difference(
    first: Mapping[Key, float],
    second: Mapping[Key, float],
    cluster: Callable[[Key], Hashable],
    widen: bool = False,
    test: bool = False,
) -> dict[str, Any] | None:
    """By how much the first is higher than the second, over the keys that both have.

    Args:
        first, second: figure by case, or by song and seed.
        cluster: of a key, see `bootstrap`.
        widen: correct the intervals for few pairs, see `bootstrap`.
        test: add the p-value of Wilcoxon's signed-rank test, None where there is none.

    Returns:
        `cases`: the number of pairs; `mean`, `median`, and two intervals of the mean, over pairs
        and over clusters; `better`: the number of pairs in which the first is higher; with `test`,
        `p_wilcoxon`. None if there is no pair.
    """
    # In an order that does not depend on the hashes of strings, as the draws go by position.
    shared = sorted(first.keys() & second.keys(), key=repr)
    difference = {key: first[key] - second[key] for key in shared}
    if not difference:
        return None
    values = list(difference.values())
    found = {
        "cases": len(values),
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "interval": bootstrap(difference, widen=widen),
        "interval_by_source": bootstrap(difference, cluster=cluster, widen=widen),
        "better": sum(value > 0 for value in values),
    }
    if test:
        from scipy.stats import wilcoxon

        can_test = len(values) > 1 and any(values)
        found["p_wilcoxon"] = float(wilcoxon(values).pvalue) if can_test else None
    return found


def excludes_zero(interval: tuple[float, float]) -> bool:
    """Whether an interval lies on one side of 0; one of nan does not."""
    return interval[0] > 0 or interval[1] < 0
