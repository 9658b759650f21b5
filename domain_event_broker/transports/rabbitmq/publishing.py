"""Sending with confirms: many messages on the way at once, and one answer for each of them.

Every message is published ``mandatory`` on a channel in confirm mode. The broker answers each
with basic.ack or basic.nack, several at a time where it likes; for one that no queue is bound
for, basic.return comes first, and then its ack (https://www.rabbitmq.com/docs/confirms).

Frames of a whole window are encoded here and written in one piece, which doubles the rate of
pika's own ``basic_publish``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pika
import pika.exceptions
import pika.frame
import pika.spec

from domain_event_broker.errors import BrokerUnavailable, ConfirmTimeout
from domain_event_broker.ports import PublishOutcome, Stored
from domain_event_broker.transports.rabbitmq import wire
from domain_event_broker.transports.rabbitmq.connection import Channel, Connection

#: Messages on the way without an answer. More gains nothing, fewer let the broker idle.
WINDOW = 1000
#: Bytes of bodies on the way without an answer; bounds memory when bodies are large.
WINDOW_BYTES = 8 * 1024 * 1024

#: Seconds without any answer after which the broker counts as lost. A queue whose majority is
#: away answers basic.nack after 65 s; nobody should wait for that with a transaction open.
CONFIRM_TIMEOUT = 30.0

#: Bytes of a frame besides its payload.
_FRAME_OVERHEAD = pika.spec.FRAME_HEADER_SIZE + pika.spec.FRAME_END_SIZE
_BODY_HEADER = struct.Struct(">BHL")
_FRAME_END = bytes([pika.spec.FRAME_END])
_PRECONDITION_FAILED, _ACCESS_REFUSED = 406, 403

#: What the broker says when a user may not write with one routing key. It closes the channel for
#: it, although all other messages are welcome (https://www.rabbitmq.com/docs/access-control).
_TOPIC_REFUSED = "access to topic"

_STORED = PublishOutcome(Stored.STORED)
_UNROUTABLE = PublishOutcome(Stored.UNROUTABLE)
_NACKED = "the broker said no (basic.nack): a queue bound for it is full or lacks its majority"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message on its way to an exchange; the default exchange is ``""``."""

    exchange: str
    routing_key: str
    properties: pika.BasicProperties
    body: bytes


class BrokerBlocked(Exception):
    """The broker takes nothing in just now; what was begun can be gone on with later."""


class Sender:
    """Publishes over one connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        #: Whether the broker has answered for a message.
        self.is_proven = False
        self._channel: _ConfirmChannel | None = None

    def send(self, messages: Sequence[Outgoing]) -> list[PublishOutcome]:
        """Publish in order; return the broker's answers in that order.

        :raises BrokerUnavailable: no answer came in time. Errors of pika pass through.
        """
        return Sending(self, messages).go_on(patient=True)

    def refusal(self, message: Outgoing) -> str:
        """Return why a message cannot be encoded, or an empty string. Nothing is sent."""
        try:
            self.open().encode(message)
        except Exception as error:  # pika raises about anything for values it cannot encode
            return _not_encodable(error)
        return ""

    def encodable(self, message: Outgoing) -> Outgoing:
        """Return a copy that can be sent: a foreign producer's headers may not survive a second encoding."""
        if not self.refusal(message):
            return message
        return replace(message, properties=wire.slim(message.properties))

    def change_channel(self) -> None:
        """Use a new channel from now on.

        One that began while a queue had no leader may go on saying no when there is one again:
        seen on 3.10, after the node of the leader was killed, for as long as that node was away.
        """
        if self._channel is not None:
            self._channel.channel.close()
            self._channel = None

    def open(self) -> _ConfirmChannel:
        """Return the channel, or a new one if the broker has closed it."""
        if self._channel is None or self._channel.channel.reason is not None:
            self._channel = _ConfirmChannel(self.connection)
        return self._channel


class Sending:
    """Messages on their way, in order."""

    def __init__(self, sender: Sender, messages: Sequence[Outgoing]) -> None:
        self._sender = sender
        self._messages = messages
        self._outcomes: list[PublishOutcome | None] = [None] * len(messages)
        self._rest = self._batches()
        self._batch: _Batch | None = None

    def go_on(self, patient: bool) -> list[PublishOutcome]:
        """Return the broker's answers in order, when all are there.

        :param patient: wait for a broker that takes nothing in, so long as the connection allows.
        :raises BrokerBlocked: it takes nothing in, and we are not patient; call again later.
        :raises BrokerUnavailable: no answer came in time. Errors of pika pass through.
        """
        while True:
            batch = self._batch or next(self._rest, None)
            if batch is None:
                return [outcome for outcome in self._outcomes if outcome is not None]
            self._batch = batch
            batch.run(patient)
            self._batch = None
            if batch.was_nacked:
                self._sender.change_channel()

    def _batches(self) -> Iterator[_Batch]:
        if not self._sender.is_proven and self._messages:
            # Short of memory or disk space, the broker tells a new connection so when the first
            # message comes, and takes what was sent to it when that is over, even if we have
            # given up meanwhile: each try leaves one duplicate there, and not a whole batch.
            yield from self._one_by_one(1)
            self._sender.is_proven = True
        yield from self._all()
        while self._unanswered():
            # The broker closed the channel because of one message, and does not say which: it may
            # be larger than its max_message_size, or have a routing key that is forbidden. Those
            # without an answer go again, one by one: some may be stored twice, but the culprit
            # is found and the others get through.
            yield from self._one_by_one(WINDOW)
            yield from self._all()

    def _all(self) -> Iterator[_Batch]:
        if todo := self._unanswered():
            yield self._make_batch(todo)

    def _one_by_one(self, limit: int) -> Iterator[_Batch]:
        for index in self._unanswered()[:limit]:
            batch = self._make_batch([index])
            yield batch
            if self._outcomes[index] is None:
                text = f"the broker refused it: {batch.channel.reason_text}"
                self._outcomes[index] = PublishOutcome(Stored.REFUSED, text)

    def _unanswered(self) -> list[int]:
        return [index for index, outcome in enumerate(self._outcomes) if outcome is None]

    def _make_batch(self, todo: Sequence[int]) -> _Batch:
        return _Batch(self._sender.connection, self._sender.open(), self._messages, self._outcomes, todo)


class _ConfirmChannel:
    """A channel in confirm mode: the broker numbers what is published on it from 1."""

    def __init__(self, connection: Connection) -> None:
        self.channel: Channel = connection.open_channel()
        self.batch: _Batch | None = None
        self.last_tag = 0
        self._frame_max = connection.frame_max
        self._targets: dict[tuple[str, str], bytes] = {}
        self.channel.pika.add_on_return_callback(self._on_return)
        self.channel.ask(self.channel.pika.confirm_delivery, ack_nack_callback=self._on_answer)

    @property
    def reason_text(self) -> str:
        """Why the broker closed it."""
        return str(getattr(self.channel.reason, "reply_text", self.channel.reason))

    def encode(self, message: Outgoing) -> bytes:
        """Return the frames of one message: method, content header, body (AMQP 0-9-1, section 4.2.6)."""
        number = self.channel.number
        header: bytes = pika.frame.Header(number, len(message.body), message.properties).marshal()
        if len(header) > self._frame_max:
            # The broker would close the connection, not only refuse the message.
            raise ValueError(f"its headers take {len(header)} bytes, and a frame holds {self._frame_max}")
        return b"".join([self._target(message), header, *self._body(number, message.body)])

    def _target(self, message: Outgoing) -> bytes:
        key = (message.exchange, message.routing_key)
        found = self._targets.get(key)
        if found is None:
            method = pika.spec.Basic.Publish(exchange=key[0], routing_key=key[1], mandatory=True)
            if len(self._targets) >= WINDOW:
                self._targets.clear()
            found = self._targets[key] = pika.frame.Method(self.channel.number, method).marshal()
        return found

    def _body(self, number: int, body: bytes) -> list[bytes]:
        room = self._frame_max - _FRAME_OVERHEAD
        parts: list[bytes] = []
        for start in range(0, len(body), room):
            part = body[start : start + room]
            parts += (_BODY_HEADER.pack(pika.spec.FRAME_BODY, number, len(part)), part, _FRAME_END)
        return parts

    def _on_answer(self, frame: pika.frame.Method[pika.spec.Basic.Ack | pika.spec.Basic.Nack]) -> None:
        if self.batch is not None:
            positive = isinstance(frame.method, pika.spec.Basic.Ack)
            self.batch.answered(frame.method.delivery_tag, frame.method.multiple, positive)

    def _on_return(
        self, _channel: object, method: pika.spec.Basic.Return, properties: pika.BasicProperties, _body: bytes
    ) -> None:
        if self.batch is not None:
            self.batch.returned(method.routing_key, properties.message_id)


class _Batch:
    """Messages published on one channel, and where they stand."""

    def __init__(
        self,
        connection: Connection,
        channel: _ConfirmChannel,
        messages: Sequence[Outgoing],
        outcomes: list[PublishOutcome | None],
        todo: Sequence[int],
    ) -> None:
        self.channel = channel
        #: Whether the broker said no to one of them.
        self.was_nacked = False
        self._connection = connection
        self._messages = messages
        self._outcomes = outcomes
        self._todo = todo
        self._sent = 0
        self._unanswered: dict[int, int] = {}
        self._unanswered_bytes = 0
        self._lowest = self._return_from = channel.last_tag + 1
        self._unroutable: set[int] = set()

    def run(self, patient: bool) -> None:
        """Send until all are answered, or the broker closed the channel because of one of them.

        :raises BrokerBlocked: the broker takes nothing in, and we are not patient; call again later.
        :raises pika.exceptions.ChannelClosedByBroker: the channel was closed for another reason.
        """
        self.channel.batch = self
        while self._is_open() and (self._sent < len(self._todo) or self._unanswered):
            if not self._connection.blocked:
                self._write()
            elif not patient:
                raise BrokerBlocked(self._connection.blocked)
            self._wait()
        self.channel.batch = None

    def answered(self, tag: int, multiple: bool, positive: bool) -> None:
        """Note the broker's answer to one message, or to all up to it."""
        if not multiple:
            self._settle(tag, positive)
            return
        last = tag or self.channel.last_tag  # 0 stands for all there are (AMQP 0-9-1, basic.ack)
        for each in range(self._lowest, last + 1):
            self._settle(each, positive)
        self._lowest = max(self._lowest, last + 1)

    def returned(self, routing_key: str, message_id: str | None) -> None:
        """Note that no queue was bound for a message.

        A return does not carry the number of its message. Returns come in the order of
        publishing and before the answer, so it is the first one after the last return that
        looks like it; two that look alike are routed alike.
        """
        for tag in range(max(self._return_from, self._lowest), self.channel.last_tag + 1):
            index = self._unanswered.get(tag)
            if index is not None and self._looks_like(index, routing_key, message_id):
                self._unroutable.add(tag)
                self._return_from = tag + 1
                return

    def _looks_like(self, index: int, routing_key: str, message_id: str | None) -> bool:
        message = self._messages[index]
        same_id = (message.properties.message_id or None) == (message_id or None)
        return same_id and message.routing_key == routing_key

    def _settle(self, tag: int, positive: bool) -> None:
        index = self._unanswered.pop(tag, None)
        if index is None:
            return
        self._unanswered_bytes -= len(self._messages[index].body)
        if not positive:
            self.was_nacked = True
            self._outcomes[index] = PublishOutcome(Stored.REFUSED, _NACKED, temporary=True)
        else:
            self._outcomes[index] = _UNROUTABLE if tag in self._unroutable else _STORED

    def _write(self) -> None:
        frames: list[bytes] = []
        while self._sent < len(self._todo) and self._has_room():
            index = self._todo[self._sent]
            self._sent += 1
            try:
                frames.append(self.channel.encode(self._messages[index]))
            except Exception as error:  # pika raises about anything for values it cannot encode
                self._outcomes[index] = PublishOutcome(Stored.REFUSED, _not_encodable(error))
                continue
            self.channel.last_tag += 1
            self._unanswered[self.channel.last_tag] = index
            self._unanswered_bytes += len(self._messages[index].body)
        if frames:
            self._connection.write(b"".join(frames))

    def _has_room(self) -> bool:
        room = not self._unanswered or self._unanswered_bytes < WINDOW_BYTES
        return room and len(self._unanswered) < WINDOW

    def _half_free(self) -> bool:
        return len(self._unanswered) <= WINDOW // 2 and self._unanswered_bytes <= WINDOW_BYTES // 2

    def _wait(self) -> None:
        """Wait until all are answered, or half of the window is free for more, or it is of no more use."""
        pending, blocked = len(self._unanswered), self._connection.blocked

        def progress() -> bool:
            answered = not self._unanswered or (self._sent < len(self._todo) and self._half_free())
            closed = self.channel.channel.reason is not None
            return answered or closed or self._connection.blocked != blocked

        timeout = self._connection.blocked_timeout if blocked else CONFIRM_TIMEOUT
        if self._connection.run_until(progress, timeout):
            return
        if blocked:
            raise BrokerUnavailable(f"the broker takes nothing in ({blocked}): a memory or disk alarm")
        if len(self._unanswered) == pending:
            raise ConfirmTimeout(
                f"the broker did not confirm {pending} messages within {CONFIRM_TIMEOUT:g} s; "
                "they may be stored or not"
            )

    def _is_open(self) -> bool:
        reason = self.channel.channel.reason
        if reason is None:
            return True
        if _blames_one_message(reason):
            return False
        raise reason


def _blames_one_message(reason: BaseException) -> bool:
    """Tell whether a channel was closed because of a message, and not because of all of them."""
    code, text = getattr(reason, "reply_code", None), str(getattr(reason, "reply_text", ""))
    return code == _PRECONDITION_FAILED or (code == _ACCESS_REFUSED and _TOPIC_REFUSED in text)


def _not_encodable(error: Exception) -> str:
    return f"it cannot be encoded for AMQP: {type(error).__name__}: {error}".rstrip(": ")
