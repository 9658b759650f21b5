"""Which lines of the library the logs of the fault suite keep."""

from __future__ import annotations

import logging


class NewsOnly(logging.Filter):
    """Keep what goes wrong, and that events come again; not each event that was handled."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is kept."""
        return record.levelno >= logging.WARNING or record.msg.startswith("consuming")
