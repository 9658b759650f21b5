"""A page for the health probes of web processes: can events be published, and do they leave?

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
from domain_event_broker.django.figures import lag_seconds
from domain_event_broker.errors import ConfigurationError, OutboxNotMigrated, OutboxUnavailable
from domain_event_broker.monitoring.health import Verdict, too_late

logger = logging.getLogger("domain_event_broker.monitoring")


@never_cache
@require_safe
@transaction.non_atomic_requests  # else ATOMIC_REQUESTS fails before this can say why
def health(request: HttpRequest) -> JsonResponse:
    """Answer 200 if the outbox can be written and no event waits for too long, else 503; why, as JSON.

    The answer names no host, user or password: whoever may ask may see it. The setting
    ``MONITORING["LAG_SECONDS"]`` says what is too long.
    """
    verdict = outbox_verdict()
    return JsonResponse(verdict.as_dict(), status=200 if verdict.is_well else 503)


def outbox_verdict() -> Verdict:
    """Tell whether the outbox can be used, and whether events leave it in time."""
    try:
        settings = config.current()
        if settings is None:
            return Verdict()
        return Verdict(too_late(lag_seconds(outbox_alias()), settings.monitoring))
    except ConfigurationError:
        reason = "the setting DOMAIN_EVENT_BROKER is wrong: 'manage.py check' says how"
    except OutboxNotMigrated:
        reason = "the tables of the outbox do not exist, or are old: run 'manage.py migrate'"
    except OutboxUnavailable as error:
        # Its words may name hosts and users.
        logger.debug("health: %s", error)
        reason = "the database of the outbox cannot be reached"
    return Verdict((reason,))
