"""Workspaces: what a job changed is there for the next one, whoever is killed between."""

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests import census
from tests.e2e.pool_census import at_rest
from tests.e2e.server import Server, eventually, serving

pytestmark = pytest.mark.usefixtures("nothing_left")

_CHANGES = """
set -e
echo kept > /root/file; chmod 640 /root/file; chown 12:34 /root/file
touch -d '2001-02-03 04:05:06 UTC' /root/file
ln -s file /root/link; ln /root/file /root/second
mkdir -p /opt/tool/bin && echo 'echo works' > /opt/tool/bin/tool && chmod 4755 /opt/tool/bin/tool
rm /etc/debian_version
rm -rf /usr/share/doc && mkdir /usr/share/doc && echo mine > /usr/share/doc/only
mv /etc/skel /etc/skeleton
"""
_LOOK = """
stat -c '%n %a %u:%g %Y %h' /root/file
readlink /root/link
/bin/sh /opt/tool/bin/tool; stat -c %a /opt/tool/bin/tool
test -e /etc/debian_version || echo gone
ls /usr/share/doc
test -d /etc/skel || echo moved; ls -A /etc/skeleton | head -1
"""
_SEEN = [
    "/root/file 640 12:34 981173106 2",
    "file",
    "works",
    "4755",
    "gone",
    "only",
    "moved",
    ".bash_logout",
]


def workspaces(server: Server) -> dict[str, dict[str, Any]]:
    with server.http() as http:
        reply = http.get("/mags-workspaces")
    assert reply.status_code == 200, reply.text
    return {each["workspace_id"]: each for each in reply.json()["workspaces"]}


def test_what_a_job_changed_is_there_for_the_next(server: Server) -> None:
    first = server.run(_CHANGES, workspace_id="kept")
    assert (first["status"], first["workspace_synced"]) == ("completed", True), first
    second = server.run(_LOOK, workspace_id="kept")
    assert second["stdout"] == _SEEN
    listed = workspaces(server)["kept"]
    assert (listed["version"], listed["in_use_by"]) == (1, None)
    assert listed["size_bytes"] > 0


def test_what_changes_nothing_makes_no_version(server: Server) -> None:
    server.run("echo a > /root/a", workspace_id="same")
    done = server.run("cat /root/a", workspace_id="same")
    assert (done["stdout"], done["workspace_synced"]) == (["a"], True)
    assert workspaces(server)["same"]["version"] == 1


def test_the_same_change_again_and_again(server: Server) -> None:
    """Its times given, it gives the same layer each time."""
    script = "for name in one two; do echo $name > $name; done; touch -d @1700000000 . one two"
    for other in ("", "; rm two", "", ""):
        done = server.run(script + other + "; touch -d @1700000000 .", workspace_id="again")
        assert done["status"] == "completed", done
    assert server.run("cat one two", base_workspace_id="again")["stdout"] == ["one", "two"]


def test_each_change_makes_a_version_and_each_can_be_had_again(server: Server) -> None:
    for number in (1, 2, 3):
        server.run(f"echo {number} >> /root/numbers", workspace_id="numbers")
    with server.http() as http:
        versions = http.get("/mags-workspaces/numbers/versions").json()["versions"]
        assert [each["version"] for each in versions] == [3, 2, 1]
        assert {each["state"] for each in versions} == {"live"}
        reply = http.post("/mags-workspaces/numbers/restore", json={"version": 1})
        assert reply.json()["version"] == 4
        reply = http.post("/mags-workspaces/numbers/fork", json={"workspace_id": "branch"})
        assert reply.status_code == 201
        again = http.post("/mags-workspaces/numbers/fork", json={"workspace_id": "branch"})
        assert again.status_code == 409
        assert http.post("/mags-workspaces/numbers/restore", json={"version": 9}).status_code == 404
    assert server.run("cat /root/numbers", workspace_id="numbers")["stdout"] == ["1"]
    assert server.run("cat /root/numbers", workspace_id="branch")["stdout"] == ["1"]


def test_a_base_is_read_by_many_and_changed_by_none(server: Server) -> None:
    server.run("echo base > /root/base", workspace_id="base")
    jobs = [
        server.submit(
            "cat /root/base; echo x > /root/base; cat /root/base", base_workspace_id="base"
        )
        for _ in range(8)
    ]
    for job in jobs:
        assert server.final(job)["status"] == "completed"
        assert server.stdout(job) == ["base", "x"]
    assert workspaces(server)["base"]["version"] == 1


def test_a_fork_goes_its_own_way(server: Server) -> None:
    server.run("echo base > /root/base", workspace_id="trunk")
    forked = {"workspace_id": "fork", "base_workspace_id": "trunk"}
    assert server.run("cat /root/base; echo fork > /root/base", **forked)["stdout"] == ["base"]
    server.run("echo changed > /root/base", workspace_id="trunk")
    assert server.run("cat /root/base", **forked)["stdout"] == ["fork"]


def test_a_job_that_failed_keeps_its_changes_and_no_sync_none(server: Server) -> None:
    failed = server.run("echo a > /root/a; exit 3", workspace_id="failed")
    assert (failed["exit_code"], failed["workspace_synced"]) == (3, True)
    done = server.run("cat /root/a; echo b > /root/b", workspace_id="failed", no_sync=True)
    assert (done["stdout"], done["workspace_synced"]) == (["a"], False)
    assert server.run("ls /root", workspace_id="failed")["stdout"] == ["a"]


def test_one_job_at_a_time_has_a_workspace(server: Server) -> None:
    job = server.submit("sleep 300", workspace_id="one")
    server.running(job)
    with server.http() as http:
        refused = http.post("/mags-jobs", json={"script": "true", "workspace_id": "one"})
        assert refused.status_code == 500
        assert refused.json() == {
            "error": f"workspace 'one' is already in use by job {job} (status: running); use "
            "'mags exec one <command>' to run commands on it, or 'mags ssh one' to connect "
            "interactively",
            "code": "workspace_in_use",
        }
        http.post(f"/mags-jobs/{job}/stop")
        unknown = http.post("/mags-jobs", json={"script": "true", "base_workspace_id": "nothing"})
        assert unknown.status_code == 404
    assert server.final(job)["workspace_synced"] is True


def test_a_job_that_runs_is_synced(server: Server) -> None:
    # Not emptied between: each write is one call.
    script = "i=0; while :; do i=$((i+1)); echo $i 1<> /root/a; echo $i 1<> /root/b; done"
    job = server.submit(script, workspace_id="live")
    server.running(job)
    time.sleep(1)
    with server.http() as http:
        synced = http.post(f"/mags-jobs/{job}/sync").json()
        assert (synced["success"], synced["workspace_id"], synced["version"]) == (True, "live", 1)
        assert synced["uploaded_bytes"] > 0
        again = http.post(f"/mags-jobs/{job}/sync").json()
        assert again["version"] == 2
        assert server.status(job)["status"] == "running"
        http.post(f"/mags-jobs/{job}/stop")
        made = http.post("/mags-workspaces/live/fork", json={"workspace_id": "then", "version": 1})
        assert made.status_code == 201
    a, b = map(int, server.run("cat /root/a /root/b", workspace_id="then")["stdout"])
    assert a - b in (0, 1)


def test_nothing_is_synced_where_nothing_is_kept(server: Server) -> None:
    job = server.submit("sleep 300")
    server.running(job)
    with server.http() as http:
        refused = http.post(f"/mags-jobs/{job}/sync")
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid")
        http.post(f"/mags-jobs/{job}/stop")
        assert http.delete("/mags-workspaces/nothing").status_code == 404


def test_a_workspace_is_deleted_but_not_while_it_is_used(server: Server) -> None:
    server.run("touch /root/a", workspace_id="doomed")
    job = server.submit("sleep 300", base_workspace_id="doomed")
    with server.http() as http:
        assert http.delete("/mags-workspaces/doomed").status_code == 409
        http.post(f"/mags-jobs/{job}/stop")
        server.final(job)
        assert http.delete("/mags-workspaces/doomed").status_code == 200
    assert "doomed" not in workspaces(server)


def test_a_fresh_server_with_the_same_store_has_it_all(
    own_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own_server.run(_CHANGES, workspace_id="kept")
    own_server.stop()
    # All that is left are the database and the object store.
    for name in ("layers", "images", "templates"):
        shutil.rmtree(own_server.data / name, ignore_errors=True)
    own_server.add_image()
    image = {path.name for path in (own_server.data / "layers").iterdir()}
    own_server.start()
    assert own_server.run(_LOOK, workspace_id="kept")["stdout"] == _SEEN
    assert {path.name for path in (own_server.data / "layers").iterdir()} > image


def test_an_altered_object_is_found_and_named(own_server: Server) -> None:
    own_server.run("echo kept > /root/file", workspace_id="kept")
    own_server.stop()
    shutil.rmtree(own_server.data / "layers")
    own_server.add_image()
    stored = [path for path in (own_server.data / "objects").rglob("*") if path.is_file()]
    for path in stored:
        if "images" not in str(path) and "logs" not in str(path):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    own_server.start()
    done = own_server.run("cat /root/file", workspace_id="kept")
    assert (done["status"], done["exit_code"]) == ("error", None)
    assert re.search(r"[0-9a-f]{12}", done["error"]), done


def test_a_daemon_killed_at_any_moment_of_a_sync_loses_nothing(own_server: Server) -> None:
    own_server.run("echo 0 > /root/count", workspace_id="counted")
    script = "n=$(cat /root/count); echo $((n+1)) > /root/count; dd if=/dev/urandom of=/root/r bs=1M count=20 2>/dev/null"
    for number in range(4):
        job = own_server.submit(script, workspace_id="counted")
        shim = Path(f"/proc/{own_server.vm_pid(own_server.running(job))}")
        eventually(lambda shim=shim: not shim.exists(), 30)
        time.sleep(number * 0.12)
        own_server.kill()
        own_server.start()
        done = own_server.final(job, 60)
        assert (done["status"], done["workspace_synced"]) == ("completed", True), done
    assert own_server.run("cat /root/count", workspace_id="counted")["stdout"] == ["4"]


def test_a_store_that_is_away_delays_a_version_and_loses_none(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_server.run("echo 1 > /root/n", workspace_id="away")
    store = own_server.data / "objects"
    store.rename(own_server.data / "away")
    store.write_text("not a directory")
    done = own_server.run("echo 2 > /root/n", workspace_id="away")
    assert (done["status"], done["workspace_synced"]) == ("completed", False)
    assert any("object store" in line["message"] for line in done["log"])
    own_server.kill()
    store.unlink()
    own_server.start()
    assert own_server.run("cat /root/n", workspace_id="away")["stdout"] == ["2"]

    def stored() -> bool:
        with own_server.http() as http:
            versions = http.get("/mags-workspaces/away/versions").json()["versions"]
        return {each["state"] for each in versions} == {"live"}

    eventually(stored, 60, "the version is stored")


def test_long_chains_become_short_and_what_nobody_needs_goes(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("short")
    before = census.take(folder / "data")
    settings = {"MAGSD_WORKSPACE_LAYERS": "2", "MAGSD_WORKSPACE_VERSIONS": "1"}
    with serving(folder, **settings) as server:
        server.run("mkdir /root/d; echo 1 > /root/d/a; echo 1 > /root/b", workspace_id="long")
        server.run("rm -r /root/d; mkdir /root/d; echo 2 > /root/d/c", workspace_id="long")
        server.run("rm /root/b; rm /etc/debian_version", workspace_id="long")

        def versions() -> list[dict[str, Any]]:
            with server.http() as http:
                return list(http.get("/mags-workspaces/long/versions").json()["versions"])

        eventually(lambda: [each["layers"] for each in versions()] == [1], 60, "one layer is left")
        look = "ls /root /root/d; test -e /etc/debian_version || echo gone"
        seen = ["/root:", "d", "", "/root/d:", "c", "gone"]
        assert server.run(look, workspace_id="long")["stdout"] == seen
        with server.http() as http:
            assert http.delete("/mags-workspaces/long").status_code == 200

        def stored() -> list[Path]:
            found = []
            # Folders go while they are looked at.
            for folder, _, names in os.walk(server.data / "objects/layers"):
                found += [Path(folder, name) for name in names if "images" not in folder]
            return found

        eventually(lambda: not stored(), 60, "the store holds none of its layers")
        at_rest(server)
    census.assert_same(before, folder / "data")
