"""Checkpoints that are damaged, hostile or of something else end in one sentence, and run and allocate nothing."""

import codecs
import pickle
import resource
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from exlstm.interop import tirex
from tests.interop.tirex_cases import SMALL, hyper_parameters, random_weights, write

PROJ = "block_stack.blocks.1.ffn.proj_up.weight"


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "model.ckpt")


@pytest.fixture
def bounded_memory():
    """1 GiB beyond what is in use: whoever asks for more gets a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def rewritten(path, change):
    """The archive with `change` made to the dict of its files."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files = change(files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def described_by(path, pickled):
    return rewritten(path, lambda files: {n: pickled if n.endswith("data.pkl") else f for n, f in files.items()})


def refused(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        tirex.load(path)
    assert len(str(caught.value)) < 2000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert not tirex.is_tirex(path)
    refused(path, "is damaged or no checkpoint")


@pytest.mark.parametrize(
    ("place", "content"),
    [(6, b"\xff"), (8, b"\x01"), (8, b"\x20"), (20, 2 * (2**20).to_bytes(4, "little"))],
    ids=["version", "encrypted", "patched", "longer than the file"],
)
def test_an_archive_that_zipfile_does_not_read_is_refused(path, place, content):
    archive = bytearray(path.read_bytes())
    place += archive.index(b"PK\1\2")  # where the central directory has data.pkl
    archive[place : place + len(content)] = content
    path.write_bytes(archive)
    assert not tirex.is_tirex(path)
    refused(path, "is damaged or no checkpoint of torch.save: .")


@pytest.mark.parametrize("place", range(0, 600, 7))
def test_a_damaged_description_is_refused_or_names_what_is_wrong(path, place):
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        content = bytearray(archive.read(name))
    content[place] ^= 0xFF
    described_by(path, bytes(content))
    try:
        tirex.load(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_is_run(path, tmp_path, protocol):
    import os

    described_by(path, pickle.dumps({"state_dict": Hostile(os.mkdir, str(tmp_path / "made"))}, protocol=protocol))
    refused(path, "calls .*(mkdir|STACK_GLOBAL).*, which is not opened")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "bomb",
    [
        (bytearray, 2**42),
        (torch.Tensor, 2**20, 2**20),
        (torch.storage.UntypedStorage, 2**42),
        (codecs.encode, b"bytes", "hex"),
    ],
    ids=lambda bomb: bomb[0].__name__,
)
def test_a_description_that_asks_for_memory_is_refused(path, bomb, bounded_memory):
    described_by(path, pickle.dumps({"state_dict": Hostile(*bomb)}, protocol=2))
    refused(path, "which is not opened")


def test_a_plain_pickle_is_not_opened(path, tmp_path):
    path.write_bytes(pickle.dumps({"state_dict": {}}))
    refused(path, "is damaged or no checkpoint of torch.save")
    torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)
    refused(path, "is damaged or no checkpoint of torch.save")


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(path, bounded_memory):
    """All shapes fit, but in each tensor one number stands for all."""
    width = 2**20
    hyper = hyper_parameters(SMALL)
    hyper["block_kwargs"] = hyper["block_kwargs"] | {"embedding_dim": width, "num_heads": width, "num_blocks": 1}
    vast = {
        name: torch.zeros(1).expand(
            *(width if n == SMALL.width else 4 * width if n == 4 * SMALL.width else n for n in w.shape)
        )
        for name, w in random_weights(SMALL._replace(blocks=1)).items()
        if not (".slstm_layer." in name and w.dim() == 3)
    }
    gates = torch.zeros(1).expand(width, 1, 1)
    vast |= {f"block_stack.blocks.0.slstm_layer.{gate}gate.weight": gates for gate in "fizo"}
    vast["block_stack.blocks.0.slstm_layer.slstm_cell._recurrent_kernel_"] = torch.zeros(1).expand(width, 1, 4)
    write(path, hyper_parameters=hyper, state_dict=vast)
    assert path.stat().st_size < 2**20
    refused(path, "its tensors would have [0-9]+ bytes, more than the file")


def test_a_storage_beyond_the_end_of_the_file_is_refused(path):
    """The description's number of elements is raised by a factor of 2 ** 20 or so."""
    big = OrderedDict({"x": torch.zeros(70_000)})
    torch.save({"hyper_parameters": {}, "state_dict": big}, path)
    claimed = (70_000).to_bytes(4, "little")
    with zipfile.ZipFile(path) as archive:
        content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert content.count(claimed) == 2
    described_by(path, content.replace(claimed, (70_000_000).to_bytes(4, "little")))
    refused(path, "is damaged or no checkpoint")


def test_compressed_and_doubled_files_are_refused(path):
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    refused(path, "compressed")
    path.write_bytes(whole)
    rewritten(path, lambda files: files | {"model/DATA/0": b"other"})
    refused(path, "several files of one name")
    path.write_bytes(whole)
    rewritten(path, lambda files: files | {"other/data.pkl": b""})
    refused(path, "one folder with a data.pkl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(PROJ), r"lacks blocks\.1\.ffn\.proj_up\.weight"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(2)}), r"has unknown lm_head\.weight"),
        (
            lambda w: w.update({PROJ: torch.zeros(64, 25)}),
            r"has misshapen blocks\.1\.ffn\.proj_up\.weight .*64, 25.* instead",
        ),
        (
            lambda w: w.update({PROJ: torch.zeros(64, 24, dtype=torch.int64)}),
            r"blocks\.1\.ffn\.proj_up\.weight of int64",
        ),
        (lambda w: w.update({PROJ: [1.0]}), "in its state_dict, which is no tensor"),
        (lambda w: w.update({PROJ.removeprefix("block_stack."): w[PROJ]}), "twice, with and without"),
        (lambda w: w.clear(), "has 0 tensors, too few for 2 blocks"),
    ],
    ids=["missing", "unknown", "misshapen", "integers", "no tensor", "twice", "none"],
)
def test_tensors_that_do_not_fit_are_named(path, change, message):
    weights = random_weights(SMALL)
    change(weights)
    refused(write(path, state_dict=weights), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_patch_size": None}, "input_patch_size = None"),
        ({"input_patch_size": True}, "input_patch_size = True"),
        ({"output_patch_size": 8}, "reads patches of 4 steps and gives 8"),
        ({"quantiles": [0.1, 0.5, 0.9]}, "has quantiles"),
        ({"quantiles": "x" * 10**6}, "has quantiles"),
        ({"block_kwargs": None}, "has no block_kwargs"),
        ({"block_kwargs": {"embedding_dim": 24, "num_blocks": 10**12, "num_heads": 3}}, "too few for"),
        ({"block_kwargs": {"embedding_dim": 2**60, "num_blocks": 2, "num_heads": 1}}, "misshapen"),
        ({"block_kwargs": {"embedding_dim": 24, "num_blocks": 2, "num_heads": 5}}, "equal heads"),
        ({"train_ctx_len": 2**40}, "hyperparameters of no TiRex: expected a context"),
        ({"train_ctx_len": 33}, "hyperparameters of no TiRex: expected a context"),
    ],
)
def test_hyperparameters_that_do_not_fit_are_named(path, changes, message, bounded_memory):
    refused(write(path, hyper_parameters=hyper_parameters(SMALL) | changes), message)


@pytest.mark.parametrize("content", [[], {"state_dict": {}}, {"hyper_parameters": {}, "state_dict": [1]}])
def test_other_checkpoints_are_refused(path, content):
    torch.save(content, path)
    assert not tirex.is_tirex(path)
    refused(path, "is no checkpoint of TiRex: it has no dict")


def test_a_checkpoint_is_recognised_without_being_opened(path, tmp_path):
    assert tirex.is_tirex(path)
    assert tirex.is_tirex(tmp_path)
    assert not tirex.is_tirex(tmp_path / "nowhere")
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, tmp_path / "other.pt")
    assert not tirex.is_tirex(tmp_path / "other.pt")


def test_a_conversion_that_fails_midway_leaves_nothing(path, tmp_path, monkeypatch):
    from exlstm.models import saving

    monkeypatch.setattr(saving.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        tirex.convert(path, tmp_path / "tirex")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_other_precisions_and_entries_that_change_nothing_are_taken(path, tmp_path, capsys):
    weights = random_weights(SMALL)
    half = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    hyper = hyper_parameters(SMALL) | {"dropout": 0.1, "[/b]\x1b": 1}
    taken = tirex.load(write(path, state_dict=half, hyper_parameters=hyper, epoch=3))
    assert "hyperparameters not used: [/b]?, dropout" in capsys.readouterr().err
    exact = tirex.load(write(tmp_path / "exact.ckpt", state_dict={n: w.float() for n, w in half.items()}))
    assert all(torch.equal(a, b) for a, b in zip(taken.parameters(), exact.parameters(), strict=True))
    path.unlink()  # the model does not live in the file's memory
    assert bool(taken.quantiles(torch.randn(1, 40), 3).isfinite().all())
