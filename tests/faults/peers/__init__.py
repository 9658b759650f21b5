"""Other libraries, and ours, under the same faults: see ``__main__.py``."""
