"""Every error of the package, and the two signals a handler may raise.

::

    DomainEventBrokerError
    ├── ConfigurationError        a setting, a URL or an installation is wrong
    │   ├── MissingDependency     an optional package is not installed
    │   └── UnsupportedOption     the transport cannot do what was asked of it
    ├── InvalidEvent              this event cannot be published (also a ValueError)
    ├── MalformedEvent            a received body is not an event (also a ValueError)
    │   ├── InvalidEventData      its data is not what the class of the event says
    │   ├── NewerSchemaVersion    it was written by a newer version of the class
    │   └── BodyNotOpened         it is sealed and cannot be opened, or is not and should be
    ├── PublishFailed             the broker answered, and did not store the event
    │   └── BatchPublishError     some events of a batch were not published; it has the account
    ├── BrokerUnavailable         the broker could not be reached, or went away
    │   ├── AccessRefused         it answered: wrong credentials, vhost or permission
    │   └── ConfirmTimeout        it did not confirm an event in time; it may have it
    ├── QueueMismatch             a queue exists with other arguments than the handler asks for
    ├── HandlerError              a handler is declared in a way that cannot be served
    │   └── NoEventDeclared       neither it nor its group says which events it gets (also a TypeError)
    ├── HandlerTimeout            a handler was not done within its timeout (also a TimeoutError)
    ├── HandlerStuck              it did not end then either; the process has to
    ├── OutboxUnavailable         the outbox table cannot be read or written
    │   └── OutboxNotMigrated     it does not exist yet
    └── InboxUnavailable          the inbox cannot be asked; nothing of the handler took effect
        ├── TransactionLost       the database went away while the handler ran
        └── TaskQueueUnavailable  the broker of Celery did not take the task of an event

    HandlerSignal                 raised by a handler, never by the library
    ├── Retry                     handle this event again, after a delay
    └── Reject                    dead-letter this event now, without another try
"""

from __future__ import annotations

import math
from typing import Any


class DomainEventBrokerError(Exception):
    """Base of all errors raised by this package."""


class ConfigurationError(DomainEventBrokerError):
    """A setting, a URL or an installation is wrong. Nothing was sent."""


class MissingDependency(ConfigurationError):
    """An optional package is needed and not installed; the message names the pip command."""


class UnsupportedOption(ConfigurationError):
    """The transport in use lacks a capability that was asked for."""


class InvalidEvent(DomainEventBrokerError, ValueError):
    """The event cannot be published as it is. Raised before anything is stored or sent."""


class MalformedEvent(DomainEventBrokerError, ValueError):
    """A received body is not a domain event. Subscribers dead-letter such a delivery.

    :cvar reason: the word that its failure has among the dead letters.
    """

    reason = "malformed"


class InvalidEventData(MalformedEvent):
    """The data of a received event is not what its class says; the message names the fields."""

    reason = "invalid-data"


class NewerSchemaVersion(MalformedEvent):
    """A received event was written by a newer version of its class than this program knows."""

    reason = "newer-version"


class BodyNotOpened(MalformedEvent):
    """A received body is sealed and cannot be opened here, or is not sealed and should be."""


class PublishFailed(DomainEventBrokerError):
    """The broker answered and did not store the event; the message has its reason."""


class BatchPublishError(PublishFailed):
    """Some events of a batch were not published; ``account`` tells which, and why."""

    def __init__(self, message: str, account: Any) -> None:
        super().__init__(message)
        self.account = account


class BrokerUnavailable(DomainEventBrokerError):
    """The broker could not be reached, or the connection was lost.

    It concerns the connection, never a single event. What was not confirmed may or may not
    have been stored: publishing it again can make a duplicate, not doing so can lose it.
    """


class ConfirmTimeout(BrokerUnavailable):
    """The broker is there, and did not confirm in time; it may have stored the event or not."""


class AccessRefused(BrokerUnavailable):
    """The broker answered and refused: wrong credentials, virtual host or permission."""


class QueueMismatch(DomainEventBrokerError):
    """A queue or exchange exists with arguments other than those asked for."""


class HandlerError(DomainEventBrokerError):
    """A handler is declared in a way that cannot be served. Raised at start, not per event."""


class NoEventDeclared(HandlerError, TypeError):
    """Neither a handler nor its group says which events it gets."""


class HandlerTimeout(DomainEventBrokerError, TimeoutError):
    """A handler was not done within its ``timeout``; its transaction is rolled back."""


class HandlerStuck(DomainEventBrokerError):
    """A handler did not end although its time was up. Only the end of its process ends it."""


class OutboxUnavailable(DomainEventBrokerError):
    """The outbox (the database behind it) cannot be read or written just now."""


class OutboxNotMigrated(OutboxUnavailable):
    """Tables or columns of the outbox do not exist: ``manage.py migrate`` has not been run."""


class InboxUnavailable(DomainEventBrokerError):
    """The inbox (the database behind it) cannot be asked just now; nothing took effect.

    Calling the handler again, later, is safe.
    """


class TransactionLost(InboxUnavailable):
    """The database of the inbox went away while the handler ran.

    Its transaction was rolled back, or, if the connection was lost during COMMIT, the inbox
    knows whether it was not: calling the handler again is safe either way.
    """


class TaskQueueUnavailable(InboxUnavailable):
    """The broker of Celery could not be reached, or did not take a task.

    The event stays with the subscriber, which tries again. The task may be there, and then twice
    under one id, that of the event.
    """


class HandlerSignal(Exception):
    """What a handler raises to say how its delivery shall end."""


class Retry(HandlerSignal):
    """Raise this in a handler to have the event delivered to it again after a delay.

    Only the handler that raised it sees the event again. After ``max_retries`` retries the
    event is dead-lettered.

    :param delay: seconds until the next delivery, 0 or more; fractions count (milliseconds).
    :raises ValueError: the delay is negative, infinite or not a number.
    """

    def __init__(self, delay: float = 10.0) -> None:
        if isinstance(delay, bool) or not isinstance(delay, (int, float)):
            raise ValueError(f"Retry(delay={delay!r}): the delay is a number of seconds, such as Retry(2.5)")
        if not math.isfinite(delay) or delay < 0:
            raise ValueError(f"Retry(delay={delay!r}): the delay must be finite and not negative")
        super().__init__(f"retry in {delay:g} s")
        self.delay = float(delay)


class Reject(HandlerSignal):
    """Raise this in a handler to dead-letter the event now, without any retry.

    :param reason: kept with the dead letter, shown by ``replay_dlq`` and in the admin.
    """

    def __init__(self, reason: str = "rejected by the handler") -> None:
        super().__init__(reason)
        self.reason = reason
