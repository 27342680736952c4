"""Memory of this process, as the Linux kernel counts it."""

import ctypes
import gc
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets VmHWM, the highest resident set, to the present one


def growth(call: Callable[[], Any]) -> int | None:
    """Run `call`; bytes by which its highest resident set exceeds the one before it. None where unknown (not Linux)."""
    gc.collect()
    if not _CLEAR.exists():
        call()
        return None
    with suppress(AttributeError, OSError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that is still resident would hide as much of the growth
    with suppress(OSError):  # a sandbox that forbids it; the peak then counts from the start of the process
        _CLEAR.write_text(_RESET_PEAK)
    before = _read("VmRSS")
    call()
    return max(0, _read("VmHWM") - before)


def limit(number_of_bytes: int) -> None:
    """Let allocations beyond `number_of_bytes` fail, so that they end this process and no other."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (number_of_bytes, number_of_bytes))


def _read(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])
