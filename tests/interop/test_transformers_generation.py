"""generate of transformers: our state as its cache gives what our own generate gives."""

import pytest
import torch

pytest.importorskip("transformers")

from transformers_cases import EOS, language_model, new_tokens, padded, prompts, seq2seq, tokens

from exlstm.interop.transformers import ExlstmCache, ExlstmForCausalLM, ExlstmForSeq2SeqLM
from exlstm.interop.transformers.cache import CACHE
from exlstm.models.decoder import Decoder
from exlstm.models.generation import Reader, beam_search

GREEDY = {"do_sample": False, "pad_token_id": 0}
MEMORIES = ["hierarchical", "flat", "attention"]


def wrapped(*args, **fields):
    model = language_model(*args, **fields)
    return model, ExlstmForCausalLM.from_exlstm(model)


@pytest.mark.parametrize("style", ["paper", "large"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_generation_is_our_own_token_by_token(style, use_cache):
    model, theirs = wrapped(style=style, soft_cap=5.0)
    x = tokens(2, 9)
    found = theirs.generate(x, max_new_tokens=15, use_cache=use_cache, **GREEDY)
    assert new_tokens(found, 9) == model.generate(x.tolist(), most=15).tokens


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_of_mixed_lengths_equals_one_by_one(side):
    model, theirs = wrapped()
    rows = prompts(1, 4, 17)
    batch = padded(rows, side, pad=7)  # whatever stands where the mask is 0
    found = new_tokens(theirs.generate(**batch, max_new_tokens=20, eos_token_id=EOS, **GREEDY), 17, [EOS])
    assert found == [model.generate([row], most=20, stop=[EOS]).tokens[0] for row in rows]
    assert len({len(row) for row in found}) > 1


def test_without_its_mask_the_padding_is_read():
    _, theirs = wrapped()
    batch = padded(prompts(4, 17), pad=7)
    masked, unmasked = (
        theirs.generate(x, attention_mask=mask, max_new_tokens=20, **GREEDY)[0, 17:]
        for x, mask in ((batch["input_ids"], batch["attention_mask"]), (batch["input_ids"], None))
    )
    assert not torch.equal(masked, unmasked)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_beam_search_is_our_own(penalty, seed):
    model, theirs = wrapped("ms", seed)
    rows = prompts(2, 5, 11)
    found = theirs.generate(
        **padded(rows),
        max_new_tokens=12,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=penalty,
        eos_token_id=EOS,
        return_dict_in_generate=True,
        output_scores=True,
        **GREEDY,
    )
    ours = [pair for row in rows for pair in our_beams(model, row, penalty)]
    assert new_tokens(found.sequences, 11, [EOS]) == [row for _, row in ours]
    # transformers adds up in float32.
    assert found.sequences_scores.tolist() == pytest.approx([score for score, _ in ours], abs=1e-4)


def our_beams(model, prompt, penalty, beams=4):
    logits, state = model.read([prompt] * beams)
    decoder = Decoder(model.backbone, embedding=model.embedding, head=model.head, batch=beams)
    decoder.load(state)
    return beam_search(Reader(decoder, logits), beams=beams, most=12, stop=[EOS], length_penalty=penalty)[0]


def test_sampling_draws_from_the_likeliest_tokens_only_and_rows_differ():
    model, theirs = wrapped()
    x = tokens(1, 6)
    options = {"max_new_tokens": 25, "do_sample": True, "pad_token_id": 0}
    one = theirs.generate(x, top_k=1, **options)
    assert new_tokens(one, 6) == model.generate(x.tolist(), most=25).tokens
    found = theirs.generate(x, top_k=3, num_return_sequences=8, **options)
    logits = model(found[:, :-1])[0][:, 5:]
    ranks = (logits > logits.gather(2, found[:, 6:, None])).sum(2)
    assert ranks.max() == 2
    assert len({tuple(row) for row in found.tolist()}) > 1


def test_generation_goes_on_from_the_cache():
    _, theirs = wrapped()
    rows = prompts(3, 8)
    batch = padded(rows)
    whole = theirs.generate(**batch, max_new_tokens=20, **GREEDY)
    first = theirs.generate(**batch, max_new_tokens=8, return_dict_in_generate=True, **GREEDY)
    assert first[CACHE].get_seq_length() == 15  # the last token was not read yet
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 8, dtype=torch.int64)], 1)
    options = {"max_new_tokens": 12, CACHE: first[CACHE], **GREEDY}
    found = theirs.generate(first.sequences, attention_mask=mask, **options)
    assert torch.equal(found[:, -12:], whole[:, -12:])


def test_a_cache_is_filled_in_place_and_pieces_give_the_whole():
    model, theirs = wrapped()
    x, cache = tokens(2, 20), ExlstmCache()
    whole = theirs(x).logits
    parts = [theirs(piece, cache=cache).logits for piece in x.split([1, 6, 1, 12], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-9)
    assert cache.get_seq_length() == 20
    torch.testing.assert_close(cache.state[0], model(x)[1][0], rtol=1e-9, atol=1e-9)


def test_a_cache_moves_its_rows():
    _, theirs = wrapped()
    x, more = tokens(3, 7), tokens(3, 2)
    cache, rows = theirs(x)[CACHE], torch.tensor([2, 0, 0], dtype=torch.int32)
    cache.reorder_cache(rows)
    expected = theirs(torch.cat([x[rows], more], 1)).logits[:, 7:]
    torch.testing.assert_close(theirs(more, cache=cache).logits, expected, rtol=1e-9, atol=1e-9)


def test_prompts_read_in_chunks_give_the_same():
    model, theirs = wrapped()
    rows = prompts(3, 21)  # of the first row, the first two chunks hold nothing
    options = {"max_new_tokens": 15, "prefill_chunk_size": 8, CACHE: ExlstmCache()}
    assert new_tokens(theirs.generate(**padded(rows), **options, **GREEDY), 21) == model.generate(rows, most=15).tokens


def test_hooks_are_called_at_every_step():
    model, theirs = wrapped()
    x, calls = tokens(1, 5), []
    expected = theirs.generate(x, max_new_tokens=10, **GREEDY)
    handle = model.backbone.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(theirs.generate(x, max_new_tokens=10, **GREEDY), expected)
    assert len(calls) == 10
    handle.remove()


def test_weights_changed_after_generating_count():
    _, theirs = wrapped()
    x = tokens(1, 5)
    first = theirs.generate(x, max_new_tokens=5, return_dict_in_generate=True, **GREEDY)
    torch.nn.init.normal_(theirs.model.head.weight)
    options = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True, **GREEDY}
    read, mask = first.sequences, torch.ones_like(first.sequences)
    expected = theirs(read).logits[:, -1].float()
    torch.testing.assert_close(theirs.generate(read, attention_mask=mask, **options).logits[0], expected)
    found = theirs.generate(read, attention_mask=mask, **{CACHE: first[CACHE]}, **options).logits[0]
    torch.testing.assert_close(found, expected)


def test_a_state_cannot_be_wound_back():
    _, theirs = wrapped()
    with pytest.raises(ValueError, match="cannot be taken back"):
        theirs(tokens(1, 5))[CACHE].crop(-1)
    with pytest.raises(ValueError, match="not supported with stateful models"):
        theirs.generate(tokens(1, 5), assistant_model=theirs, **GREEDY)


@pytest.mark.parametrize("memory", MEMORIES)
def test_sequence_to_sequence_generates_what_ours_does(memory):
    model = seq2seq(memory)
    theirs = ExlstmForSeq2SeqLM.from_exlstm(model)
    rows = prompts(1, 4, 19)
    found = theirs.generate(**padded(rows, pad=-1), max_new_tokens=15, **GREEDY)
    assert new_tokens(found, 1, [EOS]) == model.generate(rows, most=15).tokens


@pytest.mark.parametrize("memory", MEMORIES)
def test_beam_search_of_sequences_to_sequences_is_our_own(memory):
    model = seq2seq(memory)
    theirs = ExlstmForSeq2SeqLM.from_exlstm(model)
    rows = prompts(3, 12)
    options = {"max_new_tokens": 10, "num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.7}
    found = new_tokens(theirs.generate(**padded(rows), **options, **GREEDY), 1, [EOS])
    ours = [model.beams([row], beams=3, most=10, length_penalty=0.7)[0] for row in rows]
    assert found == [row for best in ours for _, row in best]
