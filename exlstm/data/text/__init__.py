"""Text: files to documents, documents to tokens, tokens to batches."""

from exlstm.data.text.batching import LengthSampler, batches_by_length
from exlstm.data.text.corpus import SPLITS, Streams, TokenBatch, Tokens, Windows, pieces, write_corpus
from exlstm.data.text.labelled import Labelled, LabelledSplits, LabelledTexts, read_labelled
from exlstm.data.text.labelled_tokens import LabelledBatch, TokenTexts
from exlstm.data.text.pairs import Pair, PairBatch, Pairs, TokenPairs, read_pairs
from exlstm.data.text.reading import Document, Reading, read_documents
from exlstm.data.text.tokenizer import BOS, EOS, PAD, Tokenizer

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "SPLITS",
    "Document",
    "Labelled",
    "LabelledBatch",
    "LabelledSplits",
    "LabelledTexts",
    "LengthSampler",
    "Pair",
    "PairBatch",
    "Pairs",
    "Reading",
    "Streams",
    "TokenBatch",
    "TokenPairs",
    "TokenTexts",
    "Tokenizer",
    "Tokens",
    "Windows",
    "batches_by_length",
    "pieces",
    "read_documents",
    "read_labelled",
    "read_pairs",
    "write_corpus",
]
