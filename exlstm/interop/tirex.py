"""TiRex's published weights: `model.ckpt` becomes a `TirexForecaster`."""

from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from exlstm.console import notes
from exlstm.interop.torch_checkpoint import description_holds, read_checkpoint
from exlstm.interop.weights.directory import copy_companions, require_free, whole
from exlstm.interop.weights.maps import GATES, RECURRENT, RESIDUAL, SAME, Map, gate_bias, joined
from exlstm.models.forecast_network import LEVELS
from exlstm.models.saving import CONFIG, build, fill
from exlstm.models.tirex import TirexConfig, TirexForecaster
from exlstm.models.weight_files import Stored, differences, printable

LICENCE = (
    "NXAI Community License, which has terms of its own for commercial use: see the LICENSE that came with the weights"
)
FILE = "model.ckpt"
_PREFIX = "block_stack."


def is_tirex(path: str | Path) -> bool:
    """Whether `path` is TiRex's checkpoint, or a folder with it; nothing is unpickled to find out."""
    return description_holds(_file(path), "input_patch_embedding.hidden_layer.weight", ".slstm_layer.")


def load(path: str | Path, *, device: torch.device | str = "cpu") -> TirexForecaster:
    """The forecaster in TiRex's checkpoint, in the folder with it, or in one that `convert` made; prints the licence.

    Raises:
        ValueError: the file is damaged, or tensors or hyperparameters are missing, unknown or misshapen.
    """
    if (Path(path) / CONFIG).is_file():
        model = TirexForecaster.from_pretrained(path, device=device)
    else:
        model = _from_checkpoint(_file(path), device)
    say_licence(model)
    return model


def convert(source: str | Path, dest: str | Path) -> Path:
    """Write what `load` finds in `source` into a folder, for `TirexForecaster.from_pretrained` and `exlstm predict`.

    Args:
        source: as `load` takes it.
        dest: a folder that does not exist or is empty; it is there only when it is whole. Licences beside the
            checkpoint are copied to it.

    Returns:
        the folder written.

    Raises:
        ValueError: as `load`, or `dest` is taken.
    """
    source, dest = Path(source), Path(dest)
    require_free(dest)
    model = load(source)
    with whole(dest) as new:
        copy_companions(source if source.is_dir() else source.parent, new)
        model.save_pretrained(new)
    return dest


def say_licence(model: TirexForecaster) -> None:
    """Print what is known of the licence of the weights."""
    if model.config.licence:
        notes().print(f"licence of the weights: {printable(model.config.licence)}")


def _file(path: str | Path) -> Path:
    return Path(path) / FILE if Path(path).is_dir() else Path(path)


def _from_checkpoint(path: Path, device: torch.device | str) -> TirexForecaster:
    checkpoint = read_checkpoint(path)
    for part in ("hyper_parameters", "state_dict"):
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(part), dict):
            raise ValueError(f"{path} is no checkpoint of TiRex: it has no dict {part}")
    tensors = _tensors(checkpoint["state_dict"], path)
    config = _config(checkpoint["hyper_parameters"], tensors.get("blocks.0.ffn.proj_up.weight"), path)
    if config.blocks > len(tensors):
        raise ValueError(f"{path} has {len(tensors)} tensors, too few for {config.blocks} blocks")
    sources = _sources(config)
    wanted = {
        name: Stored(shape, torch.float32, path) for source in sources.values() for name, shape in source.needs.items()
    }
    found = {name: Stored(tuple(tensor.shape), tensor.dtype, path) for name, tensor in tensors.items()}
    if problems := differences(wanted, found):
        raise ValueError(f"{path} does not hold a TiRex: it {'; it '.join(problems)}")
    if (claimed := sum(tensor.nbytes for tensor in tensors.values())) > path.stat().st_size:
        raise ValueError(f"{path} is damaged: its tensors would have {claimed} bytes, more than the file")
    model = build(lambda: TirexForecaster(config))

    def read(name: str) -> Tensor:
        source = sources[name]
        (made,) = source.map.forth([tensors[needed].float() for needed in source.needs])
        return made

    fill(model, read, device)
    return model.to(device).eval()


def _tensors(state_dict: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path} has {shortened(name)} in its state_dict, which is no tensor")
        name = name.removeprefix(_PREFIX)
        if name in tensors:
            raise ValueError(f"{path} has {printable(name)} twice, with and without {_PREFIX}")
        tensors[name] = value
    return tensors


_KNOWN = ("input_patch_size", "output_patch_size", "quantiles", "block_kwargs", "input_ff_dim", "train_ctx_len")
_KNOWN_OF_BLOCKS = ("embedding_dim", "num_blocks", "num_heads")


def _config(values: Mapping[str, Any], proj_up: Tensor | None, path: Path) -> TirexConfig:
    blocks = values.get("block_kwargs")
    if not isinstance(blocks, dict):
        raise ValueError(f"{path} has no block_kwargs among its hyperparameters")

    def whole(name: str) -> int:
        value = (blocks if name in _KNOWN_OF_BLOCKS else values).get(name)
        if type(value) is not int:
            raise ValueError(f"{path} has {name} = {shortened(value)} among its hyperparameters; expected an integer")
        return value

    if (patch := whole("input_patch_size")) != whole("output_patch_size"):
        raise ValueError(f"{path} reads patches of {patch} steps and gives {whole('output_patch_size')}; expected one")
    if not _are_levels(values.get("quantiles")):
        raise ValueError(f"{path} has quantiles {shortened(values.get('quantiles'))}; expected {list(LEVELS)}")
    if unused := sorted(printable(str(n), 40) for n in {*values} - {*_KNOWN} | {*blocks} - {*_KNOWN_OF_BLOCKS}):
        shown = f"{', '.join(unused[:8])}{' ...' if len(unused) > 8 else ''}"
        notes().print(f"hyperparameters not used: {shown}")
    try:
        return TirexConfig(
            width=whole("embedding_dim"),
            blocks=whole("num_blocks"),
            heads=whole("num_heads"),
            hidden=whole("input_ff_dim"),
            feed_forward=proj_up.shape[0] if proj_up is not None and proj_up.dim() else TirexConfig.feed_forward,
            patch=patch,
            context=whole("train_ctx_len"),
            licence=LICENCE,
        )
    except ValueError as error:
        raise ValueError(f"{path} has hyperparameters of no TiRex: {error}") from error


def _are_levels(values: Any) -> bool:
    if not isinstance(values, list | tuple) or len(values) != len(LEVELS):
        return False
    return all(isinstance(value, float) for value in values) and np.allclose(values, LEVELS)


class _Source(NamedTuple):
    """What a tensor of ours is made of."""

    needs: dict[str, tuple[int, ...]]
    """Published names and shapes."""
    map: Map = SAME


def _sources(config: TirexConfig) -> dict[str, _Source]:
    """For every tensor of a TirexForecaster, the published ones that it is made of."""
    c, steps = config, len(LEVELS) * config.patch
    sources = {"backbone.norm.weight": _Source({"out_norm.weight": (c.width,)})}
    for ours, theirs, inputs, outputs in (
        ("embed", "input_patch_embedding", 2 * c.patch, c.width),
        ("head", "output_patch_embedding", c.width, steps),
    ):
        for part, name, i, o in (
            ("linear", "residual_layer", inputs, outputs),
            ("network.0", "hidden_layer", inputs, c.hidden),
            ("network.2", "output_layer", c.hidden, outputs),
        ):
            sources[f"{ours}.{part}.weight"] = _Source({f"{theirs}.{name}.weight": (o, i)})
            sources[f"{ours}.{part}.bias"] = _Source({f"{theirs}.{name}.bias": (o,)})
    for n in range(c.blocks):
        sources |= {f"backbone.blocks.{n}.{name}": source for name, source in _of_block(c, f"blocks.{n}.").items()}
    return sources


def _of_block(c: TirexConfig, at: str) -> dict[str, _Source]:
    d, up = c.width // c.heads, c.feed_forward
    layer, cell, gate = f"{at}slstm_layer.", f"{at}slstm_layer.slstm_cell.", (c.heads, d, d)
    return {
        "mixer_norm.weight": _Source({f"{at}norm_slstm.weight": (c.width,)}),
        # In our order i, f, z, o: the published layer feeds the input gate from the weight called fgate, and the
        # forget gate from the one called igate.
        "mixer.input_weight": _Source({f"{layer}{name}gate.weight": gate for name in "fizo"}, GATES),
        "mixer.recurrent_weight": _Source({f"{cell}_recurrent_kernel_": (c.heads, d, 4 * d)}, RECURRENT["cuda"]),
        "mixer.bias": _Source({f"{cell}_bias_": (4 * c.width,)}, gate_bias("cuda", c.heads)),
        "mixer.norm.weight": _Source({f"{layer}group_norm.weight": (c.width,)}, RESIDUAL),
        "mlp_norm.weight": _Source({f"{at}norm_ffn.weight": (c.width,)}),
        "mlp.gate_up.weight": _Source(
            {f"{at}ffn.{name}.weight": (up, c.width) for name in ("proj_up_gate", "proj_up")}, joined(up, up)
        ),
        "mlp.down.weight": _Source({f"{at}ffn.proj_down.weight": (c.width, up)}),
    }
