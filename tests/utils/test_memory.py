"""Freed memory that is kept is not cleared again by the operating system."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from bespoke.utils.memory import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_freed_memory()
pages()
print(pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc to be told")
def test_kept_memory_is_used_again_as_it_is():
    plain, kept = (
        int(subprocess.check_output([sys.executable, "-c", FAULTS, how]))
        for how in ("leave", "keep")
    )
    assert kept < min(plain, 32)
