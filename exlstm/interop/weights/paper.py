"""The xLSTM paper (arXiv 2405.04517): the layout of `xLSTMLMModel` in the package xlstm.

Its norms hold their weights less 1. Its sLSTM layers keep the recurrent weights as one of two backends wants them,
"vanilla" or "cuda", and feed the map named fgate to the input gate and the one named igate to the forget gate.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from exlstm.interop.weights.fields import Fields, factor
from exlstm.interop.weights.layout import Row, Table, below, blocks_of, row, rows_of
from exlstm.interop.weights.maps import (
    CONVOLUTION,
    GATES,
    ONES,
    RECURRENT,
    RESIDUAL,
    SAME,
    TIED,
    TRANSPOSED,
    gate_bias,
)
from exlstm.interop.weights.sizes import shortened, spelled_out
from exlstm.interop.weights.target import Backend
from exlstm.layers import BlockOptions
from exlstm.models import LanguageModelConfig, parse_pattern
from exlstm.models.weight_files import Planned

CONTEXT = 2048
"""Their context_length, of which ours have none: the size of a mask that they keep; longer texts work as well."""
_STACK = "xlstm_block_stack."
_ACTIVATIONS = {"gelu": "gelu", "swish": "silu"}
_SLSTM_HARMLESS = (
    "embedding_dim", "hidden_size", "dropout", "backend", "bias_init", "recurrent_weight_init", "num_states",
    "num_gates", "gradient_recurrent_cut", "gradient_recurrent_clipval", "batch_size", "input_shape",
    "internal_input_shape", "output_shape", "constants", "dtype", "dtype_b", "dtype_r", "dtype_w", "dtype_g",
    "dtype_s", "dtype_a", "enable_automatic_mixed_precision", "initial_val",
)  # fmt: skip
"""How it computes, or trains; which of the backends it is, the tensors tell."""


def read(values: Mapping[str, Any], theirs: Mapping[str, Planned], where: str) -> Table:
    """The table for a config of theirs, which may stand below "model".

    Raises:
        ValueError: the config is not understood, or asks for what exlstm does not compute.
    """
    f = Fields(values, where)
    if "model" in f:
        f = f.part("model")
    f.skip("context_length", "weight_decay_on_embedding", "add_embedding_dropout")
    width, dropout = f.size("embedding_dim", 128), f.take("dropout", 0.0)
    depth = blocks_of(theirs, f"{_STACK}blocks.", f.size("num_blocks", 1), where)
    pattern = _pattern(f, depth)
    bias, weighted = f.flag("bias", False), True
    heads: int | None = None
    options: dict[str, Any] = {}
    mlstm, slstm = f.part("mlstm_block"), f.part("slstm_block")
    if "m" in pattern:
        heads, found = _read_mlstm(mlstm.part("mlstm"), width)
        mlstm.finish()
        options |= found
    if "s" in pattern:
        slstm_heads, found, weighted = _read_slstm(slstm, width)
        heads = slstm_heads if heads is None else heads
        options |= found | {"slstm_heads": slstm_heads}
    assert heads is not None
    config = LanguageModelConfig(
        vocabulary=f.size("vocab_size", least=2),
        pattern=pattern,
        width=width,
        heads=heads,
        dropout=_probability(dropout, f"{f.where}.dropout"),
        tied=f.flag("tie_weights", False),
        options=BlockOptions(bias=bias and "m" in pattern, eps=1e-5, **options),
        final_norm="plain" if f.flag("add_post_blocks_norm", True) else "none",
    )
    f.finish()
    return _table(shortened(config), _backend(theirs), weighted)


def write(config: LanguageModelConfig, backend: Backend) -> tuple[dict[str, Any], Table]:
    """Their config, and the table, for a model of ours.

    Raises:
        ValueError: they have nothing like it.
    """
    pattern = parse_pattern(config.pattern)
    o, width = spelled_out(config), config.width
    _check(config, o)
    mlstm_block = slstm_block = None
    if "m" in pattern:
        assert o.inner is not None
        multiple = 64 if o.inner % 64 == 0 else 1
        sizes = {"proj_factor": factor(o.inner, width, _rounding(math.ceil, multiple), 2.0)}
        sizes |= {"round_proj_up_to_multiple_of": multiple}
        kernel = {"conv1d_kernel_size": o.kernel, "qkv_proj_blocksize": o.qkv_block}
        mlstm_block = {"mlstm": kernel | {"num_heads": config.heads} | sizes}
    if "s" in pattern:
        slstm = {"backend": backend, "num_heads": o.slstm_heads, "conv1d_kernel_size": o.slstm_kernel}
        slstm_block = {"slstm": slstm, "feedforward": _write_mlp(o, width)}
    values = {
        "vocab_size": config.vocabulary,
        "tie_weights": config.tied,
        "context_length": CONTEXT,
        "num_blocks": len(pattern),
        "embedding_dim": width,
        "add_post_blocks_norm": config.final_norm != "none",
        "bias": o.bias,
        "dropout": config.dropout,
        "slstm_at": [place for place, kind in enumerate(pattern) if kind == "s"],
        "mlstm_block": mlstm_block,
        "slstm_block": slstm_block,
    }
    return values, _table(config, backend, weighted=True)


def _write_mlp(o: BlockOptions, width: int) -> dict[str, Any] | None:
    if not o.hidden:
        return None
    multiple = 64 if o.hidden % 64 == 0 else 1
    activation = next(name for name, ours in _ACTIVATIONS.items() if ours == o.activation)
    return {
        "proj_factor": factor(o.hidden, width, _rounding(math.ceil, multiple), 1.3),
        "round_proj_up_to_multiple_of": multiple,
        "act_fn": activation,
        "bias": o.mlp_bias,
    }


def _pattern(f: Fields, depth: int) -> str:
    places = f.take("slstm_at", [])
    if places == "all" or "mlstm_block" not in f:
        return "s" * depth
    if not isinstance(places, list) or not all(type(n) is int and 0 <= n < depth for n in places):
        raise ValueError(f'{f.where}.slstm_at must be "all" or a list of numbers from 0 to {depth - 1}')
    return "".join("s" if place in places else "m" for place in range(depth))


def _read_mlstm(f: Fields, width: int) -> tuple[int, dict[str, Any]]:
    """Heads and options."""
    f.skip("embedding_dim", "bias", "dropout", "context_length")  # those of the model are taken
    inner = _scaled(f, 2.0, width)
    options = {
        "inner": inner,
        "kernel": f.size("conv1d_kernel_size", 4),
        "qkv_block": f.size("qkv_proj_blocksize", 4),
    }
    heads = f.size("num_heads", 4)
    f.finish()
    return heads, options


def _read_slstm(block: Fields, width: int) -> tuple[int, dict[str, Any], bool]:
    """Heads, options, and whether the norm has weights."""
    f, mlp = block.part("slstm"), block.take("feedforward", {})
    f.skip(*_SLSTM_HARMLESS)
    f.only("function", "slstm")
    f.only("forward_clipval", None)
    heads, weighted = f.size("num_heads", 4), f.flag("group_norm_weight", True)
    options: dict[str, Any] = {"slstm_kernel": f.size("conv1d_kernel_size", 4, least=0), "hidden": 0}
    f.finish()
    if not block.says_none("feedforward"):
        g = Fields(mlp, f"{block.where}.feedforward")
        g.skip("embedding_dim", "dropout")
        g.only("ff_type", "ffn_gated")
        options["hidden"] = _scaled(g, 1.3, width)
        options["activation"] = g.one_of("act_fn", _ACTIVATIONS, "gelu")
        options["mlp_bias"] = g.flag("bias", False)
        g.finish()
    block.finish()
    return heads, options, weighted


def _scaled(f: Fields, usual: float, width: int) -> int:
    """The size that their rounding of a factor of the width gives."""
    rounding = math.ceil if f.flag("round_proj_up_dim_up", True) else math.floor
    multiple = f.size("round_proj_up_to_multiple_of", 64)
    return f.scaled("proj_factor", usual, width, _rounding(rounding, multiple))


def _rounding(rounding: Callable[[float], int], multiple: int) -> Callable[[float], int]:
    return lambda size: rounding(size / multiple) * multiple


def _probability(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ValueError(f"{where} must be a number from 0 to less than 1")
    return float(value)


def _backend(theirs: Mapping[str, Planned]) -> Backend:
    """Whose recurrent weights these are: [H, 4 D, D] or [H, D, 4 D]."""
    kernels = (x.shape for name, x in theirs.items() if name.endswith("_recurrent_kernel_"))
    return "cuda" if any(len(shape) == 3 and shape[1] < shape[2] for shape in kernels) else "vanilla"


def _table(config: LanguageModelConfig, backend: Backend, weighted: bool) -> Table:
    o, embedding, head = spelled_out(config), "token_embedding.weight", "lm_head.weight"
    rows = [row((embedding, head), "embedding.weight", TIED)]
    if not config.tied:
        rows = [row(embedding, "embedding.weight"), row(head, "head.weight")]
    for number, kind in enumerate(parse_pattern(config.pattern)):
        block = _mlstm(o) if kind == "m" else _slstm(o, backend, weighted)
        rows += below(f"{_STACK}blocks.{number}.", f"backbone.blocks.{number}.", block)
    if config.final_norm != "none":
        rows += rows_of(f"{_STACK}post_blocks_norm", "backbone.norm", RESIDUAL)
    return Table(config, rows)


def _mlstm(o: BlockOptions) -> Iterator[Row]:
    yield from rows_of("xlstm_norm", "mixer_norm", RESIDUAL)
    yield from rows_of("xlstm.proj_up", "mixer.up", bias=o.bias)
    yield from _convolution()
    for name in "qkv":
        yield row(f"xlstm.{name}_proj.weight", f"mixer.{name}.weight", TRANSPOSED)
        if o.bias:
            yield row(f"xlstm.{name}_proj.bias", f"mixer.{name}.bias")
    yield row("xlstm.learnable_skip", "mixer.skip")
    yield from rows_of("xlstm.mlstm_cell.igate", "mixer.cell.input_gate", bias=True)
    yield from rows_of("xlstm.mlstm_cell.fgate", "mixer.cell.forget_gate", bias=True)
    yield from rows_of("xlstm.mlstm_cell.outnorm", "mixer.cell.norm", RESIDUAL)
    yield from rows_of("xlstm.proj_down", "mixer.down", bias=o.bias)


def _slstm(o: BlockOptions, backend: Backend, weighted: bool) -> Iterator[Row]:
    assert o.slstm_heads is not None
    yield from rows_of("xlstm_norm", "mixer_norm", RESIDUAL)
    if o.slstm_kernel:
        yield from _convolution()
    # The order is that of our gates i, f, z, o: see the head of this file.
    maps = [f"xlstm.{name}.weight" for name in ("fgate", "igate", "zgate", "ogate")]
    yield row(maps, "mixer.input_weight", GATES)
    yield row("xlstm.slstm_cell._recurrent_kernel_", "mixer.recurrent_weight", RECURRENT[backend])
    yield row("xlstm.slstm_cell._bias_", "mixer.bias", gate_bias(backend, o.slstm_heads))
    if weighted:
        yield from rows_of("xlstm.group_norm", "mixer.norm", RESIDUAL)
    else:
        yield row((), "mixer.norm.weight", ONES)
    if o.hidden:
        yield from rows_of("ffn_norm", "mlp_norm", RESIDUAL)
        yield from rows_of("ffn.proj_up", "mlp.gate_up", bias=o.mlp_bias)
        yield from rows_of("ffn.proj_down", "mlp.down", bias=o.mlp_bias)


def _convolution() -> Iterator[Row]:
    yield row("xlstm.conv1d.conv.weight", "mixer.conv.weight", CONVOLUTION)
    yield row("xlstm.conv1d.conv.bias", "mixer.conv.bias", SAME)


def _check(c: LanguageModelConfig, o: BlockOptions) -> None:
    for bad, what, has in (
        (c.style != "paper", "only blocks of style 'paper'", repr(c.style)),
        (bool({*parse_pattern(c.pattern)} - {*"ms"}), "only mLSTM and sLSTM blocks", f"the pattern {c.pattern!r}"),
        (c.soft_cap is not None, "no soft_cap of the logits", str(c.soft_cap)),
        (o.norm_bias or c.final_norm == "biased", "norms without biases", "some"),
        (o.eps != 1e-5, "norms with an eps of 1e-5", str(o.eps)),
        (o.slstm_eps not in (None, 1e-5), "norms with an eps of 1e-5", str(o.slstm_eps)),
        (o.forget_cap is not None, "no forget_cap", str(o.forget_cap)),
        (o.slstm_dense, "gates of sLSTM layers that see the channels of their head", "gates that see all"),
    ):
        if bad:
            raise ValueError(f"xlstm's xLSTMLMModel has {what}, and this model has {has}: it cannot be written so")
