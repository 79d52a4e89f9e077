"""Finds a predictor class, or a task, and builds it with what its constructor names.

``cortex-serve`` does both; other servers can use ``build`` alone::

    from cortex_metrics import MetricsClient
    from cortex_metrics.predictor import build

    predictor = build(PythonPredictor, config={"temperature": 0.7}, metrics_client=MetricsClient())
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["PredictorError", "build", "factory", "is_task", "load", "post_predict_arguments", "predict_arguments"]

NAMES = ("PythonPredictor", "TensorFlowPredictor", "ONNXPredictor", "Task")
"""The class names that are looked for, in this order."""

PREDICT_ARGUMENTS = ("payload", "headers", "query_params")
"""What of a request ``predict`` can name."""

T = TypeVar("T")

# The modules that ``load`` put into ``sys.modules``: only these it replaces.
_loaded: set[str] = set()


class PredictorError(Exception):
    """A predictor that cannot be used; the message names file, class and argument."""


def load(path: str | Path, class_name: str | None = None) -> type[Any]:
    """Imports a predictor's file and finds its class.

    Args:
        path: The file. Its folder is put on ``sys.path``, so that it can import what lies beside it.
        class_name: The class; without it the first of ``PythonPredictor``, ``TensorFlowPredictor``,
            ``ONNXPredictor`` and ``Task``.

    Returns:
        The class. It has a method ``predict``, or is a task: it has a method ``__call__``.

    Raises:
        PredictorError: The file cannot be imported, or the class is missing or has neither. An exception of the
            file itself is the cause.

    Example:
        >>> from pathlib import Path
        >>> from cortex_metrics.predictor import load
        >>> _ = Path("echo_predictor.py").write_text("class PythonPredictor: predict = print")
        >>> load("echo_predictor.py").__name__
        'PythonPredictor'
    """
    path = Path(path)
    if not path.is_file():
        raise PredictorError(f"{path}: no such file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not name.isidentifier():
        raise PredictorError(f"{path}: want a Python file whose name is an identifier, such as predictor.py")
    if name in sys.modules and name not in _loaded:
        taken = getattr(sys.modules[name], "__file__", None) or "the interpreter"
        raise PredictorError(f"{path}: a module named {name} is imported already, from {taken}: rename the file")
    module = importlib.util.module_from_spec(spec)
    # Before it runs, as any import does: so its classes can be pickled.
    sys.modules[name] = module
    _loaded.add(name)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise PredictorError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
    wanted = (class_name,) if class_name else NAMES
    for candidate in wanted:
        found = getattr(module, candidate, None)
        if inspect.isclass(found):
            if not is_task(found) and not callable(getattr(found, "predict", None)):
                raise PredictorError(f"{path}: class {candidate} has no method predict")
            return found
    raise PredictorError(f"{path}: want a class named {' or '.join(wanted)}")


def is_task(cls: type[Any]) -> bool:
    """Whether a class is a task, which runs once, and not a predictor.

    Args:
        cls: The class.

    Returns:
        Whether it has a method ``__call__`` and no method ``predict``.

    Example:
        >>> from cortex_metrics.predictor import is_task
        >>> class Task:
        ...     def __call__(self, config): ...
        >>> is_task(Task)
        True
    """
    return "__call__" in dir(cls) and not hasattr(cls, "predict")


def factory(place: str) -> Callable[..., Any]:
    """Finds what makes an object that a predictor wants: ``module:function``.

    Args:
        place: The module, which may lie beside the predictor, and a function or class in it.

    Returns:
        The function.

    Raises:
        PredictorError: There is no such thing. An exception of the module itself is the cause.

    Example:
        >>> from cortex_metrics.predictor import factory
        >>> factory("collections:Counter").__name__
        'Counter'
    """
    module_name, _, name = place.partition(":")
    if not module_name or not name:
        raise PredictorError(f"{place}: want module:function")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise PredictorError(f"{place}: cannot be imported: {type(error).__name__}: {error}") from error
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise PredictorError(f"{place}: {module_name} has no function {name}")
    return found  # type: ignore[no-any-return]


def build(cls: type[T], *, config: Mapping[str, Any] | None = None, metrics_client: Any = None, **provided: Any) -> T:
    """Builds a predictor with those of ``config``, ``metrics_client`` and ``provided`` that its constructor names.

    Args:
        cls: The class.
        config: The user's configuration; an empty one if there is none.
        metrics_client: What the predictor calls ``increment``, ``gauge`` and ``histogram`` on.
        **provided: Further objects by the name of their argument.

    Returns:
        The predictor.

    Raises:
        PredictorError: The constructor wants an argument that nobody provides.

    Example:
        >>> from cortex_metrics.predictor import build
        >>> class PythonPredictor:
        ...     def __init__(self, config):
        ...         self.greeting = config["greeting"]
        >>> build(PythonPredictor, config={"greeting": "hello"}).greeting
        'hello'
    """
    available = {"config": {} if config is None else config, "metrics_client": metrics_client, **provided}
    check(cls, available)
    return cls(**_named(inspect.signature(cls), available))


def call_factory(place: str, available: Mapping[str, Any]) -> Any:
    """What a factory makes of those of ``available`` that it names."""
    function = factory(place)
    try:
        signature = inspect.signature(function)
    except ValueError:  # of a class without Python code
        return function()
    for parameter in signature.parameters.values():
        if _is_demanded(parameter) and parameter.name not in available:
            have = ", ".join(available)
            raise PredictorError(f"{place}: it wants {parameter.name!r}, which nobody provides: have {have}")
    return function(**_named(signature, available))


def _named(signature: inspect.Signature, available: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``available`` that a signature names."""
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return dict(available)
    return {name: value for name, value in available.items() if name in signature.parameters}


def check(cls: type[Any], available: Mapping[str, Any]) -> None:
    """Raises ``PredictorError`` if the constructor of ``cls`` wants more than ``available``."""
    _check(cls, "its constructor", list(inspect.signature(cls).parameters.values()), available)


def predict_arguments(cls: type[Any]) -> frozenset[str]:
    """Which of ``payload``, ``headers`` and ``query_params`` the ``predict`` of a class takes.

    Args:
        cls: The class.

    Returns:
        Those that it names; all of them if it takes ``**kwargs``.

    Raises:
        PredictorError: It wants an argument that is none of these.

    Example:
        >>> from cortex_metrics.predictor import predict_arguments
        >>> class PythonPredictor:
        ...     def predict(self, payload, threshold=0.5): ...
        >>> predict_arguments(PythonPredictor)
        frozenset({'payload'})
    """
    return _method_arguments(cls, "predict", PREDICT_ARGUMENTS)


def post_predict_arguments(cls: type[Any]) -> frozenset[str] | None:
    """Which of ``response``, ``payload``, ``headers`` and ``query_params`` the ``post_predict`` of a class takes.

    Args:
        cls: The class.

    Returns:
        Those that it names; all of them if it takes ``**kwargs``; ``None`` if there is no ``post_predict``.

    Raises:
        PredictorError: It wants an argument that is none of these.

    Example:
        >>> from cortex_metrics.predictor import post_predict_arguments
        >>> class PythonPredictor:
        ...     def post_predict(self, response): ...
        >>> post_predict_arguments(PythonPredictor)
        frozenset({'response'})
    """
    if not callable(getattr(cls, "post_predict", None)):
        return None
    return _method_arguments(cls, "post_predict", (*PREDICT_ARGUMENTS, "response"))


def _method_arguments(cls: type[Any], name: str, available: Iterable[str]) -> frozenset[str]:
    signature = inspect.signature(getattr(cls, name))
    if not isinstance(inspect.getattr_static(cls, name), (staticmethod, classmethod)):
        # Of the class it is a plain function, whose first argument is the predictor.
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    _check(cls, name, list(signature.parameters.values()), available)
    return frozenset(_named(signature, dict.fromkeys(available)))


def _is_demanded(parameter: inspect.Parameter) -> bool:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.kind not in variable and parameter.default is inspect.Parameter.empty


def _check(cls: type[Any], what: str, parameters: list[inspect.Parameter], available: Iterable[str]) -> None:
    for parameter in parameters:
        if not _is_demanded(parameter):
            continue
        if parameter.name not in available or parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            file = inspect.getsourcefile(cls) or "?"
            have = ", ".join(available)
            wants = f"{what} wants {parameter.name!r}, which nobody provides: have {have}"
            raise PredictorError(f"{file}: class {cls.__name__}: {wants}")
