"""torch.compile sees no graph break in the operators whose shapes do not depend on data."""

import pytest
import torch

from exlstm.layers import MLSTM, SLSTM, MLSTMLarge
from exlstm.ops import gated_norm, hmlstm, mlstm, mlstm_state, qkv_gates, slstm
from tests.needs import needs


def normal(*shape):
    return torch.randn(*shape, requires_grad=True)


def kept_in(graphs):
    """A backend of torch.compile that only keeps the graphs."""

    def backend(graph, example):
        graphs.append(graph)
        return graph

    return backend


CALLS = {
    "mlstm": lambda: (
        mlstm,
        [*(normal(2, 70, 2, 8) for _ in range(3)), normal(2, 70, 2), normal(2, 70, 2)],
    ),
    "mlstm_state": lambda: (
        mlstm_state,
        [normal(2, 70, 2, 8), normal(2, 70, 2, 8), normal(2, 70, 2), normal(2, 70, 2)],
    ),
    "hmlstm": lambda: (
        hmlstm,
        [*(normal(1, 40, 2, 8) for _ in range(3)), normal(1, 40, 2), normal(1, 40, 2), normal(1, 40, 2, 5)],
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


# Not an sLSTM in torch, a loop over time, all of whose steps would be unrolled; nor hmlstm where how its chunks lie
# depends on data, which it does not in kernels that know full rows.
BACKENDS = {
    "mlstm": ("cpu", "torch", "triton"),
    "mlstm_state": ("torch", "triton"),
    "hmlstm": ("triton",),
    "slstm": ("cpu", "triton"),
    "gated_norm": ("cpu", "torch", "triton"),
    "qkv_gates": ("cpu", "torch", "triton"),
}
PAIRS = [(name, backend) for name, backends in BACKENDS.items() for backend in backends]


@pytest.mark.parametrize(("name", "backend"), PAIRS)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # which Dynamo itself does
def test_an_operator_is_one_graph_with_the_same_results(name, backend, monkeypatch):
    needs(name, backend)
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


# The gates of an mLSTM on a CPU are chained in as many steps as the number of chunks has bits, so it has some graphs;
# as has hmlstm, whose chunks read as many memories, but here it has one.
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *(("mlstm", "triton"), ("hmlstm", "triton"), ("slstm", "cpu"), ("slstm", "triton")),
        *(("gated_norm", "cpu"), ("gated_norm", "triton")),
    ],
)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")  # NumPy's
def test_sequences_of_any_length_are_the_same_graph(name, backend, monkeypatch):
    needs(name, backend)
    monkeypatch.setenv("EXLSTM_BACKEND", backend)
    torch._dynamo.reset()
    run, inputs = CALLS[name]()
    graphs = []
    compiled = torch.compile(run, fullgraph=True, backend=kept_in(graphs), dynamic=True)
    for time in (70, 91, 133):  # all longer than a chunk
        sequence = inputs[0].shape[:2]
        of_length = [normal(3, time, *x.shape[2:]) if x.shape[:2] == sequence else x for x in inputs]
        torch.testing.assert_close(compiled(*of_length)[0], run(*of_length)[0])
    assert len(graphs) == 1


@pytest.mark.parametrize(("name", "backend"), [("hmlstm", "cpu"), ("hmlstm", "torch"), ("slstm", "torch")])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_what_shapes_do_not_tell_is_left_to_python_as_a_whole(name, backend, monkeypatch):
    """Looked into, hmlstm gives dozens of graphs for every length, and a loop over time one of all its steps."""
    needs(name, backend)
    monkeypatch.setenv("EXLSTM_BACKEND", backend)
    torch._dynamo.reset()
    run, inputs = CALLS[name]()
    graphs = []
    torch.testing.assert_close(torch.compile(run, backend=kept_in(graphs))(*inputs)[0], run(*inputs)[0])
    assert sum(len(graph.graph.nodes) for graph in graphs) < 20


@pytest.mark.parametrize("make", [lambda: MLSTM(32, 2), lambda: MLSTMLarge(32, 2), lambda: SLSTM(32, 2)])
def test_a_layer_is_one_graph(make):
    needs("slstm", "cpu")
    torch._dynamo.reset()
    layer, x = make(), torch.randn(2, 12, 32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])
