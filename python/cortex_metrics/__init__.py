"""Metrics for people who serve models from Python.

``MetricsClient`` counts, sets and measures; a collector beside the process keeps and shows it::

    from cortex_metrics import MetricsClient

    metrics = MetricsClient()
    metrics.increment("my_counter", 1, {"model": "v1"})
"""

from ._native import MetricsClient, __version__

TYPE_CHECKING = False  # as type checkers know it, without the cost of importing typing
if TYPE_CHECKING:
    from ._null import NullClient
    from ._timer import Timer
    from ._types import Metrics, Stats

__all__ = ["Metrics", "MetricsClient", "NullClient", "Stats", "Timer", "__version__"]

# Loaded when they are first asked for: they need typing, which alone takes longer to import than all that is above.
_LATER = {"Metrics": "_types", "NullClient": "_null", "Stats": "_types", "Timer": "_timer"}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    value: object = getattr(import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _LATER.keys())
