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

from ._requests import RequestMetrics
from ._types import Metrics

__all__ = ["MetricsMiddleware"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

_CLIENT_CLOSED_REQUEST = 499
_SERVER_ERROR = 500


class MetricsMiddleware:
    """Counts and times each request of an ASGI app.

    A request lasts from its first byte to the last byte of its response, however that is streamed. A client that
    disconnects before is counted as ``499``, an exception in the app as ``500``; the app sees and raises both as ever.
    That a client is gone shows when the app asks for it or when the server refuses to send; an app that does neither
    until its last byte has answered. Websockets and the lifespan pass through.

    Args:
        app: The ASGI app.
        client: Where the metrics go.
        api_name: The API's name; without it ``CORTEX_API_NAME``, then ``default``.
        api_id: Its version; without it ``CORTEX_API_ID``, then empty.
        endpoint: Where the API answers, shown by ``cortex get API_NAME``.
        replicas_requested: How many replicas the operator asked for; without it ``CORTEX_REPLICAS_REQUESTED``.
        exclude: Paths that are never counted.

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
    ) -> None:
        """Wraps an app; nothing is recorded before its lifespan or its first request begins."""
        self.app = app
        self._metrics = RequestMetrics(
            client, api_name=api_name, api_id=api_id, endpoint=endpoint, replicas_requested=replicas_requested
        )
        if isinstance(exclude, str):
            msg = f"exclude: got {exclude!r}, want several paths, like ({exclude!r},)"
            raise TypeError(msg)
        self._exclude = frozenset(exclude)

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
            await _Request(self._metrics).serve(self.app, scope, receive, send)


class _Request:
    """One request on its way through the app."""

    __slots__ = ("_began", "_has_trailers", "_is_disconnected", "_is_ended", "_metrics", "_status")

    def __init__(self, metrics: RequestMetrics) -> None:
        self._metrics = metrics
        self._status = 0
        self._has_trailers = False
        self._is_ended = False
        self._is_disconnected = False

    async def serve(self, app: App, scope: Any, receive: Receive, send: Send) -> None:
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
                self._metrics.first_byte(self._began)
            elif self._is_last(message):
                # Here, and not when the app returns: what it does after the last byte is nobody's wait.
                self._end(_CLIENT_CLOSED_REQUEST if self._is_disconnected else self._status)

        self._began = self._metrics.began()
        try:
            await app(scope, receive_and_see, send_and_see)
        except asyncio.CancelledError:
            self._end(_CLIENT_CLOSED_REQUEST)
            raise
        finally:
            # No whole response, by an exception or by a return: nobody got an answer.
            self._end(_CLIENT_CLOSED_REQUEST if self._is_disconnected else _SERVER_ERROR)

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
            self._metrics.ended(self._began, code)
