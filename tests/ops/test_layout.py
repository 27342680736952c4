"""Layouts are kept for the layers of a model, and never for another mask."""

import pytest
import torch

from exlstm.ops import hmlstm
from exlstm.ops.chunkwise import layout
from exlstm.ops.chunkwise.layout import Layout
from tests.needs import needs

CPU = torch.device("cpu")


@pytest.fixture
def mask():
    return torch.rand(3, 20) < 0.8


def of(mask, reset=None, *, size=8):
    return Layout.from_empty(3, 20, size, mask, reset, CPU)


def test_equal_masks_share_a_layout(mask):
    assert of(mask) is of(mask.clone())
    assert of(mask, mask) is of(mask.clone(), mask.clone())
    assert of(None) is of(None)


def test_other_masks_and_sizes_do_not(mask):
    kinds = [of(mask), of(None, mask), of(None), of(mask, mask), of(mask, size=4), of(~mask)]
    assert len({id(kind) for kind in kinds}) == len(kinds)


def test_a_mask_that_is_changed_in_place_is_another(mask):
    first, values = of(mask), mask.numpy()
    values[0, 5] = not values[0, 5]  # which no version of the tensor tells
    second = of(mask)
    assert second is not first
    assert of(mask.clone()) is second


def test_few_are_kept():
    kinds = [of(torch.arange(60).view(3, 20) > n) for n in range(2 * layout.KEPT)]
    assert len(layout._kept) == layout.KEPT
    assert of(torch.arange(60).view(3, 20) > 0) is not kinds[0]


@pytest.mark.parametrize("backend", ["cpu", "torch", "triton"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # NumPy's, in Triton's interpreter
def test_what_was_kept_without_gradients_serves_with_them(backend, mask):
    needs("hmlstm", backend)

    def run(backend):
        h, state = hmlstm(*inputs, mask=mask, backend=backend)
        return h, *state

    inputs = [torch.randn(3, 20, 2, 4) for _ in range(3)] + [torch.randn(3, 20, 2) for _ in range(2)]
    inputs = [x.requires_grad_() for x in (*inputs, torch.randn(3, 20, 2, 5))]
    with torch.inference_mode():
        run(backend)
    torch.testing.assert_close(run(backend), run("reference"), rtol=1e-4, atol=1e-4)
    slopes = [torch.autograd.grad(run(to)[0].square().sum(), inputs) for to in (backend, "reference")]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-3)
