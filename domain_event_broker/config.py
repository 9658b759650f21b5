"""Settings of the broker: what they are, how they are read, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args, get_type_hints
from urllib.parse import urlsplit

from domain_event_broker import settings as defaults
from domain_event_broker.errors import ConfigurationError
from domain_event_broker.events import MAX_JSON_DEPTH, MAX_PAYLOAD_BYTES
from domain_event_broker.masking import mask as mask

_EXCHANGE_TYPES = ("topic", "direct", "fanout", "headers")
_ON_FAILURE = ("block_key", "park")
_UNROUTABLE = ("archive", "park", "ignore")
_QUEUE_TYPES = ("quorum", "classic")

#: Stands among codecs for bodies that are not sealed.
PLAIN = "plain"
#: A dotted path, such as ``"mysite.events.redact"``.
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
#: Deepest nesting that the setting may allow: Python's parser gives up at about a thousand levels,
#: fewer where the stack is used already.
_DEEPEST = 500

#: Longest time that is taken in seconds: a day. Infinity is longer.
_DAY = 86_400.0
#: Most refusals of an event that the column for them holds.
_MOST_ATTEMPTS = 30_000


@dataclass(frozen=True, slots=True)
class OutboxSettings:
    """``DOMAIN_EVENT_BROKER["OUTBOX"]``: how events leave the database.

    :param database: alias of the database that holds the outbox; ``None``: the one the event
        is published on (``using=``, a database router, or ``"default"``).
    :param batch_size: rows that a relay sends at once.
    :param archive_days: days for which sent events are kept; 0: not at all.
    :param on_failure: what follows an event that the broker refuses for good. ``"block_key"``:
        later events of the same ``domain_object_id`` wait for it, ``"park"``: they pass.
    :param unroutable: what becomes of an event that no queue is bound for. ``"archive"``: it
        is marked in the archive, ``"park"``: parked, ``"ignore"``: as if it were sent.
    :param max_attempts: refusals by the broker after which an event is parked.
    :param lease_seconds: time after which the work of a relay that died moves to another.
    :param poll_seconds: longest time between two looks for new events where no wake-up comes.
    :param listen: whether a relay on PostgreSQL waits with ``LISTEN`` on a connection of its
        own. Switch it off behind a pooler that shares sessions: it would never be woken there.
    :param relay_task: whether each commit with events starts the Celery task ``relay_outbox``.
    """

    database: str | None = None
    batch_size: int = 500
    archive_days: int = field(default=7, metadata={"least": 0})
    on_failure: str = field(default="block_key", metadata={"choices": _ON_FAILURE})
    unroutable: str = field(default="archive", metadata={"choices": _UNROUTABLE})
    max_attempts: int = field(default=8, metadata={"most": _MOST_ATTEMPTS})
    lease_seconds: float = field(default=15.0, metadata={"most": _DAY})
    poll_seconds: float = field(default=1.0, metadata={"least": 0.01, "most": _DAY})
    listen: bool = True
    relay_task: bool = False


@dataclass(frozen=True, slots=True)
class SubscriberSettings:
    """``DOMAIN_EVENT_BROKER["SUBSCRIBER"]``: defaults of handlers that say nothing themselves.

    :param max_retries: retries before an event is dead-lettered.
    :param concurrency: events that a handler works on at once, in one process.
    :param prefetch: events fetched ahead for a handler.
    :param queue_type: ``"quorum"`` or ``"classic"`` (RabbitMQ).
    :param inbox: whether a handler takes effect once per event.
    :param inbox_days: days for which handled events are remembered.
    :param grace_seconds: time that running handlers get when a subscriber is stopped.
    """

    max_retries: int = field(default=3, metadata={"least": 0})
    concurrency: int = 1
    prefetch: int = 50
    queue_type: str = field(default="quorum", metadata={"choices": _QUEUE_TYPES})
    inbox: bool = True
    inbox_days: int = field(default=30, metadata={"least": 0})
    grace_seconds: float = field(default=30.0, metadata={"least": 0, "most": _DAY})


@dataclass(frozen=True, slots=True)
class MonitoringSettings:
    """``DOMAIN_EVENT_BROKER["MONITORING"]``: how relays and subscribers are watched over HTTP.

    :param address: interface that ``--metrics-port`` and ``--health-port`` listen on.
    :param stuck_seconds: time after which a worker that should have gone on counts as stuck:
        ``/livez`` fails.
    :param away_seconds: time for which broker or database may be away before ``/readyz`` fails.
    :param lag_seconds: age of the oldest event in the outbox from which on ``/readyz`` of a relay
        fails, and the view ``domain_event_broker.django.health.health`` warns, or fails with ``?lag=1``.
    """

    address: str = "127.0.0.1"
    stuck_seconds: float = field(default=180.0, metadata={"most": _DAY})
    away_seconds: float = field(default=60.0, metadata={"least": 0, "most": _DAY})
    lag_seconds: float = field(default=300.0, metadata={"most": _DAY})


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """``DOMAIN_EVENT_BROKER``: where the broker is, and how it is used.

    :param url: one URL, or several of one cluster that are tried in turn.
    :param exchange: exchange that events are published to.
    :param exchange_type: ``"topic"``, ``"direct"``, ``"fanout"`` or ``"headers"``.
    :param max_payload_bytes: largest event body that is accepted.
    :param max_json_depth: deepest nesting of arrays and objects in a body that is accepted.
    :param redact: dotted path of a function that makes of a :class:`DomainEvent` what the admin and
        commands show of its data; ``None``: they show the data.
    :param codec: dotted paths of objects that seal and open bodies: the first seals, all of them
        open. ``"plain"`` stands for no sealing. Empty: bodies are plain.
    :param accept_plain: whether bodies that no codec sealed are handled where there are codecs.
    :param tracing: whether events carry the trace of OpenTelemetry that they are part of, and make spans.
    """

    url: tuple[str, ...]
    exchange: str = "domain-events"
    exchange_type: str = field(default="topic", metadata={"choices": _EXCHANGE_TYPES})
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    max_json_depth: int = field(default=MAX_JSON_DEPTH, metadata={"most": _DEEPEST})
    redact: str | None = field(default=None, metadata={"dotted": True})
    codec: tuple[str, ...] = ()
    accept_plain: bool = True
    tracing: bool = False
    outbox: OutboxSettings = OutboxSettings()
    subscriber: SubscriberSettings = SubscriberSettings()
    monitoring: MonitoringSettings = MonitoringSettings()

    @property
    def masked_url(self) -> str:
        """The URLs without their passwords: what logs, errors and the admin may show."""
        return ", ".join(mask(url) for url in self.url)

    def __repr__(self) -> str:
        """Without passwords: it ends up in logs, and in reports of errors."""
        shown = {item.name: getattr(self, item.name) for item in fields(self)}
        shown["url"] = tuple(mask(url) for url in self.url)
        return f"BrokerSettings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


_provider: Callable[[], object] | None = None
#: The raw setting that was read last, and what it meant.
_last: tuple[object, BrokerSettings | None] | None = None


def set_provider(provider: Callable[[], object] | None) -> None:
    """Let ``provider`` answer for the raw setting instead of ``domain_event_broker.settings``.

    It is called each time settings are asked for, so that changes take effect.
    """
    global _provider
    _provider = provider


def current() -> BrokerSettings | None:
    """Return the settings in force; ``None``: the broker is switched off.

    :raises ConfigurationError: a key or a value is wrong; the message names it.
    """
    global _last
    value = _provider() if _provider is not None else defaults.BROKER
    if _last is None or _last[0] != value:
        # Asked for at each event: reading a dict anew would cost as much as storing the event.
        # The copy notices a dict that is changed in place.
        settings = parse(value)
        _last = (deepcopy(value), settings)
    return _last[1]


def resolve(connection_settings: object) -> BrokerSettings | None:
    """Return the settings behind the argument ``connection_settings`` of the public functions.

    :param connection_settings: a URL (or any value of the setting); ``""``: the default
        broker; ``None``: switched off. A URL says nothing of codecs and of tracing: those of the settings
        in force are used, so that what is sealed elsewhere in a program is sealed there too.
    """
    if connection_settings == "":
        return current()
    settings = parse(connection_settings)
    if settings is None or isinstance(connection_settings, Mapping):
        return settings
    default = current()
    return settings if default is None else _as_elsewhere(settings, default)


def parse(value: object) -> BrokerSettings | None:
    """Read the value of ``DOMAIN_EVENT_BROKER``: a URL, a list of URLs, a dict, or ``None``."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return BrokerSettings(url=_urls("DOMAIN_EVENT_BROKER", value))
    value = {"URL": defaults.BROKER, **value}
    if value["URL"] is None:
        return None
    return _build(BrokerSettings, value, "DOMAIN_EVENT_BROKER")  # type: ignore[no-any-return]


def with_exchange(settings: BrokerSettings, exchange: str, exchange_type: str) -> BrokerSettings:
    """Let the arguments of a public class win over the settings, unless they are its defaults."""
    changed = {
        name: value
        for name, value, default in (
            ("exchange", exchange, "domain-events"),
            ("exchange_type", exchange_type, "topic"),
        )
        if value != default
    }
    return replace(settings, **changed) if changed else settings  # type: ignore[arg-type]


def _as_elsewhere(settings: BrokerSettings, other: BrokerSettings) -> BrokerSettings:
    if not other.codec and not other.tracing:
        return settings
    return replace(settings, codec=other.codec, accept_plain=other.accept_plain, tracing=other.tracing)


def _shown(given: object) -> str:
    """Return a value for an error message, without the passwords it may hold."""
    return mask(repr(given))


def scheme(url: str) -> str:
    """Return the scheme of ``url`` in lower case: the name of its transport."""
    return url.partition(":")[0].lower()


def _build(cls: type[Any], value: Mapping[str, Any], path: str) -> Any:
    known = {item.name.upper(): item for item in fields(cls)}
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, given in value.items():
        if key not in known:
            raise ConfigurationError(
                f"{path}[{key!r}] is not a setting; known are {', '.join(sorted(known))}"
            )
        item = known[key]
        arguments[item.name] = _convert(hints[item.name], item.metadata, given, f"{path}[{key!r}]")
    return cls(**arguments)


def _convert(hint: Any, limits: Mapping[str, Any], given: Any, path: str) -> Any:
    if path == "DOMAIN_EVENT_BROKER['URL']":
        return _urls(path, given)
    if path == "DOMAIN_EVENT_BROKER['CODEC']":
        return _codecs(path, given)
    if hint in (OutboxSettings, SubscriberSettings, MonitoringSettings):
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"{path} is {_shown(given)}, not a dict")
        return _build(hint, given, path)
    choices: Sequence[str] = limits.get("choices", ())
    if choices and given not in choices:
        raise ConfigurationError(f"{path} is {_shown(given)}; choose one of {', '.join(choices)}")
    _check_type(hint, given, path)
    if limits.get("dotted") and given is not None:
        _check_dotted(given, path)
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        _check_number(limits.get("least", 1), limits.get("most"), given, path)
    return given


def _check_type(hint: Any, given: Any, path: str) -> None:
    accepted = get_args(hint) or ((float, int) if hint is float else (hint,))
    if not isinstance(given, accepted) or (isinstance(given, bool) and bool not in accepted):
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in accepted)
        raise ConfigurationError(f"{path} is {_shown(given)}; its type must be {names}")


def _check_number(least: float, most: float | None, given: float, path: str) -> None:
    # Asked this way round, not-a-number is outside, too.
    if not given >= least:
        raise ConfigurationError(f"{path} is {given!r}; it must be {least} or more")
    if most is not None and not given <= most:
        raise ConfigurationError(f"{path} is {given!r}; it must be {most:.0f} or less")


def _codecs(path: str, given: object) -> tuple[str, ...]:
    paths = (given,) if isinstance(given, str) else given
    if paths is None:
        return ()
    if not isinstance(paths, (list, tuple)) or not paths or not all(isinstance(each, str) for each in paths):
        raise ConfigurationError(
            f"{path} is {_shown(given)}; use the dotted path of a codec such as 'mysite.events.vault', "
            "a list of them (the first one seals, all of them open), or None"
        )
    for each in paths:
        if each != PLAIN:
            _check_dotted(each, path)
    return tuple(paths)


def _check_dotted(given: str, path: str) -> None:
    if not _DOTTED.fullmatch(given):
        raise ConfigurationError(f"{path} is {given!r}, which is no dotted path such as 'mysite.events.name'")


def _urls(path: str, given: object) -> tuple[str, ...]:
    urls = (given,) if isinstance(given, str) else given
    if not isinstance(urls, (list, tuple)) or not urls or not all(isinstance(url, str) for url in urls):
        raise ConfigurationError(
            f"{path} is {_shown(given)}; use a URL such as 'amqp://user:password@host:5672/%2F', "
            "a list of them, or None to switch the broker off"
        )
    expanded = [each for url in urls for each in _hosts(url)]
    for url in expanded:
        _check_url(path, url)
    return tuple(expanded)


def _hosts(url: str) -> list[str]:
    """Turn ``amqp://user:password@a,b:5673/vhost`` into one URL for each host."""
    head, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    credentials, at, hosts = authority.rpartition("@")
    if not separator or "," not in hosts:
        return [url]
    return [f"{head}://{credentials}{at}{host}{slash}{path}" for host in hosts.split(",")]


def _check_url(path: str, url: str) -> None:
    if not re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:", url):
        raise ConfigurationError(
            f"{path} is {mask(url)!r}, which has no scheme such as 'amqp:' or 'database:'"
        )
    try:
        urlsplit(url).port  # noqa: B018 - reading it checks it
    except ValueError:
        # Not the words of ``error``, nor as its cause: they can hold a part of the password.
        raise ConfigurationError(
            f"{path} is {mask(url)!r}, which has no valid port; write '/', '?', '#' and '@' in a "
            "password as %2F, %3F, %23 and %40"
        ) from None
