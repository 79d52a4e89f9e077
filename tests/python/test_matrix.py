"""One wheel for every Python: the client's tests under each that pyenv has beside this one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support import ROOT, package_path, pythons

TESTS = ("test_client.py", "test_timer.py", "test_testing.py")


@pytest.mark.parametrize("python", pythons()[1:], ids=lambda path: path.parents[1].name)
def test_the_client_works_under_every_python(python: Path, tmp_path: Path) -> None:
    venv = ROOT / ".venv" / "matrix" / python.parents[1].name
    interpreter = venv / "bin" / "python"
    if not (venv / "complete").exists():
        subprocess.run([python, "-m", "venv", "--clear", venv], check=True)
        install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "numpy", "pytest")
        subprocess.run([interpreter, *install], check=True)
        (venv / "complete").touch()
    tests = [ROOT / "tests" / "python" / name for name in TESTS]
    done = subprocess.run(
        [interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": package_path(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout.splitlines()[-1])
