"""Request metrics for any ASGI app: FastAPI, Starlette, Litestar, Django.

Pure ASGI: ``receive`` and ``send`` pass through, nothing is buffered, no framework is needed::

    from cortex_metrics import MetricsClient
    from cortex_metrics.asgi import MetricsMiddleware

    app = MetricsMiddleware(app, MetricsClient(), api_name="text-generator")
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from ._requests import Middleware
from ._types import Metrics

__all__ = ["MetricsMiddleware"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

# When the request began, for what is inside.
_BEGAN = "cortex_metrics.began"
_CLIENT_CLOSED_REQUEST = 499
_SERVER_ERROR = 500


class MetricsMiddleware(Middleware):
    """Counts and times each request of an ASGI app.

    A request lasts from its first byte to the last byte of its response, however that is streamed. A client that
    disconnects before is counted as ``499``, an exception in the app as ``500``; the app sees and raises both as ever.
    That a client is gone shows with uvicorn always, elsewhere when the app asks for it or when the server refuses to
    send; an app that does neither until its last byte has answered. Websockets and the lifespan pass through. What is
    recorded, and how: ``docs/requests.md``.

    Args:
        app: The ASGI app.
        client: Where the metrics go.
        api_name: The API's name; without it ``CORTEX_API_NAME``, then ``default``.
        api_id: Its version; without it ``CORTEX_API_ID``, then empty.
        endpoint: Where the API answers, shown by ``cortex get API_NAME``.
        replicas_requested: How many replicas the operator asked for; without it ``CORTEX_REPLICAS_REQUESTED``.
        exclude: Paths that are never counted.
        route_label: Whether a label ``route`` tells the template of the route that FastAPI, Starlette or Litestar took
            (``/items/{item_id}``), or a function that takes the scope, once the response has begun, and returns the
            template or ``None``.

    Raises:
        TypeError: ``exclude`` is one string.

    Example:
        >>> from cortex_metrics import MetricsClient
        >>> from cortex_metrics.asgi import MetricsMiddleware
        >>> async def app(scope, receive, send):
        ...     await send({"type": "http.response.start", "status": 200, "headers": []})
        ...     await send({"type": "http.response.body", "body": b"hello"})
        >>> app = MetricsMiddleware(app, MetricsClient(), api_name="hello")
    """

    def __init__(
        self,
        app: App,
        client: Metrics,
        *,
        api_name: str | None = None,
        api_id: str | None = None,
        endpoint: str | None = None,
        replicas_requested: int | None = None,
        exclude: Iterable[str] = ("/healthz",),
        route_label: bool | Callable[[Any], str | None] = False,
    ) -> None:
        """Wraps an app; nothing is recorded before its lifespan or its first request begins."""
        super().__init__(
            client,
            api_name=api_name,
            api_id=api_id,
            endpoint=endpoint,
            replicas_requested=replicas_requested,
            exclude=exclude,
            route_label=route_label,
            route_of=_route_of,
        )
        self.app = app

    def queued(self, scope: Any) -> None:
        """Records that the request of this scope is being worked on from now on: how long it waited.

        Args:
            scope: The scope that the app got.

        Example:
            >>> from cortex_metrics import MetricsClient
            >>> from cortex_metrics.asgi import MetricsMiddleware
            >>> async def app(scope, receive, send):
            ...     ...  # waits for its turn
            ...     measured.queued(scope)
            >>> measured = MetricsMiddleware(app, MetricsClient(), api_name="hello")
        """
        began = scope.get(_BEGAN)
        if began is not None:
            self._metrics.queued(began, self._route(scope))

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serves one connection scope."""
        if scope["type"] == "lifespan":
            self._metrics.start()
            try:
                await self.app(scope, receive, send)
            finally:
                self._metrics.stop()
        elif scope["type"] != "http" or scope["path"] in self._exclude:
            await self.app(scope, receive, send)
        else:
            self._metrics.start()
            await _Request(self, scope).serve(receive, send)


class _Request:
    """One request on its way through the app."""

    __slots__ = (
        "_began",
        "_cycle",
        "_has_trailers",
        "_is_disconnected",
        "_is_ended",
        "_middleware",
        "_route",
        "_scope",
        "_status",
    )

    def __init__(self, middleware: MetricsMiddleware, scope: Any) -> None:
        self._middleware = middleware
        self._scope = scope
        # Of uvicorn, the request whose method `receive` is: it knows that its client is gone without being waited for.
        self._cycle: Any = None
        self._route: str | None = None
        self._status = 0
        self._has_trailers = False
        self._is_ended = False
        self._is_disconnected = False

    async def serve(self, receive: Receive, send: Send) -> None:
        middleware, scope = self._middleware, self._scope
        metrics = middleware._metrics

        async def receive_and_see() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                self._is_disconnected = True
            return message

        async def send_and_see(message: Message) -> None:
            try:
                await send(message)
            except OSError:
                # ASGI 2.4: how a server tells that the client is gone.
                self._is_disconnected = True
                raise
            if message["type"] == "http.response.start":
                self._status = message["status"]
                self._has_trailers = message.get("trailers", False)
                if middleware._route_of is not None:
                    self._route = middleware._route(scope)
                metrics.first_byte(self._began, self._route)
            elif self._is_last(message):
                # Here, and not when the app returns: what it does after the last byte is nobody's wait.
                self._end(self._status)

        self._cycle = getattr(receive, "__self__", None)
        self._began = scope[_BEGAN] = metrics.began()
        try:
            await middleware.app(scope, receive_and_see, send_and_see)
        except asyncio.CancelledError:
            # By a server whose client is gone; but uvicorn cancels only what did not end before its own end.
            self._end(_SERVER_ERROR if hasattr(self._cycle, "disconnected") else _CLIENT_CLOSED_REQUEST)
            raise
        finally:
            # No whole response, by an exception or by a return: nobody got an answer.
            self._end(_SERVER_ERROR)

    def _is_last(self, message: Message) -> bool:
        """Whether the response is complete with this message, be it sent as bytes, as a file or with trailers."""
        match message["type"]:
            case "http.response.body" | "http.response.zerocopysend":
                return not self._has_trailers and not message.get("more_body", False)
            case "http.response.pathsend":
                return not self._has_trailers
            case "http.response.trailers":
                return not message.get("more_trailers", False)
        return False

    def _end(self, code: int) -> None:
        if not self._is_ended:
            self._is_ended = True
            if self._is_disconnected or getattr(self._cycle, "disconnected", None) is True:
                code = _CLIENT_CLOSED_REQUEST
            middleware = self._middleware
            if self._route is None and middleware._route_of is not None:
                self._route = middleware._route(self._scope)
            middleware._metrics.ended(self._began, code, self._route)


def _route_of(scope: Any) -> str | None:
    """What Litestar, FastAPI and Starlette leave in the scope."""
    route = scope.get("route")
    template = scope.get("path_template") or getattr(route, "path_format", None) or getattr(route, "path", None)
    return str(template) if template else None
