#!/bin/sh
# Set this machine up: find a Python, or install one, and let tools/setup.py do the rest.
set -eu
cd "$(dirname "$0")/.."

is_fit() {
    command -v "$1" > /dev/null 2>&1 &&
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null
}

for python in .venv/bin/python python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
    if is_fit "$python"; then
        exec "$python" tools/setup.py "$@"
    fi
done

if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo 'setup: missing: Python 3.11 or newer, with its venv module: install it by hand' >&2
    exit 1
fi
echo 'setup: installing Python'
export DEBIAN_FRONTEND=noninteractive
apt-get -qq -o Acquire::Retries=3 update
apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends python3 python3-venv > /dev/null
exec /usr/bin/python3 tools/setup.py "$@"
