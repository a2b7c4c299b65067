"""`apk` of the image: what it asks of apt, dpkg and npm for Alpine's names."""

import subprocess
from pathlib import Path

import pytest

from magsd.storage import build

APK = Path(build.__file__).parent / "recipes/apk"
INSTALLED = "git curl python3 python3-pip"


@pytest.fixture
def apk(tmp_path):
    """Run `apk` with programs that write down how they were called."""
    calls = tmp_path / "calls"
    programs = {
        "apt-get": f'echo "apt-get $*" >> {calls}',
        "apt-cache": f'echo "apt-cache $*" >> {calls}',
        "npm": f'echo "npm $*" >> {calls}',
        "node": "exit 0",
        "dpkg-query": (
            'for name; do :; done\ncase " ' + INSTALLED + ' " in '
            '*" $name "*) echo installed ;; *) exit 1 ;; esac'
        ),
    }
    for name, body in programs.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run(*arguments, fails=False):
        calls.write_text("")
        done = subprocess.run(
            ["/bin/sh", APK, *arguments],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) is fails, done.stderr
        # Whether the lists are fetched first depends on the machine.
        asked = calls.read_text().splitlines()
        return [line for line in asked if line != "apt-get -qq update"], done

    return run


def installed_by(apk, *arguments):
    calls, _ = apk("add", *arguments)
    if not calls:
        return []
    (call,) = calls
    prefix = "apt-get -qq -y install --no-install-recommends "
    assert call.startswith(prefix)
    return call.removeprefix(prefix).split()


def test_what_is_there_costs_nothing(apk):
    assert installed_by(apk, "--no-cache", "nodejs", "npm", "git", "curl", "py3-pip", "musl") == []


@pytest.mark.parametrize(
    ("alpine", "debian"),
    [
        ("jq", ["jq"]),
        ("build-base", ["build-essential"]),
        ("py3-numpy", ["python3-numpy"]),
        ("openssl-dev", ["libssl-dev"]),
        ("zlib-dev", ["zlib1g-dev"]),
        ("libffi-dev", ["libffi-dev"]),
        ("libxml2-dev", ["libxml2-dev"]),
        ("openjdk17", ["openjdk-17-jdk-headless"]),
        ("openjdk17-jre", ["openjdk-17-jre-headless"]),
        ("php83-curl", ["php-curl"]),
        ("tesseract-ocr-data-deu", ["tesseract-ocr-deu"]),
        ("go", ["golang-go"]),
        ("postgresql16-client", ["postgresql-client"]),
        ("bash-doc", []),
    ],
)
def test_names_are_translated(apk, alpine, debian):
    assert installed_by(apk, alpine) == debian


@pytest.mark.parametrize(
    "arguments",
    [
        ["jq=1.6-r0"],
        ["jq>1.5"],
        ["jq~1.6"],
        ["jq@edge"],
        ["-q", "jq"],
        ["--virtual", ".build-deps", "jq"],
        ["-t", ".build-deps", "jq"],
        ["--repository", "http://mirror/edge", "jq"],
    ],
)
def test_versions_repositories_and_options_are_put_up_with(apk, arguments):
    assert installed_by(apk, *arguments) == ["jq"]


def test_options_may_stand_before_the_command(apk):
    calls, _ = apk("--no-cache", "-X", "http://mirror", "add", "jq")
    assert calls == ["apt-get -qq -y install --no-install-recommends jq"]


def test_a_package_of_npm_comes_from_npm(apk):
    calls, _ = apk("add", "yarn")
    assert calls == ["npm install --global --silent yarn"]


def test_only_what_is_installed_is_removed(apk):
    calls, _ = apk("del", "git", "jq", "nodejs", ".build-deps")
    assert calls == ["apt-get -qq -y remove git"]


def test_info_answers_by_its_exit_code(apk):
    assert apk("info", "-e", "git", "nodejs", "py3-pip")[1].stdout.split() == [
        "git",
        "nodejs",
        "py3-pip",
    ]
    apk("info", "-e", "jq", fails=True)


def test_an_unknown_command_is_an_error_that_shows_the_usage(apk):
    _, done = apk("frobnicate", fails=True)
    assert "usage: apk add" in done.stderr
