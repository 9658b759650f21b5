"""The dead letters of a handler as the admin sees them: asked of the broker, for one web request.

A queue may hold a hundred thousand letters: each look is bounded in number and in time, and says how
many it looked at. RabbitMQ hands a letter to one look at a time, so that two people who look at the
same moment may each miss what the other one has in hand; who finds too little looks again.

Nothing here raises for a broker that is away, or for settings that are wrong: what went wrong comes
back as a sentence for the page. It cannot hold a password: errors name URLs masked.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from domain_event_broker import config, redaction
from domain_event_broker.config import BrokerSettings, mask, scheme
from domain_event_broker.django.admin import display
from domain_event_broker.django.admin.letter_search import DEPTHS, LetterSearch
from domain_event_broker.errors import ConfigurationError, DomainEventBrokerError
from domain_event_broker.events import MAX_JSON_DEPTH, is_too_deep
from domain_event_broker.failures import Failure, History, without_failure
from domain_event_broker.masking import one_line
from domain_event_broker.ports import DeadLetter, DeadLetters, Decision, Transport
from domain_event_broker.replay import event_id_of, event_of, identity_of, is_looping, kind_of
from domain_event_broker.transports import open_transport

#: Letters that a page shows.
SHOWN = 100
#: Letters from which on an action on all that match asks first.
MANY = 100
#: Seconds that one look takes, and that an action goes on: somebody waits for the page.
LOOK_SECONDS, ACT_SECONDS = 8.0, 15.0
#: Longest payload and traceback of each letter in a list, and of their summary, in characters.
MAX_PAYLOAD, MAX_SUMMARY = 10_000, 160
#: Letters and characters of their payloads that one file takes.
DOWNLOADED, DOWNLOADED_CHARACTERS = 10_000, 32 * 1024 * 1024
#: Kinds of letters that are counted on a page.
KINDS = 12
#: Seconds between two looks for letters that somebody else may have in hand, and how many there are.
AGAIN_SECONDS, LOOKS = 0.5, 2

#: Seconds that a page waits for a RabbitMQ that does not answer, unless the URL says otherwise
#: (parameters of https://pika.readthedocs.io/en/stable/modules/parameters.html).
_IMPATIENT = {"connection_attempts": "1", "socket_timeout": "4", "stack_timeout": "5"}

_RABBITMQ = ("amqp", "amqps")

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class LetterView:
    """One dead letter, ready for a template, which escapes it all.

    :param key: what a form names the letter by: the event id on the envelope, or else a digest of
        what it holds, since a malformed body has no identity.
    :param kind: what all letters like this one share: the exception, or else the reason.
    :param first_failed_at: before its first replay; so is ``history``.
    """

    key: str
    event_id: str
    routing_key: str
    payload: str
    summary: str
    kind: str
    failure: Failure | None
    failed_at: datetime | None
    age: str
    replays: int
    headers: str = ""
    object_id: str = ""
    correlation_id: str = ""
    history: History = field(default_factory=History)
    first_failed_at: datetime | None = None

    @classmethod
    def of(cls, letter: DeadLetter) -> LetterView:
        """Describe ``letter`` for a list."""
        failure = _printable(letter.failure) if letter.failure else None
        body = redaction.shown(letter.body, letter.headers)
        return cls(
            key=key_of(letter),
            event_id=display.printable(event_id_of(letter)),
            routing_key=display.printable(letter.routing_key),
            payload=display.bounded(display.pretty_json(body), MAX_PAYLOAD),
            summary=_summary(body),
            kind=display.printable(kind_of(letter)),
            failure=failure,
            failed_at=_moment(failure.failed_at) if failure else None,
            age=display.seconds(time.time() - failure.failed_at) if failure else display.EMPTY,
            replays=letter.replays,
        )

    @classmethod
    def whole(cls, letter: DeadLetter) -> LetterView:
        """Describe ``letter`` for a page of its own."""
        event = event_of(letter)
        history = History.from_headers(letter.headers)
        body = redaction.shown(letter.body, letter.headers)
        return replace(
            cls.of(letter),
            payload=display.pretty_json(body),
            headers=display.pretty_json(json.dumps(_shown_headers(letter), sort_keys=True)),
            object_id=display.printable(str(event.domain_object_id or "")),
            correlation_id=display.printable(event.correlation_id) if event.headers else "",
            history=replace(history, first_error=display.printable(history.first_error)),
            first_failed_at=_moment(history.first_failed_at),
        )


@dataclass(slots=True)
class Page:
    """What a page shows of the letters of one handler.

    :param letters: those that match, as many as a page takes.
    :param count: letters of the handler that nobody else has in hand at the moment.
    :param looked: letters that were looked at, from the oldest.
    :param matched: those of them that match.
    :param kinds: how many of those died of what, the most frequent first.
    :param problem: what is wrong, in words.
    """

    letters: list[LetterView] = field(default_factory=list)
    count: int = 0
    looked: int = 0
    matched: int = 0
    kinds: list[tuple[str, int]] = field(default_factory=list)
    problem: str = ""

    @property
    def unseen(self) -> int:
        """Letters that are there and were not looked at."""
        return max(0, self.count - self.looked)


@dataclass(slots=True)
class Outcome:
    """What an action did.

    :param decided: names of the letters that it was decided for. Some of them may be where they
        were, or gone already: after a problem, or if somebody else was faster.
    :param done: how many letters it was done to, as far as is known.
    :param looping: letters that came back from so many replays that they were left.
    :param unfinished: there may be more that match: the time or the number of letters was up.
    """

    decided: list[str] = field(default_factory=list)
    done: int = 0
    looping: int = 0
    unfinished: bool = False
    problem: str = ""


class _Enough(Exception):
    """Ends a look through the letters."""


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


def look(search: LetterSearch) -> Page:
    """Return the letters of a handler that match, a page of them; nothing is changed."""
    page = Page(problem=search.problem)
    if page.problem:
        return page
    for again in range(LOOKS):
        page = _look(search)
        if page.looked or page.problem or not _may_be_in_hand():
            break
        _pause(again)
    return page


def _look(search: LetterSearch) -> Page:
    page, kinds, accept = Page(), Counter[str](), search.to_filter()
    first = (search.page - 1) * SHOWN
    end = time.monotonic() + LOOK_SECONDS

    def decide(letter: DeadLetter) -> Decision:
        if time.monotonic() > end:
            raise _Enough
        page.looked += 1
        if accept.accepts(letter):
            kinds[display.printable(kind_of(letter))] += 1
            if first <= page.matched < first + SHOWN:
                page.letters.append(LetterView.of(letter))
            page.matched += 1
        return Decision.LEAVE

    def ask(letters: DeadLetters) -> None:
        page.count = letters.count()
        letters.sift(decide, search.depth)

    _, page.problem = _ask(search.queue, ask)
    page.count = max(page.count, page.looked)
    page.kinds = kinds.most_common(KINDS)
    return page


def find(search: LetterSearch, keys: Collection[str]) -> Page:
    """Return those of the letters named by ``keys`` that are there, in whole; nothing is changed."""
    page = Page()
    for again in range(LOOKS):
        page = _find(search, keys)
        if page.problem or not _missing(page, keys) or not _may_be_in_hand():
            break
        _pause(again)
    return page


def _missing(page: Page, keys: Collection[str]) -> set[str]:
    return set(keys) - {letter.key for letter in page.letters}


def _find(search: LetterSearch, keys: Collection[str]) -> Page:
    page = Page()
    alone = len(keys) == 1

    def decide(letter: DeadLetter) -> Decision:
        if page.letters and alone:
            raise _Enough
        page.looked += 1
        if key_of(letter) in keys:
            page.letters.append(LetterView.whole(letter) if alone else LetterView.of(letter))
        return Decision.LEAVE

    _, page.problem = _ask(search.queue, lambda letters: letters.sift(decide, search.depth))
    page.count = page.matched = len(page.letters)
    return page


def act(search: LetterSearch, decision: Decision, keys: Collection[str]) -> Outcome:
    """Do ``decision`` for the letters named by ``keys``."""
    outcome, left = Outcome(), set(keys)
    for again in range(LOOKS):
        # Only what was not found before: a letter that was replayed may have come back meanwhile.
        wanted = frozenset(left)
        done = _act(search, decision, lambda letter, wanted=wanted: key_of(letter) in wanted, left)  # type: ignore[misc]
        outcome.decided += done.decided
        outcome.done += done.done
        outcome.problem = done.problem
        if not left or outcome.problem or not _may_be_in_hand():
            break
        _pause(again)
    return outcome


def act_on_all(search: LetterSearch, decision: Decision) -> Outcome:
    """Do ``decision`` for all letters that match, for as long as somebody waits for a page.

    As with ``replay_dlq``, those that came back from several replays are left: each of them can be
    replayed by choosing it.
    """
    if search.problem:
        return Outcome(problem=search.problem)
    accept, looping = search.to_filter(), Counter[str]()

    def means(letter: DeadLetter) -> bool:
        if not accept.accepts(letter):
            return False
        loops = decision is Decision.RETRY and is_looping(letter)
        looping["left"] += loops
        return not loops

    outcome = _act(replace(search, depth=DEPTHS[-1]), decision, means)
    outcome.looping = looping["left"]
    return outcome


def _act(
    search: LetterSearch,
    decision: Decision,
    means: Callable[[DeadLetter], bool],
    left: set[str] | None = None,
) -> Outcome:
    """Do ``decision`` for the letters that are meant.

    :param left: keys of letters that are looked for; those that were found are taken out.
    """
    outcome, end, looked = Outcome(), time.monotonic() + ACT_SECONDS, Counter[str]()

    def decide(letter: DeadLetter) -> Decision:
        if time.monotonic() > end:
            outcome.unfinished = True
            raise _Enough
        looked["letters"] += 1
        if not means(letter):
            return Decision.LEAVE
        if left is not None:
            left.discard(key_of(letter))
        outcome.decided.append(
            f"{event_id_of(letter) or key_of(letter)} {letter.routing_key} ({search.queue})"
        )
        return decision

    report, outcome.problem = _ask(search.queue, lambda letters: letters.sift(decide, search.depth))
    if report is not None:
        outcome.done = report.replayed + report.discarded
    elif not outcome.problem:
        outcome.done = len(outcome.decided)  # what was decided before the time was up is done
    outcome.unfinished = outcome.unfinished or looked["letters"] >= search.depth
    return outcome


def download(search: LetterSearch, keys: Collection[str] | None) -> tuple[dict[str, Any], str]:
    """Return letters as what ``json.dumps`` takes, and what went wrong, in words; nothing is changed.

    :param keys: names of letters; ``None``: all that match.
    """
    accept, found, room, looked = search.to_filter(), list[dict[str, Any]](), DOWNLOADED_CHARACTERS, 0
    end = time.monotonic() + ACT_SECONDS

    def decide(letter: DeadLetter) -> Decision:
        nonlocal room, looked
        if time.monotonic() > end or room < 0 or len(found) >= DOWNLOADED:
            raise _Enough
        looked += 1
        if (accept.accepts(letter)) if keys is None else (key_of(letter) in keys):
            found.append(_as_json(letter))
            room -= len(letter.body)
        return Decision.LEAVE

    def ask(letters: DeadLetters) -> int:
        total = letters.count()
        letters.sift(decide, DEPTHS[-1] if keys is None else search.depth)
        return total

    total, problem = _ask(search.queue, ask)
    complete = total is not None and looked >= total
    return {
        "handler": search.queue,
        "filter": search.words() if keys is None else "chosen",
        "looked_at": looked,
        "complete": complete,
        "letters": found,
    }, problem


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    view = LetterView.of(letter)
    shown = redaction.shown(letter.body, letter.headers)
    failure = view.failure
    return {
        "event_id": view.event_id,
        "routing_key": view.routing_key,
        "failed_at": view.failed_at.isoformat() if view.failed_at else None,
        "reason": failure.reason if failure else "",
        "exception": failure.error_type if failure else "",
        "message": failure.message if failure else "",
        "traceback": failure.traceback if failure else "",
        "attempts": failure.attempts if failure else None,
        "host": failure.host if failure else "",
        "replays": letter.replays,
        "headers": _shown_headers(letter),
        "payload": _parsed(display.printable(shown)),
    }


def _parsed(text: str) -> Any:
    """Return the value that JSON says, or the text where it is none, or nested too deeply to be written."""
    if is_too_deep(text.encode(), MAX_JSON_DEPTH):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _shown_headers(letter: DeadLetter) -> dict[str, str | int]:
    return {
        display.printable(str(name)): display.printable(value) if isinstance(value, str) else value
        for name, value in without_failure(letter.headers).items()
    }


def _summary(body: str) -> str:
    """Return the beginning of a payload in one line: the data of an event, since the rest is shown beside."""
    parsed = _parsed(body)
    data = parsed.get("data", parsed) if isinstance(parsed, dict) else parsed
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    line = one_line(display.printable(text))
    return line if len(line) <= MAX_SUMMARY else line[: MAX_SUMMARY - 1] + "…"


def _may_be_in_hand() -> bool:
    """Tell whether the broker hides letters that somebody else looks at: only RabbitMQ does."""
    try:
        settings = config.current()
    except ConfigurationError:
        return False
    return settings is not None and scheme(settings.url[0]) in _RABBITMQ


def _pause(tries: int) -> None:
    """Give somebody else time to put back what they look at; after the last try there is none to wait for."""
    if tries < LOOKS - 1:
        threading.Event().wait(AGAIN_SECONDS)


def _ask(queue: str, question: Callable[[DeadLetters], Answer]) -> tuple[Answer | None, str]:
    """Connect, ask, disconnect; return the answer, or ``None`` and the reason in words."""
    transport: Transport | None = None
    try:
        transport = open_transport(settings_for_admin())
        return question(transport.dead_letters(queue)), ""
    except _Enough:
        return None, ""
    except DomainEventBrokerError as error:
        return None, told(str(error))
    finally:
        if transport is not None:
            transport.close()


def _impatient(url: str) -> str:
    """Return the URL with short timeouts where the transport knows them and the URL has none."""
    if scheme(url) not in _RABBITMQ:
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
