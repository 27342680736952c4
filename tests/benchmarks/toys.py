"""Contestants that do little, or go wrong, each in its own way. They are built in processes of their own."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.work import Work


def diligent(*, log: str, letter: str) -> Work:
    """Notes every call in a file, and prints, as packages do."""

    def call() -> None:
        print("what a package prints")
        with Path(log).open("a") as file:
            file.write(letter)

    return Work(call, {"pid": os.getpid(), "threads": torch.get_num_threads()})


def greedy(*, before: int, during: int) -> Work:
    """Takes memory and gives it back: `before` bytes while it is built, `during` bytes in a call."""
    torch.ones(before, dtype=torch.int8)
    return Work(lambda: torch.ones(during, dtype=torch.int8))


def failing() -> Work:
    raise RuntimeError("first line\nthe shapes do not fit")


def dying() -> Work:
    os.write(2, b"Fatal: illegal instruction\n")
    os.abort()


def late(*, calls: int) -> Work:
    """Fails in the call after `calls`."""
    made: list[int] = []

    def call() -> None:
        if len(made) == calls:
            raise ValueError("enough")
        made.append(1)

    return Work(call)


def hanging() -> Work:
    time.sleep(600)
    raise AssertionError


def wrong(operator: Callable[..., Any]) -> Callable[..., Any]:
    """An operator that is off by a little."""

    def run(*inputs: Any, **options: Any) -> Any:
        h, state = operator(*inputs, **options)
        return (h if options.get("backend") == "reference" else h * (1 + 1e-3)), state

    return run
