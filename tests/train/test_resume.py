"""A run that was interrupted, in whatever way, ends in the same bits as one that was not."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from toy_training import CONFIG, digest, outcome, timeless, toy_batch, toy_loss, toy_model, toy_validate

from exlstm.train import TrainConfig, train
from exlstm.train.checkpoint import checkpoint_paths
from exlstm.train.metrics import read_metrics

TOY = Path(__file__).with_name("toy_training.py")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The thread count of the processes that the tests start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Crash(Exception):
    """Stands for whatever ends a process from inside."""


def crash_at(index: int) -> Callable[[int], Tensor]:
    def batches(n: int) -> Tensor:
        if n == index:
            raise Crash
        return toy_batch(n)

    return batches


def run(out: Path, config: TrainConfig = CONFIG, **options) -> dict:
    model = toy_model()
    options = {"batches": toy_batch, "validate": toy_validate, "quiet": True, "tensorboard": False, **options}
    return outcome(model, train(model, toy_loss, config=config, out=out, **options))


VARIANTS = {
    "average and accumulation": CONFIG,
    "plain": dataclasses.replace(CONFIG, ema=0.0, accumulate=1),
    "early stopping": dataclasses.replace(CONFIG, lr=0.3, ema=0.0, patience=3, steps=60),
    "every step saved": dataclasses.replace(CONFIG, save_every=1, keep=1, steps=24),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_run_resumed_after_crashes_is_bit_identical(config: TrainConfig, tmp_path: Path) -> None:
    expected = run(tmp_path / "whole", config)
    resume = False
    for step in (3, 7, 12, 13, 19):  # before any checkpoint, right after one, between two
        with pytest.raises(Crash):
            run(tmp_path / "cut", config, resume=resume, batches=crash_at(step * config.accumulate))
        resume = True
    assert run(tmp_path / "cut", config, resume=True) == expected
    assert timeless(read_metrics(tmp_path / "cut" / "metrics.jsonl")) == expected["history"]


def test_the_early_stopping_variant_does_stop_early(tmp_path: Path) -> None:
    result = run(tmp_path, VARIANTS["early stopping"])
    assert result["stopped_by"] == "patience"
    assert 20 < result["steps"] < 60


def test_a_crash_during_validation_is_survived(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole")
    calls = []

    def validate(model: torch.nn.Module) -> dict:
        calls.append(model)
        if len(calls) == 5:
            raise Crash
        return toy_validate(model)

    with pytest.raises(Crash):
        run(tmp_path / "cut", validate=validate)
    assert run(tmp_path / "cut", resume=True) == expected


class Trail:
    """A loss function whose loss depends on the batches before, as far as it keeps their trail."""

    def __init__(self) -> None:
        self.kept, self.new = torch.zeros(()), torch.zeros(())

    def __call__(self, model: torch.nn.Module, x: Tensor) -> tuple[Tensor, dict]:
        loss, metrics = toy_loss(model, x + self.kept)
        self.new = self.kept / 2 + x.mean()
        return loss, metrics

    def settle(self, healthy: bool) -> None:
        assert healthy
        self.kept = self.new

    def tensors(self) -> dict[str, Tensor]:
        return {"kept": self.kept}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.kept = tensors["kept"]


def test_what_a_loss_function_carries_is_resumed_too(tmp_path: Path) -> None:
    def carried(out: Path, **options) -> dict:
        model, trail = toy_model(), Trail()
        options = {"batches": toy_batch, "validate": toy_validate, "quiet": True, "tensorboard": False, **options}
        return outcome(model, train(model, trail, config=CONFIG, carry=trail, out=out, **options))

    expected = carried(tmp_path / "whole")
    assert expected != run(tmp_path / "without")
    with pytest.raises(Crash):
        carried(tmp_path / "cut", batches=crash_at(2 * 9 + 1))
    assert carried(tmp_path / "cut", resume=True) == expected


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    expected = run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run(tmp_path, resume=True) == expected
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    run(tmp_path, dataclasses.replace(CONFIG, steps=20))
    longer = run(tmp_path, dataclasses.replace(CONFIG, steps=30, save_every=7), resume=True)
    assert (longer["steps"], longer["stopped_by"]) == (30, "steps")
    assert [r["step"] for r in longer["history"] if r["kind"] == "train"] == [5, 10, 15, 20, 25, 30]
    shorter = run(tmp_path, dataclasses.replace(CONFIG, steps=25), resume=True)
    assert (shorter["steps"], shorter["stopped_by"]) == (30, "steps")


def test_time_spent_before_an_interruption_counts(tmp_path: Path) -> None:
    def slow(index: int) -> Tensor:
        time.sleep(0.02)
        if index == 8 and not (tmp_path / "crashed").exists():
            (tmp_path / "crashed").touch()
            raise Crash
        return toy_batch(index)

    config = dataclasses.replace(CONFIG, steps=None, minutes=1.5 / 60, save_every=4, accumulate=1)
    with pytest.raises(Crash):
        run(tmp_path, config, batches=slow)
    model = toy_model()
    begin = time.monotonic()
    result = train(model, toy_loss, slow, config, out=tmp_path, resume=True, quiet=True, tensorboard=False)
    assert result.stopped_by == "minutes"
    assert result.seconds > 1.2
    assert result.seconds - (time.monotonic() - begin) > 0.04


def test_another_config_or_identity_is_refused_and_the_differences_are_named(tmp_path: Path) -> None:
    run(tmp_path, identity={"data": {"digest": "a1"}, "width": 8})
    kept = checkpoint_paths(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=r"accumulate: was 2, now 1; lr: was 0\.01, now 0\.1"):
        run(tmp_path, dataclasses.replace(CONFIG, lr=0.1, accumulate=1), resume=True)
    with pytest.raises(ValueError, match=r"data\.digest: was a1, now b2; width: was 8, now absent"):
        run(tmp_path, resume=True, identity={"data": {"digest": "b2"}})
    assert checkpoint_paths(tmp_path / "checkpoints") == kept


def test_another_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ValueError, match="does not fit this run"):
        train(torch.nn.Linear(2, 2), toy_loss, toy_batch, CONFIG, out=tmp_path, resume=True, quiet=True)


def test_another_thread_count_is_warned_about(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=2, save_every=1)
    with pytest.raises(Crash):
        run(tmp_path, config, batches=crash_at(2))
    torch.set_num_threads(2)
    with pytest.warns(UserWarning, match="threads: was 1, now 2"):
        run(tmp_path, config, resume=True)


def test_a_new_run_does_not_touch_another_ones_checkpoints(tmp_path: Path) -> None:
    run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="holds another run's checkpoints"):
        run(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match="out=None"):
        train(toy_model(), toy_loss, toy_batch, CONFIG, resume=True, quiet=True)


def test_a_damaged_newest_checkpoint_costs_one_interval_and_no_bit(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole")
    with pytest.raises(Crash):
        run(tmp_path / "cut", batches=crash_at(2 * 33))
    previous, newest = checkpoint_paths(tmp_path / "cut" / "checkpoints")
    assert (previous.name, newest.name) == ("step-24", "step-30")
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[-5] ^= 4
    (newest / "optimizer.safetensors").write_bytes(content)
    with pytest.warns(UserWarning, match=r"step-30.optimizer\.safetensors is damaged.* falling back"):
        assert run(tmp_path / "cut", resume=True) == expected


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, save_every=10)
    with pytest.raises(Crash):
        run(tmp_path, config, batches=crash_at(2 * 17), tensorboard=True)
    run(tmp_path, config, resume=True, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(5, 41, 5))


def start(out: Path, *, resume: bool = False, **config) -> subprocess.Popen:
    command = [
        sys.executable,
        "-W",
        "error",
        str(TOY),
        str(out),
        "--config",
        json.dumps(config),
        "--pause",
        "0.005",
    ]
    return subprocess.Popen(command + ["--resume"] * resume, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def wait_for_progress(process: subprocess.Popen, out: Path, seen: int) -> None:
    """Wait until the process has saved a checkpoint that was not there before."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        paths = checkpoint_paths(out / "checkpoints")
        if paths and int(paths[-1].name.removeprefix("step-")) > seen:
            return
        time.sleep(0.002)
    pytest.fail(f"the process made no progress: {finish(process)}")


def kill_and_resume(tmp_path: Path, kills: int, config: dict, seed: int) -> None:
    expected = run(tmp_path / "whole", dataclasses.replace(CONFIG, **{**config, "save_every": 10**6}))
    draw = random.Random(seed)
    out, step = tmp_path / "cut", 0
    for kill in range(kills):
        process = start(out, resume=kill > 0, **config)
        wait_for_progress(process, out, step)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
        step = int(checkpoint_paths(out / "checkpoints")[-1].name.removeprefix("step-"))
    assert step < config["steps"], "the run ended before the last kill"
    assert run(out, dataclasses.replace(CONFIG, **config), resume=True) == expected
    assert timeless(read_metrics(out / "metrics.jsonl")) == expected["history"]
    assert [path.name for path in (out / "checkpoints").iterdir() if path.name.startswith(".")] == []


def test_a_run_resumed_after_kill_9_is_bit_identical(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=3, config={"steps": 90, "save_every": 3}, seed=1)


@pytest.mark.slow
def test_a_run_resumed_after_fifty_kills_is_bit_identical(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=50, config={"steps": 1000, "save_every": 5}, seed=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_tells_how_to_resume(number: signal.Signals, tmp_path: Path) -> None:
    config = {"steps": 10**6, "save_every": 10}
    process = start(tmp_path, **config)
    wait_for_progress(process, tmp_path, 0)
    begin = time.monotonic()
    process.send_signal(number)
    returncode, text, error = finish(process)
    assert time.monotonic() - begin < 10
    assert returncode == 130, error
    result = json.loads(text.splitlines()[-1])
    newest = checkpoint_paths(tmp_path / "checkpoints")[-1]
    assert newest.name == f"step-{result['steps']}"
    assert f"interrupted after step {result['steps']}; saved in {newest}; to resume: call train" in text
    assert "press Ctrl-C again" in error
    assert result["stopped_by"] == "interrupt"


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_a_second_ctrl_c_exits_at_once_and_the_run_still_resumes(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole")

    def batches(index: int) -> Tensor:
        if index == 2 * 20:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            time.sleep(30)  # a long step, which only the second signal cuts short
        return toy_batch(index)

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", batches=batches)
    assert time.monotonic() - begin < 10
    assert run(tmp_path / "cut", resume=True) == expected


def test_an_interrupted_run_is_bit_identical_and_the_old_handlers_are_back(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole")
    handler = signal.getsignal(signal.SIGINT)

    def batches(index: int) -> Tensor:
        if index == 2 * 20:
            signal.raise_signal(signal.SIGINT)
        return toy_batch(index)

    cut = run(tmp_path / "cut", batches=batches)
    assert (cut["steps"], cut["stopped_by"]) == (21, "interrupt")
    assert signal.getsignal(signal.SIGINT) is handler
    assert run(tmp_path / "cut", resume=True) == expected


def test_training_outside_the_main_thread_leaves_signals_alone(tmp_path: Path) -> None:
    results: list[dict] = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path)))
    thread.start()
    thread.join()
    assert results[0]["steps"] == CONFIG.steps


def test_digests_tell_models_apart() -> None:
    assert digest(toy_model(1)) != digest(toy_model(2))
