"""How long a script takes from nothing to its end: P1, P2 and the second half of P3.

*Bare* is the engine through its shim, without API, database or daemon: *bare
claim to done* from a VM that waits, warmed and frozen, *bare launch to done*
from nothing. The difference to *submit to completed* is what the platform adds.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from bench.client import Client
from bench.measure import Samples, Subject, in_turn, raw, samples_table
from bench.packages import LacksError
from bench.peers import Podman, QuickSandbox
from bench.report import Findings
from bench.server import Server
from bench.session import Session

HIT: Final = "submit to completed, pool hit"
MISS: Final = "submit to completed, pool miss"
CLAIM: Final = "bare claim to done"
LAUNCH: Final = "bare launch to done"
RUNSC: Final = "runsc run /bin/true"
PODMAN: Final = "podman run /bin/true"
QUICK_SANDBOX: Final = "quick-sandbox start"


def through(client: Client, server: Server) -> Subject:
    """Return a subject: `echo hello`, submitted to a server that is left as it was."""

    async def once() -> float:
        await server.at_rest()
        await client.connect()
        return await client.echo_hello()

    return once


async def claims(session: Session) -> None:
    """Measure P1: pool hits and bare claims in turn."""
    server, bare = session.server(), await session.bare()
    client = await session.client(server)
    before = server.scrape()
    samples = await in_turn(
        {CLAIM: bare.claim_to_done, HIT: through(client, server)}, session.options.samples(100)
    )
    report = session.report
    report.keep("claims_ms", raw(samples))
    claim, hit = samples[CLAIM], samples[HIT]
    p50, p99 = hit.median - claim.median, hit.p99 - claim.p99
    missed = server.scrape().total("mags_pool_requests_total", result="miss") - before.total(
        "mags_pool_requests_total", result="miss"
    )
    note = f"Pool misses among them: {missed:.0f}." if missed else ""
    report.show(samples_table("A script in a VM that waits", [claim, hit], note))
    report.found(
        "overhead", f"p50 {p50:.1f} ms, p99 {p99:.1f} ms", hit.n, is_met=p50 <= 8 and p99 <= 30
    )


async def starts(session: Session) -> None:
    """Measure P2 and the pool miss of P3: all ways to a script's end, in turn."""
    server, poolless, bare = session.server(), session.poolless(), await session.bare()
    plain = session.plain()
    podman = Podman(session.folder / "podman", plain.lower)
    quick = QuickSandbox(session.folder / "quick-sandbox")
    subjects: dict[str, Subject] = {RUNSC: plain.run_true}
    if await _can(session.report, "podman", podman.prepare):
        subjects[PODMAN] = podman.run_true
    seldom: dict[str, Subject] = {}
    if await _can(session.report, "quick_sandbox", quick.prepare):
        seldom[QUICK_SANDBOX] = quick.start
    subjects[LAUNCH] = bare.launch_to_done
    subjects[MISS] = through(await session.client(poolless), poolless)
    subjects[HIT] = through(await session.client(server), server)
    samples = await in_turn(subjects, session.options.samples(30), seldom=seldom)
    session.report.keep("starts_ms", raw(samples))
    session.report.show(samples_table("Start of a script", list(samples.values())))
    _judge(session.report, samples)


async def _can(report: Findings, key: str, prepare: Callable[[], Awaitable[None]]) -> bool:
    try:
        await prepare()
    except LacksError as error:
        report.lacks(key, str(error))
        return False
    return True


def _judge(report: Findings, samples: dict[str, Samples]) -> None:
    for key, over, under, most in (
        ("runsc", HIT, RUNSC, report.limit("runsc")),
        ("podman", HIT, PODMAN, report.limit("podman")),
        ("quick_sandbox", HIT, QUICK_SANDBOX, 0.01),
        ("miss", MISS, LAUNCH, 1.2),
    ):
        if under not in samples or most is None:
            continue
        first, second = samples[over], samples[under]
        ratio = first.median / second.median
        shown = f"{ratio:.4f}" if most < 0.1 else f"{ratio:.2f}"
        text = f"{shown} x ({first.median:.1f} to {second.median:.1f} ms)"
        report.found(key, text, f"{first.n}, {second.n}", is_met=ratio <= most)
