"""Metrics for people who serve models from Python.

``MetricsClient`` counts, sets and measures; a collector beside the process keeps and shows it::

    from cortex_metrics import MetricsClient

    metrics = MetricsClient()
    metrics.increment("my_counter", 1, {"model": "v1"})
"""

from ._native import MetricsClient, __version__

__all__ = ["MetricsClient", "__version__"]
