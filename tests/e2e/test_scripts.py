"""What scripts may do, and what their jobs say then."""

import pytest

from tests.e2e.server import Server, eventually

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_a_script_runs_as_root_with_a_kernel_of_its_own(server: Server) -> None:
    done = server.run("id -u; pwd; cat /proc/version; hostname; echo oops >&2; echo $GREETING",
                      environment={"GREETING": "hello"})  # fmt: skip
    assert done["status"] == "completed"
    assert done["exit_code"] == 0
    uid, folder, version, hostname, greeting = done["stdout"]
    assert (uid, folder, greeting) == ("0", "/root", "hello")
    assert "4.4.0" in version
    assert hostname == f"mags-{done['vm_id']}"
    assert done["engine"] == "gvisor"
    assert done["isolation"]
    entry = next(entry for entry in done["log"] if entry["source"] == "stderr")
    assert (entry["message"], entry["level"]) == ("oops", "error")


def test_temporary_files_lie_on_the_disk(server: Server) -> None:
    script = (
        "dd if=/dev/zero of=/tmp/big bs=1M count=700 2>/dev/null; stat -c %a /tmp; wc -c < /tmp/big"
    )
    assert server.run(script, memory_mb=256)["stdout"] == ["1777", str(700 << 20)]


def test_each_sandbox_is_another_one(server: Server) -> None:
    script = "cat /etc/machine-id; head -c 8 /dev/urandom | od -An -tx1; ls /root; touch /root/x"
    first, second = server.run(script)["stdout"], server.run(script)["stdout"]
    assert len(first) == len(second) == 2
    assert first[0] != second[0]
    assert first[1] != second[1]


@pytest.mark.parametrize(
    ("script", "exit_code"),
    [("exit 3", 3), ("kill -9 $$", 137), ("kill -TERM $$", 143), ("no-such-program", 127)],
)
def test_the_exit_code_is_the_scripts(server: Server, script: str, exit_code: int) -> None:
    done = server.run(script)
    assert (done["status"], done["exit_code"], done["code"]) == (
        "error",
        exit_code,
        "script_failed",
    )


def test_a_timeout_ends_the_script(server: Server) -> None:
    done = server.run("echo begun; sleep 600", timeout=1)
    assert (done["exit_code"], done["code"]) == (124, "timeout")
    assert done["stdout"] == ["begun"]
    assert any("timeout" in line["message"] for line in done["log"] if line["source"] == "system")


def test_a_script_that_ignores_signals_is_ended_by_its_timeout(server: Server) -> None:
    done = server.run("trap '' TERM INT HUP; while :; do sleep 1; done", timeout=1)
    assert (done["exit_code"], done["code"]) == (124, "timeout")


def test_daemons_that_are_left_behind_do_not_hold_the_job(server: Server) -> None:
    done = server.run("nohup sleep 600 >/dev/null 2>&1 & (sleep 600 &) ; echo done", within_s=30)
    assert (done["status"], done["stdout"]) == ("completed", ["done"])


def test_a_script_may_close_its_output(server: Server) -> None:
    done = server.run("echo before; exec >&- 2>&-; sleep 0.3; exit 5")
    assert (done["exit_code"], done["stdout"]) == (5, ["before"])


def test_bytes_that_are_no_text(server: Server) -> None:
    done = server.run(r"printf 'a\000b\n\377\376\nno newline'")
    assert done["stdout"] == ["a\0b", "��", "no newline"]


def test_200_mb_of_output_keep_the_beginning_and_the_end(server: Server) -> None:
    lines = 200_000_000 // 100
    done = server.run(f"yes \"$(printf '%099d' 7)\" | head -n {lines}; echo last", within_s=240)
    assert done["status"] == "completed"
    job = done["request_id"]
    with server.http() as http:
        reply = http.get(f"/mags-jobs/{job}/logs").json()
    assert reply["truncated"] is True
    assert len(reply["logs"]) == 50_000
    assert reply["logs"][-1]["message"] == "last"
    whole = _whole_log(server, job)
    system = [entry["message"] for entry in whole if entry["source"] == "system"]
    assert any("missing" in message for message in system), system
    kept = sum(len(entry["message"]) + 1 for entry in whole if entry["source"] == "stdout")
    assert 14_000_000 < kept < 18_000_000
    assert _pages(server, job) == whole


def _pages(server: Server, job: str) -> list[dict]:
    entries: list[dict] = []
    while page := server.log_entries(job, after=entries[-1]["seq"] if entries else 0):
        entries += page
    return entries


def _whole_log(server: Server, job: str) -> list[dict]:
    import json

    entries = []
    headers = {"Accept": "text/event-stream"}
    with (
        server.http() as http,
        http.stream("GET", f"/mags-jobs/{job}/logs", params={"after": 0}, headers=headers) as reply,
    ):
        for line in reply.iter_lines():
            if line.startswith("data:"):
                value = json.loads(line[5:])
                if "message" in value:
                    entries.append(value)
    return entries


def test_the_job_that_takes_too_much_memory_says_so(server: Server) -> None:
    done = server.run("python3 -c 'x = bytearray(3 << 30); print(len(x))'", memory_mb=256)
    assert (done["status"], done["code"], done["exit_code"]) == ("error", "out_of_memory", 137)


def test_a_full_disk_is_an_ordinary_error(server: Server) -> None:
    done = server.run(
        "dd if=/dev/zero of=/big bs=1M 2>&1 | grep -o 'No space left on device';"
        "rm /big; echo fits > /small && cat /small",
        disk_gb=1,
    )
    assert done["stdout"] == ["No space left on device", "fits"]


def test_a_disk_full_of_names_is_an_ordinary_error(server: Server) -> None:
    script = """
mkdir /many && cd /many
python3 - <<'END'
import errno
try:
    for n in range(10_000_000):
        open(str(n), "w").close()
except OSError as error:
    print(errno.errorcode[error.errno])
END
rm -rf /many; echo fits > /small && cat /small
"""
    done = server.run(script, disk_gb=1, timeout=280, within_s=290)
    assert done["stdout"] == ["ENOSPC", "fits"], done


def test_stop_ends_a_script(server: Server) -> None:
    job = server.submit("trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.1; done")
    server.running(job)
    eventually(lambda: "up" in server.stdout(job))
    with server.http() as http:
        reply = http.post(f"/mags-jobs/{job}/stop").json()
        again = http.post(f"/mags-jobs/{job}/stop").json()
    assert reply["success"] is True
    assert again["success"] is True
    status = server.final(job)
    assert (status["status"], status["exit_code"], status["code"]) == ("error", 143, "stopped")
    assert "asked" in server.stdout(job)


def test_stop_before_the_start(server: Server) -> None:
    job = server.submit("echo never mind; sleep 600")
    with server.http() as http:
        assert http.post(f"/mags-jobs/{job}/stop").status_code == 200
    assert server.final(job)["code"] == "stopped"


def test_thirty_at_once(server: Server) -> None:
    jobs = [server.submit(f"echo {n}; exit {n % 2}") for n in range(30)]
    for n, job in enumerate(jobs):
        status = server.final(job, 120)
        assert status["exit_code"] == n % 2, status
        assert server.stdout(job) == [str(n)]
