"""The ASGI app that serves a predictor: request -> arguments -> ``predict`` -> response, and ``post_predict`` after it.

Whatever a predictor runs by itself, ``predict``, the steps of what it streams, ``post_predict``, runs in one of the
app's threads; further requests wait until one is free. What is ``async`` runs in the event loop.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from anyio import CapacityLimiter, create_task_group, from_thread, to_thread
from starlette.applications import Starlette
from starlette.background import BackgroundTasks
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ._types import Metrics
from .asgi import App, MetricsMiddleware, Receive, Send
from .predictor import post_predict_arguments, predict_arguments

logger = logging.getLogger("cortex_metrics.serve")

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
        predictor: The built predictor: it has a method ``predict`` and perhaps ``post_predict``.
        client: Where the request metrics go. The app closes it at its shutdown.
        api_name: The API's name.
        api_id: Its version.
        endpoint: Where the API answers.
        replicas_requested: How many replicas the operator asked for.
        threads: How many predictions run at once in this process; further requests wait. What is ``async`` is not held
            back.

    Returns:
        POST ``/`` and ``/predict`` predict, GET ``/`` says what is served, GET ``/healthz`` that it is.

    Raises:
        PredictorError: ``predict`` or ``post_predict`` wants an argument that a request cannot give.

    Example:
        >>> from cortex_metrics import MetricsClient
        >>> from cortex_metrics.serve import create_app
        >>> class PythonPredictor:
        ...     def predict(self, payload):
        ...         return {"label": payload["text"].upper()}
        >>> app = create_app(PythonPredictor(), MetricsClient(), api_name="shout")
    """
    runner = _Runner(predictor, threads)

    async def predict(request: Request) -> Response:
        return await runner.respond(request, middleware)

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
    middleware = MetricsMiddleware(
        app, client, api_name=api_name, api_id=api_id, endpoint=endpoint, replicas_requested=replicas_requested
    )
    return middleware


class _Runner:
    """A predictor, its threads, and what it wants of a request."""

    def __init__(self, predictor: Any, threads: int) -> None:
        self._predictor = predictor
        self._threads = threads
        self._of_loop: CapacityLimiter | None = None
        self._name = type(predictor).__name__
        self._wanted = predict_arguments(type(predictor))
        self._wanted_after = post_predict_arguments(type(predictor))
        self._is_payload_wanted = "payload" in self._wanted | (self._wanted_after or frozenset())

    @property
    def _limiter(self) -> CapacityLimiter:
        # Made in the loop where it is used.
        if self._of_loop is None:
            self._of_loop = CapacityLimiter(self._threads)
        return self._of_loop

    async def _run(self, function: Callable[..., Any], call: Callable[[], Any]) -> Any:
        """Runs ``call``, which calls ``function``: in a thread, unless it is ``async``."""
        is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        result = call() if is_async else await to_thread.run_sync(call, limiter=self._limiter)
        return await result if inspect.isawaitable(result) else result

    async def respond(self, request: Request, middleware: MetricsMiddleware) -> Response:
        given: dict[str, Any] = {"headers": request.headers, "query_params": request.query_params}
        if self._is_payload_wanted:
            try:
                given["payload"] = await _payload(request)
            except ClientDisconnect:
                return Response(status_code=_CLIENT_CLOSED_REQUEST)
        predict = self._predictor.predict

        def call() -> Any:
            middleware.queued(request.scope)
            return predict(**{name: given[name] for name in self._wanted})

        try:
            result = await self._run(predict, call)
        except HTTPException:
            raise
        except Exception:
            logger.exception("%s: predict raised", self._name)
            return _failure()
        if await request.is_disconnected():
            # Asked through the middleware, which counts it so: nobody reads this response.
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        try:
            response = self._response(result)
        except (TypeError, ValueError, RecursionError) as error:
            logger.error("%s: the prediction of type %s is not JSON: %s", self._name, type(result).__name__, error)
            return _failure()
        after = BackgroundTasks()
        if response.background is not None:
            after.add_task(response.background)
        after.add_task(self._after, {**given, "response": result})
        after.add_task(request.close)
        response.background = after
        return response

    def _response(self, result: Any) -> Response:
        """What ``predict`` returned as a response. Raises ``TypeError`` or ``ValueError`` for what has no JSON form."""
        if isinstance(result, Response):
            return result
        if isinstance(result, str):
            return PlainTextResponse(result)
        if isinstance(result, bytes):
            return Response(result, media_type="application/octet-stream")
        if isinstance(result, (Iterator, AsyncIterator)):
            return _Stream(result, self._name, self._limiter)
        return Response(_json(result), media_type="application/json")

    async def _after(self, given: dict[str, Any]) -> None:
        """Runs ``post_predict``, if there is one; the response has left."""
        if self._wanted_after is None:
            return
        post_predict = self._predictor.post_predict
        arguments = {name: given[name] for name in self._wanted_after}
        try:
            await self._run(post_predict, lambda: post_predict(**arguments))
        except Exception:
            logger.exception("%s: post_predict raised", self._name)


class _Stream(Response):
    """What a generator gives, piece by piece: text and bytes as they are, all else as a line of JSON each."""

    def __init__(self, pieces: Iterator[Any] | AsyncIterator[Any], name: str, limiter: CapacityLimiter) -> None:
        super().__init__()
        self._pieces = pieces
        self._name = name
        self._limiter = limiter
        self._has_begun = False
        self._is_gone = False

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Sends it, until it ends or the client goes."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._is_gone = True
            group.cancel_scope.cancel()

        async with create_task_group() as group:
            group.start_soon(watch)
            try:
                if isinstance(self._pieces, AsyncIterator):
                    async for piece in self._pieces:
                        await self._send(send, piece)
                else:
                    # All of it in one thread: that is its prediction.
                    await to_thread.run_sync(self._send_all, send, self._pieces, limiter=self._limiter)
                await self._send(send, "", more=False)
            except Exception:
                logger.exception("%s: the stream raised", self._name)
                # Whose response has begun gets no end: the client sees that it is not whole.
                if not self._has_begun:
                    await _failure()(scope, receive, send)
            group.cancel_scope.cancel()
        if self.background is not None:
            await self.background()

    def _send_all(self, send: Send, pieces: Iterator[Any]) -> None:
        for piece in pieces:
            if self._is_gone:
                break
            from_thread.run(self._send, send, piece)
        close = getattr(pieces, "close", None)
        if close is not None:
            close()

    async def _send(self, send: Send, piece: Any, more: bool = True) -> None:
        match piece:
            case str():
                kind, body = b"text/plain; charset=utf-8", piece.encode()
            case bytes():
                kind, body = b"application/octet-stream", piece
            case _:
                kind, body = b"application/x-ndjson", f"{_json(piece)}\n".encode()
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": body, "more_body": more})


def _failure() -> Response:
    return PlainTextResponse("internal server error", 500)


async def _payload(request: Request) -> Any:
    """The body by its content type, as Cortex did: JSON, text, form, else bytes. A 400 if it is not what it says."""
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    kind = kind.strip()
    if kind == "application/x-www-form-urlencoded" or kind.startswith("multipart/form"):
        return await request.form()
    body = await request.body()
    if kind.startswith("application/json"):
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
    if kind == "text/plain":
        _, _, charset = parameters.partition("charset=")
        try:
            return body.decode(charset.partition(";")[0].strip(" \"'") or "utf-8")
        except UnicodeDecodeError as error:
            raise HTTPException(400, f"malformed text: not {error.encoding} at byte {error.start}") from None
        except (LookupError, ValueError):
            raise HTTPException(400, "malformed text: its charset is not known") from None
    return body


def _json(value: Any) -> str:
    return json.dumps(value, default=_plain, allow_nan=False)


def _plain(value: Any) -> Any:
    """Arrays and scalars of numpy and its like as lists and numbers."""
    for method in ("tolist", "item"):
        convert = getattr(value, method, None)
        if callable(convert):
            return convert()
    raise TypeError(f"an object of type {type(value).__name__} has no JSON form")
