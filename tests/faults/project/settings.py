"""Settings of the project whose processes are killed; where its servers are comes from the environment."""

from __future__ import annotations

import os

from tests.faults.project.databases import from_environment

SECRET_KEY = "for tests only"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["domain_event_broker", "tests.faults.project.apps.ProjectConfig"]
DATABASES = {"default": from_environment()}
DOMAIN_EVENT_BROKER = {
    "URL": os.environ["FAULTS_BROKER"].split(),
    "OUTBOX": {
        "BATCH_SIZE": 100,
        "LEASE_SECONDS": float(os.environ.get("FAULTS_LEASE", "3")),
        "MAX_ATTEMPTS": int(os.environ.get("FAULTS_ATTEMPTS", "8")),
    },
    "SUBSCRIBER": {"PREFETCH": 50, "GRACE_SECONDS": 5.0},
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "filters": {"news": {"()": "tests.faults.project.logs.NewsOnly"}},
    "loggers": {
        "domain_event_broker.relay": {"level": "INFO"},
        "domain_event_broker.subscriber": {"level": "INFO", "filters": ["news"]},
        "pika": {"level": "CRITICAL"},
    },
}
