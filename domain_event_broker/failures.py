"""Why an event was dead-lettered, and how that reason travels with it."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

from domain_event_broker.events import Headers
from domain_event_broker.masking import mask_text

#: Longest message and traceback kept, in characters. All headers of an AMQP message must fit
#: into one frame (128 KiB by default), so the traceback keeps its last lines only.
MAX_MESSAGE = 1_000
MAX_TRACEBACK = 16_000
#: Longest summary of a first failure that is kept over replays, in characters.
MAX_FIRST_ERROR = 300

_PREFIX = "event-error-"
_PAST = "event-history-"
#: No number of ours is greater; what a foreign producer wrote may be.
_GREATEST = 2**53


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of an event in one handler.

    :param reason: one of the words in which the library tells failures apart: ``"error"``,
        ``"retries-exhausted"``, ``"rejected"``, ``"malformed"``, ``"not-opened"``, ``"invalid-data"``,
        ``"newer-version"``, ``"crashed"``, ``"timeout"``, ``"too-large"``, or the
        broker's own (``"delivery_limit"``, ``"expired"``, ...).
    :param attempts: deliveries to the handler, this one included.
    :param failed_at: Unix time in seconds.
    """

    reason: str
    error_type: str = ""
    message: str = ""
    traceback: str = ""
    attempts: int = 1
    host: str = ""
    failed_at: float = 0.0

    @classmethod
    def of(cls, error: BaseException, reason: str, attempts: int) -> Failure:
        """Describe ``error``, raised while the event was handled for the ``attempts``-th time."""
        kind = type(error)
        name = (
            kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        )
        trace = "".join(traceback.format_exception(error))
        return cls(
            reason=reason,
            error_type=name,
            # Cut before and after: a password is looked for in what may be shown, and not cut in two.
            message=_storable(mask_text(_text_of(error)[: 4 * MAX_MESSAGE]))[:MAX_MESSAGE],
            traceback=_storable(mask_text(trace[-2 * MAX_TRACEBACK :]))[-MAX_TRACEBACK:],
            attempts=attempts,
            host=f"{socket.gethostname()}:{os.getpid()}",
            failed_at=time.time(),
        )

    def to_headers(self) -> dict[str, str | int]:
        """Return the headers in which this failure travels with a dead letter."""
        return {
            f"{_PREFIX}reason": self.reason,
            f"{_PREFIX}type": self.error_type,
            f"{_PREFIX}message": self.message,
            f"{_PREFIX}traceback": self.traceback,
            f"{_PREFIX}attempts": self.attempts,
            f"{_PREFIX}host": self.host,
            f"{_PREFIX}time": int(self.failed_at * 1000),
        }

    @classmethod
    def from_headers(cls, headers: Mapping[str, object]) -> Failure | None:
        """Read what :meth:`to_headers` wrote; ``None`` where there is no failure."""
        if f"{_PREFIX}reason" not in headers:
            return None
        return cls(
            reason=_text(headers, "reason"),
            error_type=_text(headers, "type"),
            message=_text(headers, "message"),
            traceback=_text(headers, "traceback"),
            attempts=_number(headers, "attempts"),
            host=_text(headers, "host"),
            failed_at=_number(headers, "time") / 1000,
        )


@dataclass(frozen=True, slots=True)
class History:
    """What a dead letter remembers of its life before it was last replayed.

    :param first_error: its first failure, in one line.
    :param first_failed_at: when that was, as Unix time in seconds.
    :param attempts: deliveries to the handler before the last replay, all in all.
    """

    first_error: str = ""
    first_failed_at: float = 0.0
    attempts: int = 0

    @classmethod
    def from_headers(cls, headers: Mapping[str, object]) -> History:
        """Read what :meth:`to_headers` wrote; of an event that was never replayed there is none."""
        return cls(
            _text(headers, "error", _PAST),
            _number(headers, "time", _PAST) / 1000,
            _number(headers, "attempts", _PAST),
        )

    @classmethod
    def after(cls, headers: Mapping[str, object], failure: Failure | None) -> History:
        """Return the history of a dead letter, its present failure included: that of its replay."""
        past = cls.from_headers(headers)
        if failure is None:
            return past
        attempts = past.attempts + failure.attempts
        if past.first_error:
            return cls(past.first_error, past.first_failed_at, attempts)
        error = " ".join(f"{failure.reason}: {failure.error_type} {failure.message}".split())
        return cls(error[:MAX_FIRST_ERROR], failure.failed_at, attempts)

    def to_headers(self) -> dict[str, str | int]:
        """Return the headers in which it travels; none where there is nothing to tell."""
        if not self.attempts:
            return {}
        return {
            f"{_PAST}error": self.first_error,
            f"{_PAST}time": int(self.first_failed_at * 1000),
            f"{_PAST}attempts": self.attempts,
        }


def without_failure(headers: Headers) -> dict[str, str | int]:
    """Return ``headers`` less those of a failure: what a replayed event starts anew with."""
    return {name: value for name, value in headers.items() if not str(name).startswith(_PREFIX)}


def _text(headers: Mapping[str, object], name: str, prefix: str = _PREFIX) -> str:
    value = headers.get(f"{prefix}{name}", "")
    return value if isinstance(value, str) else str(value)


def _number(headers: Mapping[str, object], name: str, prefix: str = _PREFIX) -> int:
    value = headers.get(f"{prefix}{name}", 0)
    return value if isinstance(value, int) and 0 <= value < _GREATEST else 0


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a __str__ of somebody's own may fail, and the event must not vanish for it
        return f"(str() of this {type(error).__name__} failed)"


def _storable(text: str) -> str:
    """Drop what a header or a text column cannot hold: NUL and lone surrogates."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
