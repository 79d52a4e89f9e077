"""``cortex-serve``: serves a predictor class over HTTP, with request metrics, or runs a task once.

The class gets ``config``, ``metrics_client`` and what ``--provide`` names by the names of its constructor's arguments;
``predict`` gets ``payload``, ``headers`` and ``query_params`` the same way, ``post_predict`` also ``response``. Needs
the extra ``cortex-metrics[serve]``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import MetricsClient, __version__
from ._hosting import (
    BODY_BYTES_MAX,
    CannotListenError,
    EndsInTime,
    begin_worker,
    bind,
    endpoint_of,
    serve_alone,
    serve_with_workers,
)
from .asgi import App, Receive, Send
from .predictor import (
    PredictorError,
    build,
    call_factory,
    check,
    factory,
    is_task,
    load,
    post_predict_arguments,
    predict_arguments,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._serving import create_app

__all__ = ["create_app", "main"]

logger = logging.getLogger("cortex_metrics.serve")

_SETTINGS = "CORTEX_SERVE_SETTINGS"
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_NAME_BYTES_MAX = 200
_EXIT_FAILURE = 1
_EXIT_USAGE = 2
# What uvicorn's supervisor, since 0.50, does not start again.
_EXIT_STARTUP = 3


def __getattr__(name: str) -> object:
    # Later: without the extra, the command still says what is missing.
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ._serving import create_app

    return create_app


class _AccessLog:
    """Logs one line per request, with the time that it took in the whole app."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0
        ended = 0.0

        async def see(message: Any) -> None:
            nonlocal status, ended
            await send(message)
            status = message.get("status", status)
            ended = time.perf_counter()

        began = time.perf_counter()
        try:
            await self.app(scope, receive, see)
        finally:
            seconds = (ended or time.perf_counter()) - began
            path = scope["path"].encode("unicode_escape").decode("ascii")
            logger.info("access method=%s path=%s status=%d duration=%.6f", scope["method"], path, status, seconds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cortex-serve",
        description="Serves a predictor class over HTTP, with request metrics, or runs a Task once.",
        epilog="example: cortex-serve predictor.py --api-name text-generator --config config.yaml",
    )
    parser.add_argument("predictor", metavar="predictor.py[:ClassName]", help="the file, and the class in it")
    parser.add_argument("--api-name", required=True, type=_name, help="the API's name in all metrics")
    parser.add_argument("--api-id", help="its version (default: a hash of the predictor's file and its config)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="YAML or JSON for the constructor's config")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=8080, type=_port, help="the port, 0 for any free one (default: %(default)s)")
    parser.add_argument("--workers", default=1, type=_positive, help="processes (default: %(default)s)")
    parser.add_argument(
        "--threads", default=1, type=_positive, help="predictions at once in each process (default: %(default)s)"
    )
    parser.add_argument(
        "--provide",
        action="append",
        default=[],
        type=_provided,
        metavar="NAME=MODULE:FACTORY",
        help="an argument of the constructor, and the function that makes it of those of config and metrics_client "
        "that it names; may be repeated",
    )
    parser.add_argument("--replicas-requested", type=_positive, metavar="N", help="how many replicas you asked for")
    parser.add_argument("--collector-url", metavar="URL", help="udp://host:port or unix:///path of the collector")
    parser.add_argument(
        "--body-bytes-max",
        default=BODY_BYTES_MAX,
        type=_positive,
        metavar="N",
        help="a request with a longer body is refused with 413 (default: %(default)s)",
    )
    parser.add_argument(
        "--grace-seconds",
        default=8,
        type=_positive,
        metavar="N",
        help="after a signal, what predictions under way have to end (default: %(default)s, within the 10 of Docker)",
    )
    parser.add_argument("--access-log", action="store_true", help="log each request with its duration in seconds")
    parser.add_argument("--version", action="version", version=f"cortex-serve {__version__}")
    return parser


def _name(text: str) -> str:
    # Anything else a datagram would carry as another name, which `cortex get` then does not find.
    if not text.strip() or not text.isprintable() or any(char in text for char in ",|"):
        raise argparse.ArgumentTypeError(f"got {text!r}, want text that is not empty and has no comma or |")
    if (size := len(text.encode())) > _NAME_BYTES_MAX:
        # With it, other tags would not fit into a datagram.
        raise argparse.ArgumentTypeError(f"got {size} bytes, want {_NAME_BYTES_MAX} at most")
    return text


def _provided(text: str) -> tuple[str, str]:
    name, _, place = text.partition("=")
    if not name.isidentifier() or name in ("config", "metrics_client") or ":" not in place:
        wanted = "want name=module:factory, like onnx_client=clients:onnx_client"
        raise argparse.ArgumentTypeError(f"got {text!r}, {wanted}")
    return name, place


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}, want 0 to 65535")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, want a whole number of 1 or more")
    return int(text)


def _fail(exit_code: int, message: str) -> NoReturn:
    print(f"cortex-serve: {message}", file=sys.stderr)
    raise SystemExit(exit_code)


def _config(path: Path | None) -> dict[str, Any]:
    import yaml

    if path is None:
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        _fail(_EXIT_USAGE, f"--config {path}: {error.strerror}")
    except UnicodeDecodeError as error:
        _fail(_EXIT_USAGE, f"--config {path}: {error}")
    try:
        config = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except ValueError as error:
        _fail(_EXIT_USAGE, f"--config {path}: not JSON: {error}")
    except yaml.YAMLError as error:
        _fail(_EXIT_USAGE, f"--config {path}: not YAML: {error}")
    except RecursionError:
        _fail(_EXIT_USAGE, f"--config {path}: nested too deeply")
    if config is None:
        return {}
    if not isinstance(config, dict):
        _fail(_EXIT_USAGE, f"--config {path}: got a {type(config).__name__}, want a mapping")
    return config


def _version_of(*files: Path | None) -> str:
    """A short hash that changes when the predictor's file or its config does."""
    # The bytes of the config, not what they say: that may be anything, also endless.
    hashes = [hashlib.sha256(file.read_bytes() if file else b"").digest() for file in files]
    return hashlib.sha256(b"".join(hashes)).hexdigest()[:10]


def app_from_settings() -> App:
    """The app of one worker, from what the parent left in the environment.

    Raises:
        SystemExit: The predictor cannot be built; why is in the log.
    """
    settings = json.loads(os.environ[_SETTINGS])
    begin_worker()
    try:
        return _app(settings, load(settings["path"], settings["class_name"]))
    except (PredictorError, _NotBuiltError) as error:
        # The parent tells it, once for all workers.
        Path(settings["reason"]).write_text(str(error), encoding="utf-8")
        raise SystemExit(_EXIT_STARTUP) from error


class _NotBuiltError(Exception):
    """The predictor's constructor, or what makes an argument of it, raised; that is in the log."""


def _app(settings: dict[str, Any], cls: type[Any]) -> App:
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    client = MetricsClient(settings["collector_url"])
    predictor = _built(settings, cls, client)
    from ._serving import create_app_and_runner

    app, runner = create_app_and_runner(
        predictor,
        client,
        api_name=settings["api_name"],
        api_id=settings["api_id"],
        endpoint=settings["endpoint"],
        replicas_requested=settings["replicas_requested"],
        threads=settings["threads"],
        body_bytes_max=settings["body_bytes_max"],
    )
    app = EndsInTime(app, runner.running)
    return _AccessLog(app) if settings["access_log"] else app


def _built(settings: dict[str, Any], cls: type[Any], client: MetricsClient) -> Any:
    config = _config(Path(settings["config"]) if settings["config"] else None)
    provided: dict[str, Any] = {}
    what = ""
    try:
        for name, place in settings["provide"]:
            what = f"--provide {name}={place}: the factory"
            provided[name] = call_factory(place, {"config": config, "metrics_client": client})
        what = f"{settings['path']}: the constructor of {cls.__name__}"
        return build(cls, config=config, metrics_client=client, **provided)
    except PredictorError:
        raise
    except Exception as error:
        logger.exception("%s raised", what)
        raise _NotBuiltError(f"{what} raised {type(error).__name__}: {error}") from error


def _run_task(settings: dict[str, Any], cls: type[Any]) -> NoReturn:
    """Runs a task once and sends its metrics."""
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    with MetricsClient(settings["collector_url"]) as client:
        try:
            task = _built(settings, cls, client)
        except (PredictorError, _NotBuiltError) as error:
            _fail(_EXIT_USAGE, str(error))
        began = time.perf_counter()
        logger.info("running %s of %s", cls.__name__, settings["path"])
        try:
            task(_config(Path(settings["config"]) if settings["config"] else None))
        except Exception:
            logger.exception("%s raised", cls.__name__)
            raise SystemExit(_EXIT_FAILURE) from None
        logger.info("%s ended after %.3f s", cls.__name__, time.perf_counter() - began)
    raise SystemExit(0)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``cortex-serve``.

    Args:
        arguments: The command line without the program's name; that of the process if none is given.

    Raises:
        SystemExit: 2 for a command line or a predictor that cannot be used; 1 for a port that cannot be had, a task
            that raised, or a prediction that did not end in time; 0 after a signal or a task.
    """
    try:
        import multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
        import yaml  # noqa: F401
    except ModuleNotFoundError as error:
        _fail(_EXIT_FAILURE, f"{error.name} is missing: pip install 'cortex-metrics[serve]'")
    args = _parser().parse_args(arguments)
    path, _, class_name = args.predictor.partition(":")
    if not Path(path).is_file():
        _fail(_EXIT_USAGE, f"{path}: no such file")
    _config(args.config)
    try:
        client = MetricsClient(args.collector_url)
    except ValueError as error:
        _fail(_EXIT_USAGE, f"--collector-url: {error}")
    client.close()
    api_id = args.api_id or _version_of(Path(path), args.config)
    # Before the predictor's file runs, which may build a client of its own. Workers inherit what a replica is: its
    # name, its version, its id and when it started.
    os.environ.update(
        CORTEX_API_NAME=args.api_name,
        CORTEX_API_ID=api_id,
        CORTEX_REPLICA_ID=os.environ.get("CORTEX_REPLICA_ID") or secrets.token_hex(4),
        CORTEX_REPLICA_START_SECONDS=f"{time.time():.3f}",
    )
    if args.collector_url:
        os.environ["CORTEX_METRICS_URL"] = args.collector_url
    # Found out here, before a port is taken and, with several workers, before each of them fails.
    cls = _predictor_class(path, class_name or None, args.provide)
    settings: dict[str, Any] = {
        "path": str(Path(path).resolve()),
        "class_name": class_name or None,
        "config": str(args.config.resolve()) if args.config else None,
        "api_name": args.api_name,
        "api_id": api_id,
        "provide": args.provide,
        "replicas_requested": args.replicas_requested,
        "threads": args.threads,
        "collector_url": args.collector_url,
        "access_log": args.access_log,
        "body_bytes_max": args.body_bytes_max,
    }
    if is_task(cls):
        _run_task(settings, cls)
    try:
        _serve(settings, cls, args, f"metrics through {client!r}")
    except CannotListenError as error:
        _fail(_EXIT_FAILURE, f"--host {args.host} --port {args.port}: cannot listen: {error}")


def _serve(settings: dict[str, Any], cls: type[Any], args: argparse.Namespace, where: str) -> None:
    listener = bind(args.host, args.port)
    settings["endpoint"] = endpoint = endpoint_of(listener)
    ready = f"serving {args.api_name} at {endpoint} (POST JSON to / or /predict), {where}"
    options = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": args.grace_seconds}
    if args.workers == 1:
        try:
            app = _app(settings, cls)
        except (PredictorError, _NotBuiltError) as error:
            _fail(_EXIT_USAGE, str(error))
        serve_alone(app, listener, ready, options)
        return
    with tempfile.TemporaryDirectory(prefix="cortex-serve-") as folder:
        reason = Path(folder) / "reason"
        os.environ[_SETTINGS] = json.dumps({**settings, "reason": str(reason)})
        logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
        serve_with_workers(listener, ready, {**options, "workers": args.workers})
        if reason.exists():
            _fail(_EXIT_USAGE, reason.read_text(encoding="utf-8"))


def _predictor_class(path: str, class_name: str | None, provide: list[tuple[str, str]]) -> type[Any]:
    try:
        cls = load(path, class_name)
        for _, place in provide:
            factory(place)
        check(cls, dict.fromkeys(["config", "metrics_client", *(name for name, _ in provide)]))
        if not is_task(cls):
            predict_arguments(cls)
            post_predict_arguments(cls)
    except PredictorError as error:
        if error.__cause__ is not None:
            logging.basicConfig()
            logger.error("the predictor's file raised", exc_info=error.__cause__)
        _fail(_EXIT_USAGE, str(error))
    return cls


if __name__ == "__main__":
    main()
