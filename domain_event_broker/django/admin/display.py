"""How values look in the admin. Whatever comes with an event is text, never markup."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince

from domain_event_broker.masking import mask_text

#: Longest text shown of a payload or a traceback, in characters; a page is no place for 16 MB.
MAX_SHOWN = 50_000
#: What stands where there is nothing.
EMPTY = "-"


def pretty_json(text: str) -> str:
    """Return the JSON in ``text`` indented, or ``text`` as it is where it is none; bounded."""
    try:
        shown = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        shown = text
    return bounded(printable(shown))


def printable(text: str) -> str:
    r"""Return ``text`` with what no page can hold, lone surrogates and NUL, written as ``\ud800``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\\x00")


def told(error: Exception) -> str:
    """Return what an error says, as a page can hold it; no password of a URL is in it."""
    return printable(mask_text(str(error)))


def bounded(text: str, limit: int = MAX_SHOWN) -> str:
    """Return the first ``limit`` characters of ``text``, and how many more there are."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n… {len(text) - limit:,} more characters"


def code_block(text: str) -> SafeString:
    """Return ``text``, escaped, as a block of code."""
    return format_html('<pre class="deb-code">{}</pre>', text)


def moment(at: datetime | None, form: str = "DATETIME_FORMAT") -> str:
    """Return a point in time as the project writes it, in its time zone.

    :param form: name of a format of Django, or a format.
    """
    if at is None:
        return EMPTY
    return date_format(timezone.localtime(at) if timezone.is_aware(at) else at, form)


def age(moment: datetime | None) -> str:
    """Return how long ago ``moment`` was, as :func:`seconds` says it."""
    return EMPTY if moment is None else seconds((timezone.now() - moment).total_seconds())


def seconds(span: float) -> str:
    """Return a span of time, given in seconds, in words: ``"0.25 s"``, ``"41 s"``, ``"2 hours, 5 minutes"``.

    A negative one, which two clocks that differ can make, is none.
    """
    if span < 10:
        return f"{max(0.0, span):.2g} s"
    if span < 60:
        return f"{span:.0f} s"
    now = timezone.now()
    return timesince(now - timedelta(seconds=span), now).replace("\xa0", " ")
