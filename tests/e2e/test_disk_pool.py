"""The disk pool under a whole service: the daemon dies, the disk is nearly full, it is turned off."""

import os
from pathlib import Path

from magsd.engine.disk_pool import IMAGE, shown
from tests import pooled
from tests.e2e.server import Server, eventually, serving

_COUNT = """\
i=0
while :; do i=$((i+1)); echo $i >> /root/numbers; sleep 0.02; done
"""


def test_a_vm_keeps_its_disk_when_the_daemon_is_killed(own_server: Server) -> None:
    job = own_server.submit(_COUNT, workspace_id="counted")
    vm = own_server.running(job)["vm_id"]
    assert f"{vm}.ext4" in pooled.names(own_server.data)
    device = pooled.loop_devices(own_server.data / IMAGE)
    assert len(device) == 1
    for _ in range(2):
        own_server.kill()
        # Its disk has it open.
        assert pooled.loop_devices(own_server.data / IMAGE) == device
        own_server.start()
        assert pooled.loop_devices(own_server.data / IMAGE) == device
        with own_server.http() as http:
            # A moment of it, by the daemon that found it.
            reply = http.post(f"/mags-jobs/{job}/sync")
            assert reply.status_code == 200, reply.text
    with own_server.http() as http:
        reply = http.post(f"/mags-jobs/{job}/stop")
        assert reply.status_code in (200, 202), reply.text
    own_server.final(job)
    told = own_server.run(
        "seq $(tail -1 /root/numbers) | cmp - /root/numbers && echo whole", workspace_id="counted"
    )
    assert told["stdout"] == ["whole"]
    eventually(lambda: f"{vm}.ext4" not in pooled.names(own_server.data))


def test_nothing_is_attached_when_the_daemon_has_stopped(own_server: Server) -> None:
    assert own_server.run("echo fine")["stdout"] == ["fine"]
    assert len(pooled.loop_devices(own_server.data / IMAGE)) == 1
    own_server.stop()
    eventually(lambda: not pooled.loop_devices(own_server.data / IMAGE))
    own_server.start()


def test_a_full_pool_is_told_and_room_is_enough_to_go_on(tmp_path: Path) -> None:
    with serving(
        tmp_path, MAGSD_DISK_POOL_GB="1", MAGSD_POOL_MAX="0", MAGSD_POOL_MIN="0"
    ) as server:
        assert server.run("echo before")["stdout"] == ["before"]
        with shown(server.data / IMAGE) as root:
            free = os.statvfs(root).f_bavail * os.statvfs(root).f_frsize
            filler = root / "filler"
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, free - (50 << 20))
            done = server.run("echo never")
            assert (done["status"], done["code"]) == ("error", "host_disk_full"), done
            assert "MAGSD_DISK_POOL_GB" in done["error"]
            filler.unlink()
        assert server.run("echo again")["stdout"] == ["again"]


def test_it_can_be_turned_off_while_a_vm_is_in_it(own_server: Server) -> None:
    job = own_server.submit("while ! [ -e /go ]; do sleep 0.05; done", workspace_id="older")
    own_server.running(job)
    own_server.stop()
    own_server.environment["MAGSD_DISK_POOL"] = "off"
    own_server.start()
    assert own_server.run("echo fine")["stdout"] == ["fine"]
    with own_server.http() as http:
        assert http.post(f"/mags-jobs/{job}/sync").status_code == 200
        http.post(f"/mags-jobs/{job}/stop")
    own_server.final(job)
    eventually(lambda: not pooled.names(own_server.data))
    own_server.stop()
    own_server.start()
    assert not (own_server.data / IMAGE).exists()
