"""The dead letters of a handler as the admin sees them: asked of the broker, for one web request.

Nothing here raises for a broker that is away, or for settings that are wrong: what went wrong comes
back as a sentence for the page. It cannot hold a password: errors name URLs masked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from domain_event_broker import config, redaction
from domain_event_broker.config import BrokerSettings, mask, scheme
from domain_event_broker.django.admin import display
from domain_event_broker.errors import ConfigurationError, DomainEventBrokerError
from domain_event_broker.failures import Failure
from domain_event_broker.ports import DeadLetter, DeadLetters, Decision, Transport
from domain_event_broker.replay import event_id_of, identity_of
from domain_event_broker.transports import open_transport

#: Letters that a page shows, the oldest.
SHOWN = 100
#: Letters that an action on chosen ones looks through: others may have gone, or come back, meanwhile.
LOOKED_THROUGH = 1_000
#: Letters that "replay all" moves in one web request.
REPLAYED_AT_ONCE = 1_000
#: Longest payload and traceback of each letter on a page, in characters: a page shows a hundred.
MAX_PAYLOAD = 10_000

#: Seconds that a page waits for a RabbitMQ that does not answer, unless the URL says otherwise
#: (parameters of https://pika.readthedocs.io/en/stable/modules/parameters.html).
_IMPATIENT = {"connection_attempts": "1", "socket_timeout": "4", "stack_timeout": "5"}

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class LetterView:
    """One dead letter, ready for a template, which escapes it all.

    :param key: what a form names the letter by: the event id on the envelope, or else a digest of
        what it holds, since a malformed body has no identity.
    """

    key: str
    event_id: str
    routing_key: str
    payload: str
    failure: Failure | None
    failed_at: datetime | None
    age: str
    replays: int

    @classmethod
    def of(cls, letter: DeadLetter) -> LetterView:
        """Describe ``letter``."""
        failure = _printable(letter.failure) if letter.failure else None
        failed_at = _moment(failure.failed_at) if failure else None
        body = redaction.shown(letter.body, letter.headers)
        return cls(
            key=key_of(letter),
            event_id=display.printable(event_id_of(letter)),
            routing_key=display.printable(letter.routing_key),
            payload=display.bounded(display.pretty_json(body), MAX_PAYLOAD),
            failure=failure,
            failed_at=failed_at,
            age=display.seconds(time.time() - failure.failed_at) if failure else display.EMPTY,
            replays=letter.replays,
        )


@dataclass(frozen=True, slots=True)
class Page:
    """What the page of one handler shows: its oldest letters, how many there are, or what is wrong."""

    letters: list[LetterView] = field(default_factory=list)
    count: int = 0
    problem: str = ""

    @property
    def more(self) -> int:
        """Letters that are there and not shown."""
        return max(0, self.count - len(self.letters))


@dataclass(slots=True)
class Outcome:
    """What an action did.

    :param decided: names of the letters that it was decided for. Some of them may be where they
        were, or gone already: after a problem, or if somebody else was faster.
    :param done: how many letters it was done to, as far as is known.
    """

    decided: list[str] = field(default_factory=list)
    done: int = 0
    problem: str = ""


def settings_for_admin() -> BrokerSettings:
    """Return the settings in force, with the patience of a web request.

    :raises ConfigurationError: they are wrong, or the broker is switched off.
    """
    settings = config.current()
    if settings is None:
        raise ConfigurationError(
            "DOMAIN_EVENT_BROKER is None: the broker is switched off, so there is nobody to ask"
        )
    return replace(settings, url=tuple(_impatient(url) for url in settings.url))


def told(problem: str) -> str:
    """Return an error for a page, in which URLs are those of the settings and not the impatient ones."""
    try:
        settings = config.current()
    except ConfigurationError:
        settings = None
    for url in settings.url if settings else ():
        problem = problem.replace(mask(_impatient(url)), mask(url))
    return display.printable(mask(problem))


def key_of(letter: DeadLetter) -> str:
    """Return what a form names ``letter`` by."""
    return display.printable(identity_of(letter))


def look(queue: str) -> Page:
    """Return the oldest ``SHOWN`` letters of the handler ``queue``; nothing is changed."""
    found: list[LetterView] = []

    def decide(letter: DeadLetter) -> Decision:
        found.append(LetterView.of(letter))
        return Decision.LEAVE

    def ask(letters: DeadLetters) -> int:
        count = letters.count()
        letters.sift(decide, SHOWN)
        return count

    count, problem = _ask(queue, ask)
    return Page(found, max(count or 0, len(found)), problem)


def find(queue: str, keys: Collection[str]) -> Page:
    """Return those of the letters named by ``keys`` that are there; nothing is changed."""
    found: list[LetterView] = []

    def decide(letter: DeadLetter) -> Decision:
        if key_of(letter) in keys:
            found.append(LetterView.of(letter))
        return Decision.LEAVE

    _, problem = _ask(queue, lambda letters: letters.sift(decide, LOOKED_THROUGH))
    return Page(found, len(found), problem)


def act(queue: str, decision: Decision, keys: Collection[str] | None) -> Outcome:
    """Do ``decision`` for the letters named by ``keys``; ``None``: for the oldest, whatever they are."""
    outcome = Outcome()

    def decide(letter: DeadLetter) -> Decision:
        if keys is not None and key_of(letter) not in keys:
            return Decision.LEAVE
        outcome.decided.append(f"{event_id_of(letter) or key_of(letter)} {letter.routing_key} ({queue})")
        return decision

    limit = REPLAYED_AT_ONCE if keys is None else LOOKED_THROUGH
    report, outcome.problem = _ask(queue, lambda letters: letters.sift(decide, limit))
    outcome.done = report.replayed + report.discarded if report else 0
    return outcome


def _ask(queue: str, question: Callable[[DeadLetters], Answer]) -> tuple[Answer | None, str]:
    """Connect, ask, disconnect; return the answer, or ``None`` and the reason in words."""
    transport: Transport | None = None
    try:
        transport = open_transport(settings_for_admin())
        return question(transport.dead_letters(queue)), ""
    except DomainEventBrokerError as error:
        return None, told(str(error))
    finally:
        if transport is not None:
            transport.close()


def _impatient(url: str) -> str:
    """Return the URL with short timeouts where the transport knows them and the URL has none."""
    if scheme(url) not in ("amqp", "amqps"):
        return url
    parts = urlsplit(url)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    return urlunsplit(parts._replace(query=urlencode({**_IMPATIENT, **given})))


def _printable(failure: Failure) -> Failure:
    """A broker may hold what another program wrote: text that no page can."""
    return replace(
        failure,
        reason=display.printable(failure.reason),
        error_type=display.printable(failure.error_type),
        message=display.printable(failure.message),
        traceback=display.printable(failure.traceback),
        host=display.printable(failure.host),
    )


def _moment(unix: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(unix, timezone.utc) if unix > 0 else None
    except (ValueError, OverflowError, OSError):
        return None  # a header that somebody else wrote may hold any number
