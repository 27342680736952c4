"""`LanguageModel` as a causal language model of transformers."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from exlstm.interop.transformers.base import ExlstmPreTrainedModel, mean_loss, refuse, steps_there
from exlstm.interop.transformers.cache import CACHE, ExlstmCache, given_cache, is_generating
from exlstm.interop.transformers.config import ExlstmConfig
from exlstm.models import LanguageModel, Pretrained
from exlstm.models.losses import IGNORED


class ExlstmForCausalLM(ExlstmPreTrainedModel, GenerationMixin):
    """`LanguageModel` behind the interface of transformers: `ExlstmForCausalLM(ExlstmConfig(vocabulary=259, ...))`."""

    config_class: ClassVar[type] = ExlstmConfig
    exlstm_class: ClassVar[type[Pretrained]] = LanguageModel
    model: LanguageModel

    def __init__(self, config: ExlstmConfig, model: LanguageModel | None = None) -> None:
        super().__init__(config)
        self.model = LanguageModel(config.to_exlstm()) if model is None else model
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: ExlstmCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        past_key_values: ExlstmCache | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Logits of the token after each, and the loss where `labels` are given.

        Args:
            input_ids: integers [B, T].
            attention_mask: [B, T], with a cache [B, tokens read before + T]; 0 where there is padding, on any side.
            position_ids: integers [B, T] or [1, T]; a 0 begins a new document, as where several are packed into a row.
                Other values have no meaning, for the model counts nothing.
            cache: what the call for the tokens before returned; it is brought up to date. `past_key_values` is its
                name before transformers 5.24.
            labels: integers [B, T], usually the `input_ids`: the logits at each place are compared with the label of
                the next one; -100 does not count, nor what padding would have to predict. The loss is the mean in
                nats, or with `num_items_in_batch` the sum over that number.
            use_cache: return a cache; by default in evaluation, if there are no labels.
            logits_to_keep: only the logits of so many last places, or of the places in this tensor; 0: of all.

        Returns:
            `CausalLMOutputWithPast`: `loss`, `logits` [B, T, vocabulary] and the cache. In training with labels and
            `config.skip_logits` there are no logits.

        Raises:
            ValueError: shapes do not fit, a token is out of range, or something is asked for that the model lacks.
        """
        refuse(
            self.config,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            inputs_embeds=inputs_embeds,
        )
        if input_ids is None:
            raise ValueError("expected input_ids, received none: give the numbers of the tokens")
        cache = given_cache(cache, past_key_values)
        if cache is None and (use_cache if use_cache is not None else not self.training and labels is None):
            cache = ExlstmCache()
        mask = steps_there(attention_mask, input_ids)
        tokens = input_ids.long() if mask is None else input_ids.long().masked_fill(~mask, 0)
        reset = None if position_ids is None else _resets(position_ids, mask, tokens, cache)
        targets = None if labels is None else _next_labels(labels, mask)

        loss, logits, options = None, None, {"mask": mask, "reset": reset, "return_state": cache is not None}
        if self._only_next_is_wanted(mask, reset, labels, logits_to_keep):
            logits = self._next(tokens, mask, cache)[:, None]
        elif self.training and self.config.skip_logits and targets is not None and bool((targets != IGNORED).any()):
            loss, state = self.model(tokens, _state(cache), **options, targets=targets)
            if num_items_in_batch is not None:
                loss = loss * (targets != IGNORED).sum() / num_items_in_batch
            _keep(cache, state, tokens)
        else:
            logits, state = self.model(tokens, _state(cache), **options)
            if targets is not None:
                loss = mean_loss(logits, targets, num_items_in_batch)
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = logits[:, kept]
            _keep(cache, state, tokens)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _only_next_is_wanted(
        self, mask: Tensor | None, reset: Tensor | None, labels: Tensor | None, logits_to_keep: int | Tensor
    ) -> bool:
        """Whether `generate` asks for the next token of every row, and the model is in evaluation."""
        if not is_generating() or self.training or labels is not None or reset is not None:
            return False
        if not isinstance(logits_to_keep, int) or logits_to_keep != 1:
            return False
        return mask is None or bool(mask.any(1).all())

    def _next(self, tokens: Tensor, mask: Tensor | None, cache: ExlstmCache | None) -> Tensor:
        """Logits [B, vocabulary] after the last token of every row, as our own `generate` has them."""
        if cache is not None and cache.reader is not None and tokens.shape[1] == 1:
            reader = cache.reader
            logits = reader.next(tokens[:, 0], None if mask is None else mask[:, 0])
            cache.read_by(reader, 1)
            return logits
        there = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        prompts = [row[present].tolist() for row, present in zip(tokens, there, strict=True)]
        if cache is not None and _is_as_made(self.model):
            reader = self.model.prefill(prompts, cache.state)
            cache.read_by(reader, tokens.shape[1])
            return reader.logits
        logits, state = self.model.read(prompts, _state(cache))
        _keep(cache, state, tokens)
        return logits


def _state(cache: ExlstmCache | None) -> Any:
    return None if cache is None else cache.state


def _keep(cache: ExlstmCache | None, state: Any, tokens: Tensor) -> None:
    if cache is not None:
        cache.set(state, tokens.shape[1])


def _next_labels(labels: Tensor, mask: Tensor | None) -> Tensor:
    """The label that follows each place, `IGNORED` after the last and after padding."""
    following = pad(labels[:, 1:], (0, 1), value=IGNORED)
    return following if mask is None else following.masked_fill(~mask, IGNORED)


def _resets(position_ids: Tensor, mask: Tensor | None, tokens: Tensor, cache: ExlstmCache | None) -> Tensor | None:
    """Where documents begin, bool [B, T]; None where nothing precedes them anyway."""
    if (
        position_ids.ndim != 2
        or position_ids.shape[0] not in (1, len(tokens))
        or position_ids.shape[1] != tokens.shape[1]
    ):
        raise ValueError(
            f"expected position_ids {list(tokens.shape)} as the tokens, received {list(position_ids.shape)}"
        )
    reset = (position_ids == 0).expand(tokens.shape)
    if cache is None or cache.get_seq_length() == 0:
        there = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        reset = reset & (there.cumsum(1) > 1)
    return reset if bool(reset.any()) else None


def _is_as_made(model: nn.Module) -> bool:
    """Whether nobody has put parts or hooks of his own into a model, which compiled steps would pass by."""
    if torch.is_autocast_enabled(next(model.parameters()).device.type):
        return False
    return all(
        type(module).__module__.startswith(("exlstm.", "torch.nn.modules."))
        and "forward" not in vars(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        for module in model.modules()
    )
