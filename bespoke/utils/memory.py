"""Control of how glibc keeps and returns freed memory."""

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # option numbers in glibc's malloc.h
_KEPT_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep up to 2 GB of freed memory for later allocations.

    By default glibc returns each large block to the operating system, which must clear the pages
    of the next one. This takes a third of the time of a network's pass over a one-minute
    spectrogram. Has no effect without glibc (macOS, Windows, musl).
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back() -> None:
    """Return freed memory to the operating system.

    glibc keeps freed memory that lies between blocks in use: half a GB after training, or after
    separating one minute. Has no effect without glibc (macOS, Windows, musl).
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
