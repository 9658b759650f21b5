"""Settings of the project whose processes are killed; where its servers are comes from the environment."""

from __future__ import annotations

import os

from tests.djangoapp.databases import settings_for

SECRET_KEY = "for tests only"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["domain_event_broker", "tests.faults.project.apps.ProjectConfig"]
# A server that fell silent is given up within seconds, as operations should have it everywhere.
DATABASES = {
    "default": settings_for(
        os.environ["FAULTS_DATABASE"],
        connect_timeout=3,
        keepalives_idle=2,
        keepalives_interval=1,
        keepalives_count=3,
        tcp_user_timeout=6000,
    )
}
DOMAIN_EVENT_BROKER = {
    "URL": os.environ["FAULTS_BROKER"],
    "OUTBOX": {"BATCH_SIZE": 100, "LEASE_SECONDS": float(os.environ.get("FAULTS_LEASE", "3"))},
    "SUBSCRIBER": {"PREFETCH": 50, "GRACE_SECONDS": 5.0},
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {"domain_event_broker.relay": {"level": "INFO"}, "pika": {"level": "CRITICAL"}},
}
