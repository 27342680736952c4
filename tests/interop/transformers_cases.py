"""Small models, the same everywhere, and what their generated tokens are."""

import torch

from exlstm.models import LanguageModel, Seq2Seq

VOCABULARY, BOS, EOS = 13, 1, 2


def language_model(pattern="mhsa", seed=0, **fields):
    """All parameters random, gates too, so that nothing is left out by starting at zero."""
    torch.manual_seed(seed)
    sizes = {"vocabulary": VOCABULARY, "width": 64, "heads": 2, "levels": 4, "window": 6}
    return randomised(LanguageModel(pattern=pattern, **{**sizes, **fields}), 0.3)


def seq2seq(memory="hierarchical", **fields):
    torch.manual_seed(1)
    tokens = {"vocabulary": VOCABULARY, "bos": BOS, "eos": EOS}
    sizes = {"encoder": "ms", "decoder": "mh", "width": 64, "heads": 2, "leaf": 3, "keep": 2, "levels": 3}
    return randomised(Seq2Seq(memory=memory, **{**tokens, **sizes, **fields}), 0.25)


def randomised(model, std):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.double().eval()


def tokens(*shape):
    return torch.randint(3, VOCABULARY, shape)


def prompts(*lengths):
    return [tokens(length).tolist() for length in lengths]


def padded(rows, side="left", pad=0):
    """Rows of tokens as input_ids and attention_mask [B, T]."""
    time = max(map(len, rows))
    ids, mask = torch.full((len(rows), time), pad), torch.zeros(len(rows), time, dtype=torch.int64)
    for row, found in enumerate(rows):
        place = slice(time - len(found), None) if side == "left" else slice(len(found))
        ids[row, place], mask[row, place] = torch.tensor(found), 1
    return {"input_ids": ids, "attention_mask": mask}


def new_tokens(sequences, begin, end=()):
    """What was generated in every row, up to the first token of `end`, which is kept."""
    rows = []
    for row in sequences[:, begin:].tolist():
        stop = next((place for place, token in enumerate(row) if token in end), len(row) - 1)
        rows.append(row[: stop + 1])
    return rows
