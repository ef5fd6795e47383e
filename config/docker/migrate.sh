#!/bin/sh
# Bring both databases up to date; run once before anything else starts.
set -eu
airflow db migrate
python -c 'import os; from fermion.wiring import migrate; migrate(os.environ["FERMION_DATABASE_URL"])'
