"""What of a host's settings a guest is given, and what not."""

from pathlib import Path

import pytest

from magsd.storage.host_files import guest_files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("etc/apt/sources.list.d", "etc/ssl/certs", "root/.config/pip"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    return tmp_path


def text(root: Path, name: str, **environ: str) -> str:
    return guest_files({"HOME": "/root", **environ}, root).get(name, b"").decode()


def test_a_host_without_settings_gives_none(root: Path) -> None:
    assert guest_files({}, root) == {}


def test_certificates_are_passed_on(root: Path) -> None:
    (root / "etc/ssl/certs/ca-certificates.crt").write_text("-----BEGIN")
    assert guest_files({}, root) == {"etc/ssl/certs/ca-certificates.crt": b"-----BEGIN"}


def test_pips_user_file_and_environment_win(root: Path) -> None:
    (root / "etc/pip.conf").write_text(
        "[global]\nindex-url = http://a.example/simple\ntimeout = 3\ncert = /etc/own.pem\n"
    )
    (root / "root/.config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://b.example/simple\n"
        "extra-index-url =\n  https://c.example/simple\n  file:///opt/simple\n"
    )
    found = text(root, "etc/pip.conf", PIP_TRUSTED_HOST="b.example", PIP_DEFAULT_TIMEOUT="9")
    assert found == (
        "[global]\n"
        "extra-index-url = https://c.example/simple\n"
        "index-url = https://b.example/simple\n"
        "timeout = 9\n"
        "trusted-host = b.example\n"
    )


@pytest.mark.parametrize(
    "url",
    ["https://user:secret@a.example/simple", "file:///opt/simple", "/opt/wheels", "http://[", ""],
)
def test_no_secret_and_no_local_path_is_passed_on(root: Path, url: str) -> None:
    (root / "etc/pip.conf").write_text(f"[global]\nindex-url = {url}\nfind-links = {url}\n")
    (root / "etc/npmrc").write_text(f"registry={url}\n//a.example/:_authToken=secret\n")
    (root / "etc/apt/sources.list").write_text(f"deb {url} bookworm main\n")
    assert guest_files({"HOME": "/root"}, root) == {}


def test_a_file_that_is_no_configuration_counts_as_none(root: Path) -> None:
    (root / "etc/pip.conf").write_bytes(b"\xff\x00 no section")
    assert guest_files({}, root) == {}


def test_npms_registry(root: Path) -> None:
    (root / "root/.npmrc").write_text('# mine\nregistry="https://a.example/"\naudit=false\n')
    assert text(root, "usr/local/etc/npmrc") == "registry=https://a.example/\n"
    named = text(root, "usr/local/etc/npmrc", npm_config_registry="https://b.example/")
    assert named == "registry=https://b.example/\n"


def test_apts_sources_of_the_own_release(root: Path) -> None:
    (root / "etc/apt/sources.list").write_text("deb https://else.example/apt stable main\n")
    (root / "etc/apt/sources.list.d/debian.sources").write_text(
        "Types: deb\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        "Types: deb\nURIs: http://m.example/sec\nSuites: bookworm-security\nComponents: main\n"
        "Architectures: amd64\nSigned-By: /etc/apt/keyrings/own.gpg\n"
    )
    key = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg"
    assert text(root, "etc/apt/sources.list").splitlines() == [
        f"deb [{key}] http://m.example/debian bookworm main",
        f"deb [{key}] http://m.example/debian bookworm-updates main",
        "deb [arch=amd64] http://m.example/sec bookworm-security main",
    ]
