"""``manage.py demo_user``: a user who may do everything in the admin, with a new password."""

from __future__ import annotations

import secrets
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    """Makes the user ``demo``, or gives it another password."""

    help = "Make a superuser 'demo' with a random password, and print both. For demonstrations only."

    def handle(self, *args: Any, **options: Any) -> None:
        """Make the user."""
        password = secrets.token_urlsafe(9)
        user, _ = get_user_model().objects.get_or_create(username="demo")
        user.is_staff = user.is_superuser = True
        user.set_password(password)
        user.save()
        self.stdout.write(f"{user.get_username()} {password}")
