"""Model repositories: a local folder and an S3 bucket, with the same manifest."""
