"""Requests and the events that they lead to: one story."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponseBase

from domain_event_broker.correlation import correlated
from domain_event_broker.events import new_event_id

#: What is taken from outside as the identity of a story: it ends up in logs, tables and headers.
_TRUSTWORTHY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+=-]{0,127}", re.ASCII)


class CorrelationMiddleware:
    """Lets all events published while a request is served carry its identity as ``correlation_id``.

    That is the request header ``X-Correlation-ID``, or else ``X-Request-ID``, if it is 1 to 128
    letters, digits and ``._:/@+=-``; otherwise a new one. The response has it, too, in
    ``X-Correlation-ID``. A subclass may name other headers.

    Put it first in ``MIDDLEWARE``, so that whatever the others log or publish belongs to the story.
    It serves requests on WSGI and on ASGI.
    """

    sync_capable = True
    async_capable = True

    #: Request headers that an identity is taken from, the first one that has a good one.
    request_headers: ClassVar[tuple[str, ...]] = ("X-Correlation-ID", "X-Request-ID")
    #: Response header that the identity is told in; empty: none.
    response_header: ClassVar[str] = "X-Correlation-ID"

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Serve a request."""
        identity = self.identity_of(request)
        if self._is_async:
            return self._serve(request, identity)
        with correlated(identity):
            response = self.get_response(request)
        return self._told(response, identity)

    def identity_of(self, request: HttpRequest) -> str:
        """Return the identity of the story that a request begins or belongs to."""
        for name in self.request_headers:
            given = request.headers.get(name, "")
            if _TRUSTWORTHY.fullmatch(given):
                return given
        return new_event_id()

    async def _serve(self, request: HttpRequest, identity: str) -> HttpResponseBase:
        with correlated(identity):
            response = await self.get_response(request)
        return self._told(response, identity)

    def _told(self, response: HttpResponseBase, identity: str) -> HttpResponseBase:
        if self.response_header:
            response.headers.setdefault(self.response_header, identity)
        return response
