"""`Seq2Seq` as an encoder-decoder model of transformers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils import ModelOutput

from exlstm.interop.transformers.base import ExlstmPreTrainedModel, mean_loss, refuse, steps_there
from exlstm.interop.transformers.cache import CACHE, ExlstmCache, given_cache, map_tensors
from exlstm.interop.transformers.config import ExlstmSeq2SeqConfig
from exlstm.models import Pretrained, Seq2Seq
from exlstm.models.losses import IGNORED


@dataclass
class ExlstmEncoderOutput(ModelOutput):
    """A source that was read, in memory."""

    last_hidden_state: Tensor | None = None  # our encoders give none: what they found is in the memory
    stored: Any = None


class ExlstmForSeq2SeqLM(ExlstmPreTrainedModel, GenerationMixin):
    """`Seq2Seq` behind the interface of transformers: `ExlstmForSeq2SeqLM(ExlstmSeq2SeqConfig(vocabulary=..., ...))`.

    The encoder's output is the memory of the source, which the decoder reads at every step.
    """

    config_class: ClassVar[type] = ExlstmSeq2SeqConfig
    exlstm_class: ClassVar[type[Pretrained]] = Seq2Seq
    model: Seq2Seq

    def __init__(self, config: ExlstmSeq2SeqConfig, model: Seq2Seq | None = None) -> None:
        super().__init__(config)
        self.model = Seq2Seq(config.to_exlstm()) if model is None else model
        self.generation_config.bos_token_id = self.generation_config.decoder_start_token_id = config.bos
        self.generation_config.eos_token_id = config.eos
        self.post_init()

    def get_encoder(self, modality: str | None = None) -> "_Encoder":
        return _Encoder(self)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The tokens that come before labels [B, T]; what is put where a label is -100 has no effect on the loss."""
        before = labels.masked_fill(labels == IGNORED, self.config.eos)[:, :-1]
        return torch.cat([torch.full_like(labels[:, :1], self.config.bos), before], 1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: ExlstmEncoderOutput | None = None,
        cache: ExlstmCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        past_key_values: ExlstmCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Logits of the target's token after each, and the loss where `labels` are given.

        Args:
            input_ids: sources, integers [B, S]; attention_mask [B, S], 0 where there is padding, on any side.
            decoder_input_ids: targets, integers [B, T], the first of them `config.bos`; without them they are made of
                the labels. decoder_attention_mask [B, T], with a cache [B, tokens read before + T].
            encoder_outputs: what `get_encoder()` made of the sources; these are then not needed.
            cache: of the decoder, what the call for the target's tokens before returned; it is brought up to date.
            labels: integers [B, T], the token that follows each of the target's, `config.eos` last; -100 does not
                count. The loss is the mean in nats, or with `num_items_in_batch` the sum over that number.
            use_cache: return a cache; by default in evaluation, if there are no labels.

        Returns:
            `Seq2SeqLMOutput`: `loss`, `logits` [B, T, vocabulary] and the cache. In training with labels and
            `config.skip_logits` there are no logits.

        Raises:
            ValueError: shapes do not fit, or something is asked for that the model lacks.
        """
        refuse(
            self.config,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
        )
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("expected decoder_input_ids or labels, received neither: give one of them")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        cache = given_cache(cache, past_key_values)
        if cache is None and (use_cache if use_cache is not None else not self.training and labels is None):
            cache = ExlstmCache()
        target = decoder_input_ids.long()
        mask = steps_there(decoder_attention_mask, target, "decoder_attention_mask")

        loss = logits = None
        if (
            labels is not None
            and self.training
            and self.config.skip_logits
            and cache is None
            and encoder_outputs is None
            and bool((labels != IGNORED).any())
        ):
            source, source_mask = _source(input_ids, attention_mask)
            loss = self.model(source, target, source_mask, mask, labels=labels)
            if num_items_in_batch is not None:
                loss = loss * (labels != IGNORED).sum() / num_items_in_batch
        else:
            if encoder_outputs is None:
                encoder_outputs = self.get_encoder()(input_ids, attention_mask)
            state = None if cache is None else cache.state
            logits, state, _ = self.model.decode(target, encoder_outputs.stored, state, mask=mask)
            if cache is not None:
                cache.set(state, target.shape[1])
            if labels is not None:
                loss = mean_loss(logits, labels, num_items_in_batch)
        output = Seq2SeqLMOutput(loss=loss, logits=logits, **{CACHE: cache})
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        tokens, kwargs = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        if expand_size > 1:
            kwargs["encoder_outputs"] = ExlstmEncoderOutput(
                stored=map_tensors(
                    lambda part: part.repeat_interleave(expand_size, 0), kwargs["encoder_outputs"].stored
                )
            )
        return tokens, kwargs


class _Encoder:
    """Sources to memory, in the form in which `generate` calls encoders."""

    main_input_name = "input_ids"

    def __init__(self, model: ExlstmForSeq2SeqLM) -> None:
        self._model = model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ExlstmEncoderOutput:
        refuse(self._model.config, output_attentions=output_attentions, output_hidden_states=output_hidden_states)
        return ExlstmEncoderOutput(stored=self._model.model.encode(*_source(input_ids, attention_mask)))

    __call__: Callable[..., ExlstmEncoderOutput] = forward


def _source(input_ids: Tensor | None, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if input_ids is None:
        raise ValueError("expected input_ids or encoder_outputs, received neither: give the sources' tokens")
    mask = steps_there(attention_mask, input_ids)
    return input_ids.long() if mask is None else input_ids.long().masked_fill(~mask, 0), mask
