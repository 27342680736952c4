"""From text to tokens and back: bytes, or subwords learnt from text."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Subwords

Kind = Literal["bytes", "bpe", "unigram"]
PAD, BOS, EOS = 0, 1, 2
"""Tokens that stand for no text: a place that is not there, the beginning and the end of a text."""
SPECIAL = ("<pad>", "<bos>", "<eos>")
FILE = "tokenizer.json"
_MOST_BYTES = 4  # of a character in UTF-8


class Tokenizer:
    """Text as tokens 0 to `vocabulary - 1`, of which the first are `PAD`, `BOS` and `EOS`.

    Every text can be encoded, and decoding gives it back to the letter: tokens that are not whole words are
    bytes in the end. Make one with `Tokenizer.bytes()`, `Tokenizer.train(...)` or `Tokenizer.load(...)`.
    """

    def __init__(self, kind: Kind, subwords: "Subwords | None" = None) -> None:
        self.kind, self._subwords = kind, subwords
        if subwords is not None:
            subwords.encode_special_tokens = True  # a text may speak of "<bos>" without beginning there

    @classmethod
    def bytes(cls) -> "Tokenizer":
        """One token for each byte of the text in UTF-8."""
        return cls("bytes")

    @classmethod
    def train(cls, texts: Iterable[str], *, kind: Kind = "bpe", vocabulary: int = 4096) -> "Tokenizer":
        """Learn subwords from texts: "bpe" (arXiv 1508.07909) or "unigram" (arXiv 1804.10959), over bytes.

        Raises:
            ValueError: the vocabulary is too small for all bytes and the special tokens.
        """
        if kind == "bytes":
            return cls.bytes()
        if kind not in ("bpe", "unigram"):
            raise ValueError(f"expected kind 'bytes', 'bpe' or 'unigram', received {kind!r}")
        least = 256 + len(SPECIAL)
        if vocabulary < least:
            raise ValueError(f"expected vocabulary of at least {least}, all bytes and {SPECIAL}, received {vocabulary}")
        tokenizers = _tokenizers()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        options = {"vocab_size": vocabulary, "special_tokens": [*SPECIAL], "initial_alphabet": alphabet}
        if kind == "bpe":
            model = tokenizers.models.BPE()
            trainer = tokenizers.trainers.BpeTrainer(**options, show_progress=False)
        else:
            model = tokenizers.models.Unigram()
            trainer = tokenizers.trainers.UnigramTrainer(**options, show_progress=False)
        subwords = tokenizers.Tokenizer(model)
        subwords.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        subwords.decoder = tokenizers.decoders.ByteLevel()
        subwords.train_from_iterator(texts, trainer)
        return cls(kind, subwords)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return 256 + len(SPECIAL) if self._subwords is None else self._subwords.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without beginning and end."""
        if self._subwords is None:
            return [byte + len(SPECIAL) for byte in text.encode("utf-8", "surrogatepass")]
        return self._subwords.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of many texts, on all cores where that is of use."""
        if self._subwords is None:
            return [self.encode(text) for text in texts]
        return [found.ids for found in self._subwords.encode_batch([*texts], add_special_tokens=False)]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; special ones are left out, and bytes that are no UTF-8 shown as U+FFFD."""
        if self._subwords is None:
            return bytes(t - len(SPECIAL) for t in tokens if t >= len(SPECIAL)).decode("utf-8", "replace")
        return self._subwords.decode([t for t in tokens if t >= len(SPECIAL)], skip_special_tokens=False)

    def decode_stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of tokens as they come, each piece as soon as its characters are whole."""
        waiting: list[int] = []
        for token in tokens:
            waiting.append(token)
            text = self.decode(waiting)
            if text and not (text.endswith("\ufffd") and len(waiting) < _MOST_BYTES):
                yield text
                waiting = []
        if waiting:
            yield self.decode(waiting)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json into `folder`; for subwords it is what the package `tokenizers` reads."""
        path = Path(folder) / FILE
        text = json.dumps({"kind": "bytes"}) if self._subwords is None else self._subwords.to_str(pretty=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read what `save` wrote.

        Raises:
            ValueError: there is none, or it is damaged or of another kind.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"no tokenizer in {folder}: it has no {FILE}")
        text = path.read_text(encoding="utf-8")
        try:
            about = json.loads(text)
            if about == {"kind": "bytes"}:
                return cls.bytes()
            kind = {"BPE": "bpe", "Unigram": "unigram"}[about["model"]["type"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged or no tokenizer that exlstm made ({error!r})") from error
        tokenizers = _tokenizers()
        try:
            subwords = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the package raises Exception itself
            raise ValueError(f"{path} is damaged: {error}") from error
        if tuple(subwords.id_to_token(n) for n in range(len(SPECIAL))) != SPECIAL:
            raise ValueError(f"{path} does not begin with the tokens {', '.join(SPECIAL)}: exlstm did not make it")
        return cls(kind, subwords)  # type: ignore[arg-type]


def _tokenizers() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError:
        raise ValueError(
            "subwords need the package tokenizers: pip install 'exlstm[text]', or choose --tokenizer bytes"
        ) from None
    return tokenizers
