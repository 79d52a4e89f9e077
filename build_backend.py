"""The build backend: maturin's, with the two programs laid into the wheel's scripts.

One wheel has three native parts. Maturin builds the extension module; before it packs the wheel, ``cargo`` builds
``cortex-collector`` and ``cortex``, and this module lays them where ``[tool.maturin] data`` says: ``pip install`` then
puts them on PATH. ``prepare_metadata_for_build_wheel`` needs the folder too: maturin refuses a missing one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

try:
    import maturin
    from maturin import get_requires_for_build_editable, get_requires_for_build_sdist, get_requires_for_build_wheel
except ModuleNotFoundError:
    # `make` asks this file about Rust before there is anything else.
    if __name__ != "__main__":
        raise

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).resolve().parent
SCRIPTS = ROOT / "target" / "wheel.data" / "scripts"
PROGRAMS = ("cortex", "cortex-collector")
# The longer name, for who has another `cortex` on PATH.
ALIAS = '#!/bin/sh\nexec "$(dirname -- "$(readlink -f -- "$0")")/cortex" "$@"\n'


def check_rust() -> None:
    """End with one line that says what to run if there is no Rust, or one that is too old."""
    wanted = re.search(r'^rust-version = "([\d.]+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    if wanted is None:
        raise SystemExit("Cargo.toml names no rust-version")
    want = wanted[1]
    how = (
        "install Rust with https://rustup.rs, or if you have rustup, run: rustup update stable "
        "(a cargo of the distribution that stands before it on PATH hides it)"
    )
    try:
        said = subprocess.run(["cargo", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(f"cortex-metrics: no Rust found, want {want} or newer: {how}") from None
    got = re.search(r"\d+(\.\d+)+", said)
    if got is None or _version(got[0]) < _version(want):
        raise SystemExit(f"cortex-metrics: got {said.strip()}, want Rust {want} or newer: {how}")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def lay_programs() -> None:
    """Build the two programs and lay them into the wheel's scripts."""
    check_rust()
    command = ["cargo", "build", "--release", "--locked", "--features", "collector", "--bins"]
    # pip shows what a backend prints only when it fails or with -v.
    if subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False).returncode != 0:
        raise SystemExit(f"cortex-metrics: {' '.join(command)} failed, see above")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    _lay_folder()
    for program in PROGRAMS:
        shutil.copy2(ROOT / target / "release" / program, SCRIPTS / program)
    alias = SCRIPTS / "cortex-metrics"
    alias.write_text(ALIAS)
    alias.chmod(0o755)


def _lay_folder() -> None:
    SCRIPTS.mkdir(parents=True, exist_ok=True)


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """PEP 517's hook: the wheel with all three native parts."""
    lay_programs()
    return str(maturin.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """PEP 660's hook: the same, with the Python files left where they are."""
    lay_programs()
    return str(maturin.build_editable(wheel_directory, config_settings, metadata_directory))


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """PEP 517's hook: the source distribution."""
    _lay_folder()
    return str(maturin.build_sdist(sdist_directory, config_settings))


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """PEP 517's hook: the metadata alone."""
    check_rust()
    _lay_folder()
    return str(maturin.prepare_metadata_for_build_wheel(metadata_directory, config_settings))


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    """PEP 660's hook: the metadata alone."""
    check_rust()
    _lay_folder()
    return str(maturin.prepare_metadata_for_build_editable(metadata_directory, config_settings))


if __name__ == "__main__":
    check_rust()
