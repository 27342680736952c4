"""What the estimators share: training by `exlstm.train`, predictions that depend on nothing else, pickling."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Self, TypeVar

import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, check_scalar

from exlstm.models.saving import Pretrained
from exlstm.train import TrainConfig
from exlstm.train.loop import LossFunction, train

AT_ONCE = 256
"""Rows predicted together."""
Batch = TypeVar("Batch")


class NetworkEstimator(BaseEstimator):
    """An estimator around a model of ours, `model_`. A subclass has the parameters that are read here."""

    width: int
    heads: int
    dropout: float
    max_iter: int
    learning_rate: float
    batch_size: int
    random_state: Any
    verbose: bool
    model_: Pretrained
    n_iter_: int

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _train(
        self,
        build: Callable[[], Pretrained],
        loss: LossFunction[Batch],
        batches: Callable[[int], Callable[[int], Batch]],
        recipe: TrainConfig,
    ) -> Self:
        """Build the model and train it; `batches(seed)` gives the training batches.

        The caller's generators of random numbers are left as they were, and so is the terminal unless `verbose`.

        Raises:
            ValueError, TypeError: a parameter is out of range.
            KeyboardInterrupt: training was interrupted, which a search over parameters has to know.
        """
        for name in ("width", "heads", "max_iter", "batch_size"):
            check_scalar(getattr(self, name), name, Integral, min_val=1)
        check_scalar(self.learning_rate, "learning_rate", Real, min_val=0, include_boundaries="neither")
        check_scalar(self.dropout, "dropout", Real, min_val=0, max_val=1, include_boundaries="left")
        if self.width % self.heads:
            raise ValueError(
                f"expected width to be a multiple of heads, received width {self.width} and heads {self.heads}"
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        config = replace(recipe, steps=int(self.max_iter), lr=float(self.learning_rate), seed=seed)
        with _own_random_numbers():
            torch.manual_seed(seed)
            model = build()
            result = train(model, loss, batches(seed), config, quiet=not self.verbose)
        if result.interrupted:
            raise KeyboardInterrupt
        self.model_, self.n_iter_ = model, result.steps
        return self

    def _exact(self) -> Pretrained:
        """The model in float64: in float32 the last digits of a row would depend on the rows beside it."""
        return copy.deepcopy(self.model_).double()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if isinstance(model := state.get("model_"), Pretrained):
            weights = {name: tensor.numpy(force=True) for name, tensor in model.state_dict().items()}
            state["model_"] = type(model), model.config, weights
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "model_" in state:
            kind, config, weights = state["model_"]
            with _own_random_numbers():
                model = kind(config)
            model.load_state_dict({name: torch.tensor(values) for name, values in weights.items()})
            state = {**state, "model_": model.eval()}
        super().__setstate__(state)


def _own_random_numbers() -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[])
