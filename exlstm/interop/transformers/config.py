"""Configs of transformers that hold the fields of ours."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from exlstm.data.text.tokenizer import BOS, EOS, SPECIAL
from exlstm.models import LanguageModelConfig, Seq2SeqConfig, parse_pattern
from exlstm.models.config import config_from_dict, config_to_dict

_RENAMED = {"encoder": "encoder_pattern", "decoder": "decoder_pattern"}  # transformers knows configs by these names
_BYTES = 256 + len(SPECIAL)  # transformers makes configs without arguments: this vocabulary is that of byte tokens


class ExlstmConfig(PreTrainedConfig):
    """Config of `ExlstmForCausalLM`: the fields of `LanguageModelConfig`, and all that every config has.

    The names that are usual in transformers (`vocab_size`, `hidden_size`, `num_attention_heads`,
    `tie_word_embeddings`) stand for ours.

    Args:
        skip_logits: in training, give a loss without logits, which may be the largest tensors there are.

    Raises:
        ValueError: a field of ours has a wrong type or value.
    """

    model_type: ClassVar[str] = "exlstm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "vocab_size": "vocabulary",
        "hidden_size": "width",
        "num_attention_heads": "heads",
        "tie_word_embeddings": "tied",
    }

    def __init__(self, *, skip_logits: bool = False, **values: Any) -> None:
        self.skip_logits = skip_logits
        rest = _take(self, LanguageModelConfig, {"vocabulary": _BYTES}, values)
        super().__init__(**rest)
        self.to_exlstm()

    @property
    def num_hidden_layers(self) -> int:
        return len(parse_pattern(self.pattern))

    def to_exlstm(self) -> LanguageModelConfig:
        """The config of our `LanguageModel`."""
        return config_from_dict(LanguageModelConfig, _own(self, LanguageModelConfig))


class ExlstmSeq2SeqConfig(PreTrainedConfig):
    """Config of `ExlstmForSeq2SeqLM`: the fields of `Seq2SeqConfig`, and all that every config has.

    Our `encoder` and `decoder` are `encoder_pattern` and `decoder_pattern` here. Args and errors as of `ExlstmConfig`.
    """

    model_type: ClassVar[str] = "exlstm_seq2seq"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values", "encoder_outputs"]
    attribute_map: ClassVar[dict[str, str]] = {
        "vocab_size": "vocabulary",
        "hidden_size": "width",
        "num_attention_heads": "heads",
    }

    def __init__(self, *, skip_logits: bool = False, **values: Any) -> None:
        self.skip_logits = skip_logits
        rest = _take(self, Seq2SeqConfig, {"vocabulary": _BYTES, "bos": BOS, "eos": EOS}, values)
        super().__init__(**{"is_encoder_decoder": True, "tie_word_embeddings": True, **rest})
        self.to_exlstm()

    @property
    def num_hidden_layers(self) -> int:
        return len(parse_pattern(self.decoder_pattern))

    def to_exlstm(self) -> Seq2SeqConfig:
        """The config of our `Seq2Seq`."""
        return config_from_dict(Seq2SeqConfig, _own(self, Seq2SeqConfig))


def _take(config: Any, kind: type, without_default: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Set the fields of `kind` on a config, and return the values that are none of them."""
    values = {config.attribute_map.get(name, name): value for name, value in values.items()}
    for field in fields(kind):
        name = _RENAMED.get(field.name, field.name)
        value = values.pop(name, without_default[field.name] if field.default is MISSING else field.default)
        setattr(config, name, config_to_dict(value) if is_dataclass(value) else value)
    return values


def _own(config: Any, kind: type) -> dict[str, Any]:
    return {field.name: getattr(config, _RENAMED.get(field.name, field.name)) for field in fields(kind)}


def exlstm_values(config: Any) -> dict[str, Any]:
    """The fields of a config of ours, by the names that they have in transformers."""
    return {_RENAMED.get(name, name): value for name, value in config_to_dict(config).items()}
