"""How much memory was needed."""

import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: by tensors on a CUDA `device`, else by this process (0 where unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
