"""What somebody looks for among the dead letters: read from an address or a form, and written into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import urlencode

from django.utils import timezone
from django.utils.dateparse import parse_datetime

from domain_event_broker.django.admin import display
from domain_event_broker.errors import HandlerError
from domain_event_broker.replay import LetterFilter
from domain_event_broker.routing import check_binding_key

#: Letters that a page looks through: at first, and if it is asked to look further.
DEPTHS = (2_000, 20_000, 100_000)


@dataclass(frozen=True, slots=True)
class LetterSearch:
    """A search among the letters of one handler.

    :param error: end of the name of an exception, or a reason.
    :param key: a binding key that the routing key matches.
    :param since: failed at this time or later, as the form writes it; so is ``until``.
    :param depth: letters that are looked through, from the oldest.
    :param page: which hundred of those that match; from 1.
    :param seen_at: Unix time, in milliseconds, at which a page that asks before it acts was made; what
        failed later was not on it.
    :param problem: what is wrong with the search, in words; it finds nothing then.
    """

    queue: str
    error: str = ""
    key: str = ""
    text: str = ""
    since: str = ""
    until: str = ""
    depth: int = DEPTHS[0]
    page: int = 1
    seen_at: int | None = None
    problem: str = ""

    @classmethod
    def read(cls, values: Mapping[str, str]) -> LetterSearch:
        """Read what an address or a form holds; whatever it is, this does not raise."""
        given = {
            name: display.printable(values.get(name, "")).strip()
            for name in ("error", "key", "text", "since", "until")
        }
        search = cls(
            queue=values.get("queue", ""),
            **given,
            depth=_number(values.get("depth", ""), DEPTHS[0], DEPTHS[-1]),
            page=_number(values.get("page", ""), 1, DEPTHS[-1]),
            seen_at=_number(values.get("seen_at", ""), 0, 2**53) or None,
        )
        return replace(search, problem=search._find_problem())

    @property
    def is_filtered(self) -> bool:
        """Whether it is for some letters and not for all."""
        return any((self.error, self.key, self.text, self.since, self.until))

    @property
    def fields(self) -> dict[str, str]:
        """What hidden fields of a form need, so that it acts on what is meant here."""
        given = {name: getattr(self, name) for name in ("queue", "error", "key", "text", "since", "until")}
        shown = {name: value for name, value in given.items() if value}
        return shown if self.depth == DEPTHS[0] else {**shown, "depth": str(self.depth)}

    @property
    def further(self) -> int | None:
        """The next depth; ``None``: there is none."""
        return next((depth for depth in DEPTHS if depth > self.depth), None)

    def query(self, **changes: str) -> str:
        """Return the part of an address after the question mark; an empty change leaves a field out."""
        return urlencode({name: value for name, value in {**self.fields, **changes}.items() if value})

    def words(self) -> str:
        """Return the filter as the admin log has it."""
        named = {
            "exception": self.error,
            "routing key": self.key,
            "text": self.text,
            "since": self.since,
            "until": self.until,
        }
        return ", ".join(f"{name} {value!r}" for name, value in named.items() if value) or "all"

    def to_filter(self) -> LetterFilter:
        """Return what tells which letters are meant; only for a search without a problem."""
        seen_at = None if self.seen_at is None else self.seen_at / 1000
        ends = [each for each in (_moment(self.until), seen_at) if each is not None]
        return LetterFilter(
            routing_key=self.key or None,
            error_type=self.error or None,
            text=self.text or None,
            failed_from=_moment(self.since),
            failed_to=min(ends) if ends else None,
        )

    def _find_problem(self) -> str:
        try:
            if self.key:
                check_binding_key(self.key)
            _moment(self.since)
            _moment(self.until)
        except (HandlerError, ValueError, OverflowError) as error:
            return display.printable(str(error))
        return ""


def _number(text: str, default: int, most: int) -> int:
    """Return the number that ``text`` holds, within bounds."""
    digits = text.strip()
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 16:
        return default
    return min(max(int(digits), 1), most)


def _moment(text: str) -> float | None:
    """Return the Unix time of what a form holds, in the time zone of the project.

    :raises ValueError: it is no date and time.
    """
    if not text:
        return None
    try:
        moment: datetime | None = parse_datetime(text)
    except ValueError:
        moment = None
    if moment is None:
        raise ValueError(f"{text!r} is no date and time; write one like 2026-11-21T09:30")
    if timezone.is_naive(moment):
        moment = timezone.make_aware(moment)
    return moment.timestamp()
