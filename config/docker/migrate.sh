#!/bin/sh
# Check the secrets, then bring both databases up to date; run once before anything else starts.
set -eu
python config/docker/check_secrets.py
airflow db migrate
python -c 'import os; from fermion.wiring import migrate; migrate(os.environ["FERMION_DATABASE_URL"])'
