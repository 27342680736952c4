"""Code in a process of its own, where nothing is imported yet, and no test has used any memory."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def printed_by(code: str, *arguments: object, **environment: str) -> list[str]:
    """The words that code prints; it finds `arguments` in sys.argv. What it says of errors is said here."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.split()
