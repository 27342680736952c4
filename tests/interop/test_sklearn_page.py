"""What docs/sklearn.md shows can be run as it stands, and gives what it says."""

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

PAGE = Path(__file__).parents[2] / "docs" / "sklearn.md"


@pytest.mark.slow
def test_all_examples_run_and_are_ahead_of_what_they_are_compared_with() -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found: dict[str, Any] = {}
    exec("\n".join(examples), found)
    test, labels = found["test"], found["y_test"]
    accuracy = found["classifier"].score(test.reshape(-1, 8, 8), labels)
    assert accuracy > max(0.98, found["linear"].score(test, labels))
    assert found["error"] < 0.8 * found["naive_error"]
    assert (found["low"] < found["high"]).all()
