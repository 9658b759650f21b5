"""Requests and the events that they lead to are one story, on WSGI and on ASGI."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path

from domain_event_broker import apublish_domain_event, correlation_id, publish_domain_event
from domain_event_broker.django.middleware import CorrelationMiddleware
from domain_event_broker.django.models import OutboxEvent

pytestmark = pytest.mark.django_db(transaction=True)


def publish(request: HttpRequest) -> HttpResponse:
    """A view that publishes."""
    publish_domain_event("test.done", {})
    return HttpResponse(correlation_id())


async def apublish(request: HttpRequest) -> HttpResponse:
    """An async view that publishes."""
    await apublish_domain_event("test.done", {})
    return HttpResponse(correlation_id())


def fail(request: HttpRequest) -> HttpResponse:
    """A view that publishes, and fails."""
    publish_domain_event("test.done", {})
    raise ZeroDivisionError


urlpatterns = [path("sync", publish), path("async", apublish), path("fail", fail)]


class OwnHeaders(CorrelationMiddleware):
    """A project with headers of its own."""

    request_headers = ("X-Trace",)
    response_header = ""


@pytest.fixture(autouse=True)
def _site(settings: Any) -> None:
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = ["domain_event_broker.django.middleware.CorrelationMiddleware"]
    settings.DOMAIN_EVENT_BROKER = "memory:"


def _stored() -> str | None:
    return OutboxEvent.objects.get().correlation_id


@pytest.mark.parametrize("url", ["/sync", "/async"])
@pytest.mark.parametrize("header", ["X-Correlation-ID", "X-Request-ID"])
def test_events_of_a_request_carry_its_identity(url: str, header: str) -> None:
    response = Client(headers={header: "req-1/a"}).get(url)
    assert (_stored(), response.content, response["X-Correlation-ID"]) == ("req-1/a", b"req-1/a", "req-1/a")


async def _get(url: str) -> Any:
    return await AsyncClient().get(url, headers={"X-Request-ID": "req-2"})


@pytest.mark.parametrize("url", ["/sync", "/async"])
def test_on_asgi_as_well(url: str) -> None:
    response = async_to_sync(_get)(url)
    assert (_stored(), response.content, response["X-Correlation-ID"]) == ("req-2", b"req-2", "req-2")


def test_the_header_for_it_goes_before_the_other() -> None:
    Client(headers={"X-Request-ID": "hop", "X-Correlation-ID": "story"}).get("/sync")
    assert _stored() == "story"


@pytest.mark.parametrize("given", ["", "a b", "a\tb", "x" * 129, "<b>", "ü", "'; --", "-a", "a\x00b"])
def test_what_is_not_to_be_trusted_is_replaced_by_a_new_identity(given: str) -> None:
    response = Client(headers={"X-Request-ID": given}).get("/sync")
    assert _stored() == response["X-Correlation-ID"]
    assert uuid.UUID(response["X-Correlation-ID"]).version == 7


def test_each_request_is_a_story_of_its_own() -> None:
    client = Client()
    assert client.get("/sync")["X-Correlation-ID"] != client.get("/sync")["X-Correlation-ID"]


def test_after_a_request_nothing_is_around_even_if_it_failed() -> None:
    response = Client(raise_request_exception=False).get("/fail")
    assert (response.status_code, response["X-Correlation-ID"]) == (500, _stored())
    assert correlation_id() is None


def test_a_subclass_may_name_other_headers(settings: Any) -> None:
    settings.MIDDLEWARE = [f"{__name__}.OwnHeaders"]
    response = Client(headers={"X-Trace": "t-1", "X-Request-ID": "r-1"}).get("/sync")
    assert _stored() == "t-1"
    assert "X-Correlation-ID" not in response
