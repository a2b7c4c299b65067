"""Run, sync, restart, run: again and again, and every byte is what it was.

On gVisor with a real S3 server, on QEMU with a directory of objects. `MAGS_TEST_FULL=1` goes round
twenty times, else three times.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.engines import ENGINES, serving_on
from tests.e2e.server import Server, eventually
from tests.integration.s3_server import BUCKET, s3_server

CYCLES = 20 if os.environ.get("MAGS_TEST_FULL") == "1" else 2
_BOTH = """
set -e
mkdir -p /srv/data && cd /srv/data
sums() { find . -type f ! -name sums -print0 | sort -z | xargs -0 sha256sum; }
step() {
    n=$(($(cat count 2> /dev/null || echo 0) + 1)); echo $n > count
    head -c $((n * 30000)) /dev/urandom > "file $n"
    mkdir -p "folder $((n % 3))"; mv "file $n" "folder $((n % 3))/"
    dd if=/dev/urandom of=patched bs=4096 count=1 seek=$n conv=notrunc status=none
    rm -rf "folder $(((n + 1) % 3))"
    sums > sums; sha256sum < sums
}
"""
_CHECK = "if [ -e sums ]; then sha256sum --quiet -c sums; sums | cmp - sums; fi\n"
_FIRST = _BOTH + _CHECK + "sha256sum < sums || true; step; echo ready; sleep 600\n"
_SECOND = _BOTH + _CHECK + "sha256sum < sums; step\n"


@pytest.mark.parametrize("engine", ENGINES)
def test_run_sync_restart_run(tmp_path_factory: pytest.TempPathFactory, engine: str) -> None:
    with (
        _store(engine) as settings,
        serving_on(engine, tmp_path_factory.mktemp(engine), **settings) as server,
    ):
        last = None
        for number in range(CYCLES):
            last = _cycle(server, last, restart=(Server.stop, Server.kill)[number % 2])


@contextmanager
def _store(engine: str) -> Iterator[dict[str, str]]:
    if engine == "qemu":
        yield {}
        return
    with s3_server() as bucket:
        yield {"MAGSD_OBJECT_STORE_URL": f"s3://{BUCKET}/cycles", **bucket.aws}


def _cycle(server: Server, last: str | None, restart) -> str:
    """Change and sync, restart the daemon under the job, change again in another job."""
    job = server.submit(_FIRST, workspace_id="round")
    eventually(lambda: _has_printed(server, job), 90, f"{job} is ready")
    printed = server.stdout(job)
    assert last is None or printed[0] == last
    synced = printed[-2]
    with server.http() as http:
        reply = http.post(f"/mags-jobs/{job}/sync")
        assert reply.status_code == 200, reply.text
    restart(server)
    server.start()
    with server.http() as http:
        http.post(f"/mags-jobs/{job}/stop").raise_for_status()
    assert server.final(job)["workspace_synced"] is True
    done = server.run(_SECOND, workspace_id="round", within_s=90)
    assert (done["status"], done["workspace_synced"]) == ("completed", True), done
    assert done["stdout"][0] == synced
    restart(server)
    server.start()
    return str(done["stdout"][-1])


def _has_printed(server: Server, job: str) -> bool:
    status = server.status(job)
    assert status["status"] in ("pending", "running"), (status, server.log_entries(job))
    return "ready" in server.stdout(job)
