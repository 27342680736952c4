"""Where and with what a run was made."""

import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from benchmarks import peers
from exlstm import __version__
from exlstm.ops.backends import describe, why_unusable


def machine() -> dict[str, str]:
    """Processor, memory, system, and how busy it was before the run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "processor": f"{_processor()}, {cores} cores",
        "vector instructions": torch.backends.cpu.get_cpu_capability() + (", bfloat16" if _has_bfloat16() else ""),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if memory := _memory():
        facts["memory"] = f"{memory / 2**30:.0f} GiB"
    if hasattr(os, "getloadavg"):
        facts["load before the run"] = f"{os.getloadavg()[0]:.2f}"
    return facts


def versions() -> dict[str, str]:
    """Versions of what computes, and the backend that serves each of our operators."""
    found = {"exlstm": f"{__version__}{commit()}", "python": platform.python_version()}
    for name in ("torch", *peers.PEERS):
        found[name] = peers.version(name) or "not installed"
    return found | {"backends of exlstm": _backends()}


def available_memory() -> int | None:
    """Bytes that processes can still take; None where unknown (not Linux)."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def _backends() -> str:
    if asked := os.environ.get("EXLSTM_BACKEND"):
        return f"EXLSTM_BACKEND={asked}"
    cpu = torch.device("cpu")
    fastest_first = ("cpu", "torch", "reference")
    serving = {op: next(b for b in fastest_first if why_unusable(op, b, cpu) is None) for op in describe()}
    return ", ".join(f"{operator}: {backend}" for operator, backend in serving.items())


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _has_bfloat16() -> bool:
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", _cpuinfo()) is not None


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def commit() -> str:
    """The commit of this checkout, and whether files differ from it; empty outside of git."""
    root = Path(__file__).resolve().parents[1]
    try:
        run = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" ({run.stdout.strip()})"
