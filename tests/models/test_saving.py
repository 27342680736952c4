import json
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import exlstm
from exlstm.models import Backbone, LanguageModel, Pretrained, Seq2Seq, saving
from exlstm.models.config import config_from_dict, config_to_dict
from tests.models.forecaster_cases import fitted, hourly
from tests.process import printed_by


@dataclass(frozen=True)
class ToyConfig:
    pattern: str = "ms"
    width: int = 8
    dropout: float = 0.0
    style: Literal["paper", "large"] = "paper"
    columns: tuple[str, ...] = ()
    horizon: int | None = None


class Toy(Pretrained):
    config_class = ToyConfig
    model_type = "toy"

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.pattern, config.width, 2, dropout=config.dropout, style=config.style)
        self.read_in, self.read_out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.read_out.weight = self.read_in.weight
        self.register_buffer("scale", torch.rand(3))


@pytest.fixture
def saved(tmp_path):
    model = Toy(ToyConfig(columns=("a", "b"), horizon=3))
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def test_a_saved_model_comes_back_whole(saved):
    model, directory = saved
    twin = Toy.from_pretrained(directory)
    assert twin.config == model.config
    assert not twin.training
    torch.testing.assert_close(twin.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert twin.read_out.weight is twin.read_in.weight
    assert {path.name for path in directory.iterdir()} == {"config.json", "model.safetensors"}


def test_the_config_says_what_it_describes_and_who_wrote_it(saved):
    config = json.loads((saved[1] / "config.json").read_text())
    assert config["model_type"] == "toy"
    assert config["exlstm_version"] == exlstm.__version__
    assert config["columns"] == ["a", "b"]


def test_the_dtype_is_kept_and_loading_draws_no_random_numbers(tmp_path):
    model = Toy(ToyConfig()).bfloat16()
    model.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    twin = Toy.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.dtype for p in twin.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(twin.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_other_files_survive_and_a_second_model_replaces_the_first(saved):
    _, directory = saved
    (directory / "scaler.json").write_text("{}")
    other = Toy(ToyConfig(pattern="a"))
    other.save_pretrained(directory)
    torch.testing.assert_close(Toy.from_pretrained(directory).state_dict(), other.state_dict(), rtol=0, atol=0)
    assert (directory / "scaler.json").exists()


@pytest.mark.parametrize("broken", ["save_file", "fsync"])
def test_a_save_that_fails_leaves_the_old_model(saved, monkeypatch, broken):
    model, directory = saved

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(saving if broken == "save_file" else saving.os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        Toy(ToyConfig(pattern="a")).save_pretrained(directory)
    torch.testing.assert_close(Toy.from_pretrained(directory).state_dict(), model.state_dict(), rtol=0, atol=0)
    assert {path.name for path in directory.iterdir()} == {"config.json", "model.safetensors"}


def test_a_save_cut_off_between_weights_and_config_is_no_model(saved, monkeypatch):
    _, directory = saved
    replace = saving.Path.replace

    def killed(path, target):
        replace(path, target)
        raise OSError("killed")

    monkeypatch.setattr(saving.Path, "replace", killed)
    with pytest.raises(OSError, match="killed"):
        Toy(ToyConfig(dropout=0.5)).save_pretrained(directory)
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        Toy.from_pretrained(directory)


def test_damaged_or_missing_files_are_named(saved):
    _, directory = saved
    weights, config = directory / "model.safetensors", directory / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    for size in (0, 5, 100, len(whole) - 1):
        weights.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            Toy.from_pretrained(directory)
    weights.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors does not exist"):
        Toy.from_pretrained(directory)
    config.write_text(text[:-10])
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        Toy.from_pretrained(directory)
    config.write_text("[]")
    with pytest.raises(ValueError, match="model_type"):
        Toy.from_pretrained(directory)
    with pytest.raises(ValueError, match="no model in"):
        Toy.from_pretrained(directory / "elsewhere")


def test_tensors_that_do_not_fit_are_named(saved):
    _, directory = saved
    path = directory / "model.safetensors"
    weights = load_file(path)
    del weights["scale"]
    weights["backbone.norm.weight"] = torch.ones(9)
    weights["stray"] = torch.ones(1)
    save_file(weights, path)
    with pytest.raises(ValueError, match="does not fit Toy") as error:
        Toy.from_pretrained(directory)
    for words in ("lacks scale", "has unknown stray", "backbone.norm.weight (9,) instead of (8,)"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "cow"}, "of type 'cow', expected 'toy'"),
        ({"wide": 3}, "has unknown wide"),
        ({"width": None}, r"config.json.width must be int, got None"),
        ({"width": 8.0}, r"width must be int, got 8.0"),
        ({"width": True}, r"width must be int, got True"),
        ({"style": "huge"}, "style must be"),
        ({"dropout": 10**400}, r"dropout must be float, got 10+\.\.\.0+$"),
        ({"columns": ["a", 1]}, "columns.1. must be str, got 1"),
        ({"horizon": "3"}, "horizon must be"),
        ({"pattern": "xyz"}, "pattern must be"),
    ],
)
def test_config_values_that_do_not_fit_are_named(saved, change, message):
    path = saved[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Toy.from_pretrained(saved[1])


@pytest.mark.parametrize("width", [2**40, 10**30])
def test_sizes_beyond_any_memory_are_refused_before_anything_is_made(saved, width):
    path = saved[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"width": width}))
    with pytest.raises(ValueError, match="larger than any memory"):
        Toy.from_pretrained(saved[1])


def test_a_config_field_that_is_missing_is_named(saved):
    path = saved[1] / "config.json"
    values = json.loads(path.read_text())
    del values["dropout"], values["width"]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="lacks dropout, width"):
        Toy.from_pretrained(saved[1])


@dataclass(frozen=True)
class Outer:
    inner: ToyConfig
    pair: tuple[int, float]
    maybe: ToyConfig | None = None


@pytest.mark.parametrize("maybe", [None, ToyConfig(pattern="h")])
def test_configs_may_nest(maybe):
    outer = Outer(ToyConfig(columns=("x",)), (1, 2.5), maybe)
    assert config_from_dict(Outer, json.loads(json.dumps(config_to_dict(outer)))) == outer
    with pytest.raises(ValueError, match=r"config.pair must be tuple\[int, float\]"):
        config_from_dict(Outer, json.loads(json.dumps(config_to_dict(outer) | {"pair": [1]})))


def test_loading_and_running_a_model_does_not_import_the_compiler(tmp_path):
    """Which would take a second of every command; operations on tensors without memory do, unless they are spared."""
    LanguageModel(vocabulary=9, pattern="msha", width=16, heads=2).save_pretrained(tmp_path / "LanguageModel")
    Seq2Seq(vocabulary=9, width=16, heads=2, bos=1, eos=2).save_pretrained(tmp_path / "Seq2Seq")
    fitted(hourly()).save_pretrained(tmp_path / "Forecaster")
    code = """if True:
        import sys
        from exlstm import models
        from tests.models.forecaster_cases import hourly

        place, tokens = sys.argv[1], [[5, 6, 7]]
        text = models.LanguageModel.from_pretrained(place + "/LanguageModel").generate(tokens, most=3)
        pair = models.Seq2Seq.from_pretrained(place + "/Seq2Seq").generate(tokens, most=3)
        table = models.Forecaster.from_pretrained(place + "/Forecaster").predict(hourly(), 12)
        print(len(text.tokens), len(pair.tokens), len(table), "torch._dynamo" in sys.modules)
        """
    assert printed_by(code, tmp_path) == ["1", "1", "12", "False"]
