"""The admin log: who put which event back to work, or threw it away."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model
from django.http import HttpRequest

__all__ = ["CHANGE", "DELETION", "begin", "complete", "record"]

#: Length of the column that names an object in the log.
_MAX_NAME = 200


def record(
    request: HttpRequest,
    model: type[Model],
    events: Iterable[tuple[str | None, str]],
    flag: int,
    message: str,
) -> None:
    """Write one entry for each event.

    :param events: for each, the key under which the admin finds it (``None``: it is no longer
        there, so there is nothing to link to) and its name.
    :param flag: ``CHANGE`` or ``DELETION``.
    """
    content_type = ContentType.objects.get_for_model(model, for_concrete_model=False)
    LogEntry.objects.bulk_create(
        LogEntry(
            user_id=cast(int, request.user.pk),
            content_type_id=content_type.pk,
            object_id=key,
            object_repr=name[:_MAX_NAME],
            action_flag=flag,
            change_message=message,
        )
        for key, name in events
    )


def begin(
    request: HttpRequest, model: type[Model], key: str, flag: int, message: str, name: str = ""
) -> LogEntry:
    """Write one entry for an action on many events, before it is done.

    :param key: under which the admin finds what the action is about.
    :param name: of the same; default: the key.
    """
    content_type = ContentType.objects.get_for_model(model, for_concrete_model=False)
    return LogEntry.objects.create(
        user_id=cast(int, request.user.pk),
        content_type_id=content_type.pk,
        object_id=key,
        object_repr=(name or key)[:_MAX_NAME],
        action_flag=flag,
        change_message=message,
    )


def complete(entry: LogEntry, outcome: str) -> None:
    """Add to an entry what came of the action."""
    entry.change_message += outcome
    entry.save(update_fields=["change_message"])
