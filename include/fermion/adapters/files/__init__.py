"""Trees of files on a local disk: looked at safely, hashed, placed atomically, locked, shared."""
