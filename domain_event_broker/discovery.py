"""Finds the handlers of the program, whoever declares them where."""

from __future__ import annotations

from collections.abc import Callable

from domain_event_broker.handlers import Registry, registry

_discover: Callable[[], Registry] | None = None


def install_discovery(discover: Callable[[], Registry] | None) -> None:
    """Let ``discover`` import what declares handlers; the Django app installs one. ``None``: nothing."""
    global _discover
    _discover = discover


def known_handlers() -> Registry:
    """Return the handlers of the program, after those that nobody imported yet were found.

    :raises HandlerError: a handler cannot be served as it is declared.
    """
    return registry if _discover is None else _discover()
