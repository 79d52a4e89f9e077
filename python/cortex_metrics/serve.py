"""``cortex-serve``: serves a predictor class over HTTP, with request metrics.

The class gets ``config`` and ``metrics_client`` by the names of its constructor's arguments; ``predict`` gets
``payload``, ``headers`` and ``query_params`` the same way. Needs the extra ``cortex-metrics[serve]``.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from . import MetricsClient, __version__
from ._types import Metrics
from .asgi import App, MetricsMiddleware, Receive, Send
from .predictor import PredictorError, build, check, load, predict_arguments

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["create_app", "main"]

logger = logging.getLogger("cortex_metrics.serve")

_SETTINGS = "CORTEX_SERVE_SETTINGS"
_EXIT_FAILURE = 1
_EXIT_USAGE = 2
# What uvicorn's supervisor, since 0.50, does not start again.
_EXIT_STARTUP = 3

_CLIENT_CLOSED_REQUEST = 499


def create_app(
    predictor: Any,
    client: Metrics,
    *,
    api_name: str,
    api_id: str = "",
    endpoint: str | None = None,
    replicas_requested: int | None = None,
    threads: int = 1,
) -> App:
    """An ASGI app that serves a predictor and records its requests.

    Args:
        predictor: The built predictor: it has a method ``predict``.
        client: Where the request metrics go. The app closes it at its shutdown.
        api_name: The API's name.
        api_id: Its version.
        endpoint: Where the API answers.
        replicas_requested: How many replicas the operator asked for.
        threads: How many predictions run at once in this process; further requests wait. An ``async`` predict is not
            held back.

    Returns:
        POST ``/`` and ``/predict`` predict, GET ``/`` says what is served, GET ``/healthz`` that it is.

    Raises:
        PredictorError: ``predict`` wants an argument that a request cannot give.

    Example:
        >>> from cortex_metrics import MetricsClient
        >>> from cortex_metrics.serve import create_app
        >>> class PythonPredictor:
        ...     def predict(self, payload):
        ...         return {"label": payload["text"].upper()}
        >>> app = create_app(PythonPredictor(), MetricsClient(), api_name="shout")
    """
    from anyio import CapacityLimiter, to_thread
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    wanted = predict_arguments(type(predictor))
    is_async = inspect.iscoroutinefunction(predictor.predict)
    limiter: list[CapacityLimiter] = []

    async def predict(request: Request) -> Response:
        arguments: dict[str, Any] = {}
        if "payload" in wanted:
            try:
                arguments["payload"] = await _payload(request)
            except ClientDisconnect:
                return Response(status_code=_CLIENT_CLOSED_REQUEST)
        if "headers" in wanted:
            arguments["headers"] = dict(request.headers)
        if "query_params" in wanted:
            arguments["query_params"] = dict(request.query_params)
        try:
            if is_async:
                result = await predictor.predict(**arguments)
            else:
                if not limiter:
                    limiter.append(CapacityLimiter(threads))
                result = await to_thread.run_sync(lambda: predictor.predict(**arguments), limiter=limiter[0])
        except HTTPException:
            raise
        except Exception:
            logger.exception("%s: predict raised", api_name)
            return PlainTextResponse("internal server error", 500)
        if await request.is_disconnected():
            # Asked through the middleware, which counts it so: nobody reads this response.
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        try:
            return _response(result)
        except (TypeError, ValueError) as error:
            logger.error("%s: the prediction of type %s is not JSON: %s", api_name, type(result).__name__, error)
            return PlainTextResponse("internal server error", 500)

    async def about(_request: Request) -> Response:
        return JSONResponse({"api_name": api_name, "api_id": api_id, "predictor": type(predictor).__name__})

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok")

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        client.flush()

    app = Starlette(
        routes=[
            Route("/", about, methods=["GET"]),
            Route("/", predict, methods=["POST"]),
            Route("/predict", predict, methods=["POST"]),
            Route("/healthz", healthz, methods=["GET"]),
        ],
        lifespan=lifespan,
    )
    return MetricsMiddleware(
        app, client, api_name=api_name, api_id=api_id, endpoint=endpoint, replicas_requested=replicas_requested
    )


async def _payload(request: Request) -> Any:
    """The body by its content type: JSON, text, form or bytes. What is not the JSON it says it is raises a 400."""
    from starlette.exceptions import HTTPException

    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return await request.form()
    body = await request.body()
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return json.loads(body)
        except json.JSONDecodeError as error:
            detail = f"malformed JSON: {error.msg} at line {error.lineno} column {error.colno}"
            raise HTTPException(400, detail) from None
        except UnicodeDecodeError as error:
            raise HTTPException(400, f"malformed JSON: not {error.encoding} at byte {error.start}") from None
        except RecursionError:
            raise HTTPException(400, "malformed JSON: nested too deeply") from None
        except ValueError:
            # Python's limit, 4,300 digits unless told otherwise.
            raise HTTPException(400, "malformed JSON: a number has too many digits") from None
    if kind.startswith("text/"):
        try:
            return body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise HTTPException(400, f"malformed text: not utf-8 at byte {error.start}") from None
    return body


def _response(result: Any) -> Response:
    """What ``predict`` returned as a response. Raises ``TypeError`` or ``ValueError`` for what has no JSON form."""
    from starlette.responses import PlainTextResponse
    from starlette.responses import Response as StarletteResponse

    if isinstance(result, StarletteResponse):
        return result
    if isinstance(result, str):
        return PlainTextResponse(result)
    if isinstance(result, bytes):
        return StarletteResponse(result, media_type="application/octet-stream")
    text = json.dumps(result, default=_plain, allow_nan=False)
    return StarletteResponse(text, media_type="application/json")


def _plain(value: Any) -> Any:
    """Arrays and scalars of numpy and its like as lists and numbers."""
    for method in ("tolist", "item"):
        convert = getattr(value, method, None)
        if callable(convert):
            return convert()
    raise TypeError(f"an object of type {type(value).__name__} has no JSON form")


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
        description="Serves a predictor class over HTTP, with request metrics.",
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
    parser.add_argument("--replicas-requested", type=_positive, metavar="N", help="how many replicas you asked for")
    parser.add_argument("--collector-url", metavar="URL", help="udp://host:port or unix:///path of the collector")
    parser.add_argument("--access-log", action="store_true", help="log each request with its duration in seconds")
    parser.add_argument("--version", action="version", version=f"cortex-serve {__version__}")
    return parser


def _name(text: str) -> str:
    # Anything else a datagram would carry as another name, which `cortex get` then does not find.
    if not text.strip() or not text.isprintable() or any(char in text for char in ",|"):
        raise argparse.ArgumentTypeError(f"got {text!r}, want text that is not empty and has no comma or |")
    return text


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"got {text}, want 0 to 65535")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, want 1 or more")
    return number


def _fail(exit_code: int, message: str) -> NoReturn:
    print(f"cortex-serve: {message}", file=sys.stderr)
    raise SystemExit(exit_code)


def _config(path: Path | None) -> dict[str, Any]:
    import yaml

    if path is None:
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        _fail(_EXIT_USAGE, f"--config {path}: {error}")
    try:
        config = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except ValueError as error:
        _fail(_EXIT_USAGE, f"--config {path}: not JSON: {error}")
    except yaml.YAMLError as error:
        _fail(_EXIT_USAGE, f"--config {path}: not YAML: {error}")
    if config is None:
        return {}
    if not isinstance(config, dict):
        _fail(_EXIT_USAGE, f"--config {path}: got a {type(config).__name__}, want a mapping")
    return config


def _version_of(path: Path, config: dict[str, Any]) -> str:
    """A short hash that changes when the predictor's file or its config does."""
    text = json.dumps(config, sort_keys=True, default=str).encode()
    return hashlib.sha256(path.read_bytes() + b"\0" + text).hexdigest()[:10]


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        _fail(_EXIT_FAILURE, f"--host {host} --port {port}: cannot listen: {error}")
    listener.set_inheritable(True)
    return listener


def app_from_settings() -> App:
    """The app of one worker, from what the parent left in the environment.

    Raises:
        SystemExit: The predictor cannot be built; why is in the log.
    """
    settings = json.loads(os.environ[_SETTINGS])
    try:
        return _app(settings, load(settings["path"], settings["class_name"]))
    except (PredictorError, _NotBuiltError) as error:
        # The parent tells it, once for all workers.
        Path(settings["reason"]).write_text(str(error), encoding="utf-8")
        raise SystemExit(_EXIT_STARTUP) from error


class _NotBuiltError(Exception):
    """The predictor's constructor raised; that is in the log."""


def _app(settings: dict[str, Any], cls: type[Any]) -> App:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    client = MetricsClient(settings["collector_url"])
    config = _config(Path(settings["config"]) if settings["config"] else None)
    try:
        predictor = build(cls, config=config, metrics_client=client)
    except PredictorError:
        raise
    except Exception as error:
        logger.exception("the predictor's constructor raised")
        told = f"{settings['path']}: the predictor's constructor raised {type(error).__name__}: {error}"
        raise _NotBuiltError(told) from error
    app = create_app(
        predictor,
        client,
        api_name=settings["api_name"],
        api_id=settings["api_id"],
        endpoint=settings["endpoint"],
        replicas_requested=settings["replicas_requested"],
        threads=settings["threads"],
    )
    return _AccessLog(app) if settings["access_log"] else app


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``cortex-serve``.

    Args:
        arguments: The command line without the program's name; that of the process if none is given.

    Raises:
        SystemExit: 2 for a command line or a predictor that cannot be used, 1 for a port that cannot be had, 0 after a
            signal.
    """
    try:
        import multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn
        import yaml  # noqa: F401
    except ModuleNotFoundError as error:
        _fail(_EXIT_FAILURE, f"{error.name} is missing: pip install 'cortex-metrics[serve]'")
    args = _parser().parse_args(arguments)
    path, _, class_name = args.predictor.partition(":")
    if not Path(path).is_file():
        _fail(_EXIT_USAGE, f"{path}: no such file")
    config = _config(args.config)
    try:
        client = MetricsClient(args.collector_url)
    except ValueError as error:
        _fail(_EXIT_USAGE, f"--collector-url: {error}")
    client.close()
    api_id = args.api_id or _version_of(Path(path), config)
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
    cls = _predictor_class(path, class_name or None)
    listener = _bind(args.host, args.port)
    host, port = listener.getsockname()[:2]
    endpoint = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
    settings = {
        "path": str(Path(path).resolve()),
        "class_name": class_name or None,
        "config": str(args.config.resolve()) if args.config else None,
        "api_name": args.api_name,
        "api_id": api_id,
        "endpoint": endpoint,
        "replicas_requested": args.replicas_requested,
        "threads": args.threads,
        "collector_url": args.collector_url,
        "access_log": args.access_log,
    }
    ready = f"serving {args.api_name} at {endpoint} (POST JSON to / or /predict), metrics through {client!r}"
    options: dict[str, Any] = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": 10}
    if args.workers > 1:
        _serve_with_workers(settings, listener, ready, {**options, "workers": args.workers})
        return
    try:
        app = _app(settings, cls)
    except (PredictorError, _NotBuiltError) as error:
        _fail(_EXIT_USAGE, str(error))
    server = uvicorn.Server(uvicorn.Config(app, **options))
    for number in (signal.SIGINT, signal.SIGTERM):
        # Uvicorn stops in good order and raises the signal again: then the interpreter ends in good order too.
        signal.signal(number, _end)
    listener.listen(2048)
    print(ready, flush=True)
    server.run(sockets=[listener])


def _predictor_class(path: str, class_name: str | None) -> type[Any]:
    try:
        cls = load(path, class_name)
        check(cls, {"config": None, "metrics_client": None})
        predict_arguments(cls)
    except PredictorError as error:
        if error.__cause__ is not None:
            logging.basicConfig()
            logger.error("the predictor's file raised", exc_info=error.__cause__)
        _fail(_EXIT_USAGE, str(error))
    return cls


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _serve_with_workers(settings: dict[str, Any], listener: socket.socket, ready: str, options: dict[str, Any]) -> None:
    import uvicorn

    listener.listen(2048)
    threading.Thread(target=_announce_when_answered, args=(listener, ready), daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="cortex-serve-") as folder:
        reason = Path(folder) / "reason"
        os.environ[_SETTINGS] = json.dumps({**settings, "reason": str(reason)})
        uvicorn.run("cortex_metrics.serve:app_from_settings", factory=True, fd=listener.fileno(), **options)
        if reason.exists():
            _fail(_EXIT_USAGE, reason.read_text(encoding="utf-8"))


def _announce_when_answered(listener: socket.socket, ready: str) -> None:
    """Prints the line once a worker answers; until then the request waits in the listener's queue."""
    with socket.socket(listener.family, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(listener.getsockname())
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if connection.recv(1):
                print(ready, flush=True)
        except OSError:
            # No worker could start: that is told by who waits for them.
            return


if __name__ == "__main__":
    main()
