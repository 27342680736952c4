"""Exported forecasters give the forecaster's own quantiles, whole or patch by patch, and the same states."""

import json

import numpy as np
import pytest
import torch

from exlstm.data.series import evaluation_windows, read_series
from exlstm.interop.export import BOUND, export, graphs_of, to_openvino
from exlstm.interop.export.forecast import of_patches, quantiles_of, window_inputs
from exlstm.interop.export.graph import piece
from exlstm.interop.export.trials import try_forecaster
from exlstm.train import TrainConfig
from tests.models.forecaster_cases import hourly, small

HORIZON = 14
COLUMNS = {"future": ("holiday",), "past": ("warmth",), "static": ("region", "size")}


def series(days: int = 8):
    """Two hourly series with gaps, of which one begins in the middle of the other, and columns of every kind."""
    frame = hourly(days, names=("a", "b"))
    step = np.arange(len(frame))
    frame = frame.assign(
        holiday=(step % 50 < 5).astype(float),
        warmth=np.cos(step / 5),
        region=np.where(frame.unique_id == "a", "north", "south"),
        size=np.where(frame.unique_id == "a", 3.0, 7.0),
    )
    frame.loc[frame.index[[5, 60, 150, 151]], ["y", "warmth"]] = np.nan
    late = (frame.unique_id == "b") & (frame.ds < frame.ds.max() - np.timedelta64(40, "h"))
    return frame[~late].reset_index(drop=True)


def trained(**fields):
    torch.manual_seed(3)
    recipe = TrainConfig(steps=4, lr=1e-2, ema=0.9, eval_every=4)
    return small(**fields).fit(series(), HORIZON, train=recipe, console=False, **COLUMNS).eval()


def windows(forecaster, horizon: int = HORIZON):
    kind = forecaster.series
    data = read_series(series(), **COLUMNS).with_categories(dict(kind.categories))
    batch = evaluation_windows(data, kind.history, horizon, 2, horizon, cycles=kind.cycles)
    assert not bool(batch.inside.all()), "no window that reaches back before its series"
    return batch


@pytest.fixture(scope="module")
def forecaster():
    return trained(members=2)


@pytest.mark.parametrize("horizon", [1, 12, 14, 30])
def test_the_graphs_are_the_forecaster_at_any_horizon_in_whatever_pieces(forecaster, horizon):
    kind, batch = forecaster.series, windows(forecaster, horizon)
    with torch.no_grad():
        expected = forecaster(batch).quantiles.mean(1)
    prepare, chunk, step = graphs_of(forecaster)
    made = piece(prepare.module, window_inputs(kind, batch))
    whole = piece(chunk.module, [*made, *chunk.empty_state(len(expected))])
    torch.testing.assert_close(quantiles_of(kind, whole[0], horizon), expected, rtol=1e-5, atol=1e-5)
    context, patches = kind.context // kind.patch, made[0].shape[1]
    found = piece(chunk.module, [*of_patches(made, slice(context)), *chunk.empty_state(len(expected))])
    for n in range(context, patches):
        found = piece(step.module, [*of_patches(made, n), *found[1:]])
        torch.testing.assert_close(found[0], whole[0][:, n], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found[1:], whole[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_in_torch_alone(forecaster, tmp_path):
    exported = export(forecaster, tmp_path, "torch-export")
    for name, found in try_forecaster(exported, forecaster, windows(forecaster), steps=40).items():
        assert found.largest <= BOUND, f"{name}: {found}"
    about = json.loads((tmp_path / "graph.json").read_text())
    kind = forecaster.series
    assert (
        about["model"] | {"horizon": HORIZON, "future": ["holiday"], "categories": {"region": ["north", "south"]}}
        == (about["model"])
    )
    steps = f"{kind.patch} ahead + {kind.history}"
    assert {"name": "inside", "dtype": "bool", "shape": ["batch", steps]} in about["graphs"]["prepare"]["inputs"]
    made, taken = about["graphs"]["prepare"]["outputs"], about["graphs"]["chunk"]["inputs"]
    assert [port["name"] for port in made] == [port["name"] for port in taken]
    assert made[0]["shape"][1:2] == [f"ahead + {kind.context // kind.patch}"]
    assert taken[0]["shape"][1:2] == ["patches"]


def test_what_is_not_known_is_not_read(forecaster):
    kind = forecaster.series
    prepare, *_ = graphs_of(forecaster)
    window = window_inputs(kind, windows(forecaster))
    before = piece(prepare.module, window)
    outside = ~window[1]
    spoilt = [*window]
    names = [port.name for port in prepare.inputs]
    for name in ("y", "future", "past"):
        place = names.index(name)
        there = outside[:, : spoilt[place].shape[1]]
        there = there if spoilt[place].dim() == 2 else there[..., None]
        spoilt[place] = torch.where(there, 1e6, spoilt[place])
    for ours, theirs in zip(piece(prepare.module, spoilt), before, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["ms", "ha"])
def test_a_thousand_patches_in_onnx_runtime_and_openvino(pattern, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(name)
    forecaster = trained(pattern=pattern)
    exported = export(forecaster, tmp_path, "onnx")
    for name, found in try_forecaster(exported, forecaster, windows(forecaster), steps=1000).items():
        assert found.largest <= BOUND, f"onnx {name}: {found}"
    files = {name: path.with_suffix(".xml") for name, path in exported.files.items()}
    for name, path in files.items():
        to_openvino.convert(exported.files[name], path)
    there = type(exported)(tmp_path, "openvino", files, exported.graphs)
    for name, found in try_forecaster(there, forecaster, windows(forecaster), steps=1000).items():
        assert found.largest <= BOUND, f"openvino {name}: {found}"
