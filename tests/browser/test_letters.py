"""Dead letters and back-fills as a person on call sees them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from domain_event_broker import DomainEvent, config, subscribe
from domain_event_broker.django.backfill_models import Backfill
from domain_event_broker.ports import Subscription
from domain_event_broker.transports import open_transport
from tests.browser.test_admin import Visit, visit  # noqa: F401 - a fixture
from tests.integration.admin import stage

pytestmark = pytest.mark.django_db(transaction=True)

ADMIN = "/admin/domain_event_broker"
HANDLER = "payments.charge_card"


class ServiceDown(Exception):
    """The payment provider is away."""


@pytest.fixture
def two_troubles(visit: Visit) -> list[DomainEvent]:  # noqa: F811
    """Letters of one handler that died of two things."""
    subscribe("order.*", name=HANDLER)(lambda event: None)
    events = [DomainEvent("order.placed", {"order": number, "note": stage.SCRIPT}) for number in range(4)]
    stage.bury(HANDLER, *events[:3], error=ServiceDown(f"503 {stage.SCRIPT}"))
    stage.bury(HANDLER, *events[3:], error=ValueError("no such card"))
    return events


def test_letters_are_narrowed_down_to_one_cause_and_replayed(
    visit: Visit,  # noqa: F811
    two_troubles: list[DomainEvent],
    picture: Callable[[str], None],
) -> None:
    browser = visit.browser
    visit.open(f"{ADMIN}/deadletter/?queue={HANDLER}")
    browser.click(".deb-kind", leads_on=True)
    assert "3 of the 4 letters match" in browser.text(".deb-looked")
    picture("letters-of-one-cause")
    browser.type("input[name=text]", two_troubles[1].uuid_string)
    browser.click(".deb-search button", leads_on=True)
    assert browser.js("document.querySelectorAll('.deb-letter').length") == 1
    browser.click(".deb-letter h3 a", leads_on=True)
    assert "<script>" in browser.text(".deb-payload")
    picture("letter")
    browser.click(".deb-alike a", leads_on=True)
    browser.click("button[value=discard_all]", leads_on=True)
    assert "3 of the 4 looked at" in browser.text()
    picture("letters-discard-all")
    browser.click("a.cancel-link", leads_on=True)
    assert "3 of the 4 letters match" in browser.text(".deb-looked")
    browser.click("button[value=replay_all]", leads_on=True)
    assert "3 letters were replayed." in browser.text(".messagelist")
    assert stage.depths(HANDLER) == (3, 1)


@pytest.mark.parametrize("page", ["", "&letter="])
def test_what_is_known_of_letters_fits_on_a_narrow_screen(
    visit: Visit,  # noqa: F811
    two_troubles: list[DomainEvent],
    picture: Callable[[str], None],
    page: str,
) -> None:
    visit.browser.width(420)
    letter = two_troubles[0].uuid_string if page else ""
    visit.open(f"{ADMIN}/deadletter/?queue={HANDLER}{page}{letter}")
    picture("letter-narrow" if page else "letters-narrow")
    assert visit.browser.js("document.documentElement.scrollWidth") <= 420


def test_a_new_handler_is_back_filled(visit: Visit, picture: Callable[[str], None]) -> None:  # noqa: F811
    browser = visit.browser
    subscribe("order.*", name="shipping-audit")(lambda event: None)
    settings = config.current()
    assert settings is not None
    transport = open_transport(settings)
    transport.declare(Subscription("shipping-audit", ("order.*",)))
    transport.close()
    for number in range(3):
        stage.sent("order.placed", key=f"order-{number}")
    visit.open(f"{ADMIN}/backfill/")
    browser.click(".object-tools a", leads_on=True)
    browser.type("#id_handler", "shipping-audit")
    browser.click(".deb-backfill button", leads_on=True)
    assert "shipping-audit would get 3 sent events (order.*)" in browser.text(".deb-count")
    picture("backfill")
    browser.click(".deb-count button", leads_on=True)
    assert "Done: 3 events were sent." in browser.text(".messagelist")
    picture("backfill-done")
    assert stage.depths("shipping-audit") == (3, 0)
    visit.open(f"{ADMIN}/backfill/")
    picture("backfills")
    assert Backfill.objects.get().state == "done"
