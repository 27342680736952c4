"""Language models of every form that other layouts can hold, with no weight left at its initial value."""

from typing import Any

import torch

from exlstm.layers import BlockOptions
from exlstm.models import LanguageModel

LARGE: dict[str, dict[str, Any]] = {
    "plain": {"pattern": "mm"},
    "biased": {"pattern": "m", "options": BlockOptions(bias=True, mlp_bias=True, norm_bias=True)},
    "tied": {"pattern": "mm", "tied": True, "heads": 4},
    "other sizes": {
        "pattern": "(m)x3",
        "width": 60,
        "heads": 3,
        "options": BlockOptions(keys=27, values=69, hidden=101, eps=1e-4, gate_soft_cap=7.0),
        "soft_cap": 11.0,
    },
}
PAPER: dict[str, dict[str, Any]] = {
    "mLSTM": {"pattern": "mm"},
    "both": {"pattern": "msm", "heads": 4},
    "sLSTM": {"pattern": "ss", "tied": True},
    "biased": {"pattern": "ms", "options": BlockOptions(bias=True, mlp_bias=True), "final_norm": "none"},
    "other sizes": {
        "pattern": "(sm)x2",
        "width": 30,
        "heads": 3,
        "options": BlockOptions(
            inner=90, kernel=2, qkv_block=5, slstm_heads=5, slstm_kernel=0, hidden=41, activation="silu"
        ),
    },
    "no feed-forward": {"pattern": "sm", "options": BlockOptions(hidden=0, slstm_kernel=3)},
}


def model_of(style: str, fields: dict[str, Any]) -> LanguageModel:
    """A model in evaluation mode whose every weight is random."""
    usual = {"vocabulary": 31, "width": 32, "heads": 2, "style": style}
    if style == "large":
        usual["soft_cap"] = 30.0
    model = LanguageModel(**{**usual, **fields})
    stir(model)
    return model.eval()


def stir(model: torch.nn.Module) -> None:
    """Noise on every weight; in what multiplies, some of it below 1/2 and below 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
