"""An extended LSTM as a model of neuralforecast: `NeuralForecast(models=[ExLSTM(h=24, input_size=96)], freq="h")`."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exlstm.layers.block import Style
from exlstm.models.backbone import Backbone
from exlstm.models.forecast_network import ResidualMLP

try:
    from neuralforecast.common._base_model import BaseModel
    from neuralforecast.core import MODEL_FILENAME_DICT
    from neuralforecast.losses.pytorch import MAE
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"exlstm.interop.neuralforecast needs the package {error.name}: pip install 'exlstm[neuralforecast]'"
    ) from None


class ExLSTM(BaseModel):
    """Patches of a window, its exogenous columns with them, through an extended LSTM, to all of the horizon at once.

    neuralforecast draws the windows, scales, trains and forecasts. `Forecaster` is the model to train without it.

    Args:
        h: steps to forecast.
        input_size: steps before them that are read.
        pattern: the blocks (see `exlstm.parse_pattern`).
        width: of the stream between the blocks.
        heads: of every block; they share the width equally.
        style: "large" or "paper" (see `exlstm.Backbone`).
        patch: steps a patch joins.
        dropout: probability, on what every block adds to the stream.
        loss, valid_loss, max_steps, learning_rate, batch_size, scaler_type, options: as of neuralforecast's models,
            those of the trainer and `futr_exog_list`, `hist_exog_list` and `stat_exog_list` included.

    Raises:
        ValueError: patch is below 1, or there are options for columns of categories, which are not read.
    """

    EXOGENOUS_FUTR = True
    EXOGENOUS_HIST = True
    EXOGENOUS_STAT = True
    MULTIVARIATE = False
    RECURRENT = False

    def __init__(
        self,
        h: int,
        input_size: int,
        pattern: str = "ms",
        width: int = 64,
        heads: int = 4,
        style: Style = "large",
        patch: int = 8,
        dropout: float = 0.1,
        loss: nn.Module = MAE(),  # noqa: B008 - as all of neuralforecast's models have it; it holds no state
        valid_loss: nn.Module | None = None,
        max_steps: int = 1000,
        learning_rate: float = 1e-3,
        batch_size: int = 32,
        scaler_type: str = "robust",
        **options: Any,
    ) -> None:
        if patch < 1:
            raise ValueError(f"expected patch of at least 1, received {patch}")
        if options.get("cat_exog_list"):
            raise ValueError("ExLSTM reads no columns of categories; leave out cat_exog_list=")
        needed = {
            "val_check_steps": 100,
            "valid_batch_size": None,
            "windows_batch_size": 128,
            "inference_windows_batch_size": 1024,
            "start_padding_enabled": False,
        }
        super().__init__(
            h=h,
            input_size=input_size,
            loss=loss,
            valid_loss=valid_loss,
            max_steps=max_steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            scaler_type=scaler_type,
            **needed | options,
        )
        self.patch, self.outputs = patch, self.loss.outputsize_multiplier
        a_step = 2 + self.hist_exog_size + self.futr_exog_size
        self.embed = ResidualMLP(patch * a_step, width, 2 * width)
        self.static = nn.Linear(self.stat_exog_size, width, bias=False) if self.stat_exog_size else None
        self.backbone = Backbone(pattern, width, heads, style=style, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, patch * self.outputs)

    def forward(self, windows_batch: dict[str, Tensor]) -> Tensor:
        """From windows, `insample_y` and `insample_mask` [B, L, 1] and so on, to what the loss takes, [B, h, K]."""
        known = windows_batch["insample_mask"].float()
        past = [windows_batch["insample_y"] * known, known]
        if self.hist_exog_size:
            past.append(windows_batch["hist_exog"])
        steps = F.pad(torch.cat(past, -1), (0, 0, 0, self.h))
        if self.futr_exog_size:
            steps = torch.cat([steps, windows_batch["futr_exog"]], -1)
        length = steps.shape[1] - self.h
        # Whole patches on either side of the origin; what fills up the first and the last is 0, and not marked known.
        steps = F.pad(steps, (0, 0, -length % self.patch, -self.h % self.patch))
        x = self.embed(steps.unflatten(1, (-1, self.patch)).flatten(2))
        if self.static is not None:
            x = x + self.static(windows_batch["stat_exog"])[:, None]
        x, _ = self.backbone(x, return_state=False)
        ahead = self.dropout(x[:, -math.ceil(self.h / self.patch) :])
        return self.head(ahead).unflatten(-1, (self.patch, -1)).flatten(1, 2)[:, : self.h]


MODEL_FILENAME_DICT.setdefault("exlstm", ExLSTM)  # by which NeuralForecast.save and load know models
