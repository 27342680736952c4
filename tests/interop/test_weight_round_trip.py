"""Ours to theirs to ours gives the same bits; and what cannot go there is refused in one sentence."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from exlstm.interop import Target, convert, from_pretrained, save_pretrained
from exlstm.layers import BlockOptions
from exlstm.models import LanguageModel
from exlstm.models.weight_files import INDEX, WeightFiles
from tests.interop.weight_cases import LARGE, PAPER, model_of

TARGETS = [
    *(("large", name, {"to": "transformers", "weight_mode": mode}) for name in LARGE for mode in ("single", "fused")),
    *(("large", name, {"to": "xlstm-large", "weight_mode": "fused"}) for name in ("plain", "other sizes")),
    *(("paper", name, {"to": "xlstm", "slstm_backend": backend}) for name in PAPER for backend in ("vanilla", "cuda")),
]


def assert_same(a: LanguageModel, b: LanguageModel) -> None:
    mine, other = a.state_dict(), b.state_dict()
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(
    ("style", "name", "target"), TARGETS, ids=lambda x: "-".join(x.values()) if type(x) is dict else x
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_there_and_back_is_the_same_bits(tmp_path, style, name, target, dtype):
    model = model_of(style, (LARGE if style == "large" else PAPER)[name]).to(dtype)
    save_pretrained(model, tmp_path / "theirs", Target(**target))
    again = from_pretrained(tmp_path / "theirs")
    assert_same(model, again)
    assert not again.training
    pattern = {"pattern": model.backbone.pattern}
    assert again.config == type(model.config)(**{**vars(model.config), **pattern})


def test_the_command_does_it_through_files(tmp_path, capfd):
    from exlstm import cli

    model = model_of("paper", PAPER["both"])
    model.save_pretrained(tmp_path / "ours")
    words = "convert ours theirs --to xlstm --slstm-backend cuda --shard 0.00002"
    assert cli.main([str(tmp_path / w) if w in ("ours", "theirs") else w for w in words.split()]) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'theirs'}\n"
    assert (tmp_path / "theirs" / INDEX).is_file()
    assert cli.main(["convert", str(tmp_path / "theirs"), str(tmp_path / "again")]) == 0
    assert "licence of the weights" in capfd.readouterr().err
    assert_same(LanguageModel.from_pretrained(tmp_path / "again"), model)


def test_a_run_is_taken_for_its_model(tmp_path):
    model = model_of("large", LARGE["plain"])
    model.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text('{"task": "lm"}')
    assert_same(from_pretrained(tmp_path / "run"), model)


@pytest.mark.parametrize(("to", "names"), [("transformers", "model-00001-of-"), ("xlstm-large", "model_0.safetensors")])
def test_shards_are_no_larger_than_asked_and_hold_everything_once(tmp_path, to, names):
    model = model_of("large", LARGE["plain"])
    save_pretrained(model, tmp_path / "whole", Target(to=to))
    save_pretrained(model, tmp_path / "parts", Target(to=to, shard=4e-5))
    files = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert files[0].name.startswith(names)
    assert len(files) > 3
    seen: list[str] = []
    for file in files:
        with safe_open(file, "pt") as opened:
            here = list(opened.keys())
        assert len(here) == 1 or file.stat().st_size < 40_000 + 200 * len(here)
        seen += here
    assert sorted(seen) == sorted(WeightFiles(tmp_path / "whole"))
    assert_same(from_pretrained(tmp_path / "parts"), model)


def test_numbers_are_cast_only_when_asked(tmp_path):
    model = model_of("large", LARGE["plain"])
    save_pretrained(model, tmp_path / "half", Target(to="transformers", dtype="bfloat16"))
    assert {p.dtype for p in from_pretrained(tmp_path / "half").parameters()} == {torch.bfloat16}
    assert {p.dtype for p in from_pretrained(tmp_path / "half", dtype=torch.float32).parameters()} == {torch.float32}
    assert_same(from_pretrained(tmp_path / "half"), model.bfloat16())


def test_a_number_that_the_wanted_dtype_lacks_is_an_error(tmp_path):
    model = model_of("large", LARGE["plain"])
    with torch.no_grad():
        model.head.weight[0, 0] = 1e5
    save_pretrained(model, tmp_path / "theirs", Target(to="transformers"))
    with pytest.raises(ValueError, match=r"a weight of size 100000 does not fit torch\.float16"):
        convert(tmp_path / "theirs", tmp_path / "half", Target(dtype="float16"))
    assert not (tmp_path / "half").exists()


def test_tied_weights_may_be_there_once_or_twice_but_not_differ(tmp_path):
    model = model_of("paper", PAPER["sLSTM"])
    save_pretrained(model, tmp_path / "theirs", Target(to="xlstm"))
    path = tmp_path / "theirs" / "model.safetensors"
    files = WeightFiles(tmp_path / "theirs")
    both = {name: files.read(name).clone() for name in files}
    from safetensors.torch import save_file

    for absent in ("token_embedding.weight", "lm_head.weight"):
        save_file({name: x for name, x in both.items() if name != absent}, path)
        assert_same(from_pretrained(tmp_path / "theirs"), model)
    save_file({**both, "lm_head.weight": both["lm_head.weight"] + 1}, path)
    with pytest.raises(ValueError, match=r"ties token_embedding.weight and lm_head.weight, whose numbers differ"):
        from_pretrained(tmp_path / "theirs")


def test_transformers_ties_only_what_is_equal(tmp_path):
    """transformers keeps both tensors whatever the flag says, and they may have grown apart."""
    model = model_of("large", LARGE["plain"])
    save_pretrained(model, tmp_path / "theirs", Target(to="transformers"))
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    again = from_pretrained(tmp_path / "theirs")
    assert not again.config.tied
    assert_same(again, model)


def test_a_small_norm_weight_survives_being_stored_less_one(tmp_path):
    model = model_of("paper", PAPER["mLSTM"])
    with torch.no_grad():
        model.backbone.norm.weight.copy_(torch.linspace(-1e-6, 1e-6, 32))
    save_pretrained(model, tmp_path / "theirs", Target(to="xlstm"))
    assert_same(from_pretrained(tmp_path / "theirs"), model)
    with torch.no_grad():
        model.backbone.norm.weight.fill_(1e-12)
    with pytest.raises(ValueError, match="does not survive"):
        save_pretrained(model, tmp_path / "again", Target(to="xlstm"))
    assert not (tmp_path / "again").exists()


def test_a_norm_without_weights_is_one_of_ones(tmp_path):
    model = model_of("paper", PAPER["sLSTM"])
    save_pretrained(model, tmp_path / "theirs", Target(to="xlstm"))
    path = tmp_path / "theirs" / "config.json"
    values = json.loads(path.read_text())
    values["slstm_block"]["slstm"]["group_norm_weight"] = False
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"has unknown xlstm_block_stack.blocks.0.xlstm.group_norm.weight"):
        from_pretrained(tmp_path / "theirs")
    files = WeightFiles(tmp_path / "theirs")
    from safetensors.torch import save_file

    rest = {name: files.read(name).clone() for name in files if "group_norm" not in name}
    save_file(rest, tmp_path / "theirs" / "model.safetensors")
    again = from_pretrained(tmp_path / "theirs")
    for block in again.backbone.blocks:
        assert torch.equal(block.mixer.norm.weight, torch.ones(32))


def test_the_package_form_has_a_config_that_yaml_reads(tmp_path):
    save_pretrained(model_of("large", LARGE["plain"]), tmp_path / "theirs", Target(to="xlstm-large"))
    values = yaml.safe_load((tmp_path / "theirs" / "config.yaml").read_text())
    assert (values["embedding_dim"], values["num_blocks"], values["norm_eps"]) == (32, 2, 1e-6)


@pytest.mark.parametrize(
    ("to", "style", "fields", "sentence"),
    [
        ("transformers", "paper", {"pattern": "m"}, "only blocks of style 'large', and this model has 'paper'"),
        ("transformers", "large", {"pattern": "mh"}, "only mLSTM blocks, and this model has the pattern 'mh'"),
        ("transformers", "large", {"pattern": "m", "soft_cap": None}, "always a soft_cap of the logits"),
        ("transformers", "large", {"pattern": "m", "final_norm": "none"}, "a plain norm at the end"),
        ("transformers", "large", {"pattern": "m", "options": BlockOptions(bias=True)}, "biases everywhere or nowhere"),
        ("transformers", "large", {"pattern": "m", "options": BlockOptions(activation="gelu")}, "only silu"),
        ("transformers", "large", {"pattern": "m", "options": BlockOptions(hidden=0)}, "always feed-forward parts"),
        ("xlstm-large", "large", {"pattern": "m", "tied": True}, "no tied weights"),
        ("xlstm-large", "large", {"pattern": "m", "final_norm": "biased"}, "biases everywhere or nowhere"),
        ("xlstm", "large", {"pattern": "m"}, "only blocks of style 'paper', and this model has 'large'"),
        ("xlstm", "paper", {"pattern": "ma"}, "only mLSTM and sLSTM blocks, and this model has the pattern 'ma'"),
        ("xlstm", "paper", {"pattern": "m", "soft_cap": 3.0}, "no soft_cap of the logits, and this model has 3.0"),
        ("xlstm", "paper", {"pattern": "m", "options": BlockOptions(norm_bias=True)}, "norms without biases"),
        ("xlstm", "paper", {"pattern": "m", "options": BlockOptions(eps=1e-6)}, "norms with an eps of 1e-5"),
        ("xlstm", "paper", {"pattern": "s", "options": BlockOptions(slstm_eps=1e-6)}, "norms with an eps of 1e-5"),
        ("xlstm", "paper", {"pattern": "s", "options": BlockOptions(forget_cap=15.0)}, "no forget_cap"),
        ("xlstm", "paper", {"pattern": "s", "options": BlockOptions(slstm_dense=True)}, "channels of their head"),
    ],
)
def test_what_they_have_nothing_like_is_refused(tmp_path, to, style, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        save_pretrained(model_of(style, fields), tmp_path / "theirs", Target(to=to))
    assert not any(tmp_path.iterdir())


def test_a_final_norm_with_a_bias_goes_where_there_is_one(tmp_path):
    fields = {"pattern": "m", "options": BlockOptions(True, True, True), "final_norm": "biased"}
    model = model_of("large", fields)
    save_pretrained(model, tmp_path / "theirs", Target(to="xlstm-large"))
    assert_same(from_pretrained(tmp_path / "theirs"), model)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ({"to": "gguf"}, "expected to= one of exlstm, transformers, xlstm, xlstm-large, received 'gguf'"),
        ({"dtype": "int8"}, "expected dtype= one of stored, float32, bfloat16, float16, received 'int8'"),
        ({"weight_mode": "fused"}, "weight_mode= is for the layouts transformers, xlstm-large"),
        ({"to": "transformers", "slstm_backend": "cuda"}, "slstm_backend= is for the layouts xlstm"),
        ({"shard": 0.0}, "shard= above 0"),
        ({"shard": float("inf")}, "shard= above 0"),
    ],
)
def test_a_target_that_is_none_is_refused(tmp_path, target, sentence):
    with pytest.raises(ValueError, match=sentence):
        save_pretrained(model_of("large", LARGE["plain"]), tmp_path / "x", Target(**target))


def test_nothing_is_written_over(tmp_path):
    model_of("large", LARGE["plain"]).save_pretrained(tmp_path / "ours")
    for taken in (tmp_path / "ours", tmp_path / "ours" / "config.json"):
        with pytest.raises(ValueError, match="is there already"):
            convert(tmp_path / "ours", taken)
    (tmp_path / "empty").mkdir()
    convert(tmp_path / "ours", tmp_path / "empty")
    assert_same(LanguageModel.from_pretrained(tmp_path / "empty"), LanguageModel.from_pretrained(tmp_path / "ours"))


def test_an_empty_directory_in_use_is_filled(tmp_path, monkeypatch):
    model_of("large", LARGE["plain"]).save_pretrained(tmp_path / "ours")
    (tmp_path / "here").mkdir()
    before = (tmp_path / "here").stat().st_ino
    monkeypatch.chdir(tmp_path / "here")
    convert("../ours", ".")
    assert {path.name for path in Path().iterdir()} == {"config.json", "model.safetensors"}
    assert (tmp_path / "here").stat().st_ino == before
    assert_same(LanguageModel.from_pretrained("."), LanguageModel.from_pretrained(tmp_path / "ours"))


def test_licence_and_tokenizer_come_along_and_the_licence_is_told(tmp_path, capfd):
    save_pretrained(model_of("large", LARGE["plain"]), tmp_path / "theirs", Target(to="transformers"))
    assert capfd.readouterr().err == ""
    from_pretrained(tmp_path / "theirs")
    assert "does not say; they keep that of whoever published them" in capfd.readouterr().err
    (tmp_path / "theirs" / "LICENSE").write_text("\n  A Community License\nText.\n")
    (tmp_path / "theirs" / "tokenizer.json").write_text("{}")
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert f"licence of the weights: A Community License ({tmp_path / 'theirs' / 'LICENSE'})" in capfd.readouterr().err
    assert (tmp_path / "ours" / "LICENSE").read_text() == (tmp_path / "theirs" / "LICENSE").read_text()
    assert (tmp_path / "ours" / "tokenizer.json").is_file()
    (tmp_path / "theirs" / "README.md").write_text(
        "---\nlanguage: en\nlicense: other\nlicense_name: nxai-community-license\nlicense_link: LICENSE\n---\n# card\n"
    )
    from_pretrained(tmp_path / "theirs")
    assert "licence of the weights: nxai-community-license, LICENSE (says" in capfd.readouterr().err
