"""Weights in safetensors files, in one or in shards: read one tensor at a time, and written one at a time."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MOST_TEXT = 2**24
"""Bytes of the largest header, index or config that is read: some hundred thousand tensors."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Stored(NamedTuple):
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path


class WeightFiles(Mapping[str, Stored]):
    """The tensors of a directory by name; `read` reads one.

    They are in model.safetensors; in the shards that model.safetensors.index.json names; or in model_0.safetensors,
    model_1.safetensors and so on.

    Raises:
        ValueError: files are missing, damaged or contradict each other.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        heads = (self.directory / name for name in (WEIGHTS, INDEX))
        self.path = next((path for path in heads if path.is_file()), self.directory)
        """What the tensors were found by."""
        self._stored: dict[str, Stored] = {}
        for file, named in _files(self.directory):
            tensors = _header(file)
            if named is not None and (problems := differences(named, tensors)):
                raise ValueError(f"{file} does not fit {INDEX}: it {'; it '.join(problems)}")
            if twice := self._stored.keys() & tensors.keys():
                raise ValueError(f"{file} {_listing('repeats', twice)[0]}, which a shard before it has")
            self._stored |= tensors

    def __getitem__(self, name: str) -> Stored:
        return self._stored[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def read(self, name: str) -> Tensor:
        """A tensor, whose memory may be that of the file: copy what is to be kept or changed."""
        stored = self[name]
        # Opened anew for each, so that no more of a file than the tensors in use lies in memory.
        with _opened(stored.file) as file:
            tensor = file.get_tensor(name)
        if (tuple(tensor.shape), tensor.dtype) != stored[:2]:
            raise ValueError(f"{stored.file} has changed while it was read: {name} is another; read it again")
        return tensor


class Planned(NamedTuple):
    """A tensor that is to be written, and made when its turn comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """In bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_weights(
    directory: Path, tensors: Mapping[str, Planned], *, shard: int | None = None, numbered: bool = False
) -> None:
    """Write tensors as `WeightFiles` finds them, holding no more than one of them in memory.

    Args:
        directory: exists.
        shard: bytes that a file should not exceed; None: all go into one.
        numbered: call shards model_0.safetensors and so on, without an index.
    """
    shards = _shares(tensors, shard)
    if len(shards) == 1:
        return _write(directory / WEIGHTS, tensors)
    pattern = "model_{n}.safetensors" if numbered else "model-{next:05}-of-{total:05}.safetensors"
    files = [pattern.format(n=n, next=n + 1, total=len(shards)) for n in range(len(shards))]
    for file, names in zip(files, shards, strict=True):
        _write(directory / file, {name: tensors[name] for name in names})
    if not numbered:
        total = sum(planned.size for planned in tensors.values())
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return None


def differences(wanted: Mapping[str, Any] | Iterable[str], found: Mapping[str, Stored | Planned]) -> list[str]:
    """What tensors a file lacks, has too many, or has in another shape or kind than `wanted`, which have shape and
    dtype, or are names alone; each as the end of a sentence."""
    names = set(wanted)
    problems = [*_listing("lacks", names - found.keys()), *_listing("has unknown", found.keys() - names)]
    if isinstance(wanted, Mapping):
        pairs = [(name, wanted[name], found[name]) for name in names & found.keys()]
        shapes = (f"{n} {f.shape} instead of {tuple(w.shape)}" for n, w, f in pairs if tuple(w.shape) != f.shape)
        kinds = (
            f"{n} of {_name(f.dtype)} instead of {'floats' if w.dtype.is_floating_point else _name(w.dtype)}"
            for n, w, f in pairs
            if w.dtype != f.dtype and not (w.dtype.is_floating_point and f.dtype.is_floating_point)
        )
        problems += [*_listing("has misshapen", shapes), *_listing("has", kinds)]
    return problems


def printable(text: str, most: int = 200) -> str:
    """A text from a file that anyone may have written, fit for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:most])


def read_text(path: Path) -> str:
    """A text file of modest size.

    Raises:
        ValueError: it is larger, or not UTF-8.
    """
    size = path.stat().st_size
    if size > MOST_TEXT:
        raise ValueError(f"{path} has {size} bytes; expected at most {MOST_TEXT}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file of modest size.

    Raises:
        ValueError: it is larger, or not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError is also what numbers of thousands of digits give
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _files(directory: Path) -> Iterator[tuple[Path, list[str] | None]]:
    """The files of a directory, and the names of the tensors in each if an index tells them."""
    if (directory / WEIGHTS).is_file():
        yield directory / WEIGHTS, None
    elif (directory / INDEX).is_file():
        shards = _shards(directory / INDEX)
        if missing := [name for name in shards if not (directory / name).is_file()]:
            raise ValueError(f"{directory} {_listing('lacks', missing)[0]}, which {INDEX} names; fetch it again")
        for name, tensors in shards.items():
            yield directory / name, tensors
    elif (directory / "model_0.safetensors").is_file():
        for n in count():
            if not (path := directory / f"model_{n}.safetensors").is_file():
                return
            yield path, None
    else:
        raise ValueError(_no_weights(directory))


def _no_weights(directory: Path) -> str:
    pickles = sorted(path.name for path in directory.glob("*") if path.suffix in _PICKLES)
    if not pickles:
        return f"no weights: {directory / WEIGHTS} does not exist"
    return (
        f"no weights: {directory / WEIGHTS} does not exist, and {pickles[0]} is a pickle, which is not opened because "
        f"that can run anything; save the tensors with safetensors.torch.save_file"
    )


def _shards(index: Path) -> dict[str, list[str]]:
    """The shards that an index names, and the tensors in each."""
    values = read_json(index)
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{index} has no weight_map from names of tensors to names of files")
    for file in sorted({*places.values()}):
        if "/" in file or "\\" in file or "\0" in file or not file.endswith(".safetensors"):
            raise ValueError(f"{index} names the file {file!r}; expected a safetensors file beside it")
    ordered = sorted(places, key=lambda name: places[name])
    return {file: [*names] for file, names in groupby(ordered, key=lambda name: places[name])}


def _header(path: Path) -> dict[str, Stored]:
    """The tensors in a file."""
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
    if length > min(path.stat().st_size, MOST_TEXT):
        raise ValueError(f"{path} is damaged or no safetensors file: its header would have {length} bytes")
    stored = {}
    with _opened(path) as file:
        names = file.keys()
        for name in names:
            part = file.get_slice(name)
            if (code := part.get_dtype()) not in _DTYPES:
                raise ValueError(f"{path} has {printable(name)} of {code}; expected one of {', '.join(_DTYPES)}")
            stored[name] = Stored(tuple(part.get_shape()), _DTYPES[code], path)
    return stored


def _opened(path: Path) -> Any:
    """`safe_open`, which checks that the header describes every byte of the file once."""
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def _shares(tensors: Mapping[str, Planned], most: int | None) -> list[list[str]]:
    """The names in shares of at most so many bytes, or of one tensor, in order."""
    shares: list[list[str]] = [[]]
    filled = 0
    for name, planned in tensors.items():
        if most is not None and shares[-1] and filled + planned.size > most:
            shares.append([])
            filled = 0
        shares[-1].append(name)
        filled += planned.size
    return shares


def _write(path: Path, tensors: Mapping[str, Planned]) -> None:
    """A safetensors file: the length of a header, the header, and the tensors, the widest numbers first."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        planned = tensors[name]
        begin, end = end, end + planned.size
        header[name] = {"dtype": _CODES[planned.dtype], "shape": planned.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = tensors[name].make()
            assert (tuple(tensor.shape), tensor.dtype) == tensors[name][:2], name
            file.write(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _listing(what: str, names: Iterable[str], most: int = 8) -> list[str]:
    names = [printable(name) for name in sorted(names)]
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return [f"{what} {', '.join(names[:most] + more)}"] if names else []


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
