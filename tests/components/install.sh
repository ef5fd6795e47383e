#!/bin/sh
# Installs the Debian packages that `make test-components` needs and this machine lacks; does nothing when all are there.
# Needs root and apt-get, and says what to install by hand without them. Starts no service, and changes none that runs.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

packages=''
need() { packages="$packages $1"; echo "missing: $2 ($1)"; }

for program in dockerd docker containerd runc; do
    command -v "$program" >/dev/null || { need docker.io "$program"; break; }
done
# The docker command is a package of its own from Debian 13 on.
command -v docker >/dev/null || ! apt-cache show docker-cli >/dev/null 2>&1 || need docker-cli docker
command -v iptables >/dev/null || need iptables iptables
command -v prometheus >/dev/null || need prometheus prometheus
command -v git >/dev/null || need git git
[ -e /etc/ssl/certs/ca-certificates.crt ] || need ca-certificates certificates
set -- /usr/lib/postgresql/*/bin/initdb
[ -x "$1" ] || need postgresql 'a Postgres server'
command -v go >/dev/null || echo "missing: go 1.21 or newer, of no Debian package that is new enough here: https://go.dev/doc/install"

[ -n "$packages" ] || { echo "nothing to install"; exit 0; }
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "install by hand:$packages"
    exit 0
fi

# A package's service is not started: the tests start servers of their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
# shellcheck disable=SC2086  # a list of words
apt-get -q install -y --no-install-recommends $packages
