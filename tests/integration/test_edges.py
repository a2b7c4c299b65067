"""Edges as the processes that they are: without rights, started again, and gone with their node."""

import asyncio
import os
import pwd
import signal
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from magsd import gateways
from magsd.aio import SystemClock
from magsd.config import Settings
from magsd.engine.process import Detached, read_start_time
from magsd.gateway.edges import unprivileged
from magsd.metrics import Metrics
from tests.api_service import ADMIN, DEADLINE_S, opened

PACKAGE = b"magsd.gateway.edge"


def edges_of(node: int) -> list[int]:
    """Return the processes of edges that a process has started, oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_bytes().rpartition(b")")[2].split()
            is_edge = PACKAGE in (path / "cmdline").read_bytes()
        except OSError:
            continue
        if is_edge and int(stat[1]) == node and stat[0] != b"Z":
            found.append((int(stat[19]), int(path.name)))
    return [pid for _, pid in sorted(found)]


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


async def eventually(check):
    async with asyncio.timeout(DEADLINE_S):
        while not (result := check()):
            await asyncio.sleep(0.01)
    return result


@asynccontextmanager
async def serving(directory: Path, **settings):
    """Have an application with edges inside the block; yield it, its settings and its metrics."""
    address = {"apps_bind": "127.0.0.1:0", "ssh_bind": "127.0.0.1:0"}
    asked = Settings(data_dir=directory, **{**address, **settings})
    clock, metrics = SystemClock(), Metrics()
    with gateways.listening(asked) as (bound, listeners):
        async with (
            opened(directory, clock) as application,
            gateways.opened(bound, listeners, application.doors, clock, metrics),
        ):
            await application.access.first_token(ADMIN)
            yield application, bound, metrics


@pytest.fixture
async def data(tmp_path):
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    return directory


async def serves(application):
    await eventually(lambda: application.doors.trouble() is None)


def samples(metrics):
    return {
        line.split()[0]: float(line.split()[1])
        for line in metrics.exposition()[0].decode().splitlines()
        if line.startswith("mags_edge")
    }


async def test_an_edge_has_no_rights(data):
    async with serving(data) as (application, _, metrics):
        assert "at this moment" in application.warning()
        await serves(application)
        assert application.warning() is None
        assert samples(metrics) == {
            "mags_edges": 1, "mags_edge_leases": 0, "mags_edge_ends_total": 0,
        }  # fmt: skip
        (edge,) = edges_of(os.getpid())
        status = status_of(edge)
        user = pwd.getpwnam("mags")
        assert status["Uid"].split() == [str(user.pw_uid)] * 4
        assert status["Gid"].split() == [str(user.pw_gid)] * 4
        assert status["Groups"] == ""
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert status["NoNewPrivs"] == "1"
        assert os.getsid(edge) == edge
        limits = Path(f"/proc/{edge}/limits").read_text()
        assert any(
            line.split()[4:6] == ["0", "0"] for line in limits.splitlines() if "core" in line
        )
        # What it has open it was given: sockets, the log, and what an event loop is made of.
        opened_files = {os.readlink(path) for path in Path(f"/proc/{edge}/fd").iterdir()}
        assert not [name for name in opened_files if str(data) in name]
        environment = Path(f"/proc/{edge}/environ").read_bytes()
        assert environment == b"LANG=C.UTF-8\0"


@pytest.mark.parametrize("name", ["mags.db", "ssh_host_key", "run", "."])
async def test_its_user_reads_nothing_of_the_data(data, name):
    async with serving(data) as (application, _, _):
        await serves(application)
        user = pwd.getpwnam("mags")
        read = subprocess.run(
            ["/bin/ls" if name in ("run", ".") else "/bin/cat", data / name],
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
        assert read.returncode != 0
        assert "Permission denied" in read.stderr


async def test_keys_do_not_show(data):
    async with serving(data) as (application, _, _):
        await serves(application)
        (edge,) = edges_of(os.getpid())
        arguments = Path(f"/proc/{edge}/cmdline").read_bytes()
        key = (data / "ssh_host_key").read_bytes()
        assert (data / "ssh_host_key").stat().st_mode & 0o777 == 0o600
        assert key.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
        assert len(arguments) < 300
        assert b"BEGIN" not in arguments
    async with serving(data):
        assert (data / "ssh_host_key").read_bytes() == key


async def test_one_that_is_killed_is_started_again(data):
    async with serving(data, edges=2) as (application, _, metrics):
        await serves(application)
        first, second = edges_of(os.getpid())
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: application.doors.trouble())
        assert "1 process" in application.warning()
        await serves(application)
        assert second in edges_of(os.getpid())
        assert first not in edges_of(os.getpid())
        assert samples(metrics)["mags_edge_ends_total"] == 1


async def test_a_stop_leaves_none_also_of_one_that_hangs(data):
    async with serving(data, edges=2) as (application, _, _):
        await serves(application)
        edges = edges_of(os.getpid())
        held = [Detached(pid, os.pidfd_open(pid), read_start_time(pid)) for pid in edges]
        os.kill(edges[0], signal.SIGSTOP)
    assert not any(each.is_alive for each in held)
    for each in held:
        each.close()
    assert edges_of(os.getpid()) == []


async def test_a_stop_before_they_serve_leaves_none(data):
    async with serving(data):
        pass
    assert edges_of(os.getpid()) == []


async def test_without_edges_nothing_listens_and_nothing_is_granted(data):
    async with serving(data, edges=0) as (application, bound, _):
        assert bound.apps_bind.port == 0
        assert application.warning() is None
        assert edges_of(os.getpid()) == []


async def test_they_listen_at_what_is_shown(data):
    async with serving(data) as (_, bound, _):
        for address in (bound.apps_bind, bound.ssh_bind):
            _, writer = await asyncio.open_connection(*address)
            writer.close()
            await writer.wait_closed()
        core = bound.core("fake")
        assert core.url_of("name") == f"http://name.apps.localhost:{bound.apps_bind.port}"
        assert (core.ssh_public_host, core.ssh_public_port) == bound.ssh_bind


@pytest.mark.parametrize(
    ("name", "setting"), [("apps_bind", "APPS_BIND"), ("ssh_bind", "SSH_BIND")]
)
def test_an_address_that_is_taken_names_its_setting(tmp_path, name, setting):
    with ExitStack() as stack:
        bound, _ = stack.enter_context(
            gateways.listening(
                Settings(data_dir=tmp_path, apps_bind="127.0.0.1:0", ssh_bind="127.0.0.1:0")
            )
        )
        with pytest.raises(Exception, match=f"MAGSD_{setting}"):
            stack.enter_context(
                gateways.listening(
                    Settings(
                        data_dir=tmp_path,
                        **{
                            "apps_bind": "127.0.0.1:0",
                            "ssh_bind": "127.0.0.1:0",
                            name: str(getattr(bound, name)),
                        },
                    )
                )
            )


def test_where_there_is_no_such_user_it_is_an_id_of_its_own():
    rights = unprivileged("nobody-is-called-so", 2_065_536)
    assert (rights.user, rights.group) == (2_065_536, 2_065_536)


def test_it_does_not_begin_under_another_parent():
    """Such as when the node was killed between the start and the request to die with it."""
    program = (
        "from magsd.gateway.edge.rights import give_up\n"
        "from magsd.gateway.edges import unprivileged\n"
        "give_up(unprivileged('mags', 1), 1)\n"
    )
    begun = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert begun.returncode == 1
    assert "the node has ended" in begun.stderr
