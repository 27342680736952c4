"""Operators that PyTorch knows by name: torch.compile does not look into them, and autograd has their derivatives."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

IN_REFERENCE = "backend='reference' has one"
_libraries: dict[str, torch.library.Library] = {}  # of one operator each: it ends with its library


class Operator:
    """A function of tensors, numbers and lists of tensors as the operator exlstm::name; see `operator`."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.__doc__ = name, function.__doc__
        _libraries.pop(name, None)  # of a module that is loaded again, in a notebook
        library = _libraries[name] = torch.library.Library("exlstm", "FRAGMENT")
        schema = torch.library.infer_schema(function, mutates_args=())
        library.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
        library.impl(name, function, "CompositeExplicitAutograd")
        self.overload = getattr(torch.ops.exlstm, name).default

    def __call__(self, *inputs: Any) -> Any:
        return self.overload(*inputs)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What the operator returns, as far as shapes and dtypes go; for tracing."""
        torch.library.register_fake(f"exlstm::{self.name}", function, lib=_libraries[self.name])
        return function

    def register_autograd(
        self, derivative: Callable[..., Any], *, setup_context: Callable[[Any, tuple[Any, ...], Any], None]
    ) -> None:
        """How to differentiate the operator, once: `backward` and `setup_context` of a torch.autograd.Function."""
        call = self.overload

        class Differentiable(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                with torch._C._AutoDispatchBelowAutograd():
                    output = call(*inputs)
                setup_context(ctx, inputs, output)
                return output

            backward = staticmethod(differentiable_once(IN_REFERENCE)(derivative))

        _libraries[self.name].impl(self.name, Differentiable.apply, "Autograd")


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Make a function the operator exlstm::name: a decorator. It may neither change nor return its inputs.

    torch.library.custom_op does the same, but looks at inputs and outputs anew in every call, which takes longer than a
    short kernel, and imports the compiler with the first.
    """
    return lambda function: Operator(name, function)


def differentiable_once(instead: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate the backward of a torch.autograd.Function: a second derivative is refused.

    The function must save its inputs or an output, by which what is found is tied to all that it depends on;
    torch.autograd.function.once_differentiable ties it to the incoming gradients alone: where these are constants,
    autograd takes it for a constant, too.

    Args:
        instead: where there is a second derivative.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapped(ctx: Any, *gradients: Any) -> Any:
            if not torch.is_grad_enabled():
                return backward(ctx, *gradients)
            with torch.no_grad():
                found = backward(ctx, *gradients)
            sources = [x for x in (*gradients, *ctx.saved_tensors) if x is not None and x.requires_grad]
            return tuple(None if x is None else _Last.apply(instead, x, *sources) for x in found)

        return wrapped

    return decorate


class _Last(torch.autograd.Function):
    """A gradient that depends on `sources`, but how is not known."""

    @staticmethod
    def forward(ctx: Any, instead: str, x: Tensor, *sources: Tensor) -> Tensor:
        ctx.instead = instead
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(f"there is no second derivative here: {ctx.instead}")
