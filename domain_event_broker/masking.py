"""Passwords in texts, and how they are kept from logs, errors, dead letters and pages."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(r"(?<=://)([^:@/]*):.*@")
_TLS_PASSWORD = re.compile(r"(ssl_options=)[^&]*(?:password|passphrase)[^&]*", re.IGNORECASE)
_PARAMETER = re.compile(r"(password|passphrase|secret|token)=[^&]*", re.IGNORECASE)

#: The same in running text, where a URL ends with a space or a quotation mark. The bounds keep texts that are
#: made to look like the beginning of many URLs from taking long.
_CREDENTIALS_IN_TEXT = re.compile(r"""(?<=://)([^\s:@/'"]{0,256}):[^\s"]{0,2048}@""")
_PARAMETER_IN_TEXT = re.compile(r"""(password|passphrase|passwd|secret|token)=[^\s&,;)]+""", re.IGNORECASE)


def mask(url: str) -> str:
    """Return ``url`` with its password, and secrets in its query, replaced by ``***``."""
    # To the last "@": a password with "/", "?" or "#" in it makes a wrong URL, and must not show.
    masked = _CREDENTIALS.sub(r"\1:***@", url)
    masked = _TLS_PASSWORD.sub(r"\1***", masked)
    return _PARAMETER.sub(r"\1=***", masked)


def mask_text(text: str) -> str:
    """Return ``text`` with the passwords of all URLs in it, and of ``password=...``, replaced by ``***``.

    For what others wrote, such as the message of an exception: it knows passwords by their place only.
    """
    return _PARAMETER_IN_TEXT.sub(r"\1=***", _CREDENTIALS_IN_TEXT.sub(r"\1:***@", text))


def one_line(text: str) -> str:
    r"""Return ``text`` with everything that is not printable, line breaks too, written as ``\n`` or ``\x1b``.

    What a foreign producer sends must not move the cursor of a terminal, nor make lines of a log.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )
