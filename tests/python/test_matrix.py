"""One wheel for every Python: the client's tests under each that pyenv has beside this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, pyenv

TESTS = ("test_client.py", "test_threads.py", "test_timer.py", "test_testing.py")
SUPPORTED = ("3.10", "3.11", "3.12", "3.13")


def matrix() -> list[Any]:
    """Each supported version, and each newer one that is there; one that is not is skipped by its name."""
    found = {".".join(path.parents[1].name.split(".")[:2]): path for path in pyenv()}
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    parameters = []
    for version in sorted({*SUPPORTED, *found} - {own}, key=lambda version: int(version.partition(".")[2])):
        missing = pytest.mark.skip(reason=f"pyenv has no CPython {version}")
        parameters.append(pytest.param(found.get(version), id=version, marks=() if version in found else missing))
    return parameters


@pytest.mark.parametrize("python", matrix())
def test_the_client_works_under_every_python(python: Path) -> None:
    venv = ROOT / ".venv" / "matrix" / python.parents[1].name
    interpreter = venv / "bin" / "python"

    def run(*command: str | Path) -> str:
        # What this run of the tests imports must not get in there.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = (interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    if not (venv / "complete").exists():
        run(python, "-m", "venv", "--clear", venv)
        run(*pip, "numpy", "pytest", "pytest-timeout")
        (venv / "complete").touch()
    (wheel,) = (ROOT / "dist").glob("*.whl")
    run(*pip, "--no-index", "--no-deps", "--force-reinstall", wheel)
    tests = [ROOT / "tests" / "python" / name for name in TESTS]
    print(run(interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests).splitlines()[-1])
