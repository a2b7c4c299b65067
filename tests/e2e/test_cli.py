"""The command `mags`, as a person or a script would use it."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import MAGS, Server, eventually
from tests.e2e.test_access import visit


class _Cli:
    def __init__(self, server: Server, home: Path) -> None:
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "MAGS_API_URL": server.url,
            "MAGS_API_TOKEN": server.token,
        }

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [MAGS, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def __call__(
        self, *arguments: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [MAGS, *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def mags(server: Server, tmp_path: Path) -> _Cli:
    return _Cli(server, tmp_path)


def test_run_shows_what_the_script_prints_and_ends_as_it_ends(mags: _Cli) -> None:
    done = mags("run", "-e", "WHO=you", "echo hello $WHO; echo oops >&2; exit 4")
    assert done.returncode == 4
    assert done.stdout == "hello you\n"
    assert done.stderr.splitlines()[0] == "oops"


def test_run_reads_a_script_from_standard_input(mags: _Cli) -> None:
    done = mags("run", "-", stdin="echo from a file\n")
    assert (done.returncode, done.stdout) == (0, "from a file\n")


def test_output_comes_while_the_script_runs(mags: _Cli) -> None:
    with mags.start("run", "echo first; while ! [ -e /go ]; do sleep 0.1; done") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "first\n"
        assert running.poll() is None
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "stop" in told


def test_ctrl_c_stops_the_job(server: Server, mags: _Cli) -> None:
    with mags.start("run", "-n", "interrupted", "echo up; sleep 600") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=30)
    status = json.loads(mags("status", "interrupted", "--json").stdout)
    assert server.final(status["request_id"])["code"] == "stopped"


def test_a_job_in_the_background(mags: _Cli) -> None:
    detached = mags("run", "-d", "-n", "behind", "for i in 1 2 3; do echo $i; sleep 0.2; done")
    job = detached.stdout.strip()
    assert detached.returncode == 0
    followed = mags("logs", "-f", "behind")
    assert (followed.returncode, followed.stdout) == (0, "1\n2\n3\n")
    assert json.loads(mags("status", job, "--json").stdout)["status"] == "completed"
    listed = json.loads(mags("list", "--json").stdout)
    assert job in [entry["request_id"] for entry in listed["jobs"]]
    assert "behind" in mags("list").stdout


def test_a_log_that_is_followed_goes_on_when_the_server_starts_again(
    own_server: Server, tmp_path: Path
) -> None:
    job = own_server.submit("for i in $(seq 30); do echo $i; sleep 0.2; done")
    with _Cli(own_server, tmp_path).start("logs", "-f", job) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "1\n"
        own_server.kill()
        own_server.start()
        # Not by `communicate`, which does not know of what was read ahead with the first line.
        printed = following.stdout.read()
        assert following.wait(60) == 0

    assert printed.split() == [str(number) for number in range(2, 31)]


def test_stop(server: Server, mags: _Cli) -> None:
    name = f"a name/with {os.getpid()}"
    job = mags("run", "-d", "-n", name, "sleep 600").stdout.strip()
    server.running(job)
    assert job in mags("status", name).stdout
    assert mags("stop", name).returncode == 0
    assert server.final(job)["code"] == "stopped"


def test_login_is_remembered_for_this_user_alone(server: Server, mags: _Cli) -> None:
    del mags.environment["MAGS_API_TOKEN"], mags.environment["MAGS_API_URL"]
    assert mags("whoami").returncode == 3
    assert mags("login", "--url", server.url, "--token", "wrong").returncode == 3
    assert mags("login", "--url", server.url, "--token", server.token).returncode == 0
    saved = Path(mags.environment["HOME"]) / ".mags/config.json"
    assert saved.stat().st_mode & 0o777 == 0o600
    assert "default" in mags("whoami").stdout
    assert mags("run", "echo in").stdout == "in\n"
    assert mags("logout").returncode == 0
    assert mags("whoami").returncode == 3


def test_errors_are_one_line_and_an_exit_code(mags: _Cli) -> None:
    missing = mags("status", "nobody")
    assert missing.returncode == 4
    assert len(missing.stderr.strip().splitlines()) == 1
    assert mags("run").returncode == 2
    mags.environment["MAGS_API_URL"] = "http://127.0.0.1:9"
    unreachable = mags("list")
    assert unreachable.returncode == 5
    assert "127.0.0.1:9" in unreachable.stderr


def test_a_reader_that_leaves_ends_the_command_quietly(mags: _Cli) -> None:
    job = mags("run", "-d", "seq 100000").stdout.strip()
    assert mags("logs", "-f", job).returncode == 0
    with mags.start("logs", job) as printing:
        assert printing.stdout is not None
        printing.stdout.readline()
        printing.stdout.close()
        assert printing.stderr is not None
        assert eventually(lambda: printing.poll() is not None)
        assert "Traceback" not in printing.stderr.read()


def test_a_file_goes_with_a_script_and_usage_tells_of_it(mags: _Cli, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("b\na\n")
    done = mags("run", "-f", str(tmp_path / "names.txt"), "sort /uploads/names.txt")
    assert (done.returncode, done.stdout) == (0, "a\nb\n"), done.stderr
    used = json.loads(mags("usage", "--json").stdout)
    assert used["completed_jobs"] >= 1
    assert used["storage_bytes"] >= 4
    assert "vm time" in mags("usage").stdout


def test_a_script_from_a_file_keeps_its_changes_and_others_begin_with_them(
    mags: _Cli, tmp_path: Path
) -> None:
    script = tmp_path / "setup.sh"
    script.write_text("echo 'made here' > /root/made; echo done\n")
    done = mags("run", "-w", "cli-base", "--script", str(script))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    done = mags("run", "--base", "cli-base", "cat /root/made; rm /root/made")
    assert (done.returncode, done.stdout) == (0, "made here\n"), done.stderr
    assert mags("run", "--base", "cli-base", "cat /root/made").stdout == "made here\n"
    assert mags("run", "true", "--script", str(script)).returncode == 2
    assert mags("run").returncode == 2


def test_a_sandbox_that_stays_is_kept_and_gets_a_larger_disk(mags: _Cli) -> None:
    made = mags("run", "-p", "-w", "cli-stays", "echo kept > /root/file; df -m / | tail -1")
    job = made.stdout.strip()
    assert eventually(lambda: mags("exec", job, "cat file").stdout == "kept\n")
    kept = json.loads(mags("sync", job, "--json").stdout)
    assert (kept["workspace_id"], kept["version"]) == ("cli-stays", 1)
    assert mags("sync", job).stdout == "cli-stays is at version 1\n"
    again = mags("resize", "cli-stays", "--disk", "3")
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() != job
    assert mags("exec", "cli-stays", "cat /root/file").stdout == "kept\n"
    size = mags("exec", "cli-stays", "df -m / | tail -1").stdout.split()
    assert int(size[1]) > 2500
    assert mags("stop", "cli-stays").returncode == 0


def test_what_is_kept_nowhere_is_not_resized(mags: _Cli) -> None:
    assert mags("new", "cli-local").returncode == 0
    refused = mags("resize", "cli-local", "--disk", "3")
    assert refused.returncode == 1
    assert "nothing to sync" in refused.stderr or "no_sync" in refused.stderr
    assert mags("exec", "cli-local", "echo lives").stdout == "lives\n"
    mags("stop", "cli-local")


def test_a_server_is_published_where_it_is_started(mags: _Cli) -> None:
    serve = "echo by command > index.html; exec python3 -m http.server 9000"
    made = mags("run", "-p", "-n", "cli-web", "--url", "--port", "9000", serve)
    assert made.returncode == 0, made.stderr
    _, url = made.stdout.splitlines()
    eventually(lambda: visit(url).text == "by command\n", what="the page is there")
    mags("stop", "cli-web")
    assert mags("run", "--url", "true").returncode == 2
