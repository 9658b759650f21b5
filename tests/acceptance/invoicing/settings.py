"""Settings: where things are comes from the environment."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

SECRET_KEY = "for tests only"
USE_TZ = True
INSTALLED_APPS = ["domain_event_broker", "invoicing.billing"]

_database = urlsplit(os.environ["INVOICING_DATABASE"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": _database.hostname,
        "PORT": _database.port,
        "USER": _database.username,
        "NAME": _database.path.lstrip("/"),
    }
}

DOMAIN_EVENT_BROKER = {
    "URL": os.environ["INVOICING_EVENTS"],
    "OUTBOX": {"RELAY_TASK": os.environ.get("INVOICING_RELAY_TASK") == "1", "ARCHIVE_DAYS": 7},
}

CELERY_BROKER_URL = os.environ["INVOICING_CELERY"]
CELERY_BEAT_SCHEDULE = {
    "relay": {"task": "domain_event_broker.relay_outbox", "schedule": 0.5, "options": {"expires": 10.0}},
    "purge": {
        "task": "domain_event_broker.purge_outbox",
        "schedule": 0.5,
        "kwargs": {"archive_days": 0, "inbox_days": 30},
    },
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "loggers": {"domain_event_broker": {"handlers": ["stderr"], "level": "INFO", "propagate": False}},
}
