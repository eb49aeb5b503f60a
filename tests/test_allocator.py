"""What is freed is kept for the next step, unless the environment says otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

#: Pages that the kernel makes while an array of 96 MiB is filled and freed, the second to the fifth time.
FAULTS = """
import os, resource, numpy
from surgery_r1._util.allocator import keep_freed_memory
keep_freed_memory(os.environ)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
numpy.ones(12 * 2**20)
before = faults()
for _ in range(4):
    numpy.ones(12 * 2**20)
print(faults() - before)
"""
#: Pages of the four arrays, were they made anew; huge ones are fewer.
PAGES = 4 * 96 * 2**20 // os.sysconf("SC_PAGE_SIZE")


def faults(**variables: str) -> int:
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k not in ("GLIBC_TUNABLES", "LD_PRELOAD")
    }
    # numpy asks for huge pages, which would hide how often memory is taken.
    environment = {**kept, "NUMPY_MADVISE_HUGEPAGE": "0", **variables}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc: nothing is set")
def test_pages_are_made_once_unless_the_environment_says_how_to_allocate():
    assert faults() < PAGES / 20
    assert faults(MALLOC_MMAP_THRESHOLD_="1000000") > PAGES / 2


@pytest.mark.parametrize("library", [OSError("no such library"), object()])
def test_without_glibc_nothing_happens(monkeypatch, library):
    from surgery_r1._util import allocator

    def opened(_):
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(allocator.ctypes, "CDLL", opened)
    allocator.keep_freed_memory([])
