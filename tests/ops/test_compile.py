"""torch.compile sees no graph break in the operators whose shapes do not depend on data."""

import pytest
import torch

from exlstm.layers import MLSTM, SLSTM, MLSTMLarge
from exlstm.ops import gated_norm, mlstm, qkv_gates, slstm


def normal(*shape):
    return torch.randn(*shape, requires_grad=True)


CALLS = {
    "mlstm": lambda: (
        mlstm,
        [*(normal(2, 70, 2, 8) for _ in range(3)), normal(2, 70, 2), normal(2, 70, 2)],
    ),
    "slstm": lambda: (slstm, [normal(2, 20, 4, 2, 8), normal(4, 2, 8, 8)]),
    "gated_norm": lambda: (lambda h, w, z: (gated_norm(h, w, z),), [normal(2, 9, 2, 8), normal(16), normal(2, 9, 16)]),
    "qkv_gates": lambda: (
        lambda x, past, c, b, q, k, v, w, d: qkv_gates(x, past, (c, b), (q, k, v), (w, d)),
        [
            *(normal(2, 9, 32), normal(2, 3, 32), normal(32, 4), normal(32)),
            *(normal(8, 4, 4) for _ in range(3)),
            *(normal(4, 96), normal(4)),
        ],
    ),
}


# An sLSTM in torch is a loop over time, and compiling it would unroll all steps.
PAIRS = [(name, backend) for name in CALLS for backend in ("cpu", "torch") if (name, backend) != ("slstm", "torch")]


@pytest.mark.parametrize(("name", "backend"), PAIRS)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # which Dynamo itself does
def test_an_operator_is_one_graph_with_the_same_results(name, backend, monkeypatch):
    monkeypatch.setenv("EXLSTM_BACKEND", backend)
    torch._dynamo.reset()
    run, inputs = CALLS[name]()
    expected = run(*inputs)[0]
    actual = torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs)[0]
    torch.testing.assert_close(actual, expected)
    for a, e in zip(
        torch.autograd.grad(actual.square().sum(), inputs, allow_unused=True),
        torch.autograd.grad(expected.square().sum(), inputs, allow_unused=True),
        strict=True,
    ):
        if e is not None:
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [lambda: MLSTM(32, 2), lambda: MLSTMLarge(32, 2), lambda: SLSTM(32, 2)])
def test_a_layer_is_one_graph(make):
    torch._dynamo.reset()
    layer, x = make(), torch.randn(2, 12, 32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])
