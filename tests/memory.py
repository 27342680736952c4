"""Peak memory of a call, all of it: resident pages of this process, those of mapped files included."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a part of a process's life"
)


def growth(call: Callable[[], object]) -> int:
    """By how many bytes memory grew at most while `call` ran. Linux only; use it in a process of its own."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _bytes("VmRSS")
    kept = call()
    peak = _bytes("VmHWM")
    del kept
    return peak - before


def _bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
