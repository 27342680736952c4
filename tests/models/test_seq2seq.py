"""Sequence to sequence: steps equal teacher forcing, padding and batches change nothing, all memories do their work."""

import pytest
import torch

from exlstm.models import Sampling, Seq2Seq

VOCABULARY, BOS, EOS = 13, 1, 2
MEMORIES = ["hierarchical", "flat", "attention"]


def random_model(memory="hierarchical", **fields):
    torch.manual_seed(1)
    options = {"encoder": "ms", "decoder": "mh", "width": 64, "heads": 2, "leaf": 3, "keep": 2, "levels": 3}
    model = Seq2Seq(vocabulary=VOCABULARY, bos=BOS, eos=EOS, memory=memory, **{**options, **fields})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return model.double().eval()


def tokens(*shape):
    return torch.randint(3, VOCABULARY, shape)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("style", ["paper", "large"])
def test_steps_equal_teacher_forcing(memory, style):
    model = random_model(memory, style=style)
    source, target = tokens(2, 17), tokens(2, 9)
    whole, stored, state, parts = model(source, target), model.encode(source), None, []
    for t in range(9):
        logits, state, _ = model.decode(target[:, t : t + 1], stored, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_sources_and_targets_changes_nothing(memory, side):
    model, source, target = random_model(memory), tokens(2, 10), tokens(2, 6)
    expected = model(source, target)

    def pad(x, count):
        none = torch.zeros(2, count, dtype=torch.int64)
        real = torch.ones_like(x, dtype=torch.bool)
        order = (none, x) if side == "left" else (x, none)
        flags = (none.bool(), real) if side == "left" else (real, none.bool())
        return torch.cat(order, 1), torch.cat(flags, 1)

    (s, s_mask), (t, t_mask) = pad(source, 7), pad(target, 3)
    torch.testing.assert_close(model(s, t, s_mask, t_mask)[t_mask].view_as(expected), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_batch_of_mixed_lengths_equals_one_by_one(memory):
    model = random_model(memory)
    sources = [tokens(n).tolist() for n in (1, 4, 21)]
    together = model.generate(sources, most=15).tokens
    assert together == [model.generate([s], most=15).tokens[0] for s in sources]
    assert all(EOS not in row[:-1] for row in together)


@pytest.mark.parametrize("memory", MEMORIES)
def test_one_beam_is_greedy_and_more_beams_are_no_less_likely(memory):
    model = random_model(memory)
    sources = [tokens(n).tolist() for n in (3, 12)]
    greedy = model.generate(sources, most=10).tokens
    assert [found[0][1] for found in model.beams(sources, beams=1, most=10)] == greedy
    one, five = (model.beams(sources, beams=n, most=10, length_penalty=0) for n in (1, 5))
    for a, b in zip(one, five, strict=True):
        assert b[0][0] >= a[0][0] - 1e-9
        assert [score for score, _ in b] == sorted((score for score, _ in b), reverse=True)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0])
def test_beams_of_a_batch_are_those_of_one_by_one(memory, length_penalty):
    model = random_model(memory)
    model.embedding.weight.data[EOS] *= 12  # some end soon, and others do not
    sources = [tokens(n).tolist() for n in (1, 5, 9, 16, 2, 7)]
    options = {"beams": 3, "most": 20, "length_penalty": length_penalty}
    together = model.beams(sources, **options)
    if length_penalty < 1:  # by that of 1 all go on to the end
        assert len({len(found[0][1]) for found in together}) > 1
    for found, source in zip(together, sources, strict=True):
        (alone,) = model.beams([source], **options)
        assert [row for _, row in found] == [row for _, row in alone]
        assert [score for score, _ in found] == pytest.approx([score for score, _ in alone], rel=1e-9)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_target_depends_on_the_source_and_gradients_reach_everything(memory):
    model = random_model(memory)
    source, target = tokens(2, 14), tokens(2, 5)
    other = source.clone()
    other[:, 4] = (other[:, 4] - 2) % (VOCABULARY - 3) + 3
    logits = model(source, target)
    assert not torch.allclose(model(other, target), logits)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if memory == "flat" and ("level." in name or "query" in name):
            continue  # one node, one level: nothing to choose, so that part of the query gets no gradient
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_saved_model_writes_the_same(memory, tmp_path):
    model = random_model(memory).float()
    model.save_pretrained(tmp_path)
    again, sources = Seq2Seq.from_pretrained(tmp_path), [tokens(6).tolist()]
    options = {"most": 12, "sampling": Sampling(), "seed": 4}
    assert again.generate(sources, **options).tokens == model.generate(sources, **options).tokens


@pytest.mark.parametrize("memory", MEMORIES)
def test_bfloat16_autocast_agrees_with_float32_and_can_be_trained(memory):
    model = random_model(memory).float()
    source, target = tokens(2, 14), tokens(2, 6)
    exact = model(source, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(source, target)
        loss = logits.float().square().mean()
    # Rounding to 8 bits in a dozen layers one after the other.
    assert float((logits.float() - exact).detach().norm() / exact.detach().norm()) < 0.1
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("memory", ["hierarchical", "attention"])
def test_what_is_copied_is_where_the_last_read_looked(memory):
    model = random_model(memory)
    source, target = tokens(2, 40), tokens(2, 4)
    stored = model.encode(source)
    scores, _, traces = model.decode(target, stored)
    torch.testing.assert_close(scores.logsumexp(-1), torch.zeros(2, 4, dtype=torch.float64), rtol=0, atol=1e-12)
    shares = torch.tensor([0.0, 0.3, 0.7], dtype=torch.float64)  # of the vocabulary and of two heads: all is copied
    model.copying.gate.bias.data.copy_(shares.log().clamp(min=-1e4))
    torch.nn.init.zeros_(model.copying.gate.weight)
    scores, _, traces = model.decode(target, stored)
    expected = torch.zeros(2, 4, VOCABULARY, dtype=torch.float64)
    attended = (shares[1:, None, None] * traces[-1].steps.over(40)).sum(1)
    for step in range(40):
        expected.scatter_add_(-1, source[:, None, step, None].expand(2, 4, 1), attended[..., step, None])
    torch.testing.assert_close(scores.exp(), expected, rtol=1e-9, atol=1e-12)


def test_a_flat_memory_and_a_model_told_so_copy_nothing():
    assert random_model("flat").copying is None
    assert random_model(copy=False).copying is None


def test_what_was_read_can_be_seen():
    model = random_model()
    stored = model.encode(tokens(2, 20))
    _, _, traces = model.decode(tokens(2, 4), stored, trace=True)
    assert len(traces) == 2
    assert traces[0].nodes is not None
    assert [x.shape for x in traces[0].nodes] == [(2, 2, 4, n) for n in (7, 4, 2, 1)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"memory": "stack"}, "expected memory 'hierarchical', 'flat' or 'attention', received 'stack'"),
        ({"eos": 13}, "expected eos from 0 to 12"),
    ],
)
def test_bad_configs_get_one_sentence(fields, message):
    with pytest.raises(ValueError, match=message):
        Seq2Seq(**{"vocabulary": VOCABULARY, "bos": BOS, "eos": EOS, **fields})
