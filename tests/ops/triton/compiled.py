"""Compile an operator's kernels for a GPU that need not be there: `python -m tests.ops.triton.compiled mlstm cuda`.

One line of JSON a kernel: its name, bytes of shared memory, and bytes of registers that it spills (NVIDIA only). In a
process of its own, for the interpreter and the compiler do not go together in one.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {"cuda": GPUTarget("cuda", 90, 32), "hip": GPUTarget("hip", "gfx942", 64)}
NAMES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


def source_of(launch):
    """What a launch compiles: with its constants, and with pointers that are multiples of 16."""
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
    seen = set()
    for launch in importlib.import_module(f"exlstm.ops.triton.{operator}").compile_cases():
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
