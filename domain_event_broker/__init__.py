"""Reliable domain events for Django and for plain programs: the public names."""
