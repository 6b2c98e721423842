"""Settings that depend on the processor and its load: number of threads, bfloat16, memory layout.

Import this module before PyTorch: the load of the machine is measured during that import.
"""

import os
import time

import psutil

_SHORTEST_SECONDS = 0.2  # shortest interval over which the load can be measured


def wait_without_spinning() -> None:
    """Make threads sleep, not spin, while they wait for other threads of this process.

    On a busy machine, a spinning thread takes time from the thread that it waits for. OpenMP reads
    this setting when PyTorch is imported, so call this function before.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def local_rank() -> int:
    """Index, from 0, of this process among those that train together on this machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def cores() -> int:
    """Number of cores that this process may use, by its CPU affinity and its container's quota."""
    import joblib

    return joblib.cpu_count()


def free_cores() -> int:
    """Number of cores that other programs leave free, at least 1.

    Measured since the previous call, or since the import of this module at the first call.
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
    """Set the number of threads of PyTorch, and limit BLAS (NumPy's products) to one thread.

    Two threads on one free core take more than twice as long as one thread, because each waits for
    the other at every operation. OpenBLAS threads always spin while they wait and gain little: a
    second one makes a factorization 20 % faster on an idle machine and four times slower on a busy
    one.

    Args:
        threads: number of threads. None: OMP_NUM_THREADS where it is set, else the number of free
            cores, at most PyTorch's default.

    Returns:
        The number of threads that PyTorch uses.
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
    """Whether PyTorch can use this processor's instructions for bfloat16 products.

    With such instructions bfloat16 halves a network's time; without them it takes several times as
    long. Always False for processors other than x86, for which this was not measured.
    """
    import torch

    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # ATEN_CPU_CAPABILITY can limit it
        return False
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def trains_contiguous() -> bool:
    """Whether convolutions train faster in the channels-first than in the channels-last layout.

    This is so on processors with AVX2 alone, where oneDNN's channels-last gradients take twice the
    time.
    """
    import torch

    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def _times() -> tuple[float, float, float]:
    """Clock, busy time of all cores, and CPU time of this process and its children, in seconds."""
    times, own = psutil.cpu_times(), os.times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # user and nice include the time of virtual machines
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return time.monotonic(), sum(times) - guest - idle, sum(own[:4])


_before = _times()
