"""Looking through a queue from its head: many messages fetched at once, each answered on its own.

A consumer fetches twenty times faster than ``basic.get``, but takes what comes in later, too. So
messages are fetched in pages: each has a consumer of its own, whose prefetch is the size of the
page, and no answer is sent before all of the page is here. It never gets one more, and is
cancelled with nothing under way.

A quorum queue lets a client have 32 commands under way. Those beyond are set aside, which mixes up
what is given back, and forgets what was acknowledged if the channel ends meanwhile. So commands are
counted, and now and then waited for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from domain_event_broker.errors import BrokerUnavailable
from domain_event_broker.transports.rabbitmq.connection import REPLY_TIMEOUT, Connection, Fetched
from domain_event_broker.transports.rabbitmq.topology import QueueState

#: Messages of the first page, and of the largest; each page is twice as long as the one before.
FIRST_PAGE, LARGEST_PAGE = 8, 512
#: Bytes that a page should have: its length goes by the bodies of the one before.
PAGE_BYTES = 4 * 1024 * 1024
#: Messages given back with one command: a quorum queue keeps the order of no more.
ORDERED = 32
#: Commands to a queue that may be under way, with room for those that are on top of them.
COMMANDS = 8
#: Seconds without a message after which the broker is asked whether there are more, and how often in
#: a row it must say no. Others may look through the same queue.
QUIET_SECONDS, EMPTY_LOOKS = 0.2, 2
#: Seconds for the queue to show what was given back, and between two looks at it.
RETURN_TIMEOUT, RETURN_BEAT = 2.0, 0.002


@dataclass(frozen=True, slots=True)
class _Held:
    """A message without an answer.

    :param source: which fetch it came with: one ``basic.get``, or one page.
    """

    tag: int
    source: int


class Pager:
    """Reads one queue over a channel of its own.

    :param look: returns the state of the queue.
    """

    def __init__(self, queue: str, connection: Connection, look: Callable[[], QueueState | None]) -> None:
        self._queue = queue
        self._connection = connection
        self._look = look
        self._channel = connection.open_channel()
        self._channel.pika.add_on_cancel_callback(self._on_cancel)
        self._cancelled = False
        self._ready: deque[Fetched] = deque()
        self._open: dict[int, _Held] = {}
        self._answers: list[int] = []
        self._source = 0
        self._missing = 0
        self._page, self._page_bytes = FIRST_PAGE // 2, 0
        self._consumer = ""
        self._commands = 0
        self._fetched = 0

    @property
    def fetched(self) -> int:
        """How many messages have been fetched."""
        return self._fetched

    def first(self) -> Fetched | None:
        """Fetch one message; ``None``: the queue is empty.

        A queue that has no leader yet, after a restart of the broker, makes who fetches wait.
        """
        fetched = self._channel.get(self._queue)
        self._commands = 0  # the reply tells that all before it is done
        if fetched is None:
            return None
        self._source += 1
        self._take(fetched)
        return self._ready.popleft()

    def next(self, wanted: int) -> Fetched | None:
        """Return the next message; ``None``: there are no more.

        :param wanted: how many more are wanted, this one included.
        """
        if not self._ready and not self._missing:
            self._turn_page(wanted)
        self._wait(lambda: self._ready)
        return self._ready.popleft() if self._ready else None

    def ack(self, tags: Sequence[int]) -> None:
        """Acknowledge messages, when their page is complete; of large ones that may be later."""
        self._answers += tags
        self._wait(lambda: self._page_bytes > 2 * PAGE_BYTES)
        if not self._missing:
            self._end_page()
            self._send_answers()

    def ensure_open(self) -> None:
        """Raise if what was fetched is no longer ours."""
        self._connection.run_until(lambda: True, 0)
        self._ensure_not_cancelled()

    def give_back(self, left: int) -> None:
        """Put all messages without an answer back where they were.

        :param left: messages in the queue that were not fetched, so far as is known.
        """
        self._end_page()
        self._send_answers()
        returned = 0
        for number, chunk in enumerate(self._chunks(), 1):
            self._channel.ensure_open()
            self._channel.pika.basic_nack(chunk[-1].tag, multiple=True, requeue=True)
            returned += len(chunk)
            if number % COMMANDS == 0 or returned == len(self._open):
                self._wait_until_back(left + returned)
        self._open.clear()

    def close(self) -> None:
        """End it; what has no answer goes back."""
        self._channel.close()

    # --- pages

    def _turn_page(self, wanted: int) -> None:
        self._end_page()
        self._send_answers()
        size = min(wanted, self._next_size())
        self._page, self._page_bytes = size, 0
        self._source += 1
        self._missing = size
        # In this order, for the broker takes deliveries back in the order of these names.
        self._consumer = f"{self._source:09d}"
        pika = self._channel.pika
        self._channel.ask(pika.basic_qos, prefetch_count=size)
        self._channel.ask(
            pika.basic_consume,
            queue=self._queue,
            on_message_callback=lambda _channel, *message: self._on_message(Fetched(*message)),
            consumer_tag=self._consumer,
        )
        self._commands = 0

    def _next_size(self) -> int:
        mean = max(1, self._page_bytes // max(1, self._page))
        return max(1, min(2 * self._page, LARGEST_PAGE, PAGE_BYTES // mean))

    def _on_message(self, fetched: Fetched) -> None:
        self._missing = max(0, self._missing - 1)
        self._take(fetched)

    def _take(self, fetched: Fetched) -> None:
        self._fetched += 1
        self._page_bytes += len(fetched.body)
        self._open[fetched.method.delivery_tag] = _Held(fetched.method.delivery_tag, self._source)
        self._ready.append(fetched)

    def _on_cancel(self, _frame: object) -> None:
        self._cancelled, self._missing = True, 0

    def _wait(self, done: Callable[[], object]) -> None:
        """Wait until ``done()``, or until the page is complete."""
        looks, patience = 0, time.monotonic() + REPLY_TIMEOUT

        def has_news() -> bool:
            return bool(done()) or not self._missing or self._channel.reason is not None

        while self._missing and not done():
            missing = self._missing
            self._channel.ensure_open()
            if self._connection.run_until(has_news, QUIET_SECONDS) or self._missing < missing:
                continue
            state = self._look()
            # A quorum queue without a leader is reported with no messages, and without our consumer.
            empty = state is None or (state.ready == 0 and state.consumers != 0)
            looks = looks + 1 if empty else 0
            if looks >= EMPTY_LOOKS:
                self._missing = 0
            elif time.monotonic() > patience:
                raise BrokerUnavailable(
                    f"queue {self._queue!r} has {self._missing} messages left and hands none out"
                )
        self._ensure_not_cancelled()

    def _ensure_not_cancelled(self) -> None:
        self._channel.ensure_open()
        if self._cancelled:
            raise BrokerUnavailable(f"queue {self._queue!r} was deleted while it was looked through")

    def _end_page(self) -> None:
        """Wait for the rest of the page, and cancel its consumer."""
        while self._missing:
            self._ready.clear()  # they stay among those without an answer
            self._wait(lambda: self._ready)
        if self._consumer and not self._cancelled:
            self._channel.ask(self._channel.pika.basic_cancel, consumer_tag=self._consumer)
            self._commands = 0
        self._consumer = ""

    # --- answers

    def _send_answers(self) -> None:
        """Acknowledge; with one command where nothing older is held. The page's consumer has ended."""
        self._channel.ensure_open()
        answers, self._answers = sorted(self._answers), []
        wanted, last = set(answers), 0
        for tag in self._open:
            if tag not in wanted:
                break
            last = tag
        if last:
            self._channel.pika.basic_ack(last, multiple=True)
            self._commands += 1
        for tag in answers:
            del self._open[tag]
            if tag > last:
                self._channel.pika.basic_ack(tag)
                self._count_command()

    def _count_command(self) -> None:
        self._commands += 1
        if self._commands >= COMMANDS:
            # A command with a reply that comes when those before it are done. What it fetches is
            # the next message, if there is one.
            fetched = self._channel.get(self._queue)
            self._commands = 0
            if fetched is not None:
                self._source += 1
                self._take(fetched)

    def _chunks(self) -> Iterator[list[_Held]]:
        """Yield what one command gives back."""
        chunk: list[_Held] = []
        for held in self._open.values():
            if chunk and (len(chunk) == ORDERED or held.source != chunk[-1].source):
                yield chunk
                chunk = []
            chunk.append(held)
        if chunk:
            yield chunk

    def _wait_until_back(self, expected: int) -> None:
        """Wait until messages given back can be seen, so that the next look finds them all.

        Others may take some at the same time, so their absence is no error.
        """
        end = time.monotonic() + RETURN_TIMEOUT
        while time.monotonic() < end:
            state = self._look()
            if state is not None and state.ready >= expected:
                return
            self._connection.run_until(lambda: False, RETURN_BEAT)
