"""S3: the client, and parallel transfers that datasets and models share."""
