"""What code needs in memory, measured by `benchmarks.memory.growth` in a process of its own."""

from pathlib import Path

import pytest

from tests.process import printed_by

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a part of a process's life"
)


def growths_printed_by(code: str, *arguments: object) -> list[int]:
    """The numbers that code prints, measured where freed tensors are not counted as held.

    glibc raises the size from which it maps a block by itself to that of a block that was freed, up to 32 MB; whether
    the next tensors of that size stay behind in its heap is then chance. With a size given, what is freed is gone.
    """
    return [int(word) for word in printed_by(code, *arguments, MALLOC_MMAP_THRESHOLD_="65536")]
