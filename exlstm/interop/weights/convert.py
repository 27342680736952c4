"""Models of other layouts in, and ours out."""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.console import notes
from exlstm.interop.weights import large, paper
from exlstm.interop.weights.directory import copy_companions, require_free, whole
from exlstm.interop.weights.fields import read_config_file
from exlstm.interop.weights.layout import check_ours, in_files, to_ours, to_theirs
from exlstm.interop.weights.licence import licence_of
from exlstm.interop.weights.target import Layout, Target
from exlstm.models import LanguageModel, LanguageModelConfig, read_config
from exlstm.models.config import config_from_dict
from exlstm.models.saving import CONFIG, build, config_text, fill, tensors_of
from exlstm.models.weight_files import Planned, WeightFiles, write_weights

AS_OURS = Target()
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Opened(NamedTuple):
    """A language model in a directory, as ours, whose tensors are made when they are asked for."""

    config: LanguageModelConfig
    tensors: Mapping[str, Planned]
    directory: Path


def open_model(source: str | Path) -> Opened:
    """The language model in a directory, whatever its layout; prints the licence of weights that are not ours.

    Raises:
        ValueError: there is none, it is damaged, or exlstm does not compute such a model.
    """
    directory = Path(source)
    values, path = read_config_file(directory)
    if isinstance(values, dict) and "task" in values and (directory / "model").is_dir():  # a run
        return open_model(directory / "model")
    layout = _layout(values, path)
    if layout == "exlstm":
        fields = read_config(directory, LanguageModel.model_type)
        config = config_from_dict(LanguageModelConfig, fields, str(path))
        files = WeightFiles(directory)
        tensors = in_files(files)
        check_ours(config, tensors, files.path)
        return Opened(config, tensors, directory)
    files = WeightFiles(directory)
    theirs = in_files(files)
    table = (
        paper.read(values, theirs, str(path)) if layout == "xlstm" else large.read(layout, values, theirs, str(path))
    )
    tensors = to_ours(table, theirs, files.path)
    notes().print(licence_of(directory))
    return Opened(table.config, tensors, directory)


def from_pretrained(
    source: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> LanguageModel:
    """The language model in a directory, of another layout or ours, in evaluation mode.

    Layouts: transformers' `xLSTMForCausalLM`, such as xLSTM-7B, and `xLSTMLarge` and `xLSTMLMModel` of the package
    xlstm; all as safetensors, in one file or in shards. Prints the licence of weights that are not ours.

    Args:
        source: the directory.
        device: where the weights are to be.
        dtype: of the weights; None: as they are stored.

    Raises:
        ValueError: there is no such model, it is damaged, or exlstm does not compute such a model; says what differs.
    """
    found = open_model(source)
    model = build(lambda: LanguageModel(found.config))
    fill(model, lambda name: _cast(found.tensors[name], dtype).make(), device)
    return model.to(device).eval()


def convert(source: str | Path, dest: str | Path, target: Target = AS_OURS) -> Path:
    """Write the language model in one directory into another, holding a tensor at a time.

    Args:
        source: as in `from_pretrained`, or the folder of a run.
        dest: a directory that does not exist or is empty; it is there only when it is whole.
        target: as what.

    Returns:
        the directory written.

    Raises:
        ValueError: as in `from_pretrained`; the other layout has nothing like this model; or `dest` is taken.
    """
    _check(Path(dest), target)
    found = open_model(source)
    return _write(found.config, found.tensors, Path(dest), target, companions=found.directory)


def save_pretrained(model: LanguageModel, dest: str | Path, target: Target) -> Path:
    """Write a language model; `dest`, result and errors as in `convert`."""
    _check(Path(dest), target)

    def planned(tensor: Tensor) -> Planned:
        return Planned(tuple(tensor.shape), tensor.dtype, tensor.detach)

    return _write(model.config, {n: planned(x) for n, x in tensors_of(model).items()}, Path(dest), target)


def _check(dest: Path, target: Target) -> None:
    """Raise ValueError if the target is none, or something is there already."""
    target.check()
    require_free(dest)


def _write(
    config: LanguageModelConfig,
    tensors: Mapping[str, Planned],
    dest: Path,
    target: Target,
    *,
    companions: Path | None = None,
) -> Path:
    dtype = _DTYPES.get(target.dtype)
    name, text, made = _as_layout(config, {n: _cast(x, dtype) for n, x in tensors.items()}, target)
    with whole(dest) as new:
        write_weights(new, made, shard=int(target.shard * 10**9), numbered=target.to == "xlstm-large")
        if companions is not None:
            copy_companions(companions, new)
        (new / name).write_text(text, encoding="utf-8")
    return dest


def _as_layout(
    config: LanguageModelConfig, tensors: Mapping[str, Planned], target: Target
) -> tuple[str, str, Mapping[str, Planned]]:
    """Name and text of the config, and the tensors."""
    if target.to == "exlstm":
        return CONFIG, config_text(LanguageModel.model_type, config), tensors
    if target.to == "xlstm":
        values, table = paper.write(config, target.slstm_backend)
    else:
        values, table = large.write(target.to, config, target.weight_mode)
    made = to_theirs(table, tensors)
    if target.to == "xlstm-large":
        return "config.yaml", "".join(f"{name}: {_yaml(value)}\n" for name, value in values.items()), made
    return CONFIG, json.dumps(values, indent=2) + "\n", made


def _yaml(value: Any) -> str:
    """A number, word or truth value; 1e-06 is a word in YAML 1.1."""
    return re.sub(r"^(\d+)(e.*)$", r"\1.0\2", json.dumps(value))


def _layout(values: Any, path: Path) -> Layout:
    """Whose config this is."""
    fields = values if isinstance(values, dict) else {}
    inner = fields.get("model")
    if (kind := fields.get("model_type")) is not None:
        known: dict[Any, Layout] = {LanguageModel.model_type: "exlstm", "xlstm": "transformers"}
        if not isinstance(kind, str) or kind not in known:
            raise ValueError(f"{path} describes a model of type {str(kind)[:80]!r}; expected {' or '.join(known)}")
        return known[kind]
    for candidate in (fields, inner if isinstance(inner, dict) else {}):
        if "mlstm_block" in candidate or "slstm_block" in candidate:
            return "xlstm"
    if "embedding_dim" in fields and "num_heads" in fields:
        return "xlstm-large"
    raise ValueError(f"{path} is no config of an xLSTM language model that exlstm, transformers or xlstm have written")


def _cast(planned: Planned, dtype: torch.dtype | None) -> Planned:
    if dtype is None or planned.dtype == dtype:
        return planned
    return Planned(planned.shape, dtype, partial(_made_as, planned, dtype))


def _made_as(planned: Planned, dtype: torch.dtype) -> Tensor:
    tensor = planned.make()
    cast = tensor.to(dtype)
    if not torch.equal(cast.isfinite(), tensor.isfinite()):
        largest = float(tensor[tensor.isfinite()].abs().max())
        raise ValueError(f"a weight of size {largest:g} does not fit {dtype}; choose bfloat16, float32 or stored")
    return cast
