"""The one error of the demonstration."""


class Trouble(Exception):
    """Something keeps the show from going on; the message says what, and what to do."""
