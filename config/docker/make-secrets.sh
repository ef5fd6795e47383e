#!/bin/sh
# Generate the secrets that docker-compose.yml mounts, in run/docker/secrets; what is there already stays.
# The folder is closed to others; the files are readable so that the containers' users can read their mounts.
set -eu
cd "$(dirname "$0")/../.."
folder=${FERMION_SECRETS:-run/docker/secrets}
mkdir -p "$folder"
chmod 700 "$folder"

random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
keep() { [ -s "$folder/$1" ] || { printf '%s' "$2" >"$folder/.$1" && chmod 444 "$folder/.$1" && mv "$folder/.$1" "$folder/$1"; }; }

for name in postgres_password airflow_db_password fermion_db_password; do keep "$name" "$(random 12)"; done
for name in jwt_secret api_secret_key; do keep "$name" "$(random 64)"; done
keep fernet_key "$(head -c 32 /dev/urandom | base64 | tr '+/' '-_')"
keep passwords.json "{\"admin\": \"$(random 12)\", \"op\": \"$(random 12)\", \"user\": \"$(random 12)\", \"viewer\": \"$(random 12)\"}"
