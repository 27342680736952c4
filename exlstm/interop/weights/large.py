"""xLSTM-7B (arXiv 2503.13427): the layouts of transformers' `xLSTMForCausalLM`, and of `xLSTMLarge` in package xlstm.

The second differs in the name of the embedding, in its config, and in that its last norm may have a bias or be absent.
Either has its matrices apart (`weight_mode` "single") or those of one input in one ("fused").
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from exlstm.interop.weights.fields import Fields, factor
from exlstm.interop.weights.layout import Row, Table, below, blocks_of, equal, row, rows_of
from exlstm.interop.weights.maps import TIED, joined, parted
from exlstm.interop.weights.sizes import shortened, spelled_out
from exlstm.interop.weights.target import WeightMode
from exlstm.layers import BlockOptions
from exlstm.models import LanguageModelConfig, parse_pattern
from exlstm.models.backbone import FinalNorm
from exlstm.models.weight_files import Planned

_EMBEDDING = {"transformers": "backbone.embeddings.weight", "xlstm-large": "embedding.weight"}
_HEAD = "lm_head.weight"
_HARMLESS = (
    "chunkwise_kernel", "sequence_kernel", "step_kernel", "mode", "chunk_size", "return_last_states",
    "autocast_kernel_dtype", "inference_state_dtype", "norm_reduction_force_float32", "weight_mode",
)  # fmt: skip
"""How they compute, not what; which of the weight modes it is, the tensors tell."""


def read(layout: str, values: Mapping[str, Any], theirs: Mapping[str, Planned], where: str) -> Table:
    """The table for a config of theirs.

    Raises:
        ValueError: the config is not understood, or asks for what exlstm does not compute.
    """
    f, of_transformers = Fields(values, where), layout == "transformers"
    vocabulary, width, depth, heads = (50304, 4096, 32, 8) if of_transformers else (None,) * 4
    width = f.either("hidden_size" if of_transformers else "embedding_dim", "embedding_dim", width)
    depth = f.either("num_hidden_layers" if of_transformers else "num_blocks", "num_blocks", depth)
    depth = blocks_of(theirs, "backbone.blocks.", depth, where)
    bias = f.flag("use_bias", False)
    final_norm: FinalNorm = "plain"
    if not of_transformers:
        final_norm = ("biased" if bias else "plain") if f.flag("add_out_norm", True) else "none"
    f.only("eps", 1e-6)
    f.skip(*_HARMLESS)
    multiple = f.size("ffn_round_up_to_multiple_of", 64)
    options = BlockOptions(
        bias=bias,
        mlp_bias=bias,
        norm_bias=bias,
        eps=f.number("norm_eps", 1e-6),
        keys=f.scaled("qk_dim_factor", 0.5, width, int),
        values=f.scaled("v_dim_factor", 1.0, width, int),
        hidden=f.scaled("ffn_proj_factor", 2.667 if of_transformers else 2.6667, width, _rounding_up(multiple)),
        gate_soft_cap=f.number("gate_soft_cap", 15.0),
    )
    # transformers (5.24) keeps both of these tensors whatever this flag says, so that they may have grown apart.
    tied = of_transformers and f.flag("tie_word_embeddings", False) and equal(theirs, _EMBEDDING[layout], _HEAD)
    config = LanguageModelConfig(
        vocabulary=f.size("vocab_size", vocabulary, least=2),
        pattern="m" * depth,
        width=width,
        heads=f.size("num_heads", heads),
        style="large",
        tied=tied,
        soft_cap=f.number("output_logit_soft_cap", 30.0),
        options=options,
        final_norm=final_norm,
    )
    if not of_transformers:
        f.finish()
    fused = any(name.endswith("qkv_opreact.weight") for name in theirs)
    return _table(layout, shortened(config), "fused" if fused else "single")


def write(layout: str, config: LanguageModelConfig, weight_mode: WeightMode) -> tuple[dict[str, Any], Table]:
    """Their config, and the table, for a model of ours.

    Raises:
        ValueError: they have nothing like it.
    """
    _check(layout, config)
    o, width, depth = spelled_out(config), config.width, len(parse_pattern(config.pattern))
    keys, wide, hidden = _sizes(o)
    multiple = 64 if hidden % 64 == 0 else 1
    values: dict[str, Any] = {
        "vocab_size": config.vocabulary,
        "embedding_dim": width,
        "num_blocks": depth,
        "num_heads": config.heads,
        "use_bias": o.bias,
        "norm_eps": o.eps,
        "qk_dim_factor": factor(keys, width, int, 0.5),
        "v_dim_factor": factor(wide, width, int, 1.0),
        "ffn_proj_factor": factor(hidden, width, _rounding_up(multiple), 2.667),
        "ffn_round_up_to_multiple_of": multiple,
        "gate_soft_cap": o.gate_soft_cap,
        "output_logit_soft_cap": config.soft_cap,
        "weight_mode": weight_mode,
        "add_out_norm": config.final_norm != "none",
    }
    if layout == "transformers":
        about = {"model_type": "xlstm", "architectures": ["xLSTMForCausalLM"]}
        sizes = {"hidden_size": width, "num_hidden_layers": depth, "tie_word_embeddings": config.tied}
        # Which tokens these are, a config of ours does not say; theirs has numbers by default.
        tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        values = about | values | sizes | tokens
    return values, _table(layout, config, weight_mode)


def _table(layout: str, config: LanguageModelConfig, weight_mode: str) -> Table:
    o, embedding = spelled_out(config), _EMBEDDING[layout]
    rows = [row((embedding, _HEAD), "embedding.weight", TIED)]
    if not config.tied:
        rows = [row(embedding, "embedding.weight"), row(_HEAD, "head.weight")]
    for number in range(len(parse_pattern(config.pattern))):
        place = f"backbone.blocks.{number}."
        rows += below(place, place, _block(config.heads, o, weight_mode == "fused"))
    if config.final_norm != "none":
        rows += rows_of("backbone.out_norm", "backbone.norm", bias=config.final_norm == "biased")
    return Table(config, rows)


def _block(heads: int, o: BlockOptions, fused: bool) -> Iterator[Row]:
    keys, values, hidden = _sizes(o)
    gates = "mixer.cell.input_gate", "mixer.cell.forget_gate"
    yield from rows_of("norm_mlstm", "mixer_norm", bias=o.norm_bias)
    if fused:
        yield from rows_of("mlstm_layer.qkv_opreact", "mixer.qkvo", bias=o.bias)
        yield from rows_of("mlstm_layer.ifgate_preact", gates, parted(heads, heads), bias=True)
        yield from rows_of("ffn.proj_up_gate_z", "mlp.gate_up", bias=o.mlp_bias)
    else:
        four = [f"mlstm_layer.{name}" for name in ("q", "k", "v", "ogate_preact")]
        yield from rows_of(four, "mixer.qkvo", joined(keys, keys, values, values), bias=o.bias)
        yield from rows_of("mlstm_layer.igate_preact", gates[0], bias=True)
        yield from rows_of("mlstm_layer.fgate_preact", gates[1], bias=True)
        two = "ffn.proj_up_gate", "ffn.proj_up"
        yield from rows_of(two, "mlp.gate_up", joined(hidden, hidden), bias=o.mlp_bias)
    yield from rows_of("mlstm_layer.multihead_norm", "mixer.cell.norm", bias=o.norm_bias)
    yield from rows_of("mlstm_layer.out_proj", "mixer.out", bias=o.bias)
    yield from rows_of("norm_ffn", "mlp_norm", bias=o.norm_bias)
    yield from rows_of("ffn.proj_down", "mlp.down", bias=o.mlp_bias)


def _check(layout: str, c: LanguageModelConfig) -> None:
    o, name = c.options, "transformers' xLSTM" if layout == "transformers" else "xlstm's xLSTMLarge"
    biases = {o.bias, o.mlp_bias, o.norm_bias}
    if layout == "xlstm-large" and c.final_norm != "none":
        biases.add(c.final_norm == "biased")
    for bad, what, has in (
        (c.style != "large", "only blocks of style 'large'", repr(c.style)),
        ({*parse_pattern(c.pattern)} != {"m"}, "only mLSTM blocks", f"the pattern {c.pattern!r}"),
        (c.soft_cap is None, "always a soft_cap of the logits", "none"),
        (len(biases) > 1, "biases everywhere or nowhere", "some"),
        (o.activation == "gelu", "only silu in feed-forward parts", "gelu"),
        (o.hidden == 0, "always feed-forward parts", "none"),
        (layout == "transformers" and c.final_norm != "plain", "a plain norm at the end", repr(c.final_norm)),
        (layout == "xlstm-large" and c.tied, "no tied weights", "them"),
    ):
        if bad:
            raise ValueError(f"{name} has {what}, and this model has {has}: it cannot be written so")


def _sizes(o: BlockOptions) -> tuple[int, int, int]:
    """Width of keys and values, and channels of the feed-forward parts."""
    assert o.keys is not None
    assert o.values is not None
    assert o.hidden is not None
    return o.keys, o.values, o.hidden


def _rounding_up(multiple: int) -> Callable[[float], int]:
    """As they do it: what is less than 1 above a multiple is rounded down."""
    return lambda size: int((size + multiple - 1) // multiple * multiple)
