"""What docs/gpu.md shows in Python can be run as it stands, from top to bottom, with a GPU or without."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"


def test_all_examples_run(tmp_path):
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(examples), encoding="utf-8")
    ran = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ran.stdout.split() == ["True", "True"]
