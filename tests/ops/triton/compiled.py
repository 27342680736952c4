"""Compile an operator's kernels for a GPU that need not be there: `python -m tests.ops.triton.compiled mlstm cuda`.

One line of JSON a kernel: its name, bytes of shared memory, and bytes of registers that it spills (NVIDIA only). In a
process of its own, for the interpreter and the compiler do not go together in one.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from exlstm.layers.step import emit
from exlstm.models import Backbone
from exlstm.ops import HMLSTMState, MLSTMState, SLSTMState
from exlstm.ops.triton import gated_norm, hmlstm, mlstm, mlstm_state, qkv, slstm
from exlstm.ops.triton.launch import Launch, recorded
from exlstm.ops.triton.program import TritonProgram
from tests.ops.cases import leaves

TARGETS = {"cuda": GPUTarget("cuda", 90, 32), "hip": GPUTarget("hip", "gfx942", 64)}
NAMES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.int8: "*i8",
}


# A type and widths for every table of tiles.
MATRICES = (
    (torch.bfloat16, 256, 512),
    (torch.bfloat16, 64, 128),
    (torch.float16, 512, 512),
    (torch.float16, 256, 512),
    (torch.float32, 256, 512),
)
DTYPES, WIDTHS = (torch.bfloat16, torch.float16, torch.float32), (16, 32, 64, 128, 256)


def calls(operator: str) -> Iterator[tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    """Calls of an operator's kernels, function and inputs, for all configurations of its tables."""
    match operator:
        case "slstm":
            for dtype, width in itertools.product(DTYPES, WIDTHS):
                x, r = torch.empty(16, 8, 4, 2, width, dtype=dtype), torch.empty(4, 2, width, width, dtype=dtype)
                state = SLSTMState(*torch.empty(4, 16, 2, width))
                yield partial(slstm.slstm, state=state, **marks(16, 8)), (x, r)
        case "mlstm":
            few_and_long = (1, 2**13, torch.bfloat16, 64, 128)  # which is walked in segments
            for batch, time, dtype, dk, dv in (*((32, 300, *matrix) for matrix in MATRICES), few_and_long):
                k, v = (torch.empty(batch, time, 2, columns, dtype=dtype) for columns in (dk, dv))
                gate = torch.empty(batch, time, 2, dtype=dtype)
                state = MLSTMState(*(torch.empty(batch, 2, *of_head) for of_head in ((dk, dv), (dk,), ())))
                options = {"state": state, **marks(batch, time)}
                yield partial(mlstm.mlstm, **options), (k.clone(), k, v, gate, gate.clone())
                yield partial(mlstm_state.mlstm_state, **options), (k, v, gate, gate.clone())
        case "hmlstm":
            time = 4400  # memories for whole tiles
            for dtype, dk, dv in MATRICES:
                k, v = (torch.empty(1, time, 2, columns, dtype=dtype) for columns in (dk, dv))
                gate, level = torch.empty(1, time, 2, dtype=dtype), torch.empty(1, time, 2, 14, dtype=dtype)
                empty = HMLSTMState.empty(1, 2, 14, dk, dv, dtype=torch.float32, device=k.device)
                held = empty._replace(position=torch.full((1,), 1000))  # so that steps are looked up in tables
                for state in (empty, held):
                    yield partial(hmlstm.hmlstm, state=state), (k.clone(), k, v, gate, gate.clone(), level)
        case "gated_norm":
            for dtype, width in itertools.product(DTYPES, (33, 512)):
                sizes = (2, 300, 2, width), (2 * width,), *[(2, 300, 2 * width)] * 2, (2 * width,)
                inputs = tuple(torch.empty(*size, dtype=dtype) for size in sizes)
                options = {"activation": "silu", "eps": 1e-5}
                yield lambda *x: gated_norm.gated_norm(*x[:3], skip=(x[4], x[3]), **options), inputs  # noqa: B023
        case "qkv_gates":
            for dtype, block in itertools.product(DTYPES, (4, 32)):
                sizes = (2, 300, 256), (2, 3, 256), (256, 4), (256,), *[(256 // block, block, block)] * 3
                inputs = tuple(torch.empty(*size, dtype=dtype) for size in (*sizes, (8, 768), (8,)))
                reach = torch.empty(2, 300, dtype=torch.int64)
                yield lambda *x: qkv.qkv_gates(x[0], x[1], x[2:4], x[4:7], x[7:], reach=reach), inputs  # noqa: B023


def marks(batch: int, time: int) -> dict[str, Tensor]:
    return {name: torch.ones(batch, time, dtype=torch.bool) for name in ("mask", "reset")}


def launches_of_programs() -> Iterator[Launch]:
    """All launches of steps of small models of all kinds, of one row, with weights in full and in bytes, and of two."""
    for dtype, style, (batch, weights) in itertools.product(
        DTYPES, ("large", "paper"), ((1, "full"), (1, "int8"), (2, "full"))
    ):
        model = Backbone("msh", 512, 2, style=style, levels=14).to(dtype)
        program = TritonProgram(batch, dtype, device=torch.device("cpu"), weights=weights)
        x = program.embed(program.register(dtype=torch.int64), torch.empty(1000, 512, dtype=dtype))
        for layer in (*model.blocks, model.norm):
            x, _ = emit(layer, program, x)
        with recorded() as launches:
            program.run()
        yield from launches


def launches_of(operator: str) -> Iterator[Launch]:
    """All launches of a forward and a backward of these calls."""
    if operator == "program":
        yield from launches_of_programs()
        return
    for function, inputs in calls(operator):
        inputs = tuple(x.requires_grad_() for x in inputs)
        with recorded() as launches:
            found = leaves(function(*inputs))
            found = [x for x in found if x.requires_grad]
            torch.autograd.grad(found, inputs, [torch.empty_like(x) for x in found], allow_unused=True)
        yield from launches


def source_of(launch):
    """What a launch compiles: with its constants, and what is known to be a multiple of 16, as all pointers are."""
    kernel, signature, constants, attributes = launch.kernel, {}, {}, {}
    constant = {p.name for p in kernel.params if p.is_constexpr}
    for position, name in enumerate(kernel.arg_names):
        value = launch.arguments[name]
        if name in constant or value is None:
            signature[name], constants[(position,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(position,)] = NAMES[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            if signature[name] == "i32" and value % 16 == 0 and not kernel.params[position].do_not_specialize:
                attributes[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def spilled(ptx: str) -> int:
    """Bytes that ptxas writes to local memory for want of registers."""
    assemblers = sorted((Path(triton.__file__).parent / "backends" / "nvidia" / "bin").glob("ptxas*"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        for assembler in assemblers:  # of several, not every one knows the version of the code
            command = [assembler, "-v", "--gpu-name", "sm_90a", path, "-o", Path(folder) / "kernel.cubin"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                return sum(int(bytes_) for bytes_ in re.findall(r"(\d+) bytes spill stores", done.stderr))
    raise RuntimeError(done.stderr)


def main(operator: str, target: str) -> None:
    if target == "hip":
        torch.set_float32_matmul_precision("high")  # for there is tf32, and not its exact form
    seen = set()
    for launch in launches_of(operator):
        source = source_of(launch)
        options = {"num_warps": launch.warps, "num_stages": launch.stages}
        if (key := (source.hash(), *options.values())) in seen:
            continue
        seen.add(key)
        compiled = triton.compile(source, target=TARGETS[target], options=options)
        spills = spilled(compiled.asm["ptx"]) if target == "cuda" else None
        line = {"kernel": launch.kernel.fn.__name__, "shared": compiled.metadata.shared, "spilled": spills}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
