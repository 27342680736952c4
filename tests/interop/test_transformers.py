"""Our models in transformers: outputs, losses, saving and loading, vocabularies, refusals."""

import json
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy

pytest.importorskip("transformers")

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers_cases import BOS, EOS, VOCABULARY, language_model, new_tokens, padded, prompts, seq2seq, tokens

from exlstm.interop.transformers import (
    ExlstmConfig,
    ExlstmForCausalLM,
    ExlstmForSeq2SeqLM,
    ExlstmSeq2SeqConfig,
    from_run,
)
from exlstm.models import LanguageModel, Seq2Seq

IGNORED = -100
MODELS = {
    "causal": (language_model, ExlstmForCausalLM, AutoModelForCausalLM),
    "seq2seq": (seq2seq, ExlstmForSeq2SeqLM, AutoModelForSeq2SeqLM),
}


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def inputs_of(theirs):
    if isinstance(theirs, ExlstmForCausalLM):
        return padded(prompts(3, 8), "right")
    return {**padded(prompts(9, 5)), "decoder_input_ids": tokens(2, 6)}


def test_logits_are_those_of_our_model_and_padding_changes_nothing():
    model = language_model()
    theirs, rows = ExlstmForCausalLM.from_exlstm(model), prompts(3, 8)
    for side in ("left", "right"):
        batch = padded(rows, side, pad=-1)
        logits = theirs(**batch).logits[batch["attention_mask"].bool()]
        same(logits, torch.cat([model(torch.tensor([row]))[0][0] for row in rows]))
    same(
        theirs(batch["input_ids"].clamp(min=0), logits_to_keep=2).logits,
        theirs(batch["input_ids"].clamp(min=0)).logits[:, -2:],
    )


def test_labels_are_shifted_and_minus_100_does_not_count():
    model = language_model()
    theirs, batch = ExlstmForCausalLM.from_exlstm(model), padded(prompts(3, 8), "right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    logits = theirs(**batch).logits
    losses = [-logits.log_softmax(-1)[b, t, labels[b, t + 1]] for b in (0, 1) for t in range([2, 7][b])]
    output = theirs(**batch, labels=labels)
    same(output.loss, torch.stack(losses).mean())
    same(output.logits, logits)
    same(theirs(**batch, labels=labels, num_items_in_batch=20).loss, torch.stack(losses).sum() / 20)
    left = padded([row[mask.bool()].tolist() for row, mask in zip(*batch.values(), strict=True)])
    same(theirs(**left, labels=left["input_ids"].masked_fill(left["attention_mask"] == 0, IGNORED)).loss, output.loss)
    loss, *rest = theirs(**batch, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert len(rest) == 1


def test_labels_of_sequences_to_sequences_are_what_follows_the_beginning():
    model = seq2seq()
    theirs, batch, labels = ExlstmForSeq2SeqLM.from_exlstm(model), padded(prompts(9, 5)), tokens(2, 6)
    labels[0, -1], labels[1, 3], labels[1, 4:] = EOS, EOS, IGNORED
    output = theirs(**batch, labels=labels)
    source, mask = batch["input_ids"], batch["attention_mask"].bool()
    target = torch.cat([torch.full((2, 1), BOS), labels[:, :-1].clamp(min=0)], 1)
    logits = model(source, target, mask)
    same(output.loss, cross_entropy(logits.flatten(0, 1), labels.flatten()))
    same(output.logits[0], logits[0])
    same(output.logits[1, :5], logits[1, :5])
    count = int((labels != IGNORED).sum())
    same(theirs(**batch, labels=labels, num_items_in_batch=2 * count).loss, output.loss / 2)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("count", [None, 7])
def test_a_loss_without_logits_is_the_same_with_the_same_gradients(kind, count):
    make, wrapper, _ = MODELS[kind]
    theirs, found = wrapper.from_exlstm(make(dropout=0.0)).train(), []
    batch = inputs_of(theirs)
    labels = tokens(*batch.get("decoder_input_ids", batch["input_ids"]).shape)
    labels[1, 2:] = IGNORED
    for theirs.config.skip_logits in (False, True):
        theirs.zero_grad()
        output = theirs(**batch, labels=labels, num_items_in_batch=count)
        output.loss.backward()
        found.append([output.loss.detach(), *(p.grad for p in theirs.parameters() if p.grad is not None)])
    assert output.logits is None
    for plain, skipped in zip(*found, strict=True):
        same(plain, skipped)


def test_documents_packed_into_a_row_do_not_see_each_other():
    model = language_model()
    theirs, rows = ExlstmForCausalLM.from_exlstm(model), prompts(3, 8, 2)
    places = torch.cat([torch.arange(len(row)) for row in rows])[None]
    packed = theirs(torch.tensor([[token for row in rows for token in row]]), position_ids=places).logits
    same(packed[0], torch.cat([model(torch.tensor([row]))[0][0] for row in rows]))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_saved_and_loaded_by_the_auto_classes_every_bit_is_there(kind, dtype, tmp_path):
    make, wrapper, auto = MODELS[kind]
    model = make().to(dtype)
    wrapper.from_exlstm(model).save_pretrained(tmp_path / "theirs")
    again = auto.from_pretrained(tmp_path / "theirs").to_exlstm()
    assert type(again) is type(model)
    assert again.config == model.config
    for folder, saved in (("before", model), ("after", again)):
        saved.save_pretrained(tmp_path / folder)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


@pytest.mark.parametrize("fields", [{}, {"tied": True, "soft_cap": 3.0, "style": "large"}])
def test_weights_may_be_loaded_in_another_dtype_and_tied_ones_stay_tied(fields, tmp_path):
    theirs = ExlstmForCausalLM.from_exlstm(language_model(**fields))
    theirs.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert (again.model.head.weight is again.model.embedding.weight) == bool(fields)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    for a, b in zip(theirs.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b)
    ids = tokens(1, 7)
    assert again.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0).shape == (1, 11)


def test_the_auto_classes_of_a_fresh_process_generate_the_same_text(tmp_path):
    theirs = ExlstmForCausalLM.from_exlstm(language_model().float())
    theirs.save_pretrained(tmp_path)
    ids = tokens(1, 6)
    here = theirs.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0).tolist()
    code = (
        "import torch, exlstm.interop.transformers\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})\n"
        f"x = torch.tensor({ids.tolist()})\n"
        "print(model.generate(x, max_new_tokens=12, do_sample=False, pad_token_id=0).tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(here)


def test_configs_have_the_names_of_both_worlds(tmp_path):
    config = ExlstmConfig(vocab_size=50, hidden_size=32, pattern="(ms)x3", num_attention_heads=2, pad_token_id=3)
    ours = config.to_exlstm()
    assert (ours.vocabulary, ours.width, ours.heads, config.num_hidden_layers) == (50, 32, 2, 6)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.to_exlstm() == ours
    assert (again.pad_token_id, again.tie_word_embeddings) == (3, False)
    pairs = ExlstmSeq2SeqConfig(vocabulary=50, width=32, encoder_pattern="s", decoder_pattern="mm", bos=4)
    assert (pairs.to_exlstm().encoder, pairs.to_exlstm().decoder, pairs.to_exlstm().bos) == ("s", "mm", 4)
    assert pairs.is_encoder_decoder


def test_a_new_model_begins_as_ours_does():
    torch.manual_seed(5)
    theirs = ExlstmForCausalLM(ExlstmConfig(vocabulary=50, pattern="ms", width=64))
    torch.manual_seed(5)
    ours = LanguageModel(vocabulary=50, pattern="ms", width=64)
    for a, b in zip(theirs.to_exlstm().parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mean_resizing", [True, False])
def test_a_vocabulary_can_grow_and_shrink(tied, mean_resizing, tmp_path):
    theirs = ExlstmForCausalLM.from_exlstm(language_model(tied=tied).float())
    ids = tokens(1, 7)
    before = theirs(ids).logits
    theirs.resize_token_embeddings(VOCABULARY + 5, mean_resizing=mean_resizing)
    grown = theirs(ids).logits
    assert torch.equal(grown[..., :VOCABULARY], before)
    assert theirs(torch.tensor([[VOCABULARY + 4]])).logits.shape[-1] == VOCABULARY + 5
    for module in (theirs.model.embedding, theirs.model.head):
        added, old = module.weight[VOCABULARY:].std(), module.weight[:VOCABULARY].std()
        assert added < 2 * old
    theirs.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.to_exlstm().config.vocabulary == VOCABULARY + 5
    assert torch.equal(again(ids).logits, grown)
    again.resize_token_embeddings(VOCABULARY)
    assert torch.equal(again(ids).logits, before)


def test_missing_and_misshapen_weights_are_named(tmp_path):
    theirs = ExlstmForCausalLM.from_exlstm(language_model("m").float())
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pattern": "mm"}))
    with pytest.raises(ValueError, match=r"weights lack model.backbone.blocks.1.*and \d+ more"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"width": "wide"}))
    with pytest.raises(ValueError, match="width must be int, got 'wide'"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_of_ours_is_taken_and_given_back(kind, tmp_path):
    make, wrapper, _ = MODELS[kind]
    model = make()
    for folder in (tmp_path / "model", tmp_path / "run" / "model"):
        model.save_pretrained(folder)
    for folder in (tmp_path / "model", tmp_path / "run"):
        theirs, tokenizer = from_run(folder)
        assert tokenizer is None
        assert type(theirs) is wrapper
        assert not theirs.training
        theirs.to_exlstm().save_pretrained(tmp_path / "again")
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no model in"):
        from_run(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "forecaster"}')
    with pytest.raises(ValueError, match=r"expected a model of type language_model or seq2seq in .*'forecaster'"):
        from_run(tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, s: m(), "expected input_ids, received none"),
        (lambda m, s: m(tokens(1, 3), output_attentions=True), "expected no output_attentions"),
        (lambda m, s: m(tokens(1, 3), output_hidden_states=True), "expected no output_hidden_states"),
        (lambda m, s: m(inputs_embeds=torch.zeros(1, 3, 64)), "expected no inputs_embeds"),
        (lambda m, s: m(tokens(1, 3), attention_mask=torch.ones(1, 2)), r"expected attention_mask \[1, 3\]"),
        (lambda m, s: m(tokens(1, 3), attention_mask=torch.ones(1, 1, 3, 3)), r"received \[1, 1, 3, 3\]"),
        (lambda m, s: m(tokens(1, 3), position_ids=torch.zeros(1, 2)), r"expected position_ids \[1, 3\]"),
        (lambda m, s: m(tokens(1, 3), cache=(1, 2)), "expected an ExlstmCache as cache, received tuple"),
        (lambda m, s: m(torch.tensor([[VOCABULARY]])), "tokens must be from 0 to 12"),
        (lambda m, s: s(tokens(1, 3)), "expected decoder_input_ids or labels"),
        (lambda m, s: s(decoder_input_ids=tokens(1, 3)), "expected input_ids or encoder_outputs"),
        (lambda m, s: ExlstmForCausalLM.from_exlstm(s.model), "expected a LanguageModel .* received Seq2Seq"),
        (lambda m, s: ExlstmConfig(heads=2.5), "heads must be int, got 2.5"),
    ],
)
def test_what_is_not_there_is_refused_in_a_sentence(call, message):
    models = ExlstmForCausalLM.from_exlstm(language_model("m")), ExlstmForSeq2SeqLM.from_exlstm(seq2seq("flat"))
    with pytest.raises(ValueError, match=message):
        call(*models)


@pytest.mark.parametrize("found", [None, "4.57.6"])
def test_without_transformers_one_sentence_says_what_to_install(found):
    fake = "None" if found is None else f"types.SimpleNamespace(__version__={found!r})"
    code = (
        "import sys, types, exlstm, exlstm.interop\n"
        "assert 'transformers' not in sys.modules\n"
        f"sys.modules['transformers'] = {fake}\n"
        "import exlstm.interop.transformers\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: exlstm.interop.transformers needs ")
    assert last.endswith("pip install 'exlstm[transformers]'")
    assert found is None or found in last


def test_sources_are_read_once_whatever_the_number_of_beams():
    model = seq2seq()
    theirs, calls, encode = ExlstmForSeq2SeqLM.from_exlstm(model), [], model.encode
    model.encode = lambda *arguments: calls.append(1) or encode(*arguments)
    found = theirs.generate(**padded(prompts(4, 9)), num_beams=3, max_new_tokens=6)
    assert (len(calls), len(new_tokens(found, 1))) == (1, 2)
    assert isinstance(theirs.to_exlstm(), Seq2Seq)
