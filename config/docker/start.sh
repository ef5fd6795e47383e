#!/bin/sh
# Entry point of every container of the platform: secrets come as files, Airflow wants them in its environment.
set -eu

refuse() { echo "fermion: the secret $1 $2. config/docker/make-secrets.sh makes what is missing." >&2; exit 2; }

secret() {
    file=/run/secrets/$1
    [ -e "$file" ] || refuse "$1" "is not there ($file)"
    [ -r "$file" ] || refuse "$1" "cannot be read by user $(id -u): make its file readable (chmod 444), its folder private"
    [ -s "$file" ] || refuse "$1" "is empty"
    cat "$file"
}

# database <its name, account and secret> <driver>
database() {
    password=$(secret "$1_db_password")
    case $password in *[!A-Za-z0-9._~-]*) refuse "$1_db_password" "has characters other than A-Z a-z 0-9 . _ ~ -" ;; esac
    printf '%s://%s:%s@%s:5432/%s' "$2" "$1" "$password" "${FERMION_POSTGRES_HOST:-postgres}" "$1"
}

# Assigned before they are exported: the shell stops at a failed assignment only.
AIRFLOW__CORE__FERNET_KEY=$(secret fernet_key)
AIRFLOW__API__SECRET_KEY=$(secret api_secret_key)
AIRFLOW__API_AUTH__JWT_SECRET=$(secret jwt_secret)
AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=$(database airflow postgresql+psycopg2)
AIRFLOW_CONN_FERMION_DB=$(database fermion postgresql)
FERMION_DATABASE_URL=$(database fermion postgresql+psycopg)
export AIRFLOW__CORE__FERNET_KEY AIRFLOW__API__SECRET_KEY AIRFLOW__API_AUTH__JWT_SECRET
export AIRFLOW__DATABASE__SQL_ALCHEMY_CONN AIRFLOW_CONN_FERMION_DB FERMION_DATABASE_URL

# Airflow opens this file for writing, so it cannot be the secret itself.
passwords=$(secret passwords.json)
mkdir -p "$FERMION_STATE/secrets" "$AIRFLOW_HOME/logs"
chmod 700 "$FERMION_STATE/secrets"
umask 077
printf '%s\n' "$passwords" >"$FERMION_STATE/secrets/.passwords.$$"
mv "$FERMION_STATE/secrets/.passwords.$$" "$FERMION_STATE/secrets/passwords.json"
umask 022

exec "$@"
