"""Files of this host that guests shall see in place of the image's empty ones.

Where packages come from, and whom to trust: the host's certificates, mirrors
of apt, index of pip, registry of npm. Only what a guest can use is taken:
nothing that names a local file, and nothing with credentials in it. What is
not set on the host is not set in the guest, whose programs then use their own
defaults. Nameservers are the engine's part.
"""

import configparser
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from magsd.storage import apt_sources
from magsd.storage.apt_sources import Source

_CERTIFICATES: Final = "etc/ssl/certs/ca-certificates.crt"
_PIP_URLS: Final = ("index-url", "extra-index-url", "find-links", "proxy")
_PIP_WORDS: Final = ("trusted-host", "timeout", "retries")
_PIP_SAME: Final = {"default-timeout": "timeout"}
_NPM_URLS: Final = ("registry", "proxy", "https-proxy")
_APT_OPTIONS: Final = {"architectures": "arch", "signed-by": "signed-by", "trusted": "trusted"}
_GUEST_KEYRINGS: Final = "/usr/share/keyrings/debian-archive-"


def guest_files(
    environ: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> dict[str, bytes]:
    """Return the files by their path in the guest, without a leading slash.

    Reads this host's configuration anew at each call; what cannot be read
    counts as not there.
    """
    texts = {
        "etc/pip.conf": _pip_settings(environ, root),
        "usr/local/etc/npmrc": _npm_settings(environ, root),
        "etc/apt/sources.list": _apt_sources(root),
    }
    files = {path: text.encode() for path, text in texts.items() if text}
    if certificates := _read(root / _CERTIFICATES):
        files[_CERTIFICATES] = certificates.encode()
    return files


def _pip_settings(environ: Mapping[str, str], root: Path) -> str:
    """Return pip's settings for the network: later files and the environment win, as in pip."""
    given: list[tuple[str, str]] = []
    for path in _pip_files(environ, root):
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string(_read(path))
        except configparser.Error:
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                given += parser.items(section)
    given += (
        (name.removeprefix("PIP_").lower().replace("_", "-"), value)
        for name, value in environ.items()
        if name.startswith("PIP_")
    )
    found = {_PIP_SAME.get(name, name): value for name, value in given}
    lines = [f"{name} = {value}" for name, value in _usable(found)]
    return "\n".join(["[global]", *lines, ""]) if lines else ""


def _pip_files(environ: Mapping[str, str], root: Path) -> list[Path]:
    home = root / environ.get("HOME", "/root").lstrip("/")
    files = [
        root / "etc/xdg/pip/pip.conf",
        root / "etc/pip.conf",
        home / ".pip/pip.conf",
        home / ".config/pip/pip.conf",
        root / sys.prefix.lstrip("/") / "pip.conf",
    ]
    if own := environ.get("PIP_CONFIG_FILE"):
        files.append(root / own.lstrip("/"))
    return files


def _usable(settings: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in sorted(settings.items()):
        words = value.split()
        if name in _PIP_URLS:
            words = [word for word in words if _is_public(word)]
        elif name not in _PIP_WORDS:
            continue
        if words:
            yield name, " ".join(words)


def _npm_settings(environ: Mapping[str, str], root: Path) -> str:
    home = root / environ.get("HOME", "/root").lstrip("/")
    found: dict[str, str] = {}
    for path in (root / "etc/npmrc", root / "usr/local/etc/npmrc", home / ".npmrc"):
        for line in _read(path).splitlines():
            name, equals, value = line.partition("=")
            if equals and not line.lstrip().startswith(("#", ";")):
                found[name.strip().lower()] = value.strip().strip('"')
    found.update(
        (name[len("npm_config_") :].lower().replace("_", "-"), value)
        for name, value in environ.items()
        if name.lower().startswith("npm_config_")
    )
    lines = [f"{name}={found[name]}\n" for name in _NPM_URLS if _is_public(found.get(name, ""))]
    return "".join(lines)


def _apt_sources(root: Path) -> str:
    """Return the sources of the host's own release, in the form with a line for each."""
    codename = _codename(root)
    sources = apt_sources.of_release(apt_sources.read_sources(root / "etc/apt"), codename)
    return "".join(f"{line}\n" for line in dict.fromkeys(_lines(sources)))


def _codename(root: Path) -> str:
    for line in _read(root / "etc/os-release").splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    return ""


def _lines(sources: Iterable[Source]) -> Iterator[str]:
    for source in sources:
        if _is_public(source.uri):
            options = " ".join(_options(source))
            words = ["deb", f"[{options}]" if options else "", source.uri, source.suite]
            yield " ".join(filter(None, [*words, *source.components]))


def _options(source: Source) -> Iterator[str]:
    for field, value in source.fields:
        option = _APT_OPTIONS.get(field.lower())
        if option == "signed-by" and not value.startswith(_GUEST_KEYRINGS):
            # The guest has Debian's own keys, which apt takes without being told.
            continue
        if option is not None:
            yield f"{option}={','.join(value.split())}"


def _is_public(url: str) -> bool:
    """Say whether a guest can use this address: of the network, and nobody's secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
