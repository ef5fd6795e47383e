"""Training code in git: which URLs are allowed, what a ref means, and read-only checkouts from local mirrors."""
