"""What becomes of a transaction: whether something written in it is there, or was taken back."""

from __future__ import annotations

from django.db import connections, transaction


class Fate:
    """Follows what is written now on one database, in the thread that writes it.

    It goes by Django's own list of what is to be done after the commit, from which a rollback, also
    one to a savepoint, strikes what it takes back. So it asks no database, and works inside the
    transaction in which ``TestCase`` runs a test.

    :param alias: alias of the database whose commit decides.
    """

    def __init__(self, alias: str) -> None:
        self._connection = connections[alias]
        self._committed = not self._connection.in_atomic_block
        if not self._committed:
            transaction.on_commit(self._commit, using=alias, robust=True)

    def __call__(self) -> bool:
        """Tell whether it is there: committed, or not taken back so far."""
        hooks = list(self._connection.run_on_commit)
        return self._committed or any(hook[1] == self._commit for hook in hooks)

    def _commit(self) -> None:
        self._committed = True
