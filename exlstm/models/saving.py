"""Models as directories: config.json and model.safetensors."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import exlstm
from exlstm.models.config import config_from_dict, config_to_dict

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Pretrained(nn.Module):
    """A model that `cls(config)` builds and a directory can hold.

    A subclass names its `config_class`, a frozen dataclass (`exlstm.models.config` says of what), and its
    `model_type`, by which config.json tells what it is; every instance keeps its `config`.
    """

    config_class: ClassVar[type]
    model_type: ClassVar[str]
    config: Any

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors into `directory`, which is made if it is missing.

        A reader never finds half a model: config.json, without which a directory is no model, is there only
        while it belongs to the weights beside it. Other files are left alone.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        about = {"model_type": self.model_type, "exlstm_version": exlstm.__version__}
        text = json.dumps(about | config_to_dict(self.config), indent=2, allow_nan=False) + "\n"
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(self).items()}
        new_weights, new_config = (directory / f".{name}.{os.getpid()}.new" for name in (WEIGHTS, CONFIG))
        try:
            save_file(weights, new_weights, metadata={"format": "pt"})
            new_config.write_bytes(text.encode())
            for new in (new_weights, new_config):
                _to_disk(new)
            if (directory / CONFIG).is_file() and (directory / CONFIG).read_bytes() != text.encode():
                (directory / CONFIG).unlink()
            new_weights.replace(directory / WEIGHTS)
            new_config.replace(directory / CONFIG)
        finally:
            for new in (new_weights, new_config):
                new.unlink(missing_ok=True)

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Build the model that `save_pretrained` wrote, in evaluation mode, its weights in the dtype written.

        Raises:
            ValueError: files are missing, damaged or not of a model of this class; says what differs.
        """
        values = read_config(directory, cls.model_type)
        config: Any = config_from_dict(cls.config_class, values, str(Path(directory) / CONFIG))
        with torch.random.fork_rng(devices=[]):
            model = cls(config)
        _load(model, Path(directory) / WEIGHTS)
        return model.to(device).eval()


def read_config(directory: str | Path, model_type: str | None = None) -> dict[str, Any]:
    """The fields of the config in a model's directory, `model_type` and version left out.

    Raises:
        ValueError: there is none, or it is not one of a `model_type` (any if None).
    """
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise ValueError(f"no model in {directory}: it has no {CONFIG}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict) or "model_type" not in values:
        raise ValueError(f"{path} does not say which model_type it describes")
    found = values.pop("model_type")
    if model_type is not None and found != model_type:
        raise ValueError(f"{path} describes a model of type {found!r}, expected {model_type!r}")
    values.pop("exlstm_version", None)
    return values


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tensor with several names once, by its first."""
    first: dict[int, str] = {}
    return {n: t for n, t in model.state_dict(keep_vars=True).items() if first.setdefault(id(t), n) == n}


def _load(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"no weights: {path} does not exist")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    own = _tensors(model)
    misshapen = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if own[name].shape != weights[name].shape
    ]
    problems = [
        *_listing("lacks", own.keys() - weights.keys()),
        *_listing("has unknown", weights.keys() - own.keys()),
        *_listing("has misshapen", misshapen),
    ]
    if problems:
        raise ValueError(f"{path} does not fit {type(model).__name__}: it {'; it '.join(problems)}")
    for name, tensor in own.items():
        tensor.data = weights[name].clone()


def _listing(what: str, names: Iterable[str], most: int = 8) -> list[str]:
    names = sorted(names)
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return [f"{what} {', '.join(names[:most] + more)}"] if names else []


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
