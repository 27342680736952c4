"""What the blocks of a model are, spelled out: other layouts leave nothing to a style."""

from dataclasses import fields, replace
from functools import partial
from typing import Any

from exlstm.layers import SLSTM, Block, BlockOptions, MLSTMLarge
from exlstm.layers.mlstm import MLSTM
from exlstm.models import LanguageModelConfig, parse_pattern
from exlstm.models.saving import build


def spelled_out(config: LanguageModelConfig) -> BlockOptions:
    """The options of its blocks with every size that they have, as the style chose it or the config."""
    c, options = config, config.options
    for kind in dict.fromkeys(parse_pattern(c.pattern)):
        block = build(partial(Block, c.width, c.heads, kind=kind, style=c.style, options=c.options))
        options = replace(options, **_found(block))
    return options


def shortened(config: LanguageModelConfig) -> LanguageModelConfig:
    """The config with None for every option that is the style's own."""
    try:
        usual = spelled_out(replace(config, options=BlockOptions()))
    except ValueError:  # a width that the style has no sizes for
        return config
    own: dict[str, Any] = {
        f.name: f.default for f in fields(usual) if getattr(usual, f.name) == getattr(config.options, f.name)
    }
    return replace(config, options=replace(config.options, **own))


def _found(block: Block) -> dict[str, Any]:
    mixer, mlp = block.mixer, block.mlp
    found: dict[str, Any] = {"eps": block.mixer_norm.eps}
    if isinstance(mixer, MLSTM):
        found |= {"inner": mixer.skip.numel(), "kernel": mixer.conv.kernel, "qkv_block": mixer.q.weight.shape[1]}
        return found
    if isinstance(mixer, MLSTMLarge):
        keys, _, values, _ = mixer.sizes
        found |= {"keys": keys, "values": values, "gate_soft_cap": mixer.cell.soft_cap}
    if isinstance(mixer, SLSTM):
        kernel = 0 if mixer.conv is None else mixer.conv.kernel
        found |= {"slstm_heads": mixer.recurrent_weight.shape[1], "slstm_kernel": kernel}
    found |= {"hidden": 0} if mlp is None else {"hidden": mlp.down.in_features, "activation": mlp.activation}
    return found
