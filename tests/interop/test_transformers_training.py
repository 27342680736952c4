"""Trainer trains our models; activations can be computed anew instead of being kept."""

import gzip

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)
from transformers_cases import BOS, EOS, language_model, padded, prompts, seq2seq, tokens

from exlstm.data.samples import text_sample
from exlstm.data.text import Tokenizer
from exlstm.interop.transformers import (
    ExlstmConfig,
    ExlstmForCausalLM,
    ExlstmForSeq2SeqLM,
    ExlstmSeq2SeqConfig,
    fast_tokenizer,
)
from exlstm.layers.block import Block

QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, "seed": 0}


def paragraphs():
    with text_sample("northanger_abbey").open("rb") as file:
        text = gzip.decompress(file.read()).decode()
    return [part[:96] for part in text.split("\n\n") if len(part) > 40]


def small(**fields):
    torch.manual_seed(0)
    return ExlstmForCausalLM(ExlstmConfig(pattern="ms", width=64, **fields))


@pytest.mark.parametrize("packed", [False, True])
def test_trainer_lowers_the_loss_on_a_novel(packed, tmp_path):
    fast, model = fast_tokenizer(Tokenizer.bytes(), padding_side="right"), small(skip_logits=True)
    data = [{"input_ids": fast(text)["input_ids"]} for text in paragraphs()[:96]]
    trainer = Trainer(
        model,
        TrainingArguments(
            tmp_path,
            max_steps=16,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            logging_steps=4,
            save_steps=16,
            **QUIET,
        ),
        train_dataset=data[16:],
        eval_dataset=data[:16],
        data_collator=DataCollatorWithFlattening() if packed else DataCollatorForLanguageModeling(fast, mlm=False),
        processing_class=fast,
    )
    before = trainer.evaluate()["eval_loss"]
    assert before == pytest.approx(float(torch.tensor(259.0).log()), abs=0.3)  # bytes it knows nothing of
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 1.5
    again = ExlstmForCausalLM.from_pretrained(tmp_path / "checkpoint-16")
    for a, b in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_accumulated_batches_of_unlike_lengths_count_by_tokens(tmp_path):
    """The gradient of two batches is that of one batch of all rows, however many tokens each of them has."""
    fast, losses = fast_tokenizer(Tokenizer.bytes(), padding_side="right"), []
    data = [{"input_ids": fast(text)["input_ids"]} for text in ("a", "ab", "a much longer text " * 3, "abc")]
    for rows, accumulated in ((4, 1), (1, 4)):
        model = small()
        trainer = Trainer(
            model,
            TrainingArguments(
                tmp_path,
                max_steps=1,
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=accumulated,
                logging_steps=1,
                save_strategy="no",
                **QUIET,
            ),
            train_dataset=data,
            data_collator=DataCollatorForLanguageModeling(fast, mlm=False),
        )
        trainer.train()
        losses.append(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_seq2seq_trainer_trains_and_generates(tmp_path):
    fast = fast_tokenizer(Tokenizer.bytes(), bos=False)
    torch.manual_seed(0)
    config = ExlstmSeq2SeqConfig(encoder_pattern="s", decoder_pattern="s", width=64, memory="attention", dropout=0.0)
    model = ExlstmForSeq2SeqLM(config)
    texts = [text[:12] for text in paragraphs()[:32]]
    data = [{"input_ids": x, "labels": [*x[:4], EOS]} for x in fast(texts)["input_ids"]]
    options = {
        "max_steps": 12,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 8,
        "save_strategy": "no",
        "predict_with_generate": True,
        "generation_max_length": 8,
    }
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(tmp_path, **options, **QUIET),
        train_dataset=data,
        eval_dataset=data[:8],
        data_collator=DataCollatorForSeq2Seq(fast, model),
        processing_class=fast,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    found = trainer.predict(data[:8])
    assert found.metrics["test_loss"] < before - 1
    assert found.predictions.shape[0] == 8
    assert (found.predictions[:, 0] == BOS).all()


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activations_computed_anew_give_the_same_gradients(kind, reentrant):
    if kind == "causal":
        theirs, batch = ExlstmForCausalLM.from_exlstm(language_model()), padded(prompts(3, 8), "right")
        batch["labels"] = batch["input_ids"]
    else:
        theirs, batch = ExlstmForSeq2SeqLM.from_exlstm(seq2seq(dropout=0.0)), padded(prompts(9, 5))
        batch["labels"] = tokens(2, 6)
    theirs.train()
    found, calls, blocks = [], [], [m for m in theirs.modules() if isinstance(m, Block)]
    handles = [block.mixer.register_forward_pre_hook(lambda *_: calls.append(1)) for block in blocks]
    name = "activation" if hasattr(theirs, "activation_checkpointing_enable") else "gradient"  # before 5.24
    for anew in (False, True, False):
        if anew:
            getattr(theirs, f"{name}_checkpointing_enable")({"use_reentrant": reentrant})
        elif found:
            getattr(theirs, f"{name}_checkpointing_disable")()
        calls.clear()
        theirs.zero_grad()
        theirs(**batch).loss.backward()
        assert len(calls) == len(blocks) * (2 if anew else 1)
        found.append([p.grad for p in theirs.parameters()])
    for gradients in found[1:]:
        for a, b in zip(found[0], gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for handle in handles:
        handle.remove()
