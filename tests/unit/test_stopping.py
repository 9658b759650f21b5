"""A subscriber that is told to stop does, whenever that is."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from domain_event_broker import Subscriber, subscriber


def test_a_stop_while_the_start_is_under_way_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    printer = Subscriber("memory://stopping")

    class Consumer(subscriber.Consumer):
        def __init__(self, *args: Any, **options: Any) -> None:
            printer.stop_consuming()
            super().__init__(*args, **options)

    monkeypatch.setattr(subscriber, "Consumer", Consumer)
    printer.register(lambda event: None, "printer", ["#"])
    consuming = threading.Thread(target=lambda: printer.start_consuming(timeout=60), daemon=True)
    consuming.start()
    consuming.join(20)
    assert not consuming.is_alive()
