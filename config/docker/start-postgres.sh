#!/bin/sh
# Make the two databases at the first start, then be the server.
set -eu
data=/var/lib/fermion-postgres/data

if [ ! -s "$data/PG_VERSION" ]; then
    rm -rf "$data.new"
    for name in airflow fermion; do
        case $(cat "/run/secrets/${name}_db_password") in
        '' | *[!A-Za-z0-9._~-]*)
            echo "fermion: the secret ${name}_db_password is empty or has characters other than A-Z a-z 0-9 . _ ~ -" >&2
            exit 2
            ;;
        esac
    done
    initdb -D "$data.new" -U postgres -E UTF8 --locale=C -A scram-sha-256 --pwfile=/run/secrets/postgres_password --no-instructions
    echo 'host all all all scram-sha-256' >>"$data.new/pg_hba.conf"
    for name in airflow fermion; do
        printf "CREATE ROLE %s LOGIN PASSWORD '%s'\nCREATE DATABASE %s OWNER %s\n" \
            "$name" "$(cat "/run/secrets/${name}_db_password")" "$name" "$name"
    done | postgres --single -D "$data.new" postgres >/dev/null
    mv "$data.new" "$data"
fi
# A server that was killed with its container leaves a lock; in this container nobody else can hold it.
rm -f "$data/postmaster.pid"
exec postgres -D "$data" -c listen_addresses='*' -c max_connections=250 -c jit=off "$@"
