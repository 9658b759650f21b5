"""A module of a project that looks for its key when it is imported, and does not find it."""

raise KeyError("VAULT_KEY=s3cret")
