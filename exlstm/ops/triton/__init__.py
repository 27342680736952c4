"""Operators as Triton kernels, for GPUs; with TRITON_INTERPRET=1 they run, slowly, on a CPU.

Modules named `*_kernels` hold device code and import triton; they are imported at the first call, so that exlstm itself
needs no triton.
"""
