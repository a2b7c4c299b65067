"""Where this machine gets its Debian packages from, read from its own configuration.

Owns the two file formats of apt (one line per source, and deb822) and the few
questions asked of them. Standard library only, because set-up imports it
before there is an environment. Knows no mirror by name.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

_FIELD_OF_OPTION: Final = {
    "arch": "Architectures",
    "lang": "Languages",
    "target": "Targets",
    "pdiffs": "PDiffs",
}
"""Options of the one-line form whose deb822 field is not the same word."""


@dataclass(frozen=True)
class Source:
    """One suite of one mirror, for binary packages."""

    uri: str
    suite: str
    components: tuple[str, ...]
    fields: tuple[tuple[str, str], ...] = ()
    """Further deb822 fields (`Signed-By`, `Trusted`, …), as they stand."""

    def stanza(self) -> str:
        """Return the source in deb822 form, ending in an empty line."""
        lines = ["Types: deb", f"URIs: {self.uri}", f"Suites: {self.suite}"]
        if self.components:
            lines.append(f"Components: {' '.join(self.components)}")
        lines += [f"{name}: {value}" for name, value in self.fields]
        return "\n".join(lines) + "\n\n"


def read_sources(etc_apt: Path = Path("/etc/apt")) -> list[Source]:
    """Return every enabled binary source that apt would use, in its order."""
    files = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]
    found: list[Source] = []
    for path in files:
        if not path.is_file():
            continue
        if path.suffix == ".sources":
            found += _parse_stanzas(path.read_text(encoding="utf-8"))
        elif path.suffix == ".list":
            found += _parse_lines(path.read_text(encoding="utf-8"))
    return found


def of_release(sources: Iterable[Source], codename: str) -> list[Source]:
    """Return the sources of a Debian release itself, its updates and its security fixes."""
    suites = {codename, f"{codename}-updates", f"{codename}-security"}
    return [source for source in sources if source.suite in suites]


def backports(sources: Iterable[Source], codename: str) -> Source | None:
    """Return a backports source beside the machine's own release source, if it has one."""
    for source in sources:
        if source.suite == codename:
            return replace(source, suite=f"{codename}-backports", components=("main",))
    return None


def _parse_lines(text: str) -> Iterator[Source]:
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        kind, _, rest = line.partition(" ")
        if kind != "deb":
            continue
        options, rest = _split_options(rest.strip())
        uri, suite, *components = [*rest.split(), "", ""]
        if uri and suite and not uri.startswith("cdrom:"):
            yield Source(uri, suite, tuple(filter(None, components)), options)


def _split_options(rest: str) -> tuple[tuple[tuple[str, str], ...], str]:
    if not rest.startswith("["):
        return (), rest
    inside, _, rest = rest[1:].partition("]")
    fields = []
    for option in inside.split():
        name, _, value = option.partition("=")
        field = _FIELD_OF_OPTION.get(name.lower(), name.title())
        fields.append((field, value.replace(",", " ")))
    return tuple(fields), rest.strip()


def _parse_stanzas(text: str) -> Iterator[Source]:
    for fields in _stanzas(text):
        own = {name.lower(): value for name, value in fields}
        if own.get("enabled", "yes").lower() in {"no", "false", "0", "off", "disable"}:
            continue
        if "deb" not in own.get("types", "").split():
            continue
        main = {"types", "uris", "suites", "components", "enabled"}
        further = tuple((name, value) for name, value in fields if name.lower() not in main)
        components = tuple(own.get("components", "").split())
        for uri in own.get("uris", "").split():
            for suite in own.get("suites", "").split():
                if not uri.startswith("cdrom:"):
                    yield Source(uri, suite, components, further)


def _stanzas(text: str) -> Iterator[list[tuple[str, str]]]:
    fields: list[tuple[str, str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields = []
        elif line[0] in " \t" and fields:
            # A continuation: keys given in full stand like this under Signed-By.
            name, value = fields[-1]
            fields[-1] = (name, f"{value}\n{line}")
        else:
            name, _, value = line.partition(":")
            fields.append((name.strip(), value.strip()))
