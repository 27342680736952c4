"""Configs and tensors of others that are damaged, hostile or not ours to compute: one sentence, and little memory."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exlstm import cli
from exlstm.interop import Target, convert, from_pretrained, save_pretrained
from exlstm.models.weight_files import WEIGHTS, Planned, write_weights
from tests.interop.weight_cases import LARGE, PAPER, model_of
from tests.memory import growths_printed_by, needs_proc


@pytest.fixture
def large(tmp_path) -> Path:
    return save_pretrained(model_of("large", LARGE["plain"]), tmp_path / "theirs", Target(to="transformers"))


@pytest.fixture
def package(tmp_path) -> Path:
    pytest.importorskip("yaml")
    return save_pretrained(model_of("large", LARGE["plain"]), tmp_path / "theirs", Target(to="xlstm-large"))


@pytest.fixture
def paper(tmp_path) -> Path:
    return save_pretrained(model_of("paper", PAPER["both"]), tmp_path / "theirs", Target(to="xlstm"))


def change_tensors(directory: Path, **tensors: torch.Tensor | None) -> None:
    found = load_file(directory / WEIGHTS) | tensors
    save_file({name: x.contiguous() for name, x in found.items() if x is not None}, directory / WEIGHTS)


def change_config(directory: Path, place: str, value: Any) -> None:
    """Set a field, below others that are named before it with dots; a value of `...` takes it out."""
    path = directory / "config.json"
    values = part = json.loads(path.read_text())
    *way, last = place.split(".")
    for name in way:
        part = part[name]
    part.pop(last, None)
    if value is not ...:
        part[last] = value
    path.write_text(json.dumps(values))


def test_tensors_that_are_missing_unknown_misshapen_or_no_floats_are_named(large):
    layer = "backbone.blocks.1.mlstm_layer"
    change_tensors(
        large,
        **{
            f"{layer}.q.weight": None,
            f"{layer}.k.weight": torch.zeros(16, 31),
            f"{layer}.igate_preact.bias": torch.zeros(2, dtype=torch.int64),
            "backbone.extra": torch.zeros(1),
        },
    )
    with pytest.raises(ValueError, match="does not fit the config beside it") as error:
        from_pretrained(large)
    for words in (
        f"lacks {layer}.q.weight",
        "has unknown backbone.extra",
        f"has misshapen {layer}.k.weight (16, 31) instead of (16, 32)",
        f"has {layer}.igate_preact.bias of int64 instead of floats",
    ):
        assert words in str(error.value)


def test_a_model_of_ours_that_does_not_fit_its_config_is_refused(tmp_path):
    model_of("paper", PAPER["both"]).save_pretrained(tmp_path / "ours")
    change_tensors(tmp_path / "ours", **{"head.weight": None})
    with pytest.raises(ValueError, match=r"lacks head\.weight"):
        convert(tmp_path / "ours", tmp_path / "theirs", Target(to="xlstm"))
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        ("num_heads", 0, "num_heads must be a whole number from 1 to"),
        ("num_heads", 3, "must be a positive multiple of heads"),
        ("num_heads", True, "got True"),
        ("num_heads", "8", "got '8'"),
        ("vocab_size", 2**40, "vocab_size must be a whole number from 2 to"),
        ("vocab_size", 1e9, "vocab_size must be a whole number"),
        ("vocab_size", 2**28, r"lm_head\.weight \(31, 32\) instead of \(268435456, 32\)"),
        ("hidden_size", 64, "hidden_size must be 32, as its embedding_dim is, got 64"),
        ("num_blocks", 3, "num_hidden_layers must be 3, as its num_blocks is, got 2"),
        ("eps", 1e-5, "eps must be 1e-06, as exlstm computes nothing else, got 1e-05"),
        ("norm_eps", 0, "norm_eps must be a number above 0"),
        ("norm_eps", 10**400, "norm_eps must be a number above 0"),
        ("norm_eps", float("nan"), "norm_eps must be a number above 0"),
        ("gate_soft_cap", float("inf"), "gate_soft_cap must be a number above 0"),
        ("qk_dim_factor", 1e300, "qk_dim_factor must be such that the size it gives is from 1 to"),
        ("qk_dim_factor", 1e-9, "qk_dim_factor must be such that the size it gives is from 1 to"),
        ("ffn_round_up_to_multiple_of", 2**29, "ffn_round_up_to_multiple_of must be a whole number"),
        ("use_bias", "yes", "use_bias must be true or false"),
        ("use_bias", True, r"lacks backbone\.blocks\.0\.ffn\.proj_down\.bias"),
        ("model_type", "llama", "describes a model of type 'llama'; expected language_model or xlstm"),
        ("model_type", [], r"describes a model of type '\[\]'"),
        ("model_type", ..., "is no config of an xLSTM language model"),
    ],
)
def test_what_a_config_of_transformers_cannot_say_is_named(large, place, value, sentence):
    if place == "model_type":
        for name in ("embedding_dim", "num_heads"):
            change_config(large, name, ...)
    change_config(large, place, value)
    with pytest.raises(ValueError, match=sentence):
        from_pretrained(large)


@pytest.mark.parametrize("count", [1, 10**6, 2**28])
def test_a_config_of_transformers_is_not_believed_to_have_other_blocks_than_its_weights(large, count):
    for name in ("num_hidden_layers", "num_blocks"):
        change_config(large, name, count)
    with pytest.raises(ValueError, match=f"says {count} blocks, and the weights have 2"):
        from_pretrained(large)


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        ("num_blocks", 2**28, "says 268435456 blocks, and the weights have 3"),
        ("vocab_size", ..., "vocab_size must be a whole number from 2 to 268435456, got nothing"),
        ("slstm_at", [3], "slstm_at must be"),
        ("slstm_at", "some", "slstm_at must be"),
        ("slstm_at", [1, 2], "has unknown"),
        ("dropout", 1, "dropout must be a number from 0 to less than 1"),
        ("sparse", True, "config.json has unknown 'sparse'"),
        ("mlstm_block.mlstm.sparse", True, "mlstm_block.mlstm has unknown 'sparse'"),
        ("slstm_block.slstm.sparse", True, "slstm_block.slstm has unknown 'sparse'"),
        ("slstm_block.feedforward.sparse", True, "slstm_block.feedforward has unknown 'sparse'"),
        ("slstm_block.slstm.function", "lstm", "function must be 'slstm', as exlstm computes nothing else"),
        ("slstm_block.slstm.forward_clipval", 1.0, "forward_clipval must be None"),
        ("slstm_block.slstm.conv1d_kernel_size", -1, "conv1d_kernel_size must be a whole number from 0"),
        ("slstm_block.feedforward.act_fn", "relu", "act_fn must be 'gelu' or 'swish', got 'relu'"),
        ("slstm_block.feedforward.ff_type", "ffn", "ff_type must be 'ffn_gated'"),
        ("slstm_block.slstm", [1], "slstm_block.slstm must be fields with names"),
        ("mlstm_block.mlstm.proj_factor", 0, "proj_factor must be a number above 0"),
        ("mlstm_block.mlstm.qkv_proj_blocksize", 7, "width must be a multiple of the block"),
    ],
)
def test_what_a_config_of_the_package_cannot_say_is_named(paper, place, value, sentence):
    change_config(paper, place, value)
    with pytest.raises(ValueError, match=sentence):
        from_pretrained(paper)


def test_fields_that_do_not_change_what_is_computed_may_be_there(paper):
    before = from_pretrained(paper)
    for place, value in (
        ("_block_map", "0,1,0"),
        ("weight_decay_on_embedding", True),
        ("mlstm_block._num_blocks", 3),
        ("slstm_block.slstm.bias_init", "standard"),
        ("slstm_block.slstm.dtype", "bfloat16"),
        ("slstm_block.slstm.backend", "cuda"),  # the tensors tell
    ):
        change_config(paper, place, value)
    path = paper / "config.json"
    path.write_text(json.dumps({"model": json.loads(path.read_text()), "training": {"steps": 3}}))
    again = from_pretrained(paper)
    assert again.config == before.config
    torch.testing.assert_close(again.state_dict(), before.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: &a [1]\nb: [*a, *a]\n", r"has aliases \(\*name\), which are not read"),
        ("a: [", "is not valid YAML"),
        ("[" * 5000, "is not valid YAML"),
        ("!!python/object/apply:os.system ['false']", "is not valid YAML"),
        ("a: !!bool maybe", "is not valid YAML"),
        ("a: 2001-99-99", "is not valid YAML"),
        pytest.param(f"a: {'9' * 5000}", "is not valid YAML", id="a number of 5000 digits"),
        ("- 1", "is no config of an xLSTM language model"),
        ("embedding_dim: 32\nnum_heads: 2\n", "num_blocks must be a whole number from 1 to 268435456, got nothing"),
        ("embedding_dim: 32\nnum_heads: 2\nnum_blocks: 2\nvocab_size: 31\nmoe: 8\n", "has unknown 'moe'"),
    ],
)
def test_yaml_that_is_damaged_or_hostile_is_named(package, text, sentence):
    (package / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        from_pretrained(package)


def test_without_pyyaml_one_sentence_says_what_to_install(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ValueError, match=r"config\.yaml needs the package pyyaml: pip install 'exlstm\[weights\]'"):
        from_pretrained(package)


@pytest.mark.parametrize("text", ["[" * 200_000, "9" * 5000, "3", '"x"', "[]", "{}", "{"], ids=lambda text: text[:2])
def test_json_that_is_no_config_is_named(large, text):
    (large / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is (not valid JSON|no config of an xLSTM)"):
        from_pretrained(large)


def test_a_source_that_is_none_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, sentence in (
        ("nowhere", "does not exist"),
        ("file", "is a file"),
        ("empty", "has neither config.json nor config.yaml"),
    ):
        with pytest.raises(ValueError, match=sentence):
            from_pretrained(tmp_path / name)


def test_the_command_says_one_sentence(large, tmp_path, capsys):
    (large / WEIGHTS).write_bytes(b"\0" * 100)
    assert cli.main(["convert", str(large), str(tmp_path / "ours")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "ours").exists()


def test_a_conversion_that_fails_midway_leaves_nothing(large, tmp_path, monkeypatch):
    from exlstm.models import weight_files

    monkeypatch.setattr(weight_files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        convert(large, tmp_path / "ours")
    assert {path.name for path in tmp_path.iterdir()} == {"theirs"}


@needs_proc
def test_memory_does_not_grow_with_the_model(tmp_path):
    """310 MB in 30 shards: both ways a conversion holds a few tensors, of at most 18 MB."""
    from exlstm.interop.weights import large
    from exlstm.interop.weights.layout import skeleton
    from exlstm.models import LanguageModelConfig

    config = LanguageModelConfig(1000, "m" * 8, width=896, heads=4, style="large", soft_cap=30.0)
    values, table = large.write("transformers", config, "single")
    own = skeleton(config)
    theirs = {
        name: Planned(tuple(x.shape), torch.float32, lambda x=x: torch.randn(x.shape))
        for each in table.rows
        for name, x in zip(each.theirs, each.map.back([own[n] for n in each.ours]), strict=True)
    }
    total = sum(planned.size for planned in theirs.values())
    assert total > 300e6
    assert max(x.numel() * 4 for x in own.values()) < 18e6
    (tmp_path / "theirs").mkdir()
    write_weights(tmp_path / "theirs", theirs, shard=10_000_000)
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(values))
    code = """if True:
        import sys
        from benchmarks.memory import growth
        from exlstm.interop import Target, convert, from_pretrained

        place = sys.argv[1]
        from_pretrained(place + "/small")  # so that all is imported
        print(growth(lambda: convert(place + "/theirs", place + "/ours")))
        fused = Target(to="transformers", weight_mode="fused")
        print(growth(lambda: convert(place + "/ours", place + "/again", fused)))
        print(growth(lambda: from_pretrained(place + "/again")))
        """
    save_pretrained(model_of("large", LARGE["plain"]), tmp_path / "small", Target(to="transformers"))
    forth, back, load = growths_printed_by(code, tmp_path)
    assert forth < 60e6
    assert back < 60e6
    assert load < total + 60e6
