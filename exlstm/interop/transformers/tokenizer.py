"""Our tokenizers as fast tokenizers of transformers."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import tokenizers
from transformers import PreTrainedTokenizerFast

from exlstm.data.text.tokenizer import BOS, EOS, FILE, PAD, SPECIAL, Tokenizer

_NAMES = {"pad_token": SPECIAL[PAD], "bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOS]}
_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}  # bytes, read as Latin-1


def fast_tokenizer(
    tokenizer: Tokenizer, *, bos: bool = True, eos: bool = False, padding_side: Literal["left", "right"] = "left"
) -> PreTrainedTokenizerFast:
    """The tokenizer in transformers, which gives every text the same tokens.

    Special tokens in a text are letters like others. `Tokenizer.load` reads what its `save_pretrained` wrote.

    Args:
        bos: a text begins with `BOS`, as our language models expect it; not so the sources of a `Seq2Seq`.
        eos: a text ends with `EOS`, as the targets of a `Seq2Seq` do.
        padding_side: "left" is what `generate` expects, "right" is usual in training.
    """
    inner = _of_bytes() if tokenizer.kind == "bytes" else _of_subwords(tokenizer)
    begin, end = [SPECIAL[BOS]] * bos, [SPECIAL[EOS]] * eos
    if begin or end:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single=[*begin, "$A", *end],
            pair=[*begin, "$A", *end, *begin, "$B", *end],
            special_tokens=[(name, SPECIAL.index(name)) for name in (*begin, *end)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        padding_side=padding_side,
        model_input_names=["input_ids", "attention_mask"],
        **_NAMES,
    )


def _of_subwords(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    with TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return tokenizers.Tokenizer.from_file(str(Path(folder) / FILE))


def _of_bytes() -> tokenizers.Tokenizer:
    """Subwords that are single bytes, with the numbers that `Tokenizer.bytes()` gives them."""
    vocabulary = {name: number for number, name in enumerate(SPECIAL)}
    vocabulary |= {_letter(byte): byte + len(SPECIAL) for byte in range(256)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    inner.add_special_tokens([*SPECIAL])
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    return inner


def _letter(byte: int) -> str:
    """What stands for a byte in `ByteLevel`: printable ones for themselves, the others, in order, from U+0100 on."""
    return chr(byte) if byte in _PRINTABLE else chr(256 + sum(other not in _PRINTABLE for other in range(byte)))
