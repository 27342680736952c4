"""Random numbers derived from what they are for, never from what ran before.

A step whose seed follows from (seed, step) alone draws the same numbers in a run that was resumed, and
whether or not a validation ran in between; so there is no generator state to save.
"""

import hashlib
import random

import numpy as np
import torch


def derive_seed(seed: int, *parts: int | str) -> int:
    """A 32-bit seed that depends on `seed` and on every one of `parts`, alike on every machine."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def seed_device(device: torch.device, seed: int) -> None:
    """Seed torch's generators for work on `device`: its own and the CPU's, and no other's (0.2 ms a call)."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (every device), as before building a model."""
    random.seed(seed)
    np.random.seed(derive_seed(seed, "numpy"))  # noqa: NPY002 - the global generator is what is meant
    torch.manual_seed(seed)
