"""A daemon whose database is PostgreSQL, and each of the two dies under the other."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import census, postgres
from tests.e2e.server import Server, eventually, serving


@pytest.fixture
def cluster() -> Iterator[postgres.Cluster]:
    with postgres.cluster() as running:
        yield running


@pytest.fixture
def server(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("postgres")
    before = census.take(folder / "data")
    with serving(folder, MAGSD_DATABASE_URL=cluster.url(cluster.create())) as running:
        yield running
    census.assert_same(before, folder / "data")


def _said(server: Server) -> str:
    log: str = server.log.read_text(errors="replace")
    return log


def test_the_daemon_is_killed_and_its_results_are_there(server: Server) -> None:
    ended = server.run("echo before; exit 3")
    going = server.submit("for i in $(seq 60); do echo $i; sleep 0.05; done; exit 4")
    eventually(lambda: server.stdout(going))
    server.kill()
    server.start()
    assert server.status(ended["request_id"])["exit_code"] == 3
    assert server.stdout(ended["request_id"]) == ["before"]
    assert server.final(going)["exit_code"] == 4
    assert server.stdout(going) == [str(i) for i in range(1, 61)]
    assert postgres.PASSWORD not in _said(server)
    assert postgres.QUOTED_PASSWORD not in _said(server)


class _Submitter:
    """Submits jobs one after the other, each with a key, until told to stop."""

    def __init__(self, server: Server) -> None:
        self.accepted: dict[str, str] = {}
        """Key and job."""
        self.refused: list[str] = []
        """Keys."""
        self._server = server
        self._is_over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        try:
            with self._server.http() as http:
                number = 0
                while not self._is_over.wait(0.05):
                    self.submit(http, f"key {number}")
                    number += 1
        except BaseException as error:  # noqa: BLE001 - raised again by `stop`
            self._failure = error

    def submit(self, http, key: str) -> None:
        reply = http.post(
            "/mags-jobs", json={"script": f"echo '{key}'"}, headers={"Idempotency-Key": key}
        )
        if reply.status_code == 202:
            self.accepted[key] = reply.json()["request_id"]
        else:
            assert reply.status_code == 503, reply.text
            assert int(reply.headers["Retry-After"]) > 0
            self.refused.append(key)

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure


def test_the_database_goes_away_while_jobs_run(server: Server, cluster: postgres.Cluster) -> None:
    first = server.submit("for i in $(seq 100); do echo $i; sleep 0.1; done; exit 5")
    eventually(lambda: server.stdout(first))
    submitter = _Submitter(server)
    try:
        eventually(lambda: len(submitter.accepted) > 2, what="jobs are accepted")
        for end in (cluster.stop, cluster.crash):
            refused = len(submitter.refused)
            end()
            eventually(lambda n=refused: len(submitter.refused) > n + 2, what="jobs are refused")
            eventually(lambda: not server.is_ready(), what="the daemon says so")
            time.sleep(2)  # What is tested: a database that is down for a while.
            cluster.start()
            accepted = len(submitter.accepted)
            eventually(lambda n=accepted: len(submitter.accepted) > n + 2, what="it is back")
            eventually(server.is_ready, what="the daemon says so")
    finally:
        submitter.stop()
    with server.http() as http:
        for key in list(submitter.refused):
            submitter.submit(http, key)
        for key, job in submitter.accepted.items():
            assert server.final(job)["status"] == "completed"
            assert server.stdout(job) == [key]
        total = http.get("/mags-jobs", params={"page_size": 1}).json()["total"]
    # No key has two jobs, and none is there that nobody was told of.
    assert total == len(submitter.accepted) + 1
    assert server.final(first)["exit_code"] == 5
    assert server.stdout(first) == [str(i) for i in range(1, 101)]


def test_a_database_that_is_not_there_is_told(tmp_path: Path, cluster: postgres.Cluster) -> None:
    server = Server(tmp_path, MAGSD_DATABASE_URL=cluster.url("absent"))
    server.data.mkdir()
    server.start(is_ready=False)
    assert server.process is not None
    assert server.process.wait(30) == 1
    assert "CREATE DATABASE" in _said(server)
    assert postgres.QUOTED_PASSWORD not in _said(server)
