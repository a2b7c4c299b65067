"""P9: what it costs to keep a workspace, and to begin from one.

The content is the image's own `/usr`, copied: programs and texts, as what gets
installed is. The peer packs the same files with `tar` and `zstd -3` on the host
and sends them nowhere.
"""

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import httpx

from bench import packages
from bench.client import Client, connected
from bench.measure import Samples, in_turn, raw, samples_table
from bench.server import Server
from bench.session import Session
from bench.table import Table
from magsd.storage.images import ImageStore

ROUNDS: Final = 3
STARTS: Final = 10
MUCH_MB: Final = 2048
_NET: Final = 0
_WAIT_S: Final = 120.0
_PAUSE_S: Final = 20
"""From one step of the script to the next: what is measured between them takes less."""
_STEPS: Final = f"""\
cp -a /usr /root/copy && sync && echo filled
sleep {_PAUSE_S}
head -c 1048576 /dev/urandom > /root/copy/new && echo changed
sleep 600
"""
_MUCH: Final = f"head -c {MUCH_MB << 20} /dev/urandom > /root/much && echo filled && sleep 600"

PACKED: Final = "tar | zstd -3 of the same files, on the host"
FIRST: Final = "first sync"
CHANGED: Final = "sync after 1 MB was changed"
UNCHANGED: Final = "sync after nothing was changed"
PLAIN: Final = "submit to completed, pool miss"
BASED: Final = "the same from the workspace"
KEPT: Final = "the same, and what it wrote is kept"


async def workspaces(session: Session) -> None:
    """Measure syncs of a running job, starts from what they kept, and the daemon's memory."""
    await asyncio.to_thread(packages.install, {"zstd": "zstd"})
    tree = await asyncio.to_thread(_unpacked, session)
    names = (PACKED, FIRST, CHANGED, UNCHANGED)
    samples = {name: Samples(name) for name in names}
    sent: dict[str, list[int]] = {name: [] for name in names[1:]}
    for turn in range(ROUNDS):
        samples[PACKED].values_ms.append(await _timed(lambda: asyncio.to_thread(_pack, tree)))
        # Of its own: a store that has the content already would be sent nothing.
        with _serving(session, f"workspaces-{turn}") as server:
            async with connected(server.url, server.token) as client:
                await _synced(server, client, samples, sent)
                if turn == ROUNDS - 1:
                    starts = await _starts(session, client)
                    memory_mb = await _memory(server, client)
    report = session.report
    report.keep("workspaces_ms", raw({**samples, **starts}))
    report.keep("workspaces_sent_bytes", sent)
    report.keep("workspaces_memory_mb", memory_mb)
    megabytes = sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file()) / 1e6
    report.show(samples_table(f"A workspace of {megabytes:.0f} MB", list(samples.values())))
    rows = [(name, *(f"{count / 1e6:.2f} MB" for count in counts)) for name, counts in sent.items()]
    report.show(Table("Sent", ("", *(str(turn + 1) for turn in range(ROUNDS))), rows))
    report.show(samples_table("Starts", list(starts.values())))
    _judge(session, samples, sent, starts, memory_mb)


def _judge(
    session: Session,
    samples: dict[str, Samples],
    sent: dict[str, list[int]],
    starts: dict[str, Samples],
    memory_mb: float,
) -> None:
    report = session.report
    ratio = samples[FIRST].median / samples[PACKED].median
    text = f"{ratio:.2f} x ({samples[FIRST].median:.0f} to {samples[PACKED].median:.0f} ms)"
    report.found("capture", text, ROUNDS, is_met=ratio <= 1.5)
    took_ms, most = samples[UNCHANGED].median, max(sent[UNCHANGED])
    text = f"{took_ms:.0f} ms, {most} bytes"
    report.found("unchanged", text, ROUNDS, is_met=took_ms <= 100 and most == 0)
    most_mb = max(sent[CHANGED]) / 1e6
    report.found("changed", f"{most_mb:.2f} MB at most", ROUNDS, is_met=most_mb <= 4)
    more_ms = starts[BASED].median - starts[PLAIN].median
    text = f"{more_ms:+.1f} ms ({starts[BASED].median:.1f} to {starts[PLAIN].median:.1f} ms)"
    report.found("cached_start", text, starts[BASED].n, is_met=more_ms <= 50)
    report.found("sync_memory", f"+{memory_mb:.0f} MB", 1, is_met=memory_mb <= 64)


def _serving(session: Session, name: str) -> Any:
    settings = {"MAGSD_POOL_MIN": "0", "MAGSD_POOL_MAX": "0"}
    return session.serving(session.folder / name, _NET, settings=settings)


def _unpacked(session: Session) -> Path:
    """Return a folder of the host with what the script copies."""
    layer = ImageStore(session.server().data).get("standard").layers[0]
    target = session.folder / "unpacked"
    command = ["unsquashfs", "-quiet", "-no-progress", "-dest", str(target), str(layer), "usr"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return target


def _pack(tree: Path) -> None:
    reader = subprocess.Popen(["tar", "-C", str(tree), "-c", "."], stdout=subprocess.PIPE)
    subprocess.run(
        ["zstd", "-3", "-q", "-c"],
        stdin=reader.stdout,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    if reader.wait() != 0:
        raise SystemExit("bench: tar failed")


async def _timed(work: Callable[[], Awaitable[Any]]) -> float:
    started = time.perf_counter()
    await work()
    return (time.perf_counter() - started) * 1000


async def _synced(
    server: Server, client: Client, samples: dict[str, Samples], sent: dict[str, list[int]]
) -> None:
    """Take one sample of each sync, of one job."""
    job = await client.submit(_STEPS, workspace_id="kept", disk_gb=8)

    async def sync(name: str) -> None:
        started = time.perf_counter()
        reply = await _asked(server, "POST", job, "sync")
        samples[name].values_ms.append((time.perf_counter() - started) * 1000)
        sent[name].append(reply["uploaded_bytes"])

    await _printed(server, job, "filled")
    await sync(FIRST)
    await _printed(server, job, "changed")
    await sync(CHANGED)
    await sync(UNCHANGED)
    await _stopped(client, job)


async def _asked(server: Server, method: str, job: str, what: str) -> Any:
    """Return a reply that may come in pieces."""
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        reply = await http.request(
            method,
            f"{server.url}/api/v1/mags-jobs/{job}/{what}",
            headers={"Authorization": f"Bearer {server.token}"},
        )
    if reply.status_code != 200:
        raise SystemExit(f"bench: the server answered {reply.status_code}: {reply.text[:500]}")
    return reply.json()


async def _printed(server: Server, job: str, line: str) -> None:
    """Return once a job has printed a line."""
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        logs = (await _asked(server, "GET", job, "logs"))["logs"]
        if any(entry["message"] == line for entry in logs):
            return
        await asyncio.sleep(0.1)
    raise SystemExit(f"bench: a job did not print {line!r} within {_WAIT_S:.0f} s: {logs}")


async def _stopped(client: Client, job: str) -> None:
    await client.request("POST", f"/mags-jobs/{job}/stop")
    status: dict[str, Any] = {"status": "running"}
    while status["status"] in ("pending", "running"):
        status = await client.status(job)


async def _starts(session: Session, client: Client) -> dict[str, Samples]:
    async def plain() -> float:
        return await client.echo_hello()

    async def based() -> float:
        async def done() -> None:
            await client.completed(await client.submit("echo hello", base_workspace_id="kept"))

        return await _timed(done)

    async def kept() -> float:
        async def done() -> None:
            script = "echo hello | tee hello"
            await client.completed(await client.submit(script, workspace_id="small"))

        return await _timed(done)

    subjects = {PLAIN: plain, BASED: based, KEPT: kept}
    return await in_turn(subjects, session.options.samples(STARTS))


async def _memory(server: Server, client: Client) -> float:
    """Return by how many MB the daemon grew at most while much was captured and sent."""
    job = await client.submit(_MUCH, workspace_id="much", disk_gb=8)
    await _printed(server, job, "filled")
    before_mb = server.memory_mb()
    server.forget_peak()
    await _asked(server, "POST", job, "sync")
    peak_mb = server.memory_mb("VmHWM")
    await _stopped(client, job)
    return peak_mb - before_mb
