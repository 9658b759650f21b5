"""The same, on a broker with users and certificates."""
