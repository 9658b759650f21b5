"""What the contract suite sends: the awkward, the foreign, and how topics are routed."""

from __future__ import annotations

#: Bodies that a careless transport changes, cuts short or refuses.
AWKWARD_BODIES = (
    b"",
    b"\x00",
    b"a\x00b",
    b"\xff\xfe not UTF-8 \x80",
    "größe, 注文, 🙂".encode(),
    b'it\'s 100% \\ "quoted" %s {} $1 ?',
    b"\r\n\r\n",
    bytes(range(256)),
)

#: Headers of a program that is not this library.
FOREIGN_HEADERS: dict[str, str | int] = {
    "tenant": "blue",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "größe": "注文 'x' \"y\"",
    "empty": "",
    "count": 7,
    "below-zero": -3,
    "large": 2**53,
}

#: Binding key, routing key, and whether the one lets the other in. ``@`` stands for a word of
#: the test's own.
TOPICS = (
    ("@.placed", "@.placed", True),
    ("@.placed", "@.paid", False),
    ("@.placed", "@.placed.twice", False),
    ("@.placed", "@", False),
    ("@.*", "@.placed", True),
    ("@.*", "@", False),
    ("@.*", "@.placed.twice", False),
    ("@.*.late", "@.order.late", True),
    ("@.*.late", "@.late", False),
    ("@.#", "@", True),
    ("@.#", "@.placed", True),
    ("@.#", "@.order.placed.late", True),
    ("@.#.late", "@.late", True),
    ("@.#.late", "@.order.placed.late", True),
    ("@.#.late", "@.order.placed", False),
    ("@.#.#", "@", True),
    ("@.*.#", "@", False),
    ("@.*.#", "@.a.b.c", True),
    ("@.#.*", "@.a", True),
    ("*.@", "order.@", True),
    ("*.@", "@", False),
    ("#.@", "order.placed.@", True),
    ("#.@", "@", True),
    ("@.Placed", "@.placed", False),
    ("@.größe.注文", "@.größe.注文", True),
    ("@.größe.*", "@.größe.注文", True),
    ("@.größe", "@.grosse", False),
)
