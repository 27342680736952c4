"""The optional packages that write and run exported graphs."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def package(name: str, *, remedy: str = "pip install 'exlstm[export]'") -> Any:
    """Import a module of an optional package.

    Raises:
        ValueError: it is not installed; says what to install.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"this export needs the package {name.partition('.')[0]} ({error}): {remedy}") from None


def check_packages(to: str, weights: str) -> None:
    """Import what an export needs, before the work of it.

    Raises:
        ValueError: a package is not installed; says what to install.
    """
    needed = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
    for name in needed.get(to, ()):
        package(name)
    if to == "openvino" and weights == "int8":
        nncf()


def nncf() -> Any:
    """The package nncf, which would else report its use to its makers from its import on."""
    silent = "NNCF_CI"
    before = os.environ.get(silent)
    os.environ[silent] = "1"
    try:
        return package("nncf", remedy="pip install nncf, or leave out --weights int8")
    finally:
        if before is None:
            del os.environ[silent]
        else:
            os.environ[silent] = before


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the converters say of their own insides; errors are raised as ever."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "nncf", "root")
    ]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
