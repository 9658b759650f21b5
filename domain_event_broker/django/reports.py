"""Django's reports of errors without the passwords in URLs of brokers.

Not installed by itself: a project asks for it with
``DEFAULT_EXCEPTION_REPORTER_FILTER = "domain_event_broker.django.reports.ReporterFilter"``.
"""

from __future__ import annotations

import re
from collections.abc import ItemsView
from typing import Any
from urllib.parse import SplitResult

from django.views.debug import SafeExceptionReporterFilter

from domain_event_broker.masking import mask, mask_text

#: Characters of a value that are kept: reports show fewer.
_LONGEST = 10_000
#: Levels of containers that are looked into.
_DEEPEST = 8
_CONTAINERS = (list, tuple, set, frozenset)
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://\S*")


class ReporterFilter(SafeExceptionReporterFilter):
    """Hides what Django's own filter hides, and masks passwords in URLs, in settings and variables."""

    def cleanse_setting(self, key: Any, value: Any) -> Any:
        """Return a setting as it may be shown."""
        return _masked(super().cleanse_setting(key, value))

    def get_traceback_frame_variables(self, request: Any, tb_frame: Any) -> ItemsView[str, Any]:
        """Return the variables of a frame as they may be shown."""
        found = super().get_traceback_frame_variables(request, tb_frame)
        return {name: _masked(value) for name, value in found}.items()


def _masked(value: Any, depth: int = _DEEPEST) -> Any:
    """Return a value, and what containers hold, with the passwords of URLs replaced."""
    if isinstance(value, str):
        return _masked_text(value) if len(value) <= _LONGEST else _masked_text(value[:_LONGEST]) + "…"
    if isinstance(value, SplitResult):
        return mask(value.geturl())
    kind = next((each for each in _CONTAINERS if isinstance(value, each)), None)
    if kind is None and type(value) is not dict:
        return value
    if depth == 0:
        return "…"  # it may contain itself
    if kind is None:
        return {_masked(key, 0): _masked(each, depth - 1) for key, each in value.items()}
    return kind(_masked(each, depth - 1) for each in value)


def _masked_text(text: str) -> str:
    return mask_text(mask(text) if _URL.fullmatch(text) else text)
