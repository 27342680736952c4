"""A tiny training run with dropout, for tests; as a script it runs in a process of its own, to be killed."""

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from exlstm.train import TrainConfig, TrainResult, derive_seed, seed_everything, train

CONFIG = TrainConfig(steps=40, lr=1e-2, eval_every=4, save_every=6, log_every=5, ema=0.9, accumulate=2)


class ToyModel(nn.Module):
    """A GRU with dropout that adds up its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 8, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.gru(x)[0]))[..., 0]


def toy_model(seed: int = 3) -> ToyModel:
    seed_everything(seed)
    return ToyModel()


def toy_batch(index: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(11, "batch", index))
    return torch.randn(4, 6, 2, generator=generator)


def toy_loss(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    error = model(x) - x.sum(-1).cumsum(-1)
    return error.square().mean(), {"mae": error.abs().mean()}


def toy_validate(model: nn.Module) -> dict[str, Tensor]:
    loss, metrics = toy_loss(model, toy_batch(-1))
    return {"loss": loss, **metrics}


def digest(model: nn.Module) -> str:
    """A digest of every bit of the model's weights."""
    content = b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in model.state_dict().items())
    return hashlib.sha256(content).hexdigest()


def timeless(records: list[dict]) -> list[dict]:
    """The records without the wall time, which no two runs share."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def outcome(model: nn.Module, result: TrainResult) -> dict:
    """All of a run's result that must be the same when it is repeated or resumed."""
    return {
        "weights": digest(model),
        "steps": result.steps,
        "stopped_by": result.stopped_by,
        "best_step": result.best_step,
        "best": result.best,
        "history": timeless(result.history),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--config", type=json.loads, default={})
    parser.add_argument("--pause", type=float, default=0.0, help="seconds each batch takes to come")
    options = parser.parse_args()
    torch.set_num_threads(1)

    def batches(index: int) -> Tensor:
        time.sleep(options.pause)
        return toy_batch(index)

    model = toy_model()
    result = train(
        model,
        toy_loss,
        batches,
        dataclasses.replace(CONFIG, **options.config),
        validate=toy_validate,
        out=options.out,
        resume=options.resume,
        tensorboard=False,
    )
    print(json.dumps(outcome(model, result)))
    sys.exit(130 if result.interrupted else 0)


if __name__ == "__main__":
    main()
