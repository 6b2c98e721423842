"""What is chosen by the processor and its load: the number of threads, and bfloat16.

Imported before PyTorch: the load of the machine is measured while that is imported.
"""

import os
import time

import psutil

_SHORTEST_SECONDS = 0.2  # over which the load of the machine can be told


def wait_without_spinning() -> None:
    """Let threads of this process that wait for each other sleep instead of keeping a core busy.

    Where other programs use the cores, a thread that spins takes the time of the thread that it waits
    for. OpenMP reads this when PyTorch is imported, so that it has to be said before.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def local_rank() -> int:
    """This process's number, from 0, among those of this machine that train together."""
    return int(os.environ.get("LOCAL_RANK", 0))


def cores() -> int:
    """How many cores this process may use: those it is bound to, and no more than its container's
    quota."""
    import joblib

    return joblib.cpu_count()


def free_cores() -> int:
    """How many of them other programs leave free, at least 1.

    Measured since the last call or, at first, since this module was imported.
    """
    global _before
    if (missing := _SHORTEST_SECONDS - (_times()[0] - _before[0])) > 0:
        time.sleep(missing)
    now = _times()
    elapsed, busy, own = (after - before for after, before in zip(now, _before, strict=True))
    _before = now
    others = max(0.0, busy - own) / elapsed
    return max(1, min(cores(), round((os.cpu_count() or 1) - others)))


def use_free_cores(threads: int | None = None) -> int:
    """Set the number of threads of PyTorch, and let NumPy's products use one.

    Two threads on one free core take more than twice the time of one thread, as each waits for the
    other at every operation. Those of OpenBLAS spin while they wait, whatever they are told, and gain
    little: a second thread makes a factorization a fifth faster on a quiet machine, and four times
    slower on a busy one.

    Args:
        threads: how many. None: as many as cores are free, but no more than PyTorch uses by itself,
            and what OMP_NUM_THREADS says, where it is set.

    Returns:
        The number of threads.
    """
    import torch
    from threadpoolctl import threadpool_limits

    if threads is None:
        threads = torch.get_num_threads()
        if "OMP_NUM_THREADS" not in os.environ:
            threads = min(threads, free_cores())
    torch.set_num_threads(threads)
    threadpool_limits(1, user_api="blas")
    return threads


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16 that PyTorch uses.

    With them a network takes half the time, without them several times as long. Of processors other
    than x86 nothing is known here, and they compute in 32 bits.
    """
    import torch

    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # which ATEN_CPU_CAPABILITY limits
        return False
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def trains_contiguous() -> bool:
    """Whether convolutions are trained faster with channels first than with channels last: with AVX2
    alone, oneDNN's gradients of channels last take twice the time."""
    import torch

    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def _times() -> tuple[float, float, float]:
    """Of the clock, of all cores at work, and of this process and its children, in seconds."""
    times, own = psutil.cpu_times(), os.times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # is in user and nice
    return time.monotonic(), sum(times) - guest - idle, sum(own[:4])


_before = _times()
