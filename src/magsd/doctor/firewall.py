"""Firewalls of others on this host: do they drop what VMs send?"""

import asyncio
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from magsd.doctor.check import Check, Verdict
from magsd.engine import process
from magsd.engine.network import nft, rules
from magsd.engine.network.layout import interface_instance, table_instance
from magsd.engine.process import ProcessError
from magsd.model.errors import MagsError

_TABLE: Final = re.compile(r"table (\w+ (\S+)) \{")
_CHAIN: Final = re.compile(r"chain (\S+) \{")
_HOOK: Final = re.compile(r"hook (forward|input) .*?(?:policy (\w+))?;?$")
_REFUSAL: Final = re.compile(r"(counter packets \d+ bytes \d+ )?(drop|reject\b.*)")
_LEGACY: Final = Path("/proc/net/ip_tables_names")
_LEGACY_POLICY: Final = re.compile(r"^-P (FORWARD|INPUT) DROP$", re.MULTILINE)
_LEGACY_S: Final = 5.0


@dataclass
class _Chain:
    name: str
    hook: str = ""
    is_closed: bool = False
    """What no rule accepts is dropped."""
    lets_ours_pass: bool = False
    lines: list[str] = field(default_factory=list)


async def firewall() -> Check:
    """Look for rules of others that would drop what VMs send."""
    try:
        listing = await asyncio.to_thread(nft.run, "list ruleset")
    except MagsError as error:
        return Check("firewall", Verdict.FAIL, f"{error.message} ({error.detail})")
    if bare := unprotected(listing, (name for _, name in socket.if_nameindex())):
        seen = f"the rules of sandboxes are gone (table {', '.join(bare)}): they reach everything"
        step = "restart magsd, which sets them again; somebody flushed all rules"
        return Check("firewall", Verdict.FAIL, seen, step)
    found = [*dropping_chains(listing), *await _legacy()]
    if found:
        step = "let them accept what comes from and goes to interfaces mags*"
        return Check("firewall", Verdict.WARN, f"packets are dropped by {', '.join(found)}", step)
    return Check("firewall", Verdict.OK, "none of others drops packets by default")


def unprotected(listing: str, interfaces: Iterable[str]) -> list[str]:
    """Return the tables that instances with a sandbox's interface ought to have and have not."""
    slots = [name for name in interfaces if not name.endswith(("-dns", "-dnp"))]
    wanted = {f"mags_{found}" for name in slots if (found := interface_instance(name))}
    return sorted(wanted - {match[2] for match in _TABLE.finditer(listing)})


def dropping_chains(listing: str) -> list[str]:
    """Return the foreign chains in what `nft list ruleset` prints that drop what is not
    accepted: packets that are forwarded, or that come in.

    A chain that names our interfaces has been told about them, and is none.
    """
    return [
        f"{chain.name} ({chain.hook})"
        for chain in _foreign_chains(listing)
        if chain.hook and chain.is_closed and not chain.lets_ours_pass
    ]


def _foreign_chains(listing: str) -> Iterator[_Chain]:
    table, is_ours, chain = "", False, None
    for line in map(str.strip, listing.splitlines()):
        if match := _TABLE.match(line):
            name = match[2]
            table, is_ours = match[1], bool(table_instance(name)) or name == rules.UPLINKS_TABLE
        elif match := _CHAIN.match(line):
            chain = _Chain(f"{table} {match[1]}")
        elif line == "}":
            if chain is not None and not is_ours:
                yield chain
            chain = None
        elif chain is not None:
            _read(chain, line)


def _read(chain: _Chain, line: str) -> None:
    if match := _HOOK.search(line):
        chain.hook = match[1]
        chain.is_closed = match[2] == "drop"
    elif _REFUSAL.fullmatch(line):
        chain.is_closed = True
    elif '"mags' in line and "accept" in line:
        chain.lets_ours_pass = True


async def _legacy() -> list[str]:
    """Look at the rules of the older iptables, which nftables does not show."""
    program = shutil.which("iptables-legacy")
    if not _LEGACY.exists() or "filter" not in _LEGACY.read_text().split() or program is None:
        return []
    try:
        listing = await process.run([program, "-S"], timeout_s=_LEGACY_S)
    except ProcessError:
        return []
    if re.search(r"-i mags\S* .*-j ACCEPT", listing.text):
        return []
    return [f"iptables-legacy {chain}" for chain in _LEGACY_POLICY.findall(listing.text)]
