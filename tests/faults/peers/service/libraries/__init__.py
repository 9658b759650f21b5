"""How each library is used, as its documents say: ``publish`` in a transaction, ``consume`` for ever."""
