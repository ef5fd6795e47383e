#!/bin/sh
# Makes .venv what the lock file says, and does nothing when it is. Needs Python 3.11 to 3.13; uses uv where it is on the
# PATH, else installs it with pip. Safe to interrupt and to run twice: the stamp is removed first and written last.
set -eu
cd "$(dirname "$0")"

say() { printf '%s\n' "$*" >&2; }

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }

wanted_stamp() { cat requirements-dev.lock requirements-build.lock pyproject.toml setup.sh | cksum | tr '\n' ' '; pwd; }

is_ready() { [ -f .venv/stamp ] && [ "$(cat .venv/stamp)" = "$(wanted_stamp)" ] && fits .venv/bin/python; }

find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
        if command -v "$candidate" >/dev/null 2>&1 && fits "$candidate"; then
            "$candidate" -c 'import sys; print(getattr(sys, "_base_executable", None) or sys.executable)'
            return
        fi
    done
    if command -v uv >/dev/null 2>&1 && found=$(uv python find '>=3.11,<3.14' 2>/dev/null); then
        echo "$found"
        return
    fi
    say "Fermion needs Python 3.11, 3.12 or 3.13, and none was found (python3 is: $(python3 --version 2>&1 || echo missing))."
    say "Install one (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.13; with uv: uv python install 3.13),"
    say "or name it: make PYTHON=/path/to/python3.12 ${MAKECMDGOALS:-up}"
    exit 1
}

make_venv() {
    python=$(find_python)
    rm -rf .venv
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --python "$python" .venv
    elif ! "$python" -m venv .venv; then
        say "$python cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv), or uv."
        exit 1
    fi
}

# The lock file's own uv, checked by its hashes, where the machine has none.
bootstrap_uv() {
    .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null
    awk '/^uv==/ { found = 1 } found { print } found && !/\\$/ { exit }' requirements.lock >.venv/uv.lock
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock
}

if is_ready; then exit 0; fi
if command -v flock >/dev/null 2>&1 && [ -z "${FERMION_SETUP_LOCKED:-}" ]; then
    # A second make waits here, then finds the work done.
    FERMION_SETUP_LOCKED=1 exec flock -w 1200 setup.sh ./setup.sh
fi

say "setting up .venv (once; a minute or two, and what is downloaded)"
rm -f .venv/stamp
fits .venv/bin/python || make_venv
uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    [ -x .venv/bin/uv ] && .venv/bin/uv --version >/dev/null 2>&1 || bootstrap_uv
    uv=.venv/bin/uv
fi
"$uv" pip sync --quiet --python .venv/bin/python --require-hashes --compile-bytecode requirements-dev.lock
"$uv" pip install --quiet --python .venv/bin/python --no-deps --build-constraints requirements-build.lock -e .
wanted_stamp >.venv/stamp.new
mv .venv/stamp.new .venv/stamp
