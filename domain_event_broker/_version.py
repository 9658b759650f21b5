"""The one place that knows the version."""

__version__ = "4.0.0a1"
