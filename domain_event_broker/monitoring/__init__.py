"""Metrics for Prometheus and answers to health probes, over HTTP, for relays and subscribers."""
