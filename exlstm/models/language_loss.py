"""The loss of a language model in training: of windows by themselves, or of streams, with the memory carried on."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from exlstm.data.text import TokenBatch
from exlstm.layers.state import map_state
from exlstm.models.backbone import BackboneState
from exlstm.models.language import LanguageModel


def token_loss(model: nn.Module, batch: TokenBatch) -> tuple[Tensor, Mapping[str, float]]:
    """Mean cross-entropy of the next token, in nats, each row read from an empty memory."""
    return _piece_loss(model, batch, None, return_state=False)[0], {}


class CarriedLoss:
    """`token_loss` from the memory that the batch before left: truncated backpropagation through time.

    No gradient passes from a batch to the one before. As the `carry` of `exlstm.train.train` the memory is saved in
    checkpoints. After a step that was skipped it is empty: text is missing between what it held and what comes, and
    it may itself be what was not finite.

    Args:
        model: the model in training, which shows what form the memory has.
        accumulate: micro batches of a step, each with a memory of its own.
    """

    def __init__(self, model: LanguageModel, accumulate: int = 1) -> None:
        self._model, self._accumulate = model, accumulate
        self._before: list[BackboneState | None] = [None] * accumulate
        self._after: list[BackboneState | None] = []  # of the micro batches of this step that were read

    def __call__(self, model: nn.Module, batch: TokenBatch) -> tuple[Tensor, Mapping[str, float]]:
        loss, state = _piece_loss(model, batch, self._before[len(self._after)])
        self._after.append(map_state(_cut, state))
        return loss, {}

    def settle(self, healthy: bool) -> None:
        """The step is done, or was skipped."""
        self._before, self._after = self._after if healthy else [None] * self._accumulate, []

    def tensors(self) -> dict[str, Tensor]:
        """The memory as flat tensors named `micro batch/place`; none when it is empty."""
        return {f"{part}/{n}": x for part, state in enumerate(self._before) for n, x in enumerate(_leaves(state))}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`. Raises KeyError when they are not of this model."""
        self.settle(healthy=False)
        if not tensors:
            return
        device = next(self._model.parameters()).device
        _, form = self._model(torch.zeros(1, 1, dtype=torch.int64, device=device))
        count = len(_leaves(form))
        self._before = [
            _with_leaves(form, [tensors[f"{part}/{n}"].to(device) for n in range(count)])
            for part in range(self._accumulate)
        ]


def _piece_loss(
    model: nn.Module, batch: TokenBatch, state: BackboneState | None, *, return_state: bool = True
) -> tuple[Tensor, BackboneState | None]:
    device = next(model.parameters()).device
    tokens, targets, reset = (x.to(device) for x in batch)
    if bool(reset[:, 0].all()):
        state = None  # nothing of it is read, and some kernels begin with an empty memory only
    needed = bool((reset[:, 1:] if state is None else reset).any())
    return model(tokens, state, reset=reset if needed else None, targets=targets, return_state=return_state)


def _leaves(state: BackboneState | None) -> list[Tensor]:
    """The tensors of a state, in the order of `map_state`."""
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_state(keep, state)
    return found


def _with_leaves(form: BackboneState, leaves: Iterable[Tensor]) -> BackboneState:
    """The state of the same form with other tensors."""
    following = iter(leaves)
    return map_state(lambda _: next(following), form)


def _cut(x: Tensor) -> Tensor:
    """Without its past, and as a copy: a view would keep alive all that a layer computed."""
    return x.detach().clone(memory_format=torch.contiguous_format)
