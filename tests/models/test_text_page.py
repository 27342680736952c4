"""What docs/text.md shows in Python can be run as it stands, from top to bottom, after its first command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")

PAGE = Path(__file__).parents[2] / "docs" / "text.md"


def test_all_examples_run(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    train = re.search(r"^exlstm (train lm .*?) +#", text, re.MULTILINE)[1].replace("--steps 200", "--steps 3").split()
    small = ["--model.pattern", "ms", "--model.width", "64", "--length", "64"]
    subprocess.run([sys.executable, "-m", "exlstm", *train, *small], cwd=tmp_path, check=True)
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(examples), encoding="utf-8")
    ran = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ran.stdout.startswith("It was")
    assert "torch.Size([1, 4, 3, 7]) torch.Size([1, 4, 3, 100]) torch.Size([1, 4, 3, 4])" in ran.stdout
