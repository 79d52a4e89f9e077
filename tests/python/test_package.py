"""The wheel as a stranger gets it, and what the README promises."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from support import PREDICTOR, ROOT


def test_the_wheel_works_in_a_clean_venv_without_rust(tmp_path: Path) -> None:
    wheels = list((ROOT / "dist").glob("*.whl"))
    assert len(wheels) == 1, "want one wheel in dist/: run make wheel"
    venv.create(tmp_path / "venv", with_pip=False)
    binaries = tmp_path / "venv" / "bin"
    pip = f"{sys.executable} -m pip --python {binaries / 'python'} install --quiet --no-index {wheels[0]}"
    # Neither cargo nor rustc is on this PATH: what is installed is what was built.
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "dirname", "readlink"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    environment = {"PATH": f"{binaries}:{tools}", "HOME": str(tmp_path)}
    assert shutil.which("cargo", path=environment["PATH"]) is None
    subprocess.run(pip.split(), check=True, env={**os.environ, "PATH": environment["PATH"]})

    def run(*command: str) -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    version = run(
        "python", "-c", "import cortex_metrics as c; c.MetricsClient().increment('c'); print(c.__version__)"
    ).strip()
    assert run("cortex", "--version") == f"cortex {version}\n"
    assert run("cortex-metrics", "--version") == f"cortex {version}\n"
    assert run("cortex-collector", "--version") == f"cortex-collector {version}\n"
    served = subprocess.run(["cortex-serve", "x"], env=environment, capture_output=True, text=True, check=False)
    assert "pip install 'cortex-metrics[serve]'" in served.stderr, "the extra is named when it is missing"


@pytest.mark.parametrize(
    ("cargo", "message"),
    [
        (None, "no Rust found, want 1.89 or newer: install Rust with https://rustup.rs"),
        ("echo cargo 1.63.0", "got cargo 1.63.0, want Rust 1.89 or newer"),
        ("echo 'cargo 1.9.0-nightly (abc 2020-01-01)'", "want Rust 1.89 or newer"),
        ("exit 1", "no Rust found"),
        ("echo cargo 1.89.0", ""),
        ("echo 'cargo 2.0.0 (abc 2030-01-01)'", ""),
    ],
)
def test_a_rust_that_is_missing_or_too_old_is_one_line_that_says_what_to_run(
    tmp_path: Path, cargo: str | None, message: str
) -> None:
    if cargo is not None:
        program = tmp_path / "cargo"
        program.write_text(f"#!/bin/sh\n{cargo}\n")
        program.chmod(0o755)
    command = [sys.executable, "build_backend.py"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == bool(message), done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_the_predictor_of_the_readme_is_the_one_that_is_tested() -> None:
    readme = (ROOT / "README.md").read_text()
    assert PREDICTOR.read_text() in readme


def test_the_extension_holds_the_client_alone() -> None:
    import cortex_metrics._native as native

    library = Path(str(native.__file__)).read_bytes()
    for foreign in (b"sqlite", b"axum", b"promql"):
        assert foreign not in library.lower()
