"""Exported classifiers give the classifier's own log-probabilities, whatever is padded."""

import pytest
import torch

from exlstm.interop.export import BOUND, export, stream
from exlstm.models import Classifier


def classifier(**fields) -> Classifier:
    torch.manual_seed(4)
    options = {"labels": ("no", "yes", "perhaps"), "width": 16, "heads": 2, "levels": 4, "window": 5, **fields}
    model = Classifier(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if model.linear is not None:
            model.linear.weight.normal_()
            model.linear.rarity.uniform_()
    return model


def inputs(model: Classifier, batch: int, time: int) -> list[torch.Tensor]:
    """Random sequences, of which steps anywhere are absent; and bags where the model reads some."""
    c = model.config
    x = torch.randn(batch, time, c.features) if c.features else torch.randint(c.vocabulary, (batch, time))
    mask = torch.rand(batch, time) < 0.8
    mask[:, 0] = True
    if not c.buckets:
        return [x, mask]
    runs = 1 + time // 2
    return [x, mask, torch.randint(c.buckets, (batch, runs)), torch.randint(3, (batch, runs)).float()]


@pytest.mark.parametrize(
    ("to", "fields"),
    [
        ("torch-export", {"pattern": "sh", "features": 3}),
        pytest.param("torch-export", {"pattern": "ma", "vocabulary": 19, "buckets": 32}, marks=pytest.mark.slow),
        pytest.param("onnx", {"pattern": "s", "vocabulary": 19, "buckets": 32, "members": 2}, marks=pytest.mark.slow),
        pytest.param("onnx", {"pattern": "mha", "features": 3}, marks=pytest.mark.slow),
        pytest.param("openvino", {"pattern": "s", "vocabulary": 19, "buckets": 32}, marks=pytest.mark.slow),
    ],
)
def test_scores_are_the_models_for_every_batch_and_length(to, fields, tmp_path):
    for package in {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "openvino")}.get(to, ()):
        pytest.importorskip(package)
    model = classifier(**fields)
    exported = export(model, tmp_path, to)
    graph, session = exported.graphs["classify"], exported.session("classify")
    for batch, time in ((1, 1), (1, 9), (3, 14), (2, 40)):
        found = stream(graph, session, [inputs(model, batch, time)])
        assert found.largest <= BOUND, f"{batch} x {time}: {found}"
