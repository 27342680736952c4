"""A backbone all of whose operators run as Triton kernels trains as by PyTorch's operations."""

import pytest
import torch

from exlstm.models import Backbone
from exlstm.ops.triton.launch import obstacle
from tests.layers.layer_cases import tensors

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytestmark = pytest.mark.skipif(obstacle(DEVICE) is not None, reason="Triton cannot run here")


@pytest.mark.parametrize("style", ["paper", "large"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "both ways"])
def test_outputs_state_and_gradients_equal_those_of_torch(style, bidirectional, monkeypatch):
    model = Backbone("msh", 16, 2, style=style, levels=3, bidirectional=bidirectional).to(DEVICE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = torch.randn(2, 21, 16, device=DEVICE, requires_grad=True)
    mask, reset = (torch.rand(2, 21, device=DEVICE) < share for share in (0.8, 0.1))
    mixture = torch.randn(2, 21, 16, device=DEVICE) * mask[..., None]

    def results(backend: str) -> list[torch.Tensor]:
        monkeypatch.setenv("EXLSTM_BACKEND", backend)
        y, state = model(x, mask=mask, reset=reset)
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad((mixture * y).sum(), [x, *parameters], allow_unused=True)
        floats = [s for s in tensors(state) if s.is_floating_point()]
        found = [y * mask[..., None], *floats, *(g for g in gradients if g is not None)]
        return [z.detach() for z in found]

    for found, expected in zip(results("triton"), results("torch"), strict=True):
        # Sums of float32 in other orders, some of which are divided by small differences, in three blocks.
        assert (found - expected).norm() <= 1e-3 * max(1.0, float(expected.norm()))
