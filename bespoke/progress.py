"""On a terminal: a line for each stage of a run, with how much of it is done and the time left. Elsewhere nothing."""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

Item = TypeVar("Item")

STAGES = {
    "load": "Reading the song",
    "align": "Aligning the score",
    "estimate": "First estimate",
    "patches": "Choosing patches",
    "agreement": "Factorizing, to judge by",
    "render": "Synthesizing",
    "train": "Training",
    "separate": "Separating",
    "evaluate": "Measuring",
    "report": "Writing the report",
}
_UNCOUNTED = "{desc} {elapsed}"
_COUNTED = "{desc} {percentage:3.0f}% {bar:20} {elapsed}, {remaining} left{postfix}"
_ENDED = "{desc} {elapsed_s:.1f} s"
_bar: tqdm | None = None


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Show that a run is at this stage; what is logged meanwhile appears above the line.

    Args:
        name: one of `STAGES`, or any other.
    """
    global _bar
    if not on_terminal():
        yield
        return
    bar = tqdm(desc=STAGES.get(name, name).ljust(18), bar_format=_UNCOUNTED, file=sys.stdout, dynamic_ncols=True)
    ended = threading.Event()

    def tick() -> None:  # a stage may be long without a step to count
        while not ended.wait(0.5):
            bar.refresh()

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    _bar = bar
    bar.leave = False  # unless it ends well
    try:
        with logging_redirect_tqdm():
            yield
        bar.leave, bar.bar_format = True, _ENDED
    finally:
        _bar = None
        ended.set()
        ticker.join()
        bar.close()


def advance(done: int, total: int, note: str = "") -> None:
    """Say how much of the stage under way is done; what was done when it is first said was done before, as in a resumed run.

    Args:
        done, total: in steps of any kind.
        note: what else is to be seen at the end of the line.
    """
    if _bar is None:
        return
    if _bar.total is None:
        _bar.total, _bar.initial, _bar.n, _bar.bar_format = total, done, done, _COUNTED
    if note:
        _bar.set_postfix_str(note, refresh=False)
    _bar.update(done - _bar.n)
    if done == total:  # which tqdm passes over where all is done within a tenth of a second
        _bar.refresh()


def track(items: Sequence[Item]) -> Iterator[Item]:
    """The items, while the line of the stage under way tells how many are left."""
    for number, item in enumerate(items):
        advance(number, len(items))
        yield item


def on_terminal() -> bool:
    """Whether there is somebody to see it: not in a process that a launcher started, or the second of several that train together."""
    is_first = multiprocessing.current_process().name == "MainProcess" and int(os.environ.get("LOCAL_RANK", 0)) == 0
    return sys.stdout.isatty() and is_first
