import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton, whose own library it concerns as well

torch.set_num_threads(1)  # the tensors of tests are too small to share


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws its own data, the same on every run."""
    torch.manual_seed(20260101)
