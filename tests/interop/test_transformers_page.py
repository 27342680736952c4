"""What docs/transformers.md shows can be run as it stands, from top to bottom."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("transformers", "accelerate", "lightning"):
    pytest.importorskip(package)

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"


@pytest.mark.slow
def test_all_examples_run(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    train = re.search(r"^exlstm (train lm .*)$", text, re.MULTILINE)[1].split()
    subprocess.run([sys.executable, "-m", "exlstm", *train], cwd=tmp_path, check=True)
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(examples), encoding="utf-8")
    subprocess.run([sys.executable, "page.py"], cwd=tmp_path, check=True)
    written = {path.parent.name for path in tmp_path.glob("*/model.safetensors")}
    assert written == {"novel", "trained", "accelerated", "lit"}
