"""From the folder of a run, or of a model, to transformers."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from exlstm.data.text.tokenizer import BOS, EOS, FILE, PAD, Tokenizer
from exlstm.interop.transformers.base import ExlstmPreTrainedModel
from exlstm.interop.transformers.causal import ExlstmForCausalLM
from exlstm.interop.transformers.seq2seq import ExlstmForSeq2SeqLM
from exlstm.interop.transformers.tokenizer import fast_tokenizer
from exlstm.models.saving import CONFIG, read_config


def from_run(
    folder: str | Path, *, device: torch.device | str = "cpu"
) -> tuple[ExlstmPreTrainedModel, PreTrainedTokenizerFast | None]:
    """The model of a run, or of a folder that `save_pretrained` of our models wrote, and its tokenizer.

    Special tokens are set, so that `generate` ends where our own does. What the two `save_pretrained` then write to a
    folder, `AutoModelForCausalLM`, `AutoModelForSeq2SeqLM` and `AutoTokenizer` read.

    Args:
        folder: of a run of the task `lm`, `translate` or `summarize`, or of its `model/`.

    Returns:
        `ExlstmForCausalLM` or `ExlstmForSeq2SeqLM`, in evaluation, and the tokenizer (None if the folder has none).

    Raises:
        ValueError: there is no such model, or it is damaged; says what is wrong.
    """
    folder = Path(folder)
    if (folder / "model" / CONFIG).is_file():
        folder = folder / "model"
    read_config(folder)  # says what is missing
    kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_type"]
    classes = {c.exlstm_class.model_type: c for c in (ExlstmForCausalLM, ExlstmForSeq2SeqLM)}
    if kind not in classes:
        raise ValueError(f"expected a model of type {' or '.join(classes)} in {folder}, received {kind!r}")
    model = classes[kind].from_exlstm(classes[kind].exlstm_class.from_pretrained(folder, device=device))
    if not (folder / FILE).is_file():
        return model, None
    texts = kind == ExlstmForCausalLM.exlstm_class.model_type
    settings = model.generation_config
    settings.pad_token_id, settings.bos_token_id = PAD, BOS
    # In a language model's corpus the next document's beginning is what ends one.
    settings.eos_token_id = [BOS, EOS] if texts else EOS
    return model, fast_tokenizer(Tokenizer.load(folder), bos=texts)
