"""The training report as a page: one HTML file that needs nothing but itself, beside its JSON."""
