"""What strangers must not read, send or imitate: see SECURITY.rst."""
