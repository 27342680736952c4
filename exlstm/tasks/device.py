"""Choosing the device that a task computes on."""

import torch


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first GPU, or the CPU where there is none.

    Raises ValueError when there is no such device here, saying which there are.
    """
    here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    if name == "auto":
        return torch.device(here[1] if len(here) > 1 else "cpu")
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in here:
        raise ValueError(f"there is no device {name!r} here; --device can be auto or {' or '.join(here)}")
    return torch.device(wanted)
