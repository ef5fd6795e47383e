"""Datasets: where they come from (a local folder, an S3 prefix) and the cache that jobs read them from."""
