"""The kernels compile for an H100 and an MI300, by every configuration of the tables, within what the chips have."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SHARED = 227 * 1024  # bytes that a program may have of an H100's shared memory
SPILLED = 1280  # bytes a thread block spills at most: those of the widest heads do, at little cost; others none


LENGTHS = """
import torch
from exlstm.ops import SLSTMState
from exlstm.ops.triton import mlstm, qkv, slstm
from exlstm.ops.triton.launch import recorded
from tests.ops.cases import leaves
from tests.ops.triton.compiled import source_of

def half(*size):
    return torch.empty(*size, dtype=torch.bfloat16, requires_grad=True)

def calls(T):
    yield mlstm.mlstm, (*(half(32, T, 2, width) for width in (64, 64, 128)), half(32, T, 2), half(32, T, 2), None)
    yield slstm.slstm, (half(8, T, 4, 2, 64), half(4, 2, 64, 64), SLSTMState(*torch.empty(4, 8, 2, 64)))
    weights = (half(256, 4), half(256)), tuple(half(64, 4, 4) for _ in range(3)), (half(8, 768), half(8))
    yield qkv.qkv_gates, (half(2, T, 256), half(2, 3, 256), *weights)

def sources(T):
    with recorded() as launches:
        for function, inputs in calls(T):
            y = leaves(function(*inputs))[0]
            torch.autograd.grad(y, [x for x in leaves(inputs) if x.requires_grad], y, allow_unused=True)
    return {(launch.kernel.fn.__qualname__, source_of(launch).hash()) for launch in launches}

few, many = sources(300), sources(4096)
assert few == many, few ^ many
print(len(few))
"""
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


def test_a_kernel_is_compiled_once_for_all_lengths_beyond_a_chunk():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", LENGTHS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 15
