"""Triton kernels on a GPU where there is one, else in Triton's interpreter."""

import pytest
import torch

from exlstm.ops.triton.launch import obstacle


@pytest.fixture
def device():
    """Where the kernels of a test run."""
    pytest.importorskip("triton")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if reason := obstacle(device):
        pytest.skip(reason)
    return device
