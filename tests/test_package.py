"""What importing the package costs and offers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import exlstm

ROOT = Path(exlstm.__file__).parents[1]


def test_importing_prints_nothing_and_loads_neither_torch_nor_optional_packages():
    heavy = ("torch", "pandas", "matplotlib", "rich", "tyro", "jinja2", "tensorboard")
    code = f"import sys, exlstm; print([m for m in {heavy} if m in sys.modules], end='')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[]", "")


def test_the_models_are_exported():
    assert {name for name in exlstm.__all__ if getattr(exlstm, name) is not None} == set(exlstm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = exlstm.Nonsense


@pytest.mark.parametrize(
    ("room", "lower"),
    [
        ("ops", set()),
        ("layers", {"ops"}),
        ("data", set()),
        ("train", set()),
        ("models", {"ops", "layers", "data", "train"}),
    ],
)
def test_rooms_import_only_lower_rooms(room, lower):
    rooms = {"ops", "layers", "data", "train", "models", "tasks", "interop", "serve", "cli"}
    for file in (ROOT / "exlstm" / room).rglob("*.py"):
        imported = set(re.findall(r"^\s*(?:from|import) exlstm\.(\w+)", file.read_text(), re.MULTILINE)) & rooms
        assert imported <= lower | {room}, f"{file.name} imports {imported - lower - {room}}"
