import pytest
import torch
from torch.nn import functional as F

from exlstm.layers import LayerNorm, MultiHeadNorm, RMSNorm


def test_rms_norm_divides_by_the_root_mean_square_and_multiplies_by_its_weight():
    x, norm = torch.randn(2, 3, 8, dtype=torch.float64), RMSNorm(8).double()
    torch.nn.init.normal_(norm.weight)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


def test_layer_norm_centres_and_has_no_bias():
    x, norm = torch.randn(2, 3, 8, dtype=torch.float64), LayerNorm(8).double()
    assert [name for name, _ in norm.named_parameters()] == ["weight"]
    y = norm(x + 5)
    torch.testing.assert_close(y.mean(-1), torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(y, norm(x), rtol=1e-4, atol=1e-4)


def test_multi_head_norm_is_a_group_norm_of_every_step():
    h, norm = torch.randn(2, 5, 3, 4, dtype=torch.float64), MultiHeadNorm(12).double()
    torch.nn.init.normal_(norm.weight)
    expected = F.group_norm(h.reshape(10, 12), 3, norm.weight, eps=1e-5).reshape(2, 5, 12)
    torch.testing.assert_close(norm(h), expected)


@pytest.mark.parametrize("norm", [RMSNorm(64), LayerNorm(64)], ids=["rms", "layer"])
def test_norms_compute_in_float32_and_keep_the_dtype(norm):
    x = (100 + torch.randn(4, 64)).bfloat16()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, norm(x.float()).bfloat16(), rtol=0, atol=0)
