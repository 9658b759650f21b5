"""What ``example_project/run`` does, written with the standard library alone.

The shop itself is in the Django apps beside this package, and knows nothing of it.
"""
