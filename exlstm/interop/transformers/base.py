"""What both kinds of models share in transformers."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PreTrainedModel

from exlstm.interop.transformers.cache import generating
from exlstm.interop.transformers.config import exlstm_values
from exlstm.layers.block import Block
from exlstm.layers.init import small_init_
from exlstm.models import Pretrained
from exlstm.models.losses import IGNORED


class ExlstmPreTrainedModel(PreTrainedModel):
    """A model of ours, `self.model`, with the interface of transformers."""

    model: Any
    exlstm_class: ClassVar[type[Pretrained]]
    """What `self.model` is."""
    accepts_loss_kwargs: ClassVar[bool] = True  # `num_items_in_batch`
    supports_gradient_checkpointing: ClassVar[bool] = True
    _is_stateful: ClassVar[bool] = True  # no speculative decoding: a state cannot be wound back
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _tied_weights_keys: ClassVar[dict[str, str]] = {"model.head.weight": "model.embedding.weight"}

    @classmethod
    def from_exlstm(cls, model: Pretrained) -> Self:
        """The model around one of ours, whose weights it shares; see `to_exlstm`."""
        if not isinstance(model, cls.exlstm_class):
            raise ValueError(
                f"expected a {cls.exlstm_class.__name__} for {cls.__name__}, received {type(model).__name__}"
            )
        config = cls.config_class(**exlstm_values(model.config), dtype=next(model.parameters()).dtype)
        return cls(config, model).train(model.training)

    def to_exlstm(self) -> Any:
        """The model of ours within, whose `save_pretrained` writes what `exlstm` reads."""
        return self.model

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As of every model there, but weights that are missing are an error.

        Raises:
            ValueError: weights are missing.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if missing := sorted(info["missing_keys"]):
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise ValueError(f"the weights lack {', '.join(missing[:8])}{more}: they are not those of this config")
        return (model, info) if output_loading_info else model

    @wraps(GenerationMixin.generate)
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        with generating():
            return super().generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        # A prompt is one document, and a state knows where it is; which positions come depends on the version.
        return {name: value for name, value in inputs.items() if name not in ("position_ids", "cache_position")}

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.model.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.head = new_embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        before = self.config.vocab_size
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.model.config = replace(self.model.config, vocabulary=embedding.num_embeddings)
        if not mean_resizing and embedding.num_embeddings > before:
            for module in (self.model.embedding, self.model.head):
                small_init_(module.weight.data[before:], self.config.width)
        return embedding

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # it would hold keys and values

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: our layers have initialised themselves."""

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        self.gradient_checkpointing = enable
        for index, block in enumerate(module for module in self.model.modules() if isinstance(module, Block)):
            vars(block).pop("forward", None)
            if enable and index % every_n_layers == 0:
                block.forward = partial(_recomputed, gradient_checkpointing_func, block.forward)  # type: ignore[method-assign]


def refuse(config: Any, **given: Any) -> None:
    """Raise ValueError for what was asked for and our models do not have."""
    for name, value in given.items():
        if name.startswith("output_"):
            value = getattr(config, name, False) if value is None else value
            if value:
                raise ValueError(f"expected no {name}, received {value}: exlstm models give none; leave it out")
        elif value is not None:
            raise ValueError(
                f"expected no {name}, received some: exlstm models read tokens; give their numbers instead"
            )


def steps_there(mask: Tensor | None, tokens: Tensor, name: str = "attention_mask") -> Tensor | None:
    """Where tokens [B, T] stand, bool [B, T]; None if everywhere.

    Args:
        mask: [B, T or more], its last steps those of the tokens, 0 for padding.
    """
    if mask is None:
        return None
    batch, time = tokens.shape
    if mask.ndim != 2 or mask.shape[0] != batch or mask.shape[1] < time:
        raise ValueError(
            f"expected {name} [{batch}, {time}], or longer by the tokens read before, received {list(mask.shape)}"
        )
    there = mask[:, mask.shape[1] - time :].bool()
    return None if not torch.compiler.is_compiling() and bool(there.all()) else there


def mean_loss(logits: Tensor, targets: Tensor, count: Tensor | int | None) -> Tensor:
    """Mean cross-entropy of targets [B, T], -100 where none counts; with `count` the sum over it."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    loss = cross_entropy(
        logits.flatten(0, 1).to(wide),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="mean" if count is None else "sum",
    )
    return loss if count is None else loss / count


def _recomputed(
    run: Callable[..., Any], forward: Callable[..., Any], x: Tensor, state: Any = None, **steps: Any
) -> Any:
    return run(partial(forward, **steps), x, state)
