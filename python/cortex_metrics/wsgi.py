"""Request metrics for any WSGI app: Flask, Django, Bottle.

Pure WSGI: the body passes through piece by piece, no framework is needed::

    from cortex_metrics import MetricsClient
    from cortex_metrics.wsgi import MetricsMiddleware

    app = MetricsMiddleware(app, MetricsClient(), api_name="text-generator")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ._requests import Middleware

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ._types import Metrics

__all__ = ["MetricsMiddleware"]


class MetricsMiddleware(Middleware):
    """Counts and times each request of a WSGI app.

    A request lasts from the call of the app to the last piece of its response, however that is streamed. If the server
    stops to ask for more before, which it does when the client is gone, that is counted as ``499``; an exception in
    the app counts as ``500`` and is raised on. What is recorded, and how: ``docs/requests.md``.

    The record of the replica begins when the middleware is made.

    Args:
        app: The WSGI app.
        client: Where the metrics go.
        api_name: The API's name; without it ``CORTEX_API_NAME``, then ``default``.
        api_id: Its version; without it ``CORTEX_API_ID``, then empty.
        endpoint: Where the API answers, shown by ``cortex get API_NAME``.
        replicas_requested: How many replicas the operator asked for; without it ``CORTEX_REPLICAS_REQUESTED``.
        exclude: Paths that are never counted.
        route_label: Whether a label ``route`` tells the template that Flask matched (``/items/<int:id>``), or a
            function that takes the environ, once the response has begun, and returns the template or ``None``.

    Raises:
        TypeError: ``exclude`` is one string.

    Example:
        >>> from cortex_metrics import MetricsClient
        >>> from cortex_metrics.wsgi import MetricsMiddleware
        >>> def app(environ, start_response):
        ...     start_response("200 OK", [])
        ...     return [b"hello"]
        >>> app = MetricsMiddleware(app, MetricsClient(), api_name="hello")
    """

    def __init__(
        self,
        app: WSGIApplication,
        client: Metrics,
        *,
        api_name: str | None = None,
        api_id: str | None = None,
        endpoint: str | None = None,
        replicas_requested: int | None = None,
        exclude: Iterable[str] = ("/healthz",),
        route_label: bool | Callable[[Any], str | None] = False,
    ) -> None:
        """Wraps an app, and begins to record that its replica lives."""
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
        self._metrics.start()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serves one request."""
        # As an app is reached by it; where it is mounted is in SCRIPT_NAME.
        if environ.get("PATH_INFO") in self._exclude:
            return self.app(environ, start_response)
        self._metrics.start()
        request = _Request(self, environ)

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            write = start_response(status, headers, *exc_info)
            # After the call: with exc_info it raises if the response has begun.
            request.started(status)
            return request.writing(write)

        try:
            body = self.app(environ, start)
        except BaseException:
            request.end(500)
            raise
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(body, wrapper) and request.watch_close(body):
            return body
        return _SizedBody(body, request) if hasattr(body, "__len__") else _Body(body, request)


class _Request:
    """One request on its way through the app."""

    __slots__ = ("_began", "_environ", "_has_begun", "_is_ended", "_middleware", "_route", "_status")

    def __init__(self, middleware: MetricsMiddleware, environ: WSGIEnvironment) -> None:
        self._middleware = middleware
        self._environ = environ
        self._has_begun = False
        self._is_ended = False
        self._route: str | None = None
        # 0: the app has not said.
        self._status = 0
        self._began = middleware._metrics.began()

    def started(self, status: str) -> None:
        self._status = int(status[:3]) if status[:3].isdecimal() else 0
        # Now: Flask forgets it when the app returns.
        self._route = self._middleware._route(self._environ)

    def first_byte(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._middleware._metrics.first_byte(self._began, self._route)

    def writing(self, write: Callable[[bytes], object]) -> Callable[[bytes], object]:
        """What ``start_response`` returns: old apps write with it."""

        def see(data: bytes) -> object:
            if data:
                self.first_byte()
            return write(data)

        return see

    def complete(self) -> None:
        """All that the app had to say was asked for."""
        self.end(self._status or 500)

    def abandoned(self) -> None:
        """The server asks for no more. Of a response to HEAD it need not ask for anything."""
        self.end(self._status if self._status and self._environ.get("REQUEST_METHOD") == "HEAD" else 499)

    def end(self, code: int) -> None:
        if not self._is_ended:
            self._is_ended = True
            if self._route is None:
                self._route = self._middleware._route(self._environ)
            self._middleware._metrics.ended(self._began, code, self._route)

    def watch_close(self, body: Any) -> bool:
        """For a file that the server sends by itself, if it is what the app returned: it is closed at the end."""
        close = getattr(body, "close", None)

        def watched() -> None:
            self.complete()
            if close is not None:
                close()

        try:
            body.close = watched
        except AttributeError:
            return False
        self.first_byte()
        return True


class _Body:
    """What the app returned, piece by piece as the server asks for it."""

    def __init__(self, body: Iterable[bytes], request: _Request) -> None:
        self._body = body
        self._request = request
        self._pieces: Iterator[bytes] | None = None

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        try:
            if self._pieces is None:
                self._pieces = iter(self._body)
            piece = next(self._pieces)
        except StopIteration:
            self._request.complete()
            raise
        except BaseException:
            self._request.end(500)
            raise
        if piece:
            self._request.first_byte()
        return piece

    def close(self) -> None:
        # The server is done, whatever the app still does in here.
        self._request.abandoned()
        close = getattr(self._body, "close", None)
        if close is not None:
            close()

    def __del__(self) -> None:
        # A server that never closes it: nothing stays in flight.
        self._request.abandoned()


class _SizedBody(_Body):
    """As above, of a body that has a length: from one piece a server knows the Content-Length."""

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]


def _route_of(environ: Any) -> str | None:
    """What Flask matched."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return getattr(rule, "rule", None)
