"""What the documentation shows runs: each public docstring's example, and the Python blocks of the README and docs."""

from __future__ import annotations

import ast
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
import cortex_metrics.serve
import cortex_metrics.testing
import pytest
from support import ROOT, Udp

MODULES = (cortex_metrics, cortex_metrics.testing, cortex_metrics.asgi, cortex_metrics.predictor, cortex_metrics.serve)
# A version, records, an error and a program.
WITHOUT_EXAMPLE = {"__version__", "Call", "Stats", "PredictorError", "main"}
# Their methods do what those of `MetricsClient` say, or nothing: the example of the class shows them.
SHOWN_BY_THEIR_CLASS = {"NullClient", "Metrics"}


def documented() -> list[Any]:
    found = []
    for module in MODULES:
        for name in module.__all__:
            if name in WITHOUT_EXAMPLE:
                continue
            thing = getattr(module, name)
            found.append(pytest.param(thing, id=name))
            if not inspect.isclass(thing) or name in SHOWN_BY_THEIR_CLASS:
                continue
            for attribute, member in vars(thing).items():
                if not attribute.startswith("_") and callable(member):
                    found.append(pytest.param(member, id=f"{name}.{attribute}"))
    return found


@pytest.mark.parametrize("thing", documented())
def test_every_public_docstring_has_an_example_that_runs(
    thing: Any, udp: Udp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CORTEX_METRICS_URL", udp.url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    text = inspect.getdoc(thing)
    assert text is not None
    examples = doctest.DocTestParser().get_doctest(text, {}, thing.__name__, None, None)
    assert examples.examples, "no example"
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, out=report.append)
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize("thing", [p for p in documented() if inspect.isroutine(p.values[0])])
def test_every_public_docstring_names_all_arguments(thing: Any) -> None:
    text = inspect.getdoc(thing)
    assert text is not None
    arguments = re.search(r"^Args:\n((?:    .*\n?|\n)*)", text, re.MULTILINE)
    told = set(re.findall(r"^ {4}\*{0,2}(\w+):", arguments[1], re.MULTILINE)) if arguments else set()
    if "see ``MetricsClient." in text:  # the same arguments are told there
        return
    assert told == {name for name in inspect.signature(thing).parameters if name != "self"}


def test_the_stub_has_the_docstrings_of_the_module() -> None:
    # Editors show those of the stub, Python those of the module.
    stub = ast.parse((ROOT / "python/cortex_metrics/_native.pyi").read_text())
    (client,) = (node for node in stub.body if isinstance(node, ast.ClassDef) and node.name == "MetricsClient")
    assert ast.get_docstring(client) == inspect.getdoc(cortex_metrics.MetricsClient)
    told = {node.name: ast.get_docstring(node) for node in client.body if isinstance(node, ast.FunctionDef)}
    public = [name for name in vars(cortex_metrics.MetricsClient) if not name.startswith("_")]
    assert {name: told[name] for name in public} == {
        name: inspect.getdoc(getattr(cortex_metrics.MetricsClient, name)) for name in public
    }


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
