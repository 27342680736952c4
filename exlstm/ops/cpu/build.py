"""C++ sources compiled at first use into a per-user cache, and loaded.

The sources are plain C++ without torch's headers, so this takes seconds, and installing compiles nothing. A library's
name is a digest of all that it depends on: source, compiler, options and processor. It is written under another name
and then renamed, so several processes that start at once never see half a file.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

# Not -ffast-math: when linked in, it makes the whole process flush subnormal numbers to zero.
_OPTIONS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_NATIVE = ("-march=native", "-mcpu=native", "")  # the first that the compiler takes


_LOG = logging.getLogger("exlstm")
_failures: list[str] = []
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True
    parallel_for.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class BuildError(RuntimeError):
    """A library could not be built; the message says why, in one line."""


def cache_folder() -> Path:
    """Where libraries are kept: $EXLSTM_CACHE, else a folder of the user's cache."""
    if folder := os.environ.get("EXLSTM_CACHE"):
        return Path(folder)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "exlstm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "exlstm"


@functools.cache
def load(source: Path, real: str) -> ctypes.CDLL:
    """The library of `source`, compiled for the C++ type `real`; built if the cache does not hold it.

    Raises:
        BuildError: there is no compiler, it fails, or its result cannot be loaded.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler found (set CXX, or install g++ or clang++)")
    headers = [x.read_text() for x in sorted(source.parent.glob("*.h"))]
    identity = [source.read_text(), *headers, _output([compiler, "--version"]), " ".join(_OPTIONS), real, _processor()]
    name = f"{source.stem}-{real}-{hashlib.sha256('|'.join(identity).encode()).hexdigest()[:20]}.so"
    path = cache_folder() / name
    if not path.is_file():
        path = _build(compiler, source, real, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} cannot be loaded ({error}); delete it to have it built again") from error


def real_of(dtype: torch.dtype) -> str:
    """The C++ type that states of `dtype` have."""
    return {torch.float32: "float", torch.float64: "double"}[dtype]


def obstacle_of(source: Path, device: torch.device | None) -> str | None:
    """Why the kernels of `source` cannot run on `device` (on this machine if None); None if they can."""
    if device is not None and device.type != "cpu":
        return f"it runs on a CPU only, not on {device.type}"
    return _failure(source)


@functools.cache
def _failure(source: Path) -> str | None:
    try:
        load(source, "float")
        parallel_for()
    except (BuildError, OSError, AttributeError) as error:
        if not _failures:
            _LOG.warning("running without C++ kernels, several times slower: %s", error)
        _failures.append(str(error))
        return str(error)
    return None


@functools.cache
def parallel_for() -> ctypes.c_void_p:
    """The address of torch's own parallel_for, from its stable C interface: no second thread pool.

    Null in a forked child, where the threads of that pool do not exist and waiting for them would never end.
    """
    if _forked:
        return ctypes.c_void_p(None)
    library = Path(torch.__file__).parent / "lib"
    names = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}
    handle = ctypes.CDLL(str(library / names.get(sys.platform, "libtorch_cpu.so")))
    return ctypes.cast(handle.torch_parallel_for, ctypes.c_void_p)


def find_compiler() -> str | None:
    """The C++ compiler: $CXX, or the first of the usual names on the path."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def _build(compiler: str, source: Path, real: str, path: Path) -> Path:
    """Compile to `path`, or, where that cannot be written, to a folder of this process alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, new = tempfile.mkstemp(dir=path.parent, suffix=".so")
        os.close(handle)
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="exlstm-")) / path.name
        new = str(path) + ".new"
    try:
        for native in _NATIVE:
            command = [compiler, *_OPTIONS, *([native] if native else []), f"-DREAL={real}", str(source), "-o", new]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode == 0:
                Path(new).replace(path)
                return path
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[0]
        raise BuildError(f"{compiler} cannot compile {source.name}: {reason}")
    except OSError as error:
        raise BuildError(f"{compiler} cannot be run: {error}") from error
    finally:
        Path(new).unlink(missing_ok=True)


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error


def _processor() -> str:
    """What tells processors apart whose native code differs."""
    info = Path("/proc/cpuinfo")
    flags = (
        next((x for x in info.read_text().splitlines() if x.startswith(("flags", "Features"))), "")
        if info.is_file()
        else ""
    )
    return f"{platform.machine()} {platform.processor()} {flags}"
