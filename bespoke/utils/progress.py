"""What a command is doing: on a terminal a line for each stage, with how much of it is done, elsewhere a line as each begins."""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TextIO, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bespoke.utils.processor import local_rank

Item = TypeVar("Item")

STAGES = {
    "load": "Reading the song",
    "align": "Aligning the score",
    "place": "Finding the notes",
    "estimate": "First estimate",
    "agreement": "Factorizing, to judge by",
    "render": "Synthesizing",
    "train": "Training",
    "separate": "Separating",
    "evaluate": "Measuring",
    "report": "Writing the report",
    "share": "Sharing out",
    "publish": "Writing the stems",
}
_UNCOUNTED = "{desc} {elapsed}"
_COUNTED = "{desc} {percentage:3.0f}% {bar:20} {elapsed}, {remaining} left{postfix}"
_ENDED = "{desc} {elapsed_s:.1f} s"
_bar: tqdm | None = None
_stream = "stdout"


@contextlib.contextmanager
def on_stderr() -> Iterator[None]:
    """Show the stages inside the block on stderr, for a command whose stdout holds its results alone."""
    global _stream
    before, _stream = _stream, "stderr"
    try:
        yield
    finally:
        _stream = before


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Show that a run is at this stage; what is logged meanwhile appears above the line.

    Args:
        name: one of `STAGES`, or any other.
    """
    global _bar
    title = STAGES.get(name, name)
    if not on_terminal():
        if _is_first():
            print(f"{title} ...", file=_file(), flush=True)
        yield
        return
    bar = tqdm(desc=title.ljust(18), bar_format=_UNCOUNTED, file=_file(), **_size())
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
        if len(items) > 1:
            advance(number, len(items))
        yield item


def on_terminal() -> bool:
    """Whether there is somebody to see a line that changes: not in a process that a launcher started."""
    return (
        _file().isatty() and _is_first() and multiprocessing.current_process().name == "MainProcess"
    )


def _size() -> dict[str, Any]:
    """For tqdm: the size of the terminal, or a usual one where that does not know its own (in a container, under `script`)."""
    try:
        columns = os.get_terminal_size(_file().fileno()).columns
    except OSError:
        columns = None
    return {"ncols": 80, "nrows": 24} if columns == 0 else {"dynamic_ncols": True}


def _is_first() -> bool:
    """Whether this is the first of several processes that train together, or the only one."""
    return local_rank() == 0


def _file() -> TextIO:
    return getattr(sys, _stream)
