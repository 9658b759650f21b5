"""A project that runs Celery and no relay process."""

from invoicing.app import app as celery_app

__all__ = ["celery_app"]
