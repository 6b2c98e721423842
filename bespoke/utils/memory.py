"""What the C library does with memory that is freed."""

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's numbers, from malloc.h
_KEPT_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to 2 GB, for its next allocation.

    glibc gives each large block back to the system, which has to clear the next one page by page: a third of the time in which a network
    goes over a minute of spectrogram. Elsewhere (macOS, Windows, musl) this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back() -> None:
    """Hand freed memory back to the system: glibc keeps what lies between pieces in use, half a GB after training or a minute's separation.

    Elsewhere (macOS, Windows, musl) this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
