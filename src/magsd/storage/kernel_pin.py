"""Which kernel is wanted: the pin, what mirrors offer, and the choice between offers.

Pure but for reading the pin. Asking the mirrors is `kernel_package`'s.
"""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from magsd.model.errors import MagsError

PIN_FILE: Final = Path(__file__).parent / "recipes/kernel.toml"
_PACKAGE_PREFIX: Final = "linux-image-"
_RUN: Final = re.compile(r"(\D*)(\d*)")
_NOTHING: Final = ((0,), 0)


@dataclass(frozen=True)
class Pin:
    """What the project has decided about its kernel."""

    meta: str
    """The package that depends on the newest kernel, without its architecture."""
    series: str
    """The first two numbers of the version."""
    least: str
    """The lowest version that will do."""

    @classmethod
    def read(cls, path: Path = PIN_FILE) -> Self:
        """Return the pin in a file."""
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
        return cls(fields["meta"], fields["series"], fields["least"])

    def accepts(self, version: str) -> bool:
        """Say whether a kernel of that version will do."""
        return series_of(version) == self.series and version_key(version) >= version_key(self.least)


@dataclass(frozen=True)
class Offer:
    """A kernel that a mirror has."""

    package: str
    version: str

    @property
    def release(self) -> str:
        """What `uname -r` says in it."""
        return self.package.removeprefix(_PACKAGE_PREFIX)


def parse_offers(shown: str) -> list[Offer]:
    """Return the kernels that a meta package depends on, from what `apt-cache show` prints."""
    found = re.findall(
        rf"^Depends:.*?\b({_PACKAGE_PREFIX}\d[a-z0-9.+-]*) \(= ([^)\s]+)\)", shown, re.MULTILINE
    )
    return [Offer(package, version) for package, version in found]


def choose(offers: Iterable[Offer], pin: Pin) -> Offer | None:
    """Return the newest offer that will do; None when none does."""
    fit = [offer for offer in offers if pin.accepts(offer.version)]
    return max(fit, key=lambda offer: version_key(offer.version), default=None)


def refusal(offers: Iterable[Offer], pin: Pin) -> MagsError:
    """Return the error that says why none of the offers will do, and the next step."""
    wanted = f"kernel {pin.least} or newer of the series {pin.series}"
    versions = ", ".join(sorted({offer.version for offer in offers}, key=version_key))
    if not versions:
        return MagsError(f"{wanted}: this machine's apt sources have no package {pin.meta}")
    return MagsError(
        f"{wanted}: this machine's apt sources have only {versions}; "
        "add a source that has it, or run `make kernel-update` to go by what there is"
    )


def series_of(version: str) -> str:
    """Return the first two numbers of a version: `6.1` of `6.1.192-2`."""
    return ".".join(version.split("-")[0].split(".")[:2])


def rewritten(text: str, version: str) -> str:
    """Return a pin's text with the series and the least version of `version`."""
    text = re.sub(r'(?m)^series = ".*?"', f'series = "{series_of(version)}"', text)
    return re.sub(r'(?m)^least = ".*?"', f'least = "{version}"', text)


def version_key(version: str) -> tuple[object, ...]:
    """Return what orders versions as dpkg does."""
    epoch, _, rest = version.rpartition(":")
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return (int(epoch or 0), _part_key(upstream), _part_key(revision))


def _part_key(part: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    runs = [(_text_key(text), int(number or 0)) for text, number in _RUN.findall(part)]
    while runs and runs[-1] == _NOTHING:
        runs.pop()
    # Twice: what is compared with an end that is one run off must find an end there too.
    return (*runs, _NOTHING, _NOTHING)


def _text_key(text: str) -> tuple[int, ...]:
    """`~` comes before the end, the end before letters, letters before the rest."""
    weights = [-1 if c == "~" else ord(c) if c.isalpha() else ord(c) + 256 for c in text]
    return (*weights, 0)
