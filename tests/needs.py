"""What tests need and a machine may lack."""

import pytest
import torch

from exlstm.ops.backends import why_unusable
from exlstm.ops.cpu.build import find_compiler

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler on this machine")


def needs(operator: str, backend: str) -> None:
    """Skip the test where `backend` cannot run `operator` on a CPU; the reason is the one that a user is told."""
    if reason := why_unusable(operator, backend, torch.device("cpu")):
        pytest.skip(reason)
