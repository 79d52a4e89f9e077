"""The ASGI app that serves a predictor: request -> arguments -> ``predict`` -> response, and ``post_predict`` after it.

Whatever a predictor runs by itself, ``predict``, the steps of what it streams, ``post_predict``, runs in one of the
app's threads; further requests wait until one is free. What is ``async`` runs in the event loop, asyncio's.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent import futures
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTasks
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ._hosting import BODY_BYTES_MAX
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
    body_bytes_max: int = BODY_BYTES_MAX,
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
        body_bytes_max: A request with a longer body is refused with 413.

    Returns:
        POST ``/`` and ``/predict`` predict; GET ``/`` says what is served, GET ``/healthz`` that it is: neither is
        counted.

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
    app, _ = create_app_and_runner(
        predictor,
        client,
        api_name=api_name,
        api_id=api_id,
        endpoint=endpoint,
        replicas_requested=replicas_requested,
        threads=threads,
        body_bytes_max=body_bytes_max,
    )
    return app


def create_app_and_runner(
    predictor: Any,
    client: Metrics,
    *,
    api_name: str,
    api_id: str,
    endpoint: str | None,
    replicas_requested: int | None,
    threads: int,
    body_bytes_max: int,
) -> tuple[App, Runner]:
    """As ``create_app``; also gives who runs the predictions."""
    runner = Runner(predictor, threads, body_bytes_max)

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

    async def count_predictions(scope: Any, receive: Receive, send: Send) -> None:
        # Who looks what is served, a prober or a browser, asks for no prediction: as in Cortex.
        is_look = scope["type"] == "http" and scope["path"] == "/" and scope["method"] in ("GET", "HEAD")
        await (app if is_look else middleware)(scope, receive, send)

    return count_predictions, runner


class Runner:
    """A predictor, its threads, and what it wants of a request."""

    def __init__(self, predictor: Any, threads: int, body_bytes_max: int) -> None:
        self._predictor = predictor
        self._threads = futures.ThreadPoolExecutor(threads, thread_name_prefix="predict")
        self._body_bytes_max = body_bytes_max
        self._running: set[object] = set()
        self._name = type(predictor).__name__
        self._wanted = predict_arguments(type(predictor))
        self._wanted_after = post_predict_arguments(type(predictor))
        self._is_payload_wanted = "payload" in self._wanted | (self._wanted_after or frozenset())

    def running(self) -> int:
        """How many calls of the predictor are under way in this process."""
        return len(self._running)

    def in_thread(self, call: Callable[[], Any]) -> Awaitable[Any]:
        """Calls in one of the threads, once one is free. To cancel it is to leave it: a thread ends by itself."""
        run = contextvars.copy_context().run
        return asyncio.get_running_loop().run_in_executor(self._threads, run, self._contained, call)

    def _contained(self, call: Callable[[], Any]) -> Any:
        """Calls; an exit that the predictor makes ends its request, not the server."""
        self._running.add(token := object())
        try:
            return call()
        except Exception as error:
            if isinstance(error, StopIteration):  # which no future takes
                raise _ended_by(error) from error
            raise
        except BaseException as error:
            raise _ended_by(error) from error
        finally:
            self._running.discard(token)

    async def awaited(self, awaitable: Awaitable[Any]) -> Any:
        """As above, of what runs in the loop."""
        self._running.add(token := object())
        try:
            return await awaitable
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            raise _ended_by(error) from error
        finally:
            self._running.discard(token)

    async def _run(self, function: Callable[..., Any], call: Callable[[], Any]) -> Any:
        """Runs ``call``, which calls ``function``: in a thread, unless it is ``async``."""
        is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        result = call() if is_async else await self.in_thread(call)
        return await self.awaited(result) if inspect.isawaitable(result) else result

    async def respond(self, request: Request, middleware: MetricsMiddleware) -> Response:
        """The response of a prediction; ``post_predict`` runs after it."""
        given: dict[str, Any] = {"headers": request.headers, "query_params": request.query_params}
        request = _Bounded(request, self._body_bytes_max)
        if self._is_payload_wanted:
            try:
                given["payload"] = await _payload(request, self._body_bytes_max)
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
        except Exception as error:
            _log_raised(self._name, "predict", error)
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
            return _Stream(result, self._name, self)
        return Response(_json(result), media_type="application/json")

    async def _after(self, given: dict[str, Any]) -> None:
        """Runs ``post_predict``, if there is one; the response has left."""
        if self._wanted_after is None:
            return
        post_predict = self._predictor.post_predict
        arguments = {name: given[name] for name in self._wanted_after}
        try:
            await self._run(post_predict, lambda: post_predict(**arguments))
        except Exception as error:
            _log_raised(self._name, "post_predict", error)


def _log_raised(name: str, what: str, error: Exception) -> None:
    """Logs with the traceback from the predictor's own code on: how it was called is of no help to who wrote it."""
    ours = (f"{Path(__file__).parent}{os.sep}", f"{Path(futures.__file__).parent}{os.sep}")
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(ours):
        traceback = traceback.tb_next
    told = (type(error), error, traceback or error.__traceback__)
    logger.error("%s: %s raised", name, what, exc_info=told)


def _ended_by(error: BaseException) -> RuntimeError:
    return RuntimeError(f"the predictor raised {type(error).__name__}")


class _Bounded(Request):
    """A request whose body is read to a bound: a 413 if there is more."""

    def __init__(self, request: Request, bytes_max: int) -> None:
        super().__init__(request.scope, request.receive)
        self._bytes_max = bytes_max

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The pieces of the body."""
        said = self.headers.get("content-length", "")
        size = int(said) if said.isdecimal() else 0
        if size <= self._bytes_max:
            size = 0
            async for piece in super().stream():
                size += len(piece)
                if size > self._bytes_max:
                    break
                yield piece
        if size > self._bytes_max:
            detail = f"the body is longer than {self._bytes_max} bytes (--body-bytes-max)"
            raise HTTPException(413, detail, {"connection": "close"})


class _Stream(Response):
    """What a generator gives, piece by piece: text and bytes as they are, all else as a line of JSON each."""

    def __init__(self, pieces: Iterator[Any] | AsyncIterator[Any], name: str, runner: Runner) -> None:
        super().__init__()
        self._pieces = pieces
        self._name = name
        self._runner = runner
        self._has_begun = False
        self._is_gone = False

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Sends it, until it ends or the client goes."""
        watching = asyncio.ensure_future(self._watch(receive))
        try:
            if isinstance(self._pieces, AsyncIterator):
                await self._send_until_gone(send, self._pieces, watching)
            else:
                # All of it in one thread, that is its prediction: until its next piece, if the client goes.
                loop, pieces = asyncio.get_running_loop(), self._pieces
                await self._runner.in_thread(lambda: self._send_all(loop, send, pieces))
            if not self._is_gone:
                await self._send(send, "", more=False)
        except Exception as error:
            if not self._is_gone:
                _log_raised(self._name, "the stream", error)
                # Whose response has begun gets no end: the client sees that it is not whole.
                if not self._has_begun:
                    await _failure()(scope, receive, send)
        finally:
            watching.cancel()
        if self.background is not None:
            await self.background()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True

    async def _send_until_gone(self, send: Send, pieces: AsyncIterator[Any], watching: asyncio.Future[None]) -> None:
        sending = asyncio.ensure_future(self._runner.awaited(self._send_each(send, pieces)))
        try:
            await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        if sending.cancelled() and not self._is_gone:
            raise RuntimeError("the predictor raised CancelledError")

    async def _send_each(self, send: Send, pieces: AsyncIterator[Any]) -> None:
        try:
            async for piece in pieces:
                if self._is_gone:
                    break
                await self._send(send, piece)
        finally:
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()

    def _send_all(self, loop: asyncio.AbstractEventLoop, send: Send, pieces: Iterator[Any]) -> None:
        try:
            for piece in pieces:
                if self._is_gone:
                    break
                asyncio.run_coroutine_threadsafe(self._send(send, piece), loop).result()
        finally:
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
        try:
            if not self._has_begun:
                self._has_begun = True
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
            await send({"type": "http.response.body", "body": body, "more_body": more})
        except OSError:  # how a server of ASGI 2.4 tells that the client is gone
            self._is_gone = True


def _failure() -> Response:
    return PlainTextResponse("internal server error", 500)


async def _payload(request: Request, bytes_max: int) -> Any:
    """The body by its content type, as Cortex did: JSON, text, form, else bytes. A 400 if it is not what it says."""
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    kind = kind.strip()
    if kind == "application/x-www-form-urlencoded" or kind.startswith("multipart/form"):
        return await request.form(max_part_size=bytes_max)
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
