"""What a training run does besides surviving interruptions (see test_resume)."""

import dataclasses
import io
import itertools
import json
import math
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from toy_training import CONFIG, digest, outcome, toy_batch, toy_loss, toy_model, toy_validate

from exlstm.train import DivergedError, TrainConfig, decay_groups, learning_rate, train
from exlstm.train.average import WeightAverage


def run(config: TrainConfig, model: nn.Module | None = None, **options):
    model = model or toy_model()
    options = {"loss_fn": toy_loss, "batches": toy_batch, "quiet": True, "tensorboard": False, **options}
    result = train(model, config=config, **options)
    return model, result


def linear_loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]):
    x, y = batch
    return (model(x) - y).square().mean(), {}


def test_training_lowers_the_validation_loss_and_keeps_the_best_weights() -> None:
    before = toy_validate(toy_model().eval())["loss"].item()
    model, result = run(dataclasses.replace(CONFIG, steps=100), validate=toy_validate)
    assert not model.training
    with torch.no_grad():
        after = toy_validate(model)["loss"].item()
    assert after == result.best["loss"] == min(r["loss"] for r in result.history if r["kind"] == "validation")
    assert after < before / 4
    assert result.stopped_by == "steps"
    assert result.steps == 100
    assert not result.interrupted
    assert result.peak_bytes > 1e6


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_dropout() -> None:
    outcomes = [outcome(*run(CONFIG, validate=toy_validate)) for _ in range(2)]
    assert outcomes[0] == outcomes[1]
    other, _ = run(dataclasses.replace(CONFIG, seed=1), validate=toy_validate)
    assert digest(other) != outcomes[0]["weights"]


def test_validation_does_not_change_what_is_learnt() -> None:
    config = dataclasses.replace(CONFIG, ema=0.0)
    alone, _ = run(config)

    def validate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(7)
        calls.append(model)
        return {"loss": -len(calls)}

    calls: list[nn.Module] = []
    watched, result = run(config, validate=validate)
    assert result.best_step == config.steps
    assert digest(watched) == digest(alone)


def test_accumulated_micro_batches_equal_one_big_batch() -> None:
    torch.manual_seed(5)
    x, y = torch.randn(30, 4, 6, dtype=torch.float64), torch.randn(30, 4, 2, dtype=torch.float64)

    def model() -> nn.Module:
        torch.manual_seed(6)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    small = TrainConfig(steps=10, accumulate=3, lr=1e-2, log_every=1)
    big = dataclasses.replace(small, accumulate=1)
    accumulated, first = run(small, model(), loss_fn=linear_loss, batches=lambda n: (x[n], y[n]))
    whole, second = run(
        big,
        model(),
        loss_fn=linear_loss,
        batches=lambda n: (x[3 * n : 3 * n + 3].flatten(0, 1), y[3 * n : 3 * n + 3].flatten(0, 1)),
    )
    for one, other in zip(accumulated.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    for one, other in zip(first.history, second.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-10)


def test_the_gradient_is_clipped_and_its_norm_before_clipping_is_logged() -> None:
    x, y = torch.randn(8, 3).double(), 1e3 * torch.randn(8, 1).double()
    # betas of 0 and a large eps make AdamW's first update lr * g / eps up to g / eps: proportional to g
    config = TrainConfig(steps=1, lr=1.0, warmup=0, final_lr=1, betas=(0.0, 0.0), eps=1e6, weight_decay=0, clip=0.5)
    linear = nn.Linear(3, 1, bias=False).double()
    before = linear.weight.detach().clone()
    _, result = run(config, linear, loss_fn=linear_loss, batches=lambda n: (x, y))
    step = (linear.weight.detach() - before).norm().item() * 1e6
    assert result.history[0]["grad_norm"] > 100
    assert step == pytest.approx(0.5, rel=1e-5)


def test_weights_in_float32_learn_under_bfloat16_autocast() -> None:
    seen = []

    def loss_fn(model: nn.Module, x: torch.Tensor):
        y = model(x)
        seen.append(y.dtype)
        return (y.float() - x).square().mean(), {}

    model, _ = run(
        TrainConfig(steps=2, precision="bfloat16"),
        nn.Linear(4, 4),
        loss_fn=loss_fn,
        batches=lambda n: torch.randn(8, 4),
        validate=lambda m: {"loss": seen.append(m(torch.ones(1, 4)).dtype) or 0.0},
    )
    assert set(seen) == {torch.bfloat16}
    assert model.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_a_compiled_model_learns_what_the_plain_one_does() -> None:
    x, y = torch.randn(16, 4), torch.randn(16, 2)
    weights = []
    for compiled in (False, True):
        torch.manual_seed(1)
        model, _ = run(
            TrainConfig(steps=5, compile=compiled, lr=1e-2),
            nn.Linear(4, 2),
            loss_fn=linear_loss,
            batches=lambda n: (x, y),
        )
        weights.append(model.weight.detach())
    torch.testing.assert_close(*weights)


def test_patience_stops_training_and_restores_the_best_weights() -> None:
    losses = iter([3.0, 1.0, 2.0, float("nan"), 0.5])
    seen = []

    def validate(model: nn.Module) -> dict[str, float]:
        seen.append(digest(model))
        return {"loss": next(losses)}

    config = dataclasses.replace(CONFIG, ema=0.0, eval_every=2, patience=2)
    model, result = run(config, validate=validate)
    assert (result.stopped_by, result.steps, result.best_step, result.best) == (
        "patience",
        8,
        4,
        {"loss": 1.0},
    )
    assert digest(model) == seen[1] != seen[3]


def test_without_validation_the_last_weights_stay() -> None:
    config = dataclasses.replace(CONFIG, ema=0.0)
    short, _ = run(dataclasses.replace(config, final_lr=1.0, warmup=0.0, steps=3))
    long, result = run(dataclasses.replace(config, final_lr=1.0, warmup=0.0, steps=6))
    assert digest(short) != digest(long)
    assert result.best_step is None
    assert result.best == {}


def test_the_average_of_the_weights_is_what_is_validated_and_kept() -> None:
    seen = []
    config = dataclasses.replace(CONFIG, eval_every=10**6)
    model, _ = run(config, validate=lambda m: {"loss": float(bool(seen.append(digest(m))))})
    raw, _ = run(dataclasses.replace(config, ema=0.0))
    assert digest(model) == seen[0] != digest(raw)
    without_validation, _ = run(config)
    assert digest(without_validation) == digest(model)


def test_the_average_follows_its_formula() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    average = WeightAverage(model, 0.2)
    expected = model.weight.detach().clone()
    for update in range(6):
        with torch.no_grad():
            model.weight.add_(1.0)
        average.update()
        decay = min(0.2, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    with average.applied():
        torch.testing.assert_close(model.weight.detach(), expected)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_no_weight_and_is_logged(where: str, value: float, tmp_path: Path) -> None:
    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * value

    weights = []

    def loss_fn(model: nn.Module, index: int):
        weights.append(model.weight.detach().clone())
        loss = model(torch.ones(1, 2)).square().sum()
        if index == 2:
            loss = Spoil.apply(loss) if where == "gradient" else loss * value
        return loss, {}

    _, result = run(
        TrainConfig(steps=5, log_every=5, warmup=0),
        nn.Linear(2, 2),
        loss_fn=loss_fn,
        batches=int,
        out=tmp_path,
    )
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(weights)]
    assert changed == [True, True, False, True]
    assert result.skipped == 1
    assert [(r["step"], r["first_batch"]) for r in result.history if r["kind"] == "skipped"] == [(3, 2)]
    assert math.isfinite(result.history[-1]["loss"])
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_training_gives_up_after_too_many_bad_steps_in_a_row() -> None:
    config = TrainConfig(steps=50, max_bad_steps=4)

    def loss_fn(model: nn.Module, index: int):
        bad = index in (1, 2, 3) or index >= 6
        return model(torch.ones(1, 2)).sum() * (math.nan if bad else 1.0), {}

    with pytest.raises(DivergedError, match=r"4 steps in a row, up to step 10: .*lower lr"):
        run(config, nn.Linear(2, 2), loss_fn=loss_fn, batches=int)


def test_the_learning_rate_ends_at_its_final_fraction_after_the_given_steps() -> None:
    config = dataclasses.replace(CONFIG, steps=20, log_every=1, warmup=0.25, final_lr=0.05)
    rates = [record["lr"] / config.lr for record in run(config)[1].history]
    assert rates == pytest.approx([learning_rate((step + 1) / 20, 0.25, 0.05) for step in range(20)])
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[-1] == 0.05
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_the_learning_rate_ends_at_its_final_fraction_when_the_time_is_over() -> None:
    def batches(index: int) -> torch.Tensor:
        time.sleep(0.01)
        return toy_batch(index)

    config = dataclasses.replace(CONFIG, steps=None, minutes=0.6 / 60, log_every=1, accumulate=1, final_lr=0.05)
    _, result = run(config, batches=batches)
    rates = [record["lr"] / config.lr for record in result.history]
    assert rates[-1] == pytest.approx(0.05)
    assert max(rates) > 0.9
    assert result.stopped_by == "minutes"
    assert 0.4 < result.seconds < 1.2


def test_whichever_of_steps_and_minutes_comes_first_ends_training() -> None:
    assert run(dataclasses.replace(CONFIG, steps=3, minutes=5))[1].stopped_by == "steps"
    assert run(dataclasses.replace(CONFIG, steps=10**9, minutes=0.1 / 60))[1].stopped_by == "minutes"


@pytest.mark.parametrize(("warmup", "final"), [(0.0, 0.0), (0.1, 0.1), (1.0, 0.3)])
def test_the_schedule_stays_between_zero_and_the_peak(warmup: float, final: float) -> None:
    values = [learning_rate(i / 1000, warmup, final) for i in range(1001)]
    assert min(values) >= 0
    assert max(values) == pytest.approx(1.0, abs=2e-3)
    assert values[-1] == final


def test_only_matrices_decay_and_modules_can_exempt_theirs() -> None:
    class PerHeadNorm(nn.Module):
        _no_weight_decay = frozenset({"weight"})

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3))

    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(4, 3),
            "conv": nn.Conv1d(3, 3, 2),
            "lstm": nn.LSTM(3, 3),
            "norm": nn.LayerNorm(3),
            "heads": PerHeadNorm(),
            "tied": nn.Linear(3, 4),
            "frozen": nn.Linear(3, 3).requires_grad_(False),
        }
    )
    model["tied"].weight = model["embedding"].weight
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, exempt = ([names[id(p)] for p in group] for group in decay_groups(model))
    assert decayed == ["embedding.weight", "conv.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    assert exempt == [
        "conv.bias",
        "lstm.bias_ih_l0",
        "lstm.bias_hh_l0",
        "norm.weight",
        "norm.bias",
        "heads.weight",
        "tied.bias",
    ]


def test_weight_decay_shrinks_matrices_and_leaves_biases() -> None:
    model = nn.Linear(3, 3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = TrainConfig(steps=1, lr=0.1, warmup=0, final_lr=1, weight_decay=0.5)
    run(config, model, loss_fn=lambda m, _: (0.0 * m(torch.ones(1, 3)).sum(), {}), batches=int)
    torch.testing.assert_close(model.weight.detach(), before["weight"] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(model.bias.detach(), before["bias"])


def test_metrics_are_written_as_json_lines_and_as_tensorboard_events(tmp_path: Path) -> None:
    _, result = run(CONFIG, validate=toy_validate, out=tmp_path, tensorboard=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.history
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for kind, name in (("train", "loss"), ("train", "lr"), ("validation", "mae")):
        expected = [(r["step"], r[name]) for r in lines if r["kind"] == kind]
        found = [(event.step, event.value) for event in events.Scalars(f"{kind}/{name}")]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]


def test_the_logged_training_loss_is_the_mean_over_its_steps() -> None:
    every = [r["loss"] for r in run(dataclasses.replace(CONFIG, log_every=1))[1].history]
    grouped = [r["loss"] for r in run(CONFIG)[1].history]
    assert grouped == pytest.approx([sum(every[i : i + 5]) / 5 for i in range(0, 40, 5)])


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(CONFIG, validate=toy_validate, tensorboard=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "expected steps or minutes"),
        ({"steps": 0}, "steps to be at least 1, got 0"),
        ({"minutes": 0.0}, "minutes to be above 0"),
        ({"lr": math.nan}, "lr to be above 0, got nan"),
        ({"warmup": 1.5}, "warmup to be between 0 and 1"),
        ({"ema": 1.0}, "ema to be in"),
        ({"betas": (0.9, 1.0)}, "betas to be two numbers"),
        ({"precision": "float16"}, "got 'float16'"),
        ({"patience": 0}, "patience to be at least 1"),
    ],
)
def test_a_config_out_of_range_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_unusable_models_and_functions_are_refused() -> None:
    with pytest.raises(ValueError, match="trainable parameters"):
        run(CONFIG, nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match=r"scalar loss .* got shape \(4, 6\)"):
        run(CONFIG, loss_fn=lambda model, x: (model(x), {}))
    with pytest.raises(ValueError, match="'loss'"):
        run(CONFIG, validate=lambda model: {"accuracy": 1.0})

    class Wrong(nn.Linear):
        _no_weight_decay = frozenset({"wieght"})

    with pytest.raises(ValueError, match=r"Wrong\._no_weight_decay names 'wieght'"):
        run(CONFIG, Wrong(2, 2))


def test_progress_is_plain_lines_when_not_a_terminal_and_nothing_when_quiet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(CONFIG, validate=toy_validate)
    assert capsys.readouterr() == ("", "")
    train(toy_model(), toy_loss, toy_batch, CONFIG, validate=toy_validate)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 1/40  loss ")
    assert lines[-1].startswith("step 40/40  loss ")
    assert "validation" in lines[-1]
    assert not any("\x1b" in line for line in lines)


def test_progress_is_a_bar_with_loss_rate_and_time_left_on_a_terminal() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    config = dataclasses.replace(CONFIG, steps=200)
    train(toy_model(), toy_loss, toy_batch, config, console=console)
    text = stream.getvalue()
    assert "\x1b[" in text
    assert "step 200/200" in text
    assert "100%" in text
    assert "steps/s" in text
    assert "left" in text
