"""Learning-rate schedules: what `optimizer.lr` is multiplied by at each step.

A schedule depends on the step and the length of the training alone, so that a resumed run follows
it exactly.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from bespoke.training.signatures import Range

FromZero = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Constant:
    """The same rate at every step, after a linear warm-up.

    Args:
        warmup_steps: steps in which the rate rises from near 0 to `optimizer.lr`.

    >>> schedule = Constant(warmup_steps=3)
    >>> [schedule.factor(step, 100) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    warmup_steps: FromZero = 0

    def factor(self, step: int, steps: int) -> float:
        """What the rate is multiplied by.

        Args:
            step: index of the step, from 0.
            steps: length of the whole training.
        """
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self._after_warmup(min(done, 1.0))

    def _after_warmup(self, done: float) -> float:
        """The factor when a share `done` of the steps after the warm-up is over."""
        return 1.0


@dataclass(frozen=True)
class _Falling(Constant):
    """A rate that falls to `final_factor` times `optimizer.lr` when training ends."""

    final_factor: Share = 0.0


@dataclass(frozen=True)
class Linear(_Falling):
    """A rate that falls by as much at each step.

    >>> [Linear().factor(step, 4) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """

    def _after_warmup(self, done: float) -> float:
        return 1 - (1 - self.final_factor) * done


@dataclass(frozen=True)
class Cosine(_Falling):
    """A rate that falls as half a period of a cosine does: slowly, fast, slowly.

    (Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.)

    >>> [round(Cosine(final_factor=0.5).factor(step, 2), 6) for step in range(3)]
    [1.0, 0.75, 0.5]
    """

    def _after_warmup(self, done: float) -> float:
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Exponential(Constant):
    """A rate that falls by the same factor at each step.

    >>> [round(Exponential(final_factor=0.01).factor(step, 2), 6) for step in range(3)]
    [1.0, 0.1, 0.01]
    """

    final_factor: Annotated[float, Range(1e-6, 1)] = 0.01

    def _after_warmup(self, done: float) -> float:
        return self.final_factor**done
