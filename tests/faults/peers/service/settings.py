"""Settings of the service; where its servers are, and which library it uses, comes from the environment."""

import os
from urllib.parse import urlsplit

_DATABASE = urlsplit(os.environ["FAULTS_DATABASE"])
_APPS = {
    "ours": "domain_event_broker",
    "older": "domain_event_broker.django",
    "outbox_pattern": "django_outbox_pattern",
}

SECRET_KEY = "for tests only"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [_APPS[os.environ["PEER"]], "ledger"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": _DATABASE.hostname,
        "PORT": _DATABASE.port,
        "USER": _DATABASE.username,
        "NAME": _DATABASE.path.lstrip("/"),
        # Otherwise django-outbox-pattern opens a connection for each message.
        "CONN_MAX_AGE": 600,
        "OPTIONS": {
            "connect_timeout": 3,
            "keepalives_idle": 2,
            "keepalives_interval": 1,
            "keepalives_count": 3,
            "tcp_user_timeout": 6000,
        },
    }
}
DOMAIN_EVENT_BROKER = os.environ["FAULTS_BROKER"]
DJANGO_OUTBOX_PATTERN = {
    "DEFAULT_STOMP_HOST_AND_PORTS": [("127.0.0.1", int(os.environ["FAULTS_STOMP_PORT"]))],
    "DEFAULT_STOMP_USERNAME": "guest",
    "DEFAULT_STOMP_PASSCODE": "guest",
    # Its defaults are four minutes and one: a run of ten would judge little else.
    "DEFAULT_PAUSE_FOR_RETRY": 3,
    "DEFAULT_WAIT_RETRY": 3,
    "DEFAULT_MAXIMUM_BACKOFF": 5,
}
if os.environ.get("PEER_PERSISTENT"):
    DJANGO_OUTBOX_PATTERN["DEFAULT_GENERATE_HEADERS"] = "libraries.outbox_pattern.persistent_headers"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
}
