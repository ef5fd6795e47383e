#!/bin/sh
# Entry point of every container of the platform: secrets come as files, Airflow wants them in its environment.
set -eu

secret() { cat "/run/secrets/$1"; }
database() { printf '%s://%s:%s@%s:5432/%s' "$2" "$1" "$(secret "$1_db_password")" "${FERMION_POSTGRES_HOST:-postgres}" "$1"; }

export AIRFLOW__CORE__FERNET_KEY="$(secret fernet_key)"
export AIRFLOW__API__SECRET_KEY="$(secret api_secret_key)"
export AIRFLOW__API_AUTH__JWT_SECRET="$(secret jwt_secret)"
export AIRFLOW__DATABASE__SQL_ALCHEMY_CONN="$(database airflow postgresql+psycopg2)"
export AIRFLOW_CONN_FERMION_DB="$(database fermion postgresql)"
export FERMION_DATABASE_URL="$(database fermion postgresql+psycopg)"

# Airflow opens this file for writing, so it cannot be the secret itself.
mkdir -p "$FERMION_STATE/secrets" "$AIRFLOW_HOME/logs"
chmod 700 "$FERMION_STATE/secrets"
umask 077
secret passwords.json >"$FERMION_STATE/secrets/.passwords.$$"
mv "$FERMION_STATE/secrets/.passwords.$$" "$FERMION_STATE/secrets/passwords.json"
umask 022

exec "$@"
