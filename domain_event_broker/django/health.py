"""A page for the health probes of web processes: can events be published?

In ``urls.py``::

    path("health/events/", health),
"""

from __future__ import annotations

import logging

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from domain_event_broker import config
from domain_event_broker.django.conf import outbox_alias
from domain_event_broker.django.figures import is_read_only, lag_seconds
from domain_event_broker.errors import ConfigurationError, OutboxNotMigrated, OutboxUnavailable
from domain_event_broker.monitoring.health import Verdict, too_late

logger = logging.getLogger("domain_event_broker.monitoring")


@never_cache
@require_safe
@transaction.non_atomic_requests  # else ATOMIC_REQUESTS fails before this can say why
def health(request: HttpRequest) -> JsonResponse:
    """Answer 200 if nothing is known to keep events from being published, else 503; why, as JSON.

    It asks whether the database answers, has the tables, and (PostgreSQL, SQLite) takes what is written; it
    writes nothing. The answer names no host, user or password: whoever may ask may see it.

    Events that wait for longer than ``MONITORING["LAG_SECONDS"]`` are ``warnings``: while the broker is away
    publishing works all the same, and a probe of web pods must not take them all down for it. With ``?lag=1``
    they are reasons for 503, for those who want to be told.
    """
    reasons, warnings = outbox_findings()
    if request.GET.get("lag") == "1":
        reasons, warnings = (*reasons, *warnings), ()
    verdict = Verdict(reasons)
    return JsonResponse({**verdict.as_dict(), "warnings": warnings}, status=200 if verdict.is_well else 503)


def outbox_findings() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tell in words what keeps events from being published, and whether they leave too late."""
    try:
        settings = config.current()
        if settings is None:
            return (), ()
        alias = outbox_alias()
        late = too_late(lag_seconds(alias), settings.monitoring)
        return (("the database of the outbox is read-only",) if is_read_only(alias) else ()), late
    except ConfigurationError:
        reason = "the setting DOMAIN_EVENT_BROKER is wrong: 'manage.py check' says how"
    except OutboxNotMigrated:
        reason = "the tables of the outbox do not exist, or are old: run 'manage.py migrate'"
    except OutboxUnavailable as error:
        # Its words may name hosts and users.
        logger.debug("health: %s", error)
        reason = "the database of the outbox cannot be reached"
    return (reason,), ()
