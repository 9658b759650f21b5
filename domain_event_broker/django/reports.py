"""Django's reports of errors without the passwords in URLs of brokers.

Not installed by itself: a project asks for it with
``DEFAULT_EXCEPTION_REPORTER_FILTER = "domain_event_broker.django.reports.ReporterFilter"``.
"""

from __future__ import annotations

from collections.abc import ItemsView
from typing import Any

from django.views.debug import SafeExceptionReporterFilter

from domain_event_broker.masking import mask_text

#: Characters of a value that are kept: reports show fewer.
_LONGEST = 10_000


class ReporterFilter(SafeExceptionReporterFilter):
    """Hides what Django's own filter hides, and masks passwords in URLs, in settings and variables."""

    def cleanse_setting(self, key: Any, value: Any) -> Any:
        """Return a setting as it may be shown."""
        return _masked(super().cleanse_setting(key, value))

    def get_traceback_frame_variables(self, request: Any, tb_frame: Any) -> ItemsView[str, Any]:
        """Return the variables of a frame as they may be shown."""
        found = super().get_traceback_frame_variables(request, tb_frame)
        return {name: _masked(value) for name, value in found}.items()


def _masked(value: Any) -> Any:
    """Return a value, and what plain containers hold, with the passwords of URLs replaced."""
    if isinstance(value, str):
        return mask_text(value) if len(value) <= _LONGEST else mask_text(value[:_LONGEST]) + "…"
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_masked(each) for each in value)
    if type(value) is dict:
        return {key: _masked(each) for key, each in value.items()}
    return value
