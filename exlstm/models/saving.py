"""Models as directories: config.json and model.safetensors, which may be in shards."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

import exlstm
from exlstm.models.config import config_from_dict, config_to_dict
from exlstm.models.weight_files import WEIGHTS, WeightFiles, differences, read_json

CONFIG = "config.json"
Model = TypeVar("Model", bound=nn.Module)


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
        text = config_text(self.model_type, self.config)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors_of(self).items()}
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
        model = build(lambda: cls(config))
        weights = WeightFiles(directory)
        if problems := differences(tensors_of(model), weights):
            raise ValueError(f"{weights.path} does not fit {cls.__name__}: it {'; it '.join(problems)}")
        fill(model, weights.read, device)
        return model.to(device).eval()


def read_config(directory: str | Path, model_type: str | None = None) -> dict[str, Any]:
    """The fields of the config in a model's directory, `model_type` and version left out.

    Raises:
        ValueError: there is none, or it is not one of a `model_type` (any if None).
    """
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise ValueError(f"no model in {directory}: it has no {CONFIG}")
    values = read_json(path)
    if not isinstance(values, dict) or "model_type" not in values:
        raise ValueError(f"{path} does not say which model_type it describes")
    found = values.pop("model_type")
    if model_type is not None and found != model_type:
        raise ValueError(f"{path} describes a model of type {found!r}, expected {model_type!r}")
    values.pop("exlstm_version", None)
    return values


def config_text(model_type: str, config: Any) -> str:
    """What config.json holds."""
    about = {"model_type": model_type, "exlstm_version": exlstm.__version__}
    return json.dumps(about | config_to_dict(config), indent=2, allow_nan=False) + "\n"


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tensor with several names once, by its first."""
    first: dict[int, str] = {}
    return {n: t for n, t in model.state_dict(keep_vars=True).items() if first.setdefault(id(t), n) == n}


def build(make: Callable[[], Model]) -> Model:
    """The model that `make` makes, for `fill`: if it can be, of tensors without memory; no random numbers are drawn.

    Raises:
        ValueError: it would have tensors larger than any memory.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"), _Undrawn():
                model = make()
        except (RuntimeError, TypeError) as error:
            if "overflow" not in str(error).lower():
                raise
            raise ValueError(
                "the sizes in the config make tensors larger than any memory; give smaller ones"
            ) from error
        saved = {id(tensor) for tensor in tensors_of(model).values()}
        # What is not saved has to be computed.
        return model if all(id(buffer) in saved for buffer in model.buffers()) else make()


class _Undrawn(TorchFunctionMode):
    """Nothing is drawn: for tensors without memory, torch loads a second's worth of modules to draw nothing."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def fill(model: nn.Module, read: Callable[[str], Tensor], device: torch.device | str) -> None:
    """Replace every tensor of `model` by a copy of what `read` gives for its name."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
            owners.setdefault(id(tensor), []).append((module, attribute))
    for name, tensor in tensors_of(model).items():
        new = read(name).to(device, copy=True)
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        for module, attribute in owners[id(tensor)]:
            setattr(module, attribute, new)


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
