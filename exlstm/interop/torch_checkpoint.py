"""Checkpoints of `torch.save`, read without running anything that they hold."""

import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from exlstm.models.weight_files import MOST_TEXT

# What tensors and plain values are made of. `torch.load(weights_only=True)` knows more, which can ask for any amount of
# memory: bytearray(n), torch.Tensor(n, n), and _codecs.encode(x, "hex"), which doubles x every time.
_HARMLESS = re.compile(
    r"collections (OrderedDict|Counter)|builtins (set|complex)|__builtin__ (set|complex)"
    r"|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)|torch\.nn\.parameter Parameter"
    r"|torch ([A-Z][A-Za-z0-9]*Storage|Size|device|float\w*|bfloat16|int\w*|uint\w*|bool)"
)

_CALLS = ("INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")  # as no `torch.save` writes them


def read_checkpoint(path: Path) -> Any:
    """What `torch.save` wrote, its tensors on the CPU and in the memory of the file: copy what is to be kept.

    Raises:
        ValueError: the file is damaged, none of `torch.save`'s, or holds other things than tensors and plain values.
    """
    described = _description(path)
    try:
        for opcode, argument, _ in pickletools.genops(described):
            called = argument if opcode.name == "GLOBAL" else opcode.name if opcode.name in _CALLS else None
            if called is not None and not _HARMLESS.fullmatch(called):
                raise ValueError(f"it calls {called[:100]!r}, which is not opened as it may run or allocate anything")
        # Mapped to memory, a tensor cannot reach beyond the file, whatever size it claims to have.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no checkpoint of tensors and plain values: {error}") from error
    except Exception as error:  # of many kinds, whatever a damaged description leads to
        kind = type(error).__name__
        raise ValueError(f"{path} is damaged or no checkpoint of tensors and plain values ({kind})") from error


def description_holds(path: Path, *texts: str) -> bool:
    """Whether `path` is a checkpoint of `torch.save` whose names and values include all `texts`; opens no pickle."""
    try:
        found = _description(path)
    except (ValueError, OSError):
        return False
    return all(text.encode() in found for text in texts)


def _description(path: Path) -> bytes:
    """The pickle that says what the tensors are; without anything that would be read in two ways."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(_pickle_among(archive.infolist()))
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError) as error:  # as `zipfile` has them for damage
        said = str(error) or "it ends too early"
        raise ValueError(f"{path} is damaged or no checkpoint of torch.save: {said}") from error


def _pickle_among(files: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    pickles = [file for file in files if re.fullmatch(r"[^/]+/data\.pkl", file.filename)]
    if len(pickles) != 1 or len({file.filename.partition("/")[0] for file in files}) != 1:
        raise ValueError("it needs one folder with a data.pkl")
    if len({file.filename.lower() for file in files}) != len(files):
        raise ValueError("it holds several files of one name")
    if any(file.compress_type != zipfile.ZIP_STORED for file in files):
        raise ValueError("it holds compressed files, which torch.save does not write")
    if pickles[0].file_size > MOST_TEXT:
        raise ValueError(f"it describes its tensors in {pickles[0].file_size} bytes; at most {MOST_TEXT} are read")
    return pickles[0]
