"""Models that the public packages build give the same logits and texts as ours with their weights.

Needs xlstm, transformers, omegaconf and dacite (`pip install -e ".[peers]"`): `python -m pytest -m peers`.
"""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor

from exlstm.interop import Target, convert, from_pretrained
from exlstm.models import LanguageModel
from exlstm.models.weight_files import WeightFiles

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
VOCABULARY, TOLERANCE = 53, 1e-5
LENGTHS = (1, 37, 256)


@pytest.fixture(scope="module")
def transformers_xlstm() -> Iterator[Any]:
    """transformers' own implementation, which it leaves alone where the package xlstm is installed."""
    utils = pytest.importorskip("transformers.utils")
    before, name = utils.is_xlstm_available, "transformers.models.xlstm"

    def forget() -> None:
        for module in [m for m in sys.modules if m.startswith(name)]:
            del sys.modules[module]

    forget()
    utils.is_xlstm_available = lambda: False
    try:
        module = importlib.import_module(f"{name}.modeling_xlstm")
        assert not module.external_xlstm
        yield module
    finally:
        utils.is_xlstm_available = before
        forget()


def draw(model: torch.nn.Module) -> None:
    """Every weight at random, of sizes at which float32 rounds away a third of the tolerance: gates mostly shut to
    input and open to the past, as they begin, and maps that shrink what they are given."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.6 * parameter.shape[1] ** -0.5)
            else:
                parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.1)
            if name.endswith("gate_preact.bias") and "ogate" not in name:
                shut, open_ = parameter.chunk(2) if "ifgate" in name else (parameter, parameter)
                if "igate" in name or "ifgate" in name:
                    shut.sub_(8)
                if "fgate" in name:
                    open_.add_(torch.linspace(3, 6, len(open_)))


def tokens(batch: int, time: int) -> Tensor:
    return torch.randint(VOCABULARY, (batch, time))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def check_logits(ours: LanguageModel, theirs: Callable[[Tensor], Tensor]) -> None:
    for time in LENGTHS:
        x = tokens(2, time)
        with torch.no_grad():
            assert_close(ours(x)[0], theirs(x))


def check_steps(ours: LanguageModel, step: Callable[[Tensor, Any], tuple[Tensor, Any]], time: int = 70) -> None:
    """Token by token, by the model and by its decoder in C++."""
    from exlstm.models import Decoder

    x, state, other = tokens(2, time), None, None
    decoder = Decoder(ours.backbone, embedding=ours.embedding, head=ours.head, batch=2)
    for t in range(time):
        with torch.no_grad():
            logits, state = ours(x[:, t : t + 1], state)
            expected, other = step(x[:, t : t + 1], other)
        assert_close(logits, expected)
        assert_close(ours._cap(decoder.step(x[:, t])), expected[:, 0])


def greedy(step: Callable[[Tensor, Any], tuple[Tensor, Any]], prompt: list[int], most: int) -> list[int]:
    state, text = None, []
    for token in prompt:
        logits, state = step(torch.tensor([[token]]), state)
    for _ in range(most):
        text.append(int(logits[0, -1].argmax()))
        logits, state = step(torch.tensor([text[-1:]]), state)
    return text


def assert_unchanged(source: Path, dest: Path) -> None:
    """Theirs to ours to theirs is the same bits, save that a norm's weight less 1 keeps no more digits than it uses."""
    before, after = WeightFiles(source), WeightFiles(dest)
    assert set(before) == set(after)
    for name in before:
        x, y = before.read(name), after.read(name)
        assert torch.equal(1 + x, 1 + y) if "norm" in name else torch.equal(x, y), name


LARGE: dict[str, dict[str, Any]] = {
    "single": {},
    "fused": {"weight_mode": "fused", "num_heads": 4},
    "biased": {"use_bias": True, "num_heads": 1},
    "fused biased": {"use_bias": True, "weight_mode": "fused", "num_hidden_layers": 1},
    "other sizes": {
        "hidden_size": 192,
        "num_heads": 3,
        "qk_dim_factor": 1.0,
        "v_dim_factor": 2.0,
        "ffn_proj_factor": 1.5,
        "ffn_round_up_to_multiple_of": 7,
        "norm_eps": 1e-4,
        "gate_soft_cap": 4.0,
        "output_logit_soft_cap": 2.0,
        "num_hidden_layers": 3,
    },
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", LARGE)
def test_transformers(transformers_xlstm, tmp_path, monkeypatch, name, tied):
    # Its own beginning fails for fused weights (5.24).
    monkeypatch.setattr(transformers_xlstm.xLSTMPreTrainedModel, "_init_weights", lambda self, module: None)
    options = {"vocab_size": VOCABULARY, "hidden_size": 128, "num_hidden_layers": 2, "num_heads": 2}
    options |= {"autocast_kernel_dtype": "float32", "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = transformers_xlstm.xLSTMConfig(**{**options, **LARGE[name]}, tie_word_embeddings=tied)
    model = transformers_xlstm.xLSTMForCausalLM(config).eval()
    draw(model)
    if tied:  # which the class itself does not do (5.24)
        model.lm_head.weight.data.copy_(model.backbone.embeddings.weight)
    model.save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs")
    assert ours.config.tied == tied

    def step(x: Tensor, cache: Any) -> tuple[Tensor, Any]:
        out = model(x, cache=cache, use_cache=True)
        return out.logits, out.cache

    check_logits(ours, lambda x: model(x).logits)
    check_steps(ours, step)
    prompt = tokens(1, 9)
    text = model.generate(prompt, do_sample=False, max_new_tokens=40)[0, 9:].tolist()
    assert ours.generate(prompt.tolist(), most=40).tokens == [text]

    mode = config.weight_mode
    convert(tmp_path / "theirs", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "again", Target(to="transformers", weight_mode=mode, shard=1e-4))
    again = transformers_xlstm.xLSTMForCausalLM.from_pretrained(
        tmp_path / "again", autocast_kernel_dtype="float32", dtype=torch.float32
    ).eval()
    x = tokens(1, 37)
    with torch.no_grad():
        assert torch.equal(again(x).logits, model(x).logits)


@pytest.mark.parametrize("name", ["single", "biased", "other sizes"])
def test_the_package_form_of_the_large_model(tmp_path, name):
    large = pytest.importorskip("xlstm.xlstm_large.model", exc_type=ImportError)  # which needs mlstm_kernels
    fields = {
        {"hidden_size": "embedding_dim", "num_hidden_layers": "num_blocks"}.get(k, k): v for k, v in LARGE[name].items()
    }
    usual = {"vocab_size": VOCABULARY, "embedding_dim": 128, "num_blocks": 2, "num_heads": 2, "mode": "inference"}
    usual |= {"chunkwise_kernel": "chunkwise--native_autograd", "sequence_kernel": "native_sequence__native"}
    usual |= {"step_kernel": "native", "return_last_states": True, "autocast_kernel_dtype": "float32"}
    config = large.xLSTMLargeConfig(**{**usual, **fields})
    model = large.xLSTMLarge(config).eval()
    draw(model)
    (tmp_path / "theirs").mkdir()
    save_file(model.state_dict(), tmp_path / "theirs" / "model_0.safetensors")
    (tmp_path / "theirs" / "config.yaml").write_text(
        "".join(f"{k}: {json.dumps(v)}\n" for k, v in asdict(config).items())
    )
    ours = from_pretrained(tmp_path / "theirs")
    check_logits(ours, lambda x: model(x)[0])
    convert(tmp_path / "theirs", tmp_path / "again", Target(to="xlstm-large"))
    load = pytest.importorskip("xlstm.xlstm_large.from_pretrained").load_from_pretrained
    kernels = {f"{kind}_kernel_name": usual[f"{kind}_kernel"] for kind in ("chunkwise", "sequence", "step")}
    again = load(tmp_path / "again", return_last_states=True, **kernels)
    assert all(torch.equal(x, model.state_dict()[n]) for n, x in again.state_dict().items())


PAPER: dict[str, dict[str, Any]] = {
    "mLSTM": {"num_blocks": 2},
    "both": {"num_blocks": 3, "slstm_at": [1], "heads": 2},
    "both, tied": {"num_blocks": 2, "slstm_at": [0], "tie_weights": True},
    "sLSTM": {"num_blocks": 2, "slstm_at": "all", "embedding_dim": 48},
    "biased": {"num_blocks": 2, "slstm_at": [1], "bias": True, "mlp": {"bias": True, "act_fn": "swish"}},
    "other sizes": {
        "num_blocks": 4,
        "slstm_at": [1, 3],
        "embedding_dim": 60,
        "heads": 6,
        "mlstm": {
            "proj_factor": 1.5,
            "round_proj_up_to_multiple_of": 18,
            "conv1d_kernel_size": 3,
            "qkv_proj_blocksize": 6,
        },
        "slstm": {"num_heads": 3, "conv1d_kernel_size": 0, "group_norm_weight": False},
        "mlp": {"proj_factor": 1.1, "round_proj_up_to_multiple_of": 32, "round_proj_up_dim_up": False},
        "add_post_blocks_norm": False,
    },
}


def paper_model(options: dict[str, Any], backend: str = "vanilla") -> Any:
    xlstm = pytest.importorskip("xlstm")
    dacite = pytest.importorskip("dacite")
    omegaconf = pytest.importorskip("omegaconf")
    options = {"vocab_size": VOCABULARY, "embedding_dim": 64, "context_length": 256} | options
    parts = {name: options.pop(name, {}) for name in ("mlstm", "slstm", "mlp")}
    heads = options.pop("heads", 4)
    options["mlstm_block"] = {"mlstm": {"num_heads": heads} | parts["mlstm"]}
    slstm = {"num_heads": heads, "backend": backend} | parts["slstm"]
    options["slstm_block"] = {"slstm": slstm, "feedforward": parts["mlp"]}
    container = omegaconf.OmegaConf.to_container(omegaconf.OmegaConf.create(options))
    config = dacite.from_dict(xlstm.xLSTMLMModelConfig, container, dacite.Config(strict=True))
    model = xlstm.xLSTMLMModel(config)
    model.reset_parameters()
    with torch.no_grad():  # its norms hold their weights less 1
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def save_paper(model: Any, directory: Path) -> None:
    directory.mkdir()
    save_model(model, str(directory / "model.safetensors"))
    (directory / "config.json").write_text(json.dumps(asdict(model.config)))


@pytest.mark.parametrize("name", PAPER)
def test_the_xlstm_package(tmp_path, name):
    model = paper_model(dict(PAPER[name]))
    save_paper(model, tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs")
    assert ours.config.tied == PAPER[name].get("tie_weights", False)
    check_logits(ours, model)
    check_steps(ours, lambda x, state: model.step(x, state=state))
    prompt = tokens(1, 9).tolist()
    with torch.no_grad():
        text = greedy(lambda x, state: model.step(x, state=state), prompt[0], 40)
    assert ours.generate(prompt, most=40).tokens == [text]


@pytest.mark.parametrize("backend", ["vanilla", "cuda"])
@pytest.mark.parametrize("name", [name for name in PAPER if name not in ("mLSTM", "other sizes")])
def test_the_xlstm_package_reads_what_we_write(tmp_path, name, backend):
    model = paper_model(dict(PAPER[name]))
    save_paper(model, tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "again", Target(to="xlstm", slstm_backend=backend))
    written = WeightFiles(tmp_path / "again")
    again = paper_model(dict(PAPER[name]))
    state = {n: written.read(n) for n in written}
    if backend == "cuda":  # whose cell needs a GPU: its own code says what its weights mean
        from xlstm.blocks.slstm.cell import sLSTMCell_cuda

        for number in [n for n in range(model.config.num_blocks) if model.config.block_map[n]]:
            place = f"xlstm_block_stack.blocks.{number}.xlstm.slstm_cell."
            cell = again.xlstm_block_stack.blocks[number].xlstm.slstm_cell
            cuda = sLSTMCell_cuda(cell.config, skip_backend_init=True)
            for weight, change in (("_recurrent_kernel_", "recurrent_kernel"), ("_bias_", "bias")):
                outside = getattr(cuda, f"_{change}_int2ext")(state[place + weight])
                state[place + weight] = getattr(cell, f"_{change}_ext2int")(outside)
    again.load_state_dict(state)
    x = tokens(2, 37)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model(x))
        assert_close(from_pretrained(tmp_path / "again")(x)[0], ours(x)[0])
    if backend == "vanilla" and not model.config.tie_weights:
        assert_unchanged(tmp_path / "theirs", tmp_path / "again")
