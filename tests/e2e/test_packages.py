"""What scripts do first: install packages, with each of the package managers they know.

The sandbox takes them from the mirrors that the host is configured for.
"""

import pytest

from tests.e2e.server import Server

pytestmark = pytest.mark.network

INSTALLS = {
    "apt-get": ("apt-get update -qq && apt-get install -y -qq jq", "echo '{\"a\": 42}' | jq .a"),
    "apk": ("apk add --no-cache nodejs jq py3-pip", "echo '{\"a\": 42}' | jq .a"),
    "pip": ("pip install -q six", "python3 -c 'import six; print(six.__name__ and 42)'"),
    "pip in a venv": (
        "python3 -m venv v && v/bin/pip install -q six",
        "v/bin/python -c 'import six; print(six.__name__ and 42)'",
    ),
    "npm": ("npm install --silent is-number", "node -p 'require(\"is-number\")(1) && 42'"),
    "npm for all": ("npm install --global --silent semver", "semver 42.0.0 | cut -d. -f1"),
}


@pytest.mark.parametrize("manager", list(INSTALLS))
def test_a_package_is_installed_and_works(server: Server, manager):
    install, use = INSTALLS[manager]

    result = server.run(f"set -e\n{install} >&2\n{use}", within_s=180, timeout=170)

    told = "\n".join(entry["message"] for entry in result["log"])
    assert result["status"] == "completed", told
    assert result["stdout"] == ["42"], told


def test_a_package_that_does_not_exist_is_an_ordinary_failure(server: Server):
    result = server.run("pip install -q no-such-package-mags-0", within_s=180)

    assert (result["status"], result["exit_code"]) == ("error", 1)
