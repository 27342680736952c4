"""Weights in files that anyone may have written: read lazily, checked whole, and told what is wrong in one sentence."""

import json
import pickle
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exlstm.models import LanguageModel
from exlstm.models.weight_files import INDEX, WEIGHTS, Planned, WeightFiles, read_json, write_weights
from tests.memory import growths_printed_by, needs_proc

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor([1.5], dtype=torch.bfloat16),
    "c": torch.tensor(3),
    "d": torch.zeros(0, 4, dtype=torch.float64),
    "e": torch.tensor([True, False, True]),
    "f": torch.randn(40, dtype=torch.float16),
}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def planned(tensors: dict[str, torch.Tensor]) -> dict[str, Planned]:
    return {name: Planned(tuple(x.shape), x.dtype, lambda x=x: x) for name, x in tensors.items()}


def assert_holds(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    files = WeightFiles(directory)
    assert set(files) == set(tensors)
    for name, x in tensors.items():
        assert (files[name].shape, files[name].dtype) == (tuple(x.shape), x.dtype)
        assert torch.equal(files.read(name), x)


def raw(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def test_one_file_is_what_safetensors_reads(tmp_path):
    write_weights(tmp_path, planned(TENSORS))
    assert_holds(tmp_path, TENSORS)
    read = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(read[name], x) for name, x in TENSORS.items())


def test_shards_are_found_by_their_index_or_their_numbers(tmp_path):
    for numbered, directory in ((False, tmp_path / "index"), (True, tmp_path / "numbers")):
        directory.mkdir()
        write_weights(directory, planned(TENSORS), shard=25, numbered=numbered)
        assert len(list(directory.glob("*.safetensors"))) > 2
        assert (directory / INDEX).exists() != numbered
        assert_holds(directory, TENSORS)
    index = json.loads((tmp_path / "index" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(x.numel() * x.dtype.itemsize for x in TENSORS.values())


def test_a_model_may_be_in_shards(tmp_path):
    model = LanguageModel(vocabulary=7, pattern="ms", width=16, heads=2)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    write_weights(tmp_path, planned(weights), shard=5000)
    again = LanguageModel.from_pretrained(tmp_path)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_tensors_are_not_read_before_they_are_asked_for(tmp_path, monkeypatch):
    write_weights(tmp_path, planned(TENSORS))
    files = WeightFiles(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError):
        files.read("a")
    write_weights(tmp_path, planned({**TENSORS, "a": torch.zeros(3, 2)}))
    with pytest.raises(ValueError, match="has changed while it was read"):
        files.read("a")


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({"a": ENTRY}, b"\0" * 7, None),  # truncated
        ({"a": ENTRY}, b"\0" * 9, None),  # bytes of nobody
        ({"a": ENTRY, "b": ENTRY}, b"\0" * 8, None),  # overlapping
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [12, 20]}}, b"\0" * 20, None),  # a hole
        ({"a": {**ENTRY, "data_offsets": [0, 2**60]}}, b"\0" * 8, None),
        ({"a": {**ENTRY, "shape": [2**40, 2**40]}}, b"\0" * 8, None),
        ({"a": {**ENTRY, "shape": [-2]}}, b"\0" * 8, None),
        ({"a": {**ENTRY, "dtype": "F99"}}, b"\0" * 8, None),
        ({"a": ENTRY}, b"\0" * 8, 2**62),  # a header larger than the file
        ({"a": ENTRY}, b"\0" * 8, 2**64 - 1),
        (b"[" * 100_000, b"", None),
        (b"not json", b"", None),
        (b"", b"", None),
    ],
)
def test_a_damaged_or_hostile_file_is_named(tmp_path, header, data, length):
    raw(tmp_path / WEIGHTS, header, data, length=length)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or no safetensors file"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("size", [0, 3, 8, 40, 200, -1])
def test_a_file_cut_off_anywhere_is_named(tmp_path, size):
    write_weights(tmp_path, planned(TENSORS))
    path = tmp_path / WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="is damaged"):
        WeightFiles(tmp_path)


def test_a_header_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", 2**25))
        file.truncate(2**26)  # a hole, which takes no space
    with pytest.raises(ValueError, match="its header would have 33554432 bytes"):
        WeightFiles(tmp_path)


def test_numbers_of_a_kind_that_is_not_known_are_named(tmp_path):
    raw(tmp_path / WEIGHTS, {"a": {**ENTRY, "dtype": "F8_E4M3", "data_offsets": [0, 2]}}, b"\0" * 2)
    with pytest.raises(ValueError, match="has a of F8_E4M3; expected one of F64, F32"):
        WeightFiles(tmp_path)


@pytest.fixture
def sharded(tmp_path):
    write_weights(tmp_path, planned(TENSORS), shard=25)
    return tmp_path


def change(directory: Path, **places: str | None) -> None:
    """Let the index say other files."""
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"] = {n: f for n, f in (index["weight_map"] | places).items() if f is not None}
    (directory / INDEX).write_text(json.dumps(index))


def test_a_missing_shard_is_named(sharded):
    first = min(sharded.glob("*.safetensors"))
    first.unlink()
    with pytest.raises(ValueError, match=f"lacks {first.name}, which {INDEX} names"):
        WeightFiles(sharded)


def test_a_shard_that_the_index_does_not_describe_is_named(sharded):
    place = json.loads((sharded / INDEX).read_text())["weight_map"]["b"]
    change(sharded, z=place)
    with pytest.raises(ValueError, match=f"{place} does not fit {INDEX}: it lacks z"):
        WeightFiles(sharded)
    change(sharded, z=None, b=None)
    with pytest.raises(ValueError, match=f"(does not fit {INDEX}: it has unknown b)|(it has unknown b)"):
        WeightFiles(sharded)


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", "..\\x.safetensors", "model.bin", "",
     "x\0.safetensors"],
)  # fmt: skip
def test_an_index_leads_to_no_file_elsewhere(sharded, name):
    save_file({"a": TENSORS["a"]}, sharded.parent / "secret.safetensors")
    change(sharded, a=name)
    with pytest.raises(ValueError, match="expected a safetensors file beside it"):
        WeightFiles(sharded)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": null}}']
)
def test_an_index_without_a_map_is_named(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ValueError, match="has no weight_map"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("text", [b"{", b"[" * 200_000, b'{"a": \xff}'])
def test_text_that_is_no_json_is_named(tmp_path, text):
    (tmp_path / INDEX).write_bytes(text)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is not"):
        WeightFiles(tmp_path)


def test_text_without_end_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="expected at most 16777216"):
        read_json(tmp_path / "config.json")


def test_a_tensor_in_two_numbered_shards_is_named(tmp_path):
    for number in range(2):
        save_file({"a": TENSORS["a"]}, tmp_path / f"model_{number}.safetensors")
    with pytest.raises(ValueError, match=r"model_1\.safetensors repeats a, which a shard before it has"):
        WeightFiles(tmp_path)


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", WEIGHTS])
def test_nothing_is_unpickled(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ValueError, match=r"is a pickle, which is not opened|is damaged or no safetensors file"):
        WeightFiles(tmp_path)
    assert not (tmp_path / "exploded").exists()
    pickle.loads((tmp_path / name).read_bytes())
    assert (tmp_path / "exploded").exists()  # it would have


def test_names_cannot_write_to_a_terminal(tmp_path):
    model = LanguageModel(vocabulary=7, pattern="m", width=16, heads=2)
    model.save_pretrained(tmp_path)
    save_file({"\x1b[2J\nclear" + "x" * 1000: torch.zeros(1)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError) as error:
        LanguageModel.from_pretrained(tmp_path)
    assert re.search(r"unknown \?\[2J\?clearx{190}(?!x)", str(error.value))


def test_integers_in_place_of_floats_are_named(tmp_path):
    model = LanguageModel(vocabulary=7, pattern="m", width=16, heads=2)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    weights["head.weight"] = weights["head.weight"].to(torch.int32)
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"it has head\.weight of int32 instead of floats"):
        LanguageModel.from_pretrained(tmp_path)


@needs_proc
def test_a_large_model_is_built_without_drawing_its_weights_first(tmp_path):
    """What a fresh process needs to load a model is the model, not the model twice."""
    model = LanguageModel(vocabulary=40_000, pattern="m", width=512, heads=4)
    size = sum(p.numel() * 4 for p in model.parameters())
    model.save_pretrained(tmp_path)
    code = (
        "import sys\n"
        "from benchmarks.memory import growth\n"
        "from exlstm.models import LanguageModel\n"
        "print(growth(lambda: LanguageModel.from_pretrained(sys.argv[1])))\n"
    )
    [grown] = growths_printed_by(code, tmp_path)
    # One tensor of the file lies in memory beside its copy.
    assert grown < size + 40_000 * 512 * 4 + 30_000_000
