"""What the documentation shows runs: each public docstring's example, and the Python blocks of the README and docs."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cortex_metrics
import cortex_metrics.asgi
import cortex_metrics.predictor
import cortex_metrics.testing
import pytest
from support import ROOT, Udp

MODULES = (cortex_metrics, cortex_metrics.testing)
# Plain accessors and the two ways out of a `with`: the example of their class shows them.
SHOWN_BY_THEIR_CLASS = {"NullClient", "Metrics", "CapturingClient"}


def documented() -> list[Any]:
    found = []
    for module in MODULES:
        for name in module.__all__:
            thing = getattr(module, name)
            if name == "__version__" or name in ("Call", "Stats"):
                continue
            found.append(pytest.param(thing, id=name))
            if name in SHOWN_BY_THEIR_CLASS:
                continue
            for attribute, member in vars(thing).items():
                if not attribute.startswith("_") and callable(member):
                    found.append(pytest.param(member, id=f"{name}.{attribute}"))
    return found


@pytest.mark.parametrize("thing", documented())
def test_every_public_docstring_has_an_example_that_runs(thing: Any, udp: Udp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTEX_METRICS_URL", udp.url)
    text = inspect.getdoc(thing)
    assert text is not None
    examples = doctest.DocTestParser().get_doctest(text, {}, thing.__name__, None, None)
    assert examples.examples, "no example"
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, out=report.append)
    assert result.failed == 0, "".join(report)


def blocks() -> list[Any]:
    found = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for number, block in enumerate(
            re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
        ):
            found.append(pytest.param(block, id=f"{path.name}-{number}"))
    return found


@pytest.mark.parametrize("block", blocks())
def test_the_python_of_the_documents_runs(block: str, tmp_path: Path, udp: Udp) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        cwd=tmp_path,
        env={"CORTEX_METRICS_URL": udp.url, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_importing_loads_little() -> None:
    code = "import sys; before = set(sys.modules); import cortex_metrics; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(cortex_metrics.__file__).parents[1])},
    )
    loaded = set(done.stdout.split())
    heavy = {
        "inspect",
        "asyncio",
        "typing",
        "logging",
        "socket",
        "multiprocessing",
        "subprocess",
        "pytest",
        "starlette",
        "json",
        "urllib",
    }
    assert not loaded & heavy, loaded
    assert len(loaded) < 60, loaded
