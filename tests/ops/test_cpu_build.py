"""The C++ kernels build at first use, whatever the machine is like, or say in one line why they cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import needs_compiler

STEP = """
import torch
from exlstm.ops import slstm
h, _ = slstm(torch.randn(2, 3, 4, 2, 8), torch.zeros(4, 2, 8, 8), backend={backend!r})
assert h.isfinite().all()
"""


def start(code: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@needs_compiler
def test_four_processes_that_start_at_once_share_one_library(tmp_path):
    processes = [start(STEP.format(backend="cpu"), EXLSTM_CACHE=str(tmp_path)) for _ in range(4)]
    assert [finish(p) for p in processes] == [(0, "")] * 4
    assert [p.suffix for p in tmp_path.iterdir()] == [".so"]


@needs_compiler
def test_a_cache_that_cannot_be_written_does_not_hinder(tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert finish(start(STEP.format(backend="cpu"), EXLSTM_CACHE=str(file / "below"))) == (0, "")


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("/nowhere/c++", "no C++ compiler found"), ("/bin/false", "cannot compile slstm.cpp: exit code 1")],
)
def test_without_a_working_compiler_torch_serves_and_one_line_says_so(tmp_path, compiler, reason):
    code = STEP.format(backend="auto") + STEP.format(backend="auto")
    code += "from exlstm.ops.backends import describe\nprint(describe()['slstm']['cpu'])\n"
    process = start(code, EXLSTM_CACHE=str(tmp_path), CXX=compiler)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert reason in out
    assert len(errors.splitlines()) == 1
    assert reason in errors


def test_asking_for_a_backend_that_cannot_run_is_an_error_that_says_why(tmp_path):
    code, errors = finish(start(STEP.format(backend="cpu"), EXLSTM_CACHE=str(tmp_path), CXX="/nowhere/c++"))
    assert code == 1
    assert "ValueError: backend 'cpu' cannot run here: no C++ compiler found" in errors


@needs_compiler
def test_a_damaged_library_is_named(tmp_path):
    assert finish(start(STEP.format(backend="cpu"), EXLSTM_CACHE=str(tmp_path)))[0] == 0
    (library,) = tmp_path.iterdir()
    library.write_bytes(b"\x7fELF nonsense")
    _, errors = finish(start(STEP.format(backend="cpu"), EXLSTM_CACHE=str(tmp_path)))
    assert str(library) in errors
    assert "delete it" in errors


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_it_runs_in_a_forked_child():
    code = STEP.format(backend="cpu") + "import os\nif pid := os.fork():\n    raise SystemExit(os.waitpid(pid, 0)[1])\n"
    code += STEP.format(backend="cpu")
    assert finish(start("import warnings; warnings.simplefilter('ignore')\n" + code))[0] == 0


@needs_compiler
def test_loading_it_does_not_flush_subnormal_numbers_to_zero():
    code = STEP.format(backend="cpu") + "assert (torch.tensor(1e-40) * torch.tensor(0.5)).item() > 0\n"
    assert finish(start(code)) == (0, "")


def test_the_source_is_part_of_the_package():
    import exlstm.ops.cpu.slstm as module

    assert (Path(module.__file__).parent / "slstm.cpp").is_file()
