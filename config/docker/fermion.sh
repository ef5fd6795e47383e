#!/bin/sh
# The `fermion` command inside a container, with the secrets that the programs have.
exec /opt/fermion/config/docker/start.sh python -c 'from fermion.cli.main import main; main()' "$@"
