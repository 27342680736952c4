"""Which number of theirs is which of ours, by the published descriptions, place for place; no package is needed."""

import pytest
import torch
from torch import Tensor

from exlstm import cli
from exlstm.interop import Target, save_pretrained
from exlstm.interop.weights.convert import open_model
from exlstm.models.tirex import TirexForecaster
from exlstm.models.weight_files import WeightFiles
from tests.interop.tirex_cases import write
from tests.interop.weight_cases import LARGE, PAPER, model_of


def written(tmp_path, style: str, fields, **target) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a model of ours, and of the same in a layout of theirs."""
    model = model_of(style, fields)
    files = WeightFiles(save_pretrained(model, tmp_path / "theirs", Target(**target)))
    return model.state_dict(), {name: files.read(name).clone() for name in files}


@pytest.mark.parametrize("backend", ["vanilla", "cuda"])
def test_sLSTM_layers_of_the_package(tmp_path, backend):
    ours, theirs = written(tmp_path, "paper", PAPER["both"], to="xlstm", slstm_backend=backend)
    at, layer, heads, d = "backbone.blocks.1.mixer.", "xlstm_block_stack.blocks.1.xlstm.", 4, 8
    gates = ours[at + "input_weight"]  # [gate i f z o, head, in, out]
    # What is named fgate feeds the input gate, and what is named igate the forget gate.
    for place, name in enumerate(("fgate", "igate", "zgate", "ogate")):
        assert torch.equal(theirs[f"{layer}{name}.weight"], gates[place].transpose(1, 2))  # [head, out, in]
    kernel, bias = theirs[layer + "slstm_cell._recurrent_kernel_"], theirs[layer + "slstm_cell._bias_"]
    assert kernel.shape == ((heads, 4 * d, d) if backend == "vanilla" else (heads, d, 4 * d))
    for gate, head, i, o in ((0, 0, 0, 1), (1, 2, 3, 4), (2, 3, 7, 0), (3, 1, 5, 6)):
        entry = kernel[head, gate * d + o, i] if backend == "vanilla" else kernel[head, i, gate * d + o]
        assert entry == ours[at + "recurrent_weight"][gate, head, i, o]
        number = (gate * heads + head) * d + o if backend == "vanilla" else (head * 4 + gate) * d + o
        assert bias[number] == ours[at + "bias"][gate, head, o]
    assert torch.equal(1 + theirs[layer + "group_norm.weight"].double(), ours[at + "norm.weight"].double())
    mlp = ours["backbone.blocks.1.mlp.gate_up.weight"]
    assert torch.equal(theirs["xlstm_block_stack.blocks.1.ffn.proj_up.weight"], mlp)  # the gate's half first


def test_mLSTM_layers_of_the_package(tmp_path):
    ours, theirs = written(tmp_path, "paper", PAPER["both"], to="xlstm")
    at, layer = "backbone.blocks.0.mixer.", "xlstm_block_stack.blocks.0.xlstm."
    assert torch.equal(theirs[layer + "proj_up.weight"], ours[at + "up.weight"])
    assert theirs[layer + "conv1d.conv.weight"].shape == (64, 1, 4)
    assert torch.equal(theirs[layer + "conv1d.conv.weight"][:, 0], ours[at + "conv.weight"])
    for name in "qkv":
        assert theirs[f"{layer}{name}_proj.weight"][3, 1, 2] == ours[f"{at}{name}.weight"][3, 2, 1]  # out, in; in, out
    for theirs_name, name in (("igate", "input_gate"), ("fgate", "forget_gate")):  # here by their names
        assert torch.equal(theirs[f"{layer}mlstm_cell.{theirs_name}.weight"], ours[f"{at}cell.{name}.weight"])
        assert torch.equal(theirs[f"{layer}mlstm_cell.{theirs_name}.bias"], ours[f"{at}cell.{name}.bias"])
    assert torch.equal(theirs[layer + "learnable_skip"], ours[at + "skip"])


@pytest.mark.parametrize("to", ["transformers", "xlstm-large"])
def test_the_large_model_with_its_matrices_apart_and_joined(tmp_path, to):
    torch.manual_seed(0)
    ours, theirs = written(tmp_path / "a", "large", LARGE["plain"], to=to, weight_mode="single")
    torch.manual_seed(0)
    _, fused = written(tmp_path / "b", "large", LARGE["plain"], to=to, weight_mode="fused")
    layer, at = "backbone.blocks.1.mlstm_layer.", "backbone.blocks.1.mixer."
    parts = [theirs[f"{layer}{name}.weight"] for name in ("q", "k", "v", "ogate_preact")]
    assert [len(part) for part in parts] == [16, 16, 32, 32]
    assert torch.equal(torch.cat(parts), ours[at + "qkvo.weight"])
    assert torch.equal(torch.cat(parts), fused[layer + "qkv_opreact.weight"])
    for kind in ("weight", "bias"):
        gates = [ours[f"{at}cell.{name}.{kind}"] for name in ("input_gate", "forget_gate")]
        assert torch.equal(theirs[f"{layer}igate_preact.{kind}"], gates[0])
        assert torch.equal(theirs[f"{layer}fgate_preact.{kind}"], gates[1])
        assert torch.equal(fused[f"{layer}ifgate_preact.{kind}"], torch.cat(gates))
    ffn = "backbone.blocks.1.ffn."
    gate_up = torch.cat([theirs[f"{ffn}proj_up_gate.weight"], theirs[f"{ffn}proj_up.weight"]])
    assert torch.equal(gate_up, fused[f"{ffn}proj_up_gate_z.weight"])
    assert torch.equal(gate_up, ours["backbone.blocks.1.mlp.gate_up.weight"])
    embedding = "backbone.embeddings.weight" if to == "transformers" else "embedding.weight"
    assert torch.equal(theirs[embedding], ours["embedding.weight"])
    assert torch.equal(theirs["lm_head.weight"], ours["head.weight"])


def test_the_config_of_xLSTM_7B_gives_its_sizes(tmp_path):
    """6,865,424,896 weights, counted without any of them."""
    from exlstm.interop.weights import large
    from exlstm.interop.weights.layout import skeleton

    values = {
        "vocab_size": 50304, "hidden_size": 4096, "embedding_dim": 4096, "num_hidden_layers": 32, "num_blocks": 32,
        "num_heads": 8, "use_bias": False, "norm_reduction_force_float32": True, "tie_word_embeddings": False,
        "add_out_norm": True, "norm_eps": 1e-6, "qk_dim_factor": 0.5, "v_dim_factor": 1.0, "chunk_size": 64,
        "eps": 1e-6, "ffn_proj_factor": 2.667, "ffn_round_up_to_multiple_of": 64, "gate_soft_cap": 15.0,
        "output_logit_soft_cap": 30.0, "weight_mode": "single", "pad_token_id": 1, "model_type": "xlstm",
    }  # fmt: skip
    names = dict.fromkeys(f"backbone.blocks.{n}.norm_ffn.weight" for n in range(32))
    table = large.read("transformers", values, names, "config.json")
    own = skeleton(table.config)
    assert sum(x.numel() for x in own.values()) == 6_865_424_896
    assert own["backbone.blocks.0.mlp.down.weight"].shape == (4096, 10944)
    assert own["backbone.blocks.0.mixer.qkvo.weight"].shape == (2 * 2048 + 2 * 4096, 4096)
    assert table.config.options == type(table.config.options)()  # all as the style has it
    again, _ = large.write("transformers", table.config, "single")
    assert {name: again[name] for name in values if name in again} == {n: values[n] for n in again if n in values} | {
        "pad_token_id": None
    }


def test_tirex_goes_through_the_same_command(tmp_path, capsys):
    path = write(tmp_path / "model.ckpt")
    assert cli.main(["convert", str(path), str(tmp_path / "tirex")]) == 0
    assert isinstance(TirexForecaster.from_pretrained(tmp_path / "tirex"), TirexForecaster)
    assert "licence of the weights" in capsys.readouterr().err
    assert cli.main(["convert", str(path), str(tmp_path / "other"), "--to", "xlstm"]) == 2
    assert "which only becomes a model of exlstm" in capsys.readouterr().err


def test_a_converted_model_is_whole_in_one_place(tmp_path):
    found = open_model(save_pretrained(model_of("large", LARGE["tied"]), tmp_path / "x", Target(to="transformers")))
    assert "head.weight" not in found.tensors
    assert found.config.tied
