import pytest
import torch
from torch.nn import functional as F

from exlstm.layers import CausalConv1d


def test_it_is_torchs_depthwise_convolution_padded_on_the_left():
    conv, x = CausalConv1d(6, 4).double(), torch.randn(2, 9, 6, dtype=torch.float64)
    y, state = conv(x)
    padded = F.pad(x.transpose(1, 2), (3, 0))
    expected = F.conv1d(padded, conv.weight[:, None], conv.bias, groups=6).transpose(1, 2)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, x[:, -3:])


def test_a_kernel_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="kernel must be at least 1, got 0"):
        CausalConv1d(6, 0)
