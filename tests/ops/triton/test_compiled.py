"""The kernels compile for an H100 and an MI300, by every configuration of the tables, within what the chips have."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SHARED = 227 * 1024  # bytes that a program may have of an H100's shared memory
SPILLED = 1280  # bytes a thread block spills at most: those of the widest heads do, at little cost; others none


OPERATORS = ("mlstm", "hmlstm", "slstm", "qkv_gates", "gated_norm", "program")


@pytest.mark.parametrize("target", ["cuda", pytest.param("hip", marks=pytest.mark.slow)])
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_configuration_compiles_and_fits(operator, target):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.triton.compiled", operator, target]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert kernels
    if target == "cuda":
        assert not [kernel for kernel in kernels if kernel["shared"] > SHARED or kernel["spilled"] > SPILLED]
