"""Progress of a command by stages.

On a terminal, each stage has a line with a progress bar. Elsewhere, a line is printed as each stage
begins.
"""

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
    """Show stages on stderr inside the block, for commands that print only results to stdout."""
    global _stream
    before, _stream = _stream, "stderr"
    try:
        yield
    finally:
        _stream = before


@contextlib.contextmanager
def stage(name: str, label: str | None = None) -> Iterator[None]:
    """Show a stage of the run while the block runs. Log messages appear above its line.

    Args:
        name: key of `STAGES`, or any other title.
        label: what it is done for, where it is done for several.
    """
    global _bar
    title = STAGES.get(name, name) if label is None else f"[{label}] {STAGES.get(name, name)}"
    if not on_terminal():
        if _is_first():
            print(f"{title} ...", file=_file(), flush=True)
        yield
        return
    bar = tqdm(desc=title.ljust(18), bar_format=_UNCOUNTED, file=_file(), **_size())
    ended = threading.Event()

    def tick() -> None:  # keeps the clock running in stages without steps
        while not ended.wait(0.5):
            bar.refresh()

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    _bar = bar
    bar.leave = False  # changed below if the stage succeeds
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
    """Report progress of the current stage.

    The first call sets where the stage began, so that the remaining time is right in a resumed run.

    Args:
        done, total: in steps of any kind.
        note: text for the end of the line.
    """
    if _bar is None:
        return
    if _bar.total is None:
        _bar.total, _bar.initial, _bar.n, _bar.bar_format = total, done, done, _COUNTED
    if note:
        _bar.set_postfix_str(note, refresh=False)
    _bar.update(done - _bar.n)
    if done == total:  # tqdm skips this refresh if the whole stage took less than 0.1 s
        _bar.refresh()


def track(items: Sequence[Item]) -> Iterator[Item]:
    """Yield the items and show how many are left in the line of the current stage."""
    for number, item in enumerate(items):
        if len(items) > 1:
            advance(number, len(items))
        yield item


def on_terminal() -> bool:
    """Whether to draw progress bars: on a terminal, unless a launcher started the process."""
    return (
        _file().isatty() and _is_first() and multiprocessing.current_process().name == "MainProcess"
    )


def _size() -> dict[str, Any]:
    """Size for tqdm: the terminal's, or 80 x 24 where it reports 0 (in containers, in `script`)."""
    try:
        columns = os.get_terminal_size(_file().fileno()).columns
    except OSError:
        columns = None
    return {"ncols": 80, "nrows": 24} if columns == 0 else {"dynamic_ncols": True}


def _is_first() -> bool:
    """Whether this is the only process or the first of several that train together."""
    return local_rank() == 0


def _file() -> TextIO:
    return getattr(sys, _stream)
