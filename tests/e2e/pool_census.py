"""A census of a server in whose pool VMs come and go."""

import sqlite3

from tests import census
from tests.e2e.server import Server, eventually


def full_census(server: Server) -> census.Census:
    """Take a census of a server when its pool is full."""
    eventually(lambda: len(waiting_vms(server)) >= wanted_vms(server), 60, "the pool is full")
    return census.take(server.data, waiting_vms(server))


def assert_same(server: Server, before: census.Census) -> None:
    """Fail when something is there that was not before, the VMs of a full pool aside."""
    eventually(lambda: len(waiting_vms(server)) >= wanted_vms(server), 60, "the pool is full")
    census.assert_same(before, server.data, lambda: waiting_vms(server))


def at_rest(server: Server) -> None:
    """Wait until nothing is left of jobs that have ended, where the server runs."""

    def is_idle() -> bool:
        with server.http() as http:
            return bool(http.get("/mags-jobs/pool-status").json()["busy_vms"] == 0)

    if server.process is not None:
        eventually(is_idle, what="no job has a VM")


def wanted_vms(server: Server) -> int:
    """Return how many VMs wait at the least."""
    with server.http() as http:
        return int(http.get("/mags-jobs/pool-status").json()["min_pool_size"])


def waiting_vms(server: Server) -> set[str]:
    """Return the names of the VMs that wait; none when there are not as many as are told of.

    A VM that no job has ever had and that the pool does not count is left over.
    """
    with sqlite3.connect(server.data / "mags.db") as database:
        of_jobs = {vm for (vm,) in database.execute("SELECT vm_id FROM run")}
    database.close()
    found = vms(server) - of_jobs
    with server.http() as http:
        told = http.get("/mags-jobs/pool-status").json()["idle_vms"]
    return found if len(found) == told else set()


def vms(server: Server) -> set[str]:
    """Return the names of all VMs that have a directory."""
    return {path.name for path in (server.data / "run").iterdir() if path.is_dir()}
