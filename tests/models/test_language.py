"""The language model: steps equal the whole, batches equal single rows, generation does what it says."""

import itertools
import json
import math
import subprocess
import sys

import pytest
import torch

from exlstm.layers import BlockOptions
from exlstm.models import LanguageModel, Sampling
from exlstm.models.generation import Reader, beam_search, choose, generate, left_padded, narrowed

VOCABULARY = 11
PATTERNS = ["ms", "ha"]


def random_model(pattern="mhsa", seed=0, **fields):
    """All parameters random, gates too, so that nothing is left out by starting at zero."""
    torch.manual_seed(seed)
    sizes = {"vocabulary": VOCABULARY, "width": 64, "heads": 2, "levels": 4, "window": 6}
    model = LanguageModel(pattern=pattern, **{**sizes, **fields})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def tokens(*shape):
    return torch.randint(VOCABULARY, shape)


@pytest.mark.parametrize("style", ["paper", "large"])
def test_steps_give_what_teacher_forcing_gives(style):
    model, x = random_model(style=style), tokens(2, 40)
    whole, _ = model(x)
    state, parts = None, []
    for t in range(40):
        logits, state = model(x[:, t : t + 1], state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_greedy_generation_is_the_argmax_of_teacher_forcing(pattern):
    model = random_model(pattern)
    prompt = tokens(7).tolist()
    new = model.generate([prompt], most=30).tokens[0]
    logits, _ = model(torch.tensor([prompt + new]))
    assert logits[0, 6:-1].argmax(-1).tolist() == new


def test_a_batch_of_mixed_lengths_equals_one_by_one():
    model = random_model()
    prompts = [tokens(n).tolist() for n in (1, 5, 23)]
    together = model.generate(prompts, most=20, stop=[3]).tokens
    assert together == [model.generate([p], most=20, stop=[3]).tokens[0] for p in prompts]


@pytest.mark.parametrize("final_norm", ["biased", "none"])
def test_options_and_final_norm_are_saved(tmp_path, final_norm):
    options = BlockOptions(bias=True, norm_bias=True, kernel=2, inner=32, hidden=40)
    model = random_model("ms", options=options, final_norm=final_norm, tied=True)
    model.save_pretrained(tmp_path)
    again = LanguageModel.from_pretrained(tmp_path)
    assert again.config == model.config
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert again.head.weight is again.embedding.weight


def test_a_model_saved_before_there_were_options_is_still_one(tmp_path):
    model = random_model("ms")
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["options"], values["final_norm"]
    path.write_text(json.dumps(values))
    x = tokens(1, 9)
    assert torch.equal(LanguageModel.from_pretrained(tmp_path)(x)[0], model(x)[0])


@pytest.mark.parametrize("where", ["left", "right"])
def test_padding_changes_nothing(where):
    model, x = random_model(), tokens(2, 9)
    pad, real = torch.full((2, 4), -1), torch.ones(2, 9, dtype=torch.bool)
    none = torch.zeros(2, 4, dtype=torch.bool)
    sides = ([pad.clamp(min=0), x], [none, real]) if where == "left" else ([x, pad.clamp(min=0)], [real, none])
    padded, mask = (torch.cat(parts, 1) for parts in sides)
    logits, _ = model(padded, mask=mask)
    torch.testing.assert_close(logits[mask].view(2, 9, -1), model(x)[0], rtol=1e-9, atol=1e-9)


def test_generation_goes_on_from_a_state():
    model = random_model()
    prompt = tokens(6).tolist()
    first, state = model.generate([prompt], most=10)
    more = model.generate([first[0][-1:]], most=10, state=state).tokens[0]
    assert first[0] + more == model.generate([prompt], most=20).tokens[0]


def test_rows_end_with_a_stop_token_and_the_last_one_is_kept():
    model = random_model()
    prompts = [tokens(4).tolist() for _ in range(6)]
    for row, free in zip(
        model.generate(prompts, most=40, stop=[1, 2]).tokens, model.generate(prompts, most=40).tokens, strict=True
    ):
        end = next((i for i, token in enumerate(free) if token in (1, 2)), 39)
        assert row == free[: end + 1]


def test_a_stream_gives_the_same_tokens_one_by_one():
    model = random_model()
    prompt, sampling = tokens(4).tolist(), Sampling(temperature=0.9)
    whole = model.generate([prompt], most=15, sampling=sampling, seed=5).tokens[0]
    stream = model.stream(prompt, most=15, sampling=sampling, seed=5)
    assert next(stream) == whole[0]
    assert list(stream) == whole[1:]


def test_a_stream_takes_what_generate_takes():
    model = random_model()
    prompt = tokens(4).tolist()
    _, state = model.generate([prompt], most=5)
    options = {"most": 30, "stop": [2, 3], "state": state, "weights": "bfloat16"}
    assert list(model.stream(prompt, **options)) == model.generate([prompt], **options).tokens[0]
    with pytest.raises(TypeError, match="temperature"):
        next(model.stream(prompt, temperature=0.5))


def test_a_loop_of_ones_own_begins_with_a_prefill():
    model = random_model("m", dropout=0.5).train()
    prompts = [tokens(n).tolist() for n in (3, 8)]
    reader, rows = model.prefill(prompts), []
    assert not reader.logits.requires_grad
    assert model.training
    logits = reader.logits
    for _ in range(10):
        rows.append(logits.argmax(-1))
        logits = reader.next(rows[-1])
    assert torch.stack(rows, 1).tolist() == model.generate(prompts, most=10).tokens


def test_the_same_seed_gives_the_same_text_in_a_fresh_process(tmp_path):
    model = random_model().float()
    model.save_pretrained(tmp_path)
    sampling = Sampling(top_p=0.9)
    here = LanguageModel.from_pretrained(tmp_path).generate([[1, 2, 3]], most=25, sampling=sampling, seed=3).tokens
    code = (
        "from exlstm.models import LanguageModel, Sampling\n"
        f"model = LanguageModel.from_pretrained({str(tmp_path)!r})\n"
        "print(model.generate([[1, 2, 3]], most=25, sampling=Sampling(top_p=0.9), seed=3).tokens)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(here)


def reader(model, prompts, rows):
    logits, state = model.read([p for p in prompts for _ in range(rows)])
    from exlstm.models.decoder import Decoder

    decoder = Decoder(model.backbone, embedding=model.embedding, head=model.head, batch=len(prompts) * rows)
    decoder.load(state)
    return Reader(decoder, logits)


def test_one_beam_is_greedy():
    model = random_model()
    prompts = [tokens(n).tolist() for n in (3, 8)]
    greedy = model.generate(prompts, most=25, stop=[4]).tokens
    beams = beam_search(reader(model, prompts, 1), beams=1, most=25, stop=[4])
    assert [found[0][1] for found in beams] == greedy


def test_beams_as_wide_as_the_tree_find_the_likeliest_of_all_continuations():
    size, prompt = 5, [1, 2]
    model = random_model(seed=3, vocabulary=size)
    found = beam_search(reader(model, [prompt], size**2), beams=size**2, most=3, stop=[0])[0]

    @torch.no_grad()
    def scores(continuations):
        x = torch.tensor([prompt + continuation for continuation in continuations])
        steps = model(x)[0][:, 1:-1].log_softmax(-1)
        return steps.gather(2, x[:, 2:, None])[..., 0].mean(1).tolist()

    inner = range(1, size)
    by_length = [
        [[0]],
        [[a, 0] for a in inner],
        [[*pair, c] for pair in itertools.product(inner, inner) for c in range(size)],
    ]
    ranked = [pair for endings in by_length for pair in zip(scores(endings), endings, strict=True)]
    ranked.sort(reverse=True)
    assert [tokens for _, tokens in found] == [ending for _, ending in ranked[: size**2]]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in ranked[: size**2]], rel=1e-9)
    # A greedy search goes astray here.
    assert model.generate([prompt], most=3, stop=[0]).tokens[0] != found[0][1]


def test_bfloat16_autocast_agrees_with_float32_and_can_be_trained():
    model, x = random_model().float(), tokens(2, 30)
    exact, _ = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = model(x)
        loss = logits.float().square().mean()
    # Rounding to 8 bits in a dozen layers one after the other.
    assert float((logits.float() - exact).detach().norm() / exact.detach().norm()) < 0.1
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_sampling_follows_the_probabilities():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(200_000, 4)
    generator = torch.Generator().manual_seed(0)
    shares = choose(logits, Sampling(), generator=generator).bincount(minlength=4) / 200_000
    # Five standard deviations of a share of 200,000 draws.
    assert (shares - torch.tensor([0.1, 0.2, 0.3, 0.4])).abs().max() < 5 * math.sqrt(0.25 / 200_000)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(top_k=2), [2, 3]),
        (Sampling(top_p=0.39), [3]),
        (Sampling(top_p=0.41), [2, 3]),
        (Sampling(top_p=0.95), [0, 1, 2, 3]),
        (Sampling(min_p=0.49), [1, 2, 3]),
        (Sampling(top_k=3, min_p=0.7), [2, 3]),
    ],
)
def test_what_sampling_leaves_out(sampling, kept):
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log() + 1e-6
    assert (narrowed(logits, sampling)[0] > -math.inf).nonzero()[:, 0].tolist() == kept


def test_repetition_is_made_less_likely():
    logits, seen = torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([[True, False, False]])
    assert choose(logits, Sampling(temperature=0, repetition_penalty=1.5), seen=seen).tolist() == [1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.tensor([[11]])), "tokens must be from 0 to 10.*got 11 to 11"),
        (lambda m: m(torch.zeros(1, 2)), "tokens must be int64"),
        (lambda m: m.generate([[]]), "at least one token in each"),
        (lambda m: m.generate([[1]], most=0), "most of at least 1"),
        (lambda m: Sampling(top_p=0.0), "top_p above 0"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_model("m"))


def test_left_padding_puts_prompts_at_the_end():
    x, mask = left_padded([[1], [2, 3]])
    assert x.tolist() == [[0, 1], [2, 3]]
    assert mask.tolist() == [[False, True], [True, True]]


def test_tied_weights_and_capped_logits_are_kept_when_saved(tmp_path):
    model = LanguageModel(vocabulary=5, pattern="m", width=64, tied=True, soft_cap=2.0)
    assert model.head.weight is model.embedding.weight
    model.save_pretrained(tmp_path)
    again = LanguageModel.from_pretrained(tmp_path)
    x = tokens(1, 6) % 5
    torch.testing.assert_close(again(x)[0], model.eval()(x)[0], rtol=0, atol=0)
    assert again(x)[0].abs().max() <= 2


def test_generate_leaves_the_model_in_the_mode_it_was_in():
    model = random_model("m", dropout=0.5).train()
    same = generate(reader(model.eval(), [[1]], 1), most=5).tokens
    assert model.train().generate([[1]], most=5).tokens == same
    assert model.training
