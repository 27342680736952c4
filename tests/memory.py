"""What code needs in memory, measured by `benchmarks.memory.growth` in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# glibc raises the size from which it maps a block by itself to that of a block that was freed, up to 32 MB; whether the
# next tensors of that size stay behind in its heap is then chance. With a size given, what is freed is gone.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a part of a process's life"
)


def printed_by(code: str, *arguments: object) -> list[int]:
    """The numbers that code prints in a process of its own, where freed tensors are not counted as held."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | RETURNED, stdout=subprocess.PIPE, text=True, check=True)
    return [int(word) for word in done.stdout.split()]
