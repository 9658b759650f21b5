"""Settings of the shop: SQLite and ``database:`` unless the environment names servers.

=======================  =====================================================================
``DATABASE_URL``         such as ``postgres://user:password@host:5432/name``
``DOMAIN_EVENT_BROKER``  such as ``amqp://user:password@host:5672/%2F``
``SHOP_DATABASE``        path of the SQLite file, where no ``DATABASE_URL`` is given
``SHOP_HOSTS``           host names the shop answers to, separated by commas
``SHOP_DEBUG``           ``1``: error pages for developers
=======================  =====================================================================
"""

from __future__ import annotations

import os
from pathlib import Path

from shop.database import from_environment

BASE_DIR = Path(__file__).resolve().parent.parent

# --- the part about domain events -----------------------------------------------------------

INSTALLED_APPS = [
    "domain_event_broker",
    "orders",
    "payments",
    "shipping",
    "shop",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
]

DATABASES = {"default": from_environment(BASE_DIR / "state" / "shop.sqlite3")}

DOMAIN_EVENT_BROKER = {
    "URL": os.environ.get("DOMAIN_EVENT_BROKER", "database:"),
    # A relay that was killed holds its share of the outbox until its lease ends. The default
    # of 15 seconds is right for servers; whoever watches this demonstration would be bored.
    "OUTBOX": {"LEASE_SECONDS": 5.0},
}

# --- the rest is what any small Django project has -------------------------------------------

#: Fit for an example that runs on your own machine, and for nothing else.
SECRET_KEY = "the-example-shop-has-no-secrets-so-do-not-put-it-on-the-internet"
DEBUG = os.environ.get("SHOP_DEBUG") == "1"
ALLOWED_HOSTS = os.environ.get("SHOP_HOSTS", "localhost,127.0.0.1,[::1]").split(",")

#: The fake payment provider fails by the dice, and this number decides how they fall.
PAYMENT_PROVIDER_SEED = 29

ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "shop.logs.JsonLines"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {"domain_event_broker": {"handlers": ["stderr"], "level": "INFO", "propagate": False}},
}
