"""The default broker of programs without Django.

Assign to :data:`BROKER` before the first event is published or the first subscriber is
made. In a Django project the setting ``DOMAIN_EVENT_BROKER`` takes its place.
"""

from __future__ import annotations

#: URL of the default broker; ``None`` switches publishing off.
BROKER: str | None = "amqp://guest:guest@localhost:5672/%2F"
