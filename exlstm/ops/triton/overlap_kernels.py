"""Device code of kernels that are launched while the one before still runs (`launch.overlapping`)."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def follow():
    """In a kernel launched early: wait for the one before, whose results are not to be touched until then.

    And let the next be launched, which will wait for this one.
    """
    gdc_launch_dependents()
    gdc_wait()


@triton.jit
def fetch(ptr, entries):
    """Let so many entries come near, to the cache that all processors share; both ends are at multiples of 16 bytes."""
    size = entries * (ptr.dtype.element_ty.primitive_bitwidth // 8)
    tl.inline_asm_elementwise(
        """{
            .reg .pred first;
            .reg .u32 thread;
            mov.u32 thread, %tid.x;
            setp.eq.u32 first, thread, 0;
            @first cp.async.bulk.prefetch.L2.global [$1], $2;
            mov.u32 $0, 0;
        }""",
        "=r,l,r",
        [ptr.to(tl.uint64), size.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
