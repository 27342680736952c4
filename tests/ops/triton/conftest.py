"""Triton kernels on a GPU where there is one, else in Triton's interpreter."""

import pytest
import torch


@pytest.fixture
def device():
    """Where the kernels of a test run."""
    pytest.importorskip("triton")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
