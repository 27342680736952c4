"""Random inputs for the operators, and the comparison of a backend with the float64 reference."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops import HMLSTMState, MLSTMState, SLSTMState, hmlstm, mlstm, slstm

LENGTHS = (1, 2, 63, 64, 65, 500)
BATCH, HEADS, DK, DV, LEVELS = 3, 2, 5, 3, 6


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


class Case(NamedTuple):
    """An operator and random arguments for it: `inputs` are the sequences [B, T, ...], `shared` has no time axis."""

    operator: Callable[..., tuple[Tensor, Any]]
    inputs: tuple[Tensor, ...]
    shared: tuple[Tensor, ...]
    state: Any
    mask: Tensor | None
    reset: Tensor | None

    def run(self, backend: str, *tensors: Any, **options: Any) -> tuple[Tensor, Any]:
        state = tensors[-1] if self.state is not None else None
        arguments = tensors[: len(self.inputs) + len(self.shared)]
        return self.operator(*arguments, state, mask=self.mask, reset=self.reset, backend=backend, **options)

    def outputs_and_gradients(
        self, backend: str, read: slice = slice(None), **options: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        """All tensors that the operator returns, and the gradients in all its inputs of a random mixture of them.

        Only those in `read` are in the mixture: the output is the first.
        """
        tensors = (*self.inputs, *self.shared, *([self.state] if self.state is not None else []))
        out = leaves(self.run(backend, *tensors, **options))
        generator = torch.Generator().manual_seed(7)
        total = sum((torch.randn(o.shape, generator=generator, dtype=torch.float64) * o).sum() for o in out[read])
        sources = leaves(tensors)
        grads = torch.autograd.grad(total, sources, allow_unused=True)
        return out, [torch.zeros_like(s) if g is None else g for s, g in zip(sources, grads, strict=True)]

    def whole(self, backend: str, **options: Any) -> tuple[Tensor, Any]:
        return self.run(backend, *self.inputs, *self.shared, self.state, **options)

    def in_pieces(self, backend: str, cuts: Sequence[int], **options: Any) -> tuple[Tensor, Any]:
        """The same call, cut in time at `cuts`, the state carried over."""
        outputs, state, bounds = [], self.state, [0, *cuts, self.inputs[0].shape[1]]
        for begin, end in pairwise(bounds):
            part = [x[:, begin:end] for x in self.inputs]
            mask, reset = (None if x is None else x[:, begin:end] for x in (self.mask, self.reset))
            h, state = self.operator(*part, *self.shared, state, mask=mask, reset=reset, backend=backend, **options)
            outputs.append(h)
        return torch.cat(outputs, 1), state


def leaves(*trees: Any) -> list[Tensor]:
    """The floating-point tensors in nested tuples, in order."""
    found: list[Tensor] = []
    for tree in trees:
        if isinstance(tree, Tensor):
            found += [tree] if tree.is_floating_point() else []
        elif isinstance(tree, tuple | list):
            found += leaves(*tree)
    return found


def draw(name: str, time: int, *, gates: float = 2.0, state: bool = True, steps: bool = True, **options: Any) -> Case:
    """A random case of the operator `name`: an initial state, and masks and resets at random, if wanted.

    `gates` scales the gate pre-activations; `options` go to the operator.
    """
    shape = (BATCH, time, HEADS)
    gate = partial(normal, *shape, scale=gates)
    mask = torch.rand(BATCH, time) < 0.7 if steps else None
    reset = torch.rand(BATCH, time) < 0.05 if steps else None
    initial: Any = None
    if name == "slstm":
        inputs: tuple[Tensor, ...] = (normal(BATCH, time, 4, HEADS, DK, scale=gates),)
        if state:
            c, n, m, h = (normal(BATCH, HEADS, DK).detach() for _ in range(4))
            n = torch.where(torch.rand(n.shape) < 0.3, 0.0, n.abs() + 1)  # some elements are still empty
            initial = SLSTMState(*(x.where(n != 0, 0.0).requires_grad_() for x in (c, n, m, h)))
        return Case(partial(slstm, **options), inputs, (normal(4, HEADS, DK, DK),), initial, mask, reset)
    inputs = (normal(*shape, DK), normal(*shape, DK), normal(*shape, DV), gate(), gate())
    if name == "mlstm":
        if state:
            initial = MLSTMState(normal(BATCH, HEADS, DK, DV), normal(BATCH, HEADS, DK), normal(BATCH, HEADS))
        return Case(partial(mlstm, **options), inputs, (), initial, mask, reset)
    if state:
        past = draw("hmlstm", 23, state=False)
        held = past.whole("reference")[1]
        initial = HMLSTMState(*(x.detach().requires_grad_() for x in held[:4]), held.position)
    return Case(partial(hmlstm, **options), (*inputs, normal(*shape, LEVELS)), (), initial, mask, reset)


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Every tensor is finite and within `tolerance` of the expected one, relative to the latter's largest entry."""
    assert len(actual) == len(expected)
    for position, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        assert bool(a.isfinite().all()), f"tensor {position} is not finite"
        error, size = float((a - e).detach().abs().amax()), float(e.detach().abs().amax())
        assert error <= tolerance * max(1.0, size), f"tensor {position}: error {error:.3g}, size {size:.3g}"
