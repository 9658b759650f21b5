"""Routing keys, binding keys and how they match: pure functions, no broker.

The rules are those of AMQP topic exchanges: words separated by dots; in a binding key ``*``
stands for exactly one word, ``#`` for any number of words, none included
(https://www.rabbitmq.com/tutorials/tutorial-five-python).
"""

from __future__ import annotations

from functools import lru_cache

from domain_event_broker.errors import HandlerError, InvalidEvent

#: Longest routing key, binding key or queue name in bytes: an AMQP 0-9-1 short string.
MAX_KEY_BYTES = 255


def check_routing_key(routing_key: object) -> str:
    """Return ``routing_key`` if an event may carry it.

    :raises InvalidEvent: it is not a string, empty, too long, or holds a wildcard or a
        character that a broker or a database cannot store.
    """
    if isinstance(routing_key, str) and _is_plain(routing_key):
        return routing_key
    problem = _problem(routing_key)
    if problem is None and any(word in ("*", "#") for word in str(routing_key).split(".")):
        problem = "holds a wildcard, which only binding keys may"
    if problem is not None:
        raise InvalidEvent(f"routing key {_shown(routing_key)} {problem}; use one like 'order.placed'")
    return str(routing_key)


def check_binding_key(binding_key: object) -> str:
    """Return ``binding_key`` if a handler can be bound with it.

    :raises HandlerError: it is not a string, empty, too long, or mixes a wildcard with other
        characters in one word (``order*`` would match nothing but itself).
    """
    problem = _problem(binding_key)
    if problem is None:
        mixed = [w for w in str(binding_key).split(".") if len(w) > 1 and ("*" in w or "#" in w)]
        problem = f"has the word {mixed[0]!r}: a wildcard must stand alone between dots" if mixed else None
    if problem is not None:
        raise HandlerError(
            f"binding key {_shown(binding_key)} {problem}; use one like 'order.placed', 'order.*' or '#'"
        )
    return str(binding_key)


def check_queue_name(name: object) -> str:
    """Return ``name`` if a handler, and so its queues, may have it.

    :raises HandlerError: it is not a string, empty, or too long to leave room for the names
        of its delay and dead-letter queues.
    """
    problem = _problem(name, limit=MAX_KEY_BYTES - len("-wait-00000000-migrating"))
    if problem is None and str(name).startswith("amq."):
        problem = "starts with 'amq.', which is reserved for the broker"
    if problem is not None:
        raise HandlerError(f"handler name {_shown(name)} {problem}; use one like 'billing-charge'")
    return str(name)


def matches(binding_key: str, routing_key: str) -> bool:
    """Tell whether an event with ``routing_key`` is routed to a queue bound with ``binding_key``."""
    return _words_match(tuple(binding_key.split(".")), tuple(routing_key.split(".")))


@lru_cache(maxsize=4096)
def _words_match(pattern: tuple[str, ...], words: tuple[str, ...]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return _words_match(pattern[1:], words) or (bool(words) and _words_match(pattern, words[1:]))
    return bool(words) and pattern[0] in ("*", words[0]) and _words_match(pattern[1:], words[1:])


def _is_plain(key: str) -> bool:
    """Tell in passing that a routing key is one of those that nearly all are."""
    printable = key.isascii() and key.isprintable()
    return printable and 0 < len(key) <= MAX_KEY_BYTES and "*" not in key and "#" not in key


def _problem(key: object, limit: int = MAX_KEY_BYTES) -> str | None:
    if not isinstance(key, str):
        return f"is of type {type(key).__name__}, not a string"
    if not key:
        return "is empty"
    try:
        size = len(key.encode("utf-8"))
    except UnicodeEncodeError:
        return "holds a lone surrogate, which UTF-8 cannot carry"
    if size > limit:
        return f"is {size} bytes long; at most {limit} are allowed"
    if any(ord(character) < 32 for character in key):
        return "holds a control character"
    return None


def _shown(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 80 else f"{text[:77]}..."
