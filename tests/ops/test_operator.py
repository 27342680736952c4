"""What PyTorch demands of operators, and that they cost no more than they must."""

import pytest
import torch

from exlstm.models.losses import linear_cross_entropy
from exlstm.ops import gated_norm, mlstm, slstm
from exlstm.ops.cpu import gated_norm as cpu_gated_norm
from exlstm.ops.cpu import slstm as cpu_slstm
from tests.needs import needs, needs_compiler
from tests.process import printed_by


def normal(*shape):
    return torch.randn(*shape, requires_grad=True)


CALLS = {
    "gated_norm": lambda: (
        cpu_gated_norm._forward,
        (normal(2, 5, 2, 8), normal(2, 5, 16), normal(16), None, None, "silu", 1e-6),
    ),
    "slstm": lambda: (
        cpu_slstm._forward,
        (normal(2, 7, 4, 2, 8), normal(4, 2, 8, 8), normal(4, 2, 2, 8), None, None, 30.0, True),
    ),
}


@needs_compiler
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # which Dynamo itself does
def test_pytorch_finds_nothing_wrong_with_an_operator(name):
    operator, inputs = CALLS[name]()
    torch.library.opcheck(operator.overload, inputs)


def slope_and_second(run, x):
    """The gradient of a loss that is penalised for its slope, as in a gradient penalty."""
    loss = run(x)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    return torch.autograd.grad(loss + slope.square().sum(), x)[0]


def of_operator(name, backend):
    run, inputs = {
        "mlstm": lambda: (mlstm, [normal(2, 70, 2, 8) for _ in range(3)] + [normal(2, 70, 2) for _ in range(2)]),
        "slstm": lambda: (slstm, [normal(2, 7, 4, 2, 8), normal(4, 2, 8, 8)]),
        "gated_norm": lambda: (
            lambda h, *rest, **to: [gated_norm(h, *rest, **to)],
            [normal(2, 5, 2, 8), normal(16), normal(2, 5, 16)],
        ),
    }[name]()
    return lambda x: run(x, *inputs[1:], backend=backend)[0].sum(), inputs[0]


@pytest.mark.parametrize(
    ("name", "backend"),
    [("mlstm", "cpu"), ("mlstm", "torch"), ("slstm", "cpu"), ("slstm", "torch"), ("gated_norm", "cpu")],
)
def test_a_second_derivative_is_refused_instead_of_being_wrong(name, backend):
    needs(name, backend)
    run, x = of_operator(name, backend)
    with pytest.raises(RuntimeError, match="no second derivative here: backend='reference' has one"):
        slope_and_second(run, x)
    torch.autograd.grad(run(x), x, create_graph=True)  # which alone asks for none
    slope_and_second(of_operator(name, "reference")[0], x)


def test_nor_has_the_loss_of_a_language_model_a_second_derivative():
    x, weight, targets = normal(9, 4), normal(5, 4), torch.arange(9) % 5
    torch.testing.assert_close(
        torch.autograd.grad(linear_cross_entropy(x, weight, targets), x, create_graph=True)[0],
        torch.autograd.grad(torch.nn.functional.cross_entropy(x @ weight.T, targets), x)[0],
    )
    with pytest.raises(RuntimeError, match="no second derivative here: torch"):
        slope_and_second(lambda x: linear_cross_entropy(x, weight, targets), x)


@needs_compiler
def test_without_gradients_nothing_is_kept_for_them():
    h, z, weight = normal(2, 5, 2, 8), normal(2, 5, 16), normal(16)
    with torch.no_grad():
        assert gated_norm(h, weight, z, backend="cpu").grad_fn is None
    assert gated_norm(h.detach(), weight.detach(), z.detach(), backend="cpu").grad_fn is None
    with torch.inference_mode():
        assert gated_norm(h, weight, z, backend="cpu").is_inference()


@needs_compiler
def test_a_call_does_not_import_the_compiler():
    code = """if True:
        import sys, torch
        from exlstm.ops import slstm
        x, r = torch.randn(2, 5, 4, 2, 8, requires_grad=True), torch.randn(4, 2, 8, 8)
        slstm(x, r, backend="cpu")[0].sum().backward()
        print("torch._dynamo" in sys.modules)
        """
    assert printed_by(code) == ["False"]


@needs_compiler
def test_a_module_can_be_loaded_again():
    """As notebooks do that follow the changes of a file."""
    code = """if True:
        import importlib, torch
        from exlstm.ops.cpu import gated_norm
        h, gate, weight = torch.randn(2, 5, 2, 8, requires_grad=True), torch.randn(2, 5, 16), torch.ones(16)
        call = lambda: gated_norm._forward(h, gate, weight, None, None, "silu", 1e-6)
        first = call()
        importlib.reload(gated_norm)
        call().sum().backward()
        print(torch.equal(first, call()) and h.grad is not None)
        """
    assert printed_by(code) == ["True"]
