"""The page on the admin names every alert and every permission that there is."""

from __future__ import annotations

import re

from django.apps import apps

from domain_event_broker.django.admin import overview
from domain_event_broker.django.status import Alert
from tests.docs.pages import DOCS

TEXT = (DOCS / "how-to/admin.rst").read_text(encoding="utf-8")


def test_every_alert_is_described() -> None:
    described = set(re.findall(r"^   \* - ``([a-z-]+)``$", TEXT, re.MULTILINE))
    of_status = set(re.findall(r'``"([a-z-]+)"``', Alert.__doc__ or ""))
    of_page = set(re.findall(r'Level\.[A-Z]+, \w+, [^)]*?"([a-z-]+)"\)', _source()))
    of_page |= set(re.findall(r'text, remedy, "([a-z-]+)"', _source()))
    assert len(of_status) == 11
    assert described == of_status | of_page


def test_every_permission_of_a_page_is_described() -> None:
    told = set(re.findall(r"``((?:view|replay|discard|run)_[a-z]+)``", TEXT))
    known = {
        f"view_{model._meta.model_name}"
        for model in overview.admin.site._registry
        if model._meta.app_label == "domain_event_broker"
    }
    known |= {
        name
        for model in apps.get_app_config("domain_event_broker").get_models()
        if model in overview.admin.site._registry
        for name, _ in model._meta.permissions
    }
    assert told == known


def _source() -> str:
    return (DOCS.parent / "domain_event_broker/django/admin/overview.py").read_text(encoding="utf-8")
