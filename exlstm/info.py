"""`exlstm info`: what is installed, which devices there are, and which backends can run here."""

import os
import platform
from importlib import metadata

import torch
from rich.console import Console

from exlstm import __version__
from exlstm.console import print_table
from exlstm.ops.backends import describe, remark_on

_PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "safetensors", "triton")


def show(console: Console | None = None) -> None:
    """Print versions, devices, threads, and which backends are usable for each operator or why not."""
    console = console or Console(highlight=False)
    for title, columns, rows in (
        ("Versions", ("package", "version"), versions()),
        ("Devices", ("device", "what it is"), devices()),
        ("Backends", ("operator", "backend", "usable", "why not, or which calls not"), backends()),
    ):
        print_table(columns, rows, title=title, console=console)
        console.print()


def versions() -> list[tuple[str, str]]:
    """The versions of exlstm, Python and the packages that do the computing."""
    rows = [
        ("exlstm", __version__),
        ("python", f"{platform.python_version()} ({platform.system()} {platform.machine()})"),
    ]
    for package in _PACKAGES:
        try:
            rows.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            rows.append((package, "not installed"))
    return rows


def devices() -> list[tuple[str, str]]:
    """The names `--device` accepts on this machine, and what stands behind each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    rows = [
        (
            "cpu",
            f"{_processor()}, {cores} cores, torch uses {threads} {'thread' if threads == 1 else 'threads'}",
        )
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        rows.append(
            (
                f"cuda:{index}",
                f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
                f"compute capability {properties.major}.{properties.minor}",
            )
        )
    if torch.backends.mps.is_available():
        rows.append(("mps", "Apple GPU"))
    if len(rows) == 1:
        built = torch.version.cuda
        rows.append(
            (
                "cuda",
                f"none found by torch (built for CUDA {built})" if built else "torch is built without CUDA",
            )
        )
    return rows


def backends() -> list[tuple[str, str, str, str]]:
    """One row for each operator and backend: whether it is usable here, and why not, or what it leaves to others."""
    return [
        (operator, backend, "no" if reason else "yes", reason or remark_on(operator, backend))
        for operator, reasons in describe().items()
        for backend, reason in reasons.items()
    ]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(names)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
