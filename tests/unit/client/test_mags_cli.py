"""The `mags` command: what goes to stdout, what to stderr, and which exit code."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from mags import config
from mags.cli import main as cli
from mags.cli import usage
from tests.unit.client.local_api import Reply, events, line

JOB = "0b8a4b1e-6f1c-4f8e-9a39-0d5a0c3c4c11"
JOBS = "/api/v1/mags-jobs"
FINAL = {"request_id": JOB, "status": "completed", "exit_code": 0}


@pytest.fixture
def run(api, monkeypatch, capsys):
    monkeypatch.setenv("MAGS_API_URL", api.url)
    monkeypatch.setenv("MAGS_API_TOKEN", "secret")

    def run(*arguments):
        """Return exit code, stdout and stderr of a command."""
        monkeypatch.setattr(sys, "argv", ["mags", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        code = caught.value.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def job(api):
    """A job that prints one line to each place and completes."""
    api.on("POST", JOBS, Reply({"request_id": JOB, "status": "accepted"}, 202))
    log = events(line("out"), line("err", "stderr"), line("starting", "system"))
    api.on("GET", f"{JOBS}/{JOB}/logs", log)
    return api


def test_run_prints_what_the_script_prints_and_nothing_else(job, run):
    job.on("GET", f"{JOBS}/{JOB}/status", FINAL)

    assert run("run", "echo out") == (0, "out\n", "err\nmags: starting\n")


def test_run_ends_with_the_exit_code_of_the_script(job, run):
    failed = FINAL | {"status": "error", "exit_code": 7, "error": "the script ended with 7"}
    job.on("GET", f"{JOBS}/{JOB}/status", failed)

    code, _, errors = run("run", "exit 7")

    assert code == 7
    assert errors.endswith("mags: the script ended with 7\n")


def test_what_the_log_has_said_is_not_said_again(api, run):
    api.on("POST", JOBS, Reply({"request_id": JOB}, 202))
    api.on("GET", f"{JOBS}/{JOB}/logs", events(line("it took too long", "system")))
    failed = FINAL | {"status": "error", "exit_code": 124, "error": "it took too long"}
    api.on("GET", f"{JOBS}/{JOB}/status", failed)

    assert run("run", "sleep 9") == (124, "", "mags: it took too long\n")


def test_a_job_that_never_ran_is_a_failure(job, run):
    job.on("GET", f"{JOBS}/{JOB}/status", FINAL | {"status": "error", "exit_code": None})

    assert run("run", "true")[0] == 1


def test_run_passes_its_options_on(job, run):
    job.on("GET", f"{JOBS}/{JOB}/status", FINAL)

    run(
        *("run", "x", "-n", "name", "-e", "A=1", "-e", "B=c=d", "--timeout", "9", "--disk", "3"),
        *("--memory", "256", "--vcpus", "2", "--rootfs", "standard"),
    )

    assert job.requests[0].body == {
        "script": "x",
        "type": "inline",
        "persistent": False,
        "name": "name",
        "environment": {"A": "1", "B": "c=d"},
        "timeout": 9,
        "disk_gb": 3,
        "memory_mb": 256,
        "vcpus": 2,
        "rootfs_type": "standard",
    }


def test_an_environment_that_is_no_pair_is_wrong_usage(api, run):
    code, _, errors = run("run", "x", "-e", "NAME")

    assert code == 2
    assert "NAME" in errors
    assert api.requests == []


def test_a_detached_run_prints_the_id_alone(job, run):
    code, printed, errors = run("run", "-d", "x")

    assert (code, printed) == (0, f"{JOB}\n")
    assert f"mags logs -f {JOB}" in errors
    assert job.asked() == [("POST", JOBS)]


def test_status_is_readable_and_as_json(api, run):
    status = FINAL | {"url": "http://x", "error": None, "persistent": False}
    api.on("GET", f"{JOBS}/web/status", status)

    assert run("status", "web")[1].splitlines() == [
        f"request_id  {JOB}",
        "status      completed",
        "exit_code   0",
        "url         http://x",
        "persistent  false",
    ]
    assert json.loads(run("status", "web", "--json")[1]) == status


def test_logs_go_where_the_job_wrote_them(api, run):
    lines = [line("out \u2028 \ud83d"), line("err", "stderr")]
    api.on("GET", f"{JOBS}/web/logs", {"logs": lines, "truncated": True})

    code, printed, errors = run("logs", "web")

    assert (code, printed) == (0, "out \u2028 ?\n")
    assert errors == "mags: only the newest lines are shown\nerr\n"


def test_followed_logs_end_with_the_job(job, run):
    assert run("logs", "-f", JOB) == (0, "out\n", "err\nmags: starting\n")


def test_a_list_has_one_line_a_job_however_narrow_the_terminal(api, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    entry = {"request_id": JOB, "name": "n" * 60, "status": "running", "exit_code": 0}
    jobs = [entry | {"created_at": "2026-01-31T12:00:00Z"}]
    api.on("GET", JOBS, {"jobs": jobs, "total": 3, "page": 1, "page_size": 1})

    code, printed, errors = run("list", "--page-size", "1")

    heading, row = printed.splitlines()
    assert code == 0
    assert heading.split() == ["ID", "NAME", "STATUS", "EXIT", "CREATED"]
    assert row.split() == [JOB, "n" * 60, "running", "2026-01-31T12:00:00Z"]
    assert "--page 2 shows more" in errors


def test_stop_says_what_the_server_says(api, run):
    reply = {"success": True, "message": "stopped", "status": "error"}
    api.on("POST", f"{JOBS}/web/stop", reply)

    assert run("stop", "web") == (0, "stopped\n", "")


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply({"error": "no such job"}, 404), 4),
        (Reply({"error": "bad token"}, 401), 3),
        (Reply({"error": "quota"}, 429), 1),
        (Reply(is_dropped=True), 5),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(api, run, reply, code):
    api.on("GET", f"{JOBS}/web/status", reply)

    ended, printed, errors = run("status", "web")

    assert (ended, printed) == (code, "")
    assert errors.startswith("mags: ")
    assert errors.count("\n") == 1


def test_without_a_token_the_next_step_is_named(run, monkeypatch):
    monkeypatch.delenv("MAGS_API_TOKEN")

    code, _, errors = run("list")

    assert code == 3
    assert "mags login" in errors


def test_login_checks_the_token_and_saves_it(api, run, monkeypatch):
    monkeypatch.delenv("MAGS_API_TOKEN")
    monkeypatch.delenv("MAGS_API_URL")
    api.on("GET", "/api/v1/whoami", {"account": "default", "scopes": ["admin", "jobs"]})

    assert run("login", "--token", "mags_x", "--url", api.url)[0] == 0

    assert config.load() == config.Configuration(api.url, "mags_x")
    assert api.requests[0].headers["authorization"] == "Bearer mags_x"
    assert run("whoami")[1].splitlines()[1] == "scopes   admin jobs"
    assert run("logout")[0] == 0
    assert config.load().api_token is None


def test_login_does_not_save_what_the_server_refuses(api, run, home):
    api.on("GET", "/api/v1/whoami", Reply({"error": "bad token"}, 401))

    assert run("login", "--token", "mags_x")[0] == 3
    assert not (home / ".mags").exists()


def test_login_says_when_the_environment_wins(api, run):
    api.on("GET", "/api/v1/whoami", {"account": "default"})

    assert "MAGS_API_TOKEN" in run("login", "--token", "mags_x")[2]


def _start(api, *arguments, **options):
    environment = os.environ | {"MAGS_API_URL": api.url, "MAGS_API_TOKEN": "secret"}
    command = [sys.executable, "-c", "from mags.cli.main import main; main()", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def test_ctrl_c_stops_the_job_and_says_so(api):
    never = threading.Event()
    api.on("POST", JOBS, Reply({"request_id": JOB}, 202))
    api.on("GET", f"{JOBS}/{JOB}/logs", Reply({}, before=never))
    api.on("POST", f"{JOBS}/{JOB}/stop", {"success": True, "status": "error"})

    with _start(api, "run", "sleep 100") as process:
        api.wait_for(f"{JOBS}/{JOB}/logs")
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=20)

    assert process.returncode == 130
    assert printed == b""
    assert f"stopping job {JOB}" in errors.decode()
    assert f"job {JOB} is stopped" in errors.decode()
    assert api.asked()[-1] == ("POST", f"{JOBS}/{JOB}/stop")


def test_a_second_ctrl_c_leaves(api):
    never = threading.Event()
    api.on("POST", JOBS, Reply({"request_id": JOB}, 202))
    api.on("GET", f"{JOBS}/{JOB}/logs", Reply({}, before=never))
    api.on("POST", f"{JOBS}/{JOB}/stop", Reply({}, before=never))

    with _start(api, "run", "sleep 100") as process:
        api.wait_for(f"{JOBS}/{JOB}/logs")
        process.send_signal(signal.SIGINT)
        api.wait_for(f"{JOBS}/{JOB}/stop")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)

    assert process.returncode == 130
    assert f"mags status {JOB}" in errors.decode()


def test_ctrl_c_while_the_job_is_handed_in_stops_it_too(api):
    handed_in = threading.Event()
    api.on("POST", JOBS, Reply({"request_id": JOB}, 202, before=handed_in))
    api.on("POST", f"{JOBS}/{JOB}/stop", {"success": True, "status": "error"})

    with _start(api, "run", "sleep 100") as process:
        api.wait_for(JOBS)
        process.send_signal(signal.SIGINT)
        handed_in.set()
        _, errors = process.communicate(timeout=20)

    assert process.returncode == 130
    assert f"job {JOB} is stopped" in errors.decode()
    assert api.asked() == [("POST", JOBS), ("POST", f"{JOBS}/{JOB}/stop")]


def test_a_reader_that_leaves_ends_it_quietly(api):
    lines = [line("x" * 1000)] * 1000
    api.on("GET", f"{JOBS}/web/logs", {"logs": lines})

    with _start(api, "logs", "web") as process:
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()

    assert process.returncode == 1
    assert errors == b""


def test_help_does_not_load_the_http_library():
    program = (
        "import sys; sys.argv = ['mags', '--help']\n"
        "from mags.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print('httpx' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert done.stdout.splitlines()[-1] == b"False"


def test_run_uploads_files_first(job, run, tmp_path):
    job.on("GET", f"{JOBS}/{JOB}/status", FINAL)
    job.on("POST", "/api/v1/mags-files", Reply({"file_id": "1"}, 201), Reply({"file_id": "2"}, 201))
    for name in ("a", "b"):
        (tmp_path / name).touch()

    assert run("run", "-f", str(tmp_path / "a"), "--file", str(tmp_path / "b"), "true")[0] == 0

    assert [path for _, path in job.asked()][:3] == ["/api/v1/mags-files"] * 2 + [JOBS]
    assert job.requests[2].body["file_ids"] == ["1", "2"]


def test_run_with_a_file_that_is_not_there(api, run, tmp_path):
    assert run("run", "-f", str(tmp_path / "nothing"), "true")[0] == 2
    assert api.requests == []


USED = {
    "window_days": 30,
    "total_jobs": 3,
    "completed_jobs": 1,
    "failed_jobs": 1,
    "running_jobs": 1,
    "vm_seconds": 3723.4,
    "storage_bytes": 1536,
    "by_day": [
        {"date": "2026-01-29", "jobs": 2, "vm_seconds": 3661.2},
        {"date": "2026-01-30", "jobs": 0, "vm_seconds": 0.0},
        {"date": "2026-01-31", "jobs": 1, "vm_seconds": 62.2},
    ],
}


def test_usage_for_people(api, run):
    api.on("GET", f"{JOBS}/usage", USED)

    assert run("usage", "--days", "30") == (
        0,
        (
            "jobs       3\n"
            "completed  1\n"
            "failed     1\n"
            "running    1\n"
            "vm time    1h02m03s\n"
            "storage    1.5 KiB\n"
            "DATE        JOBS  VM TIME\n"
            "2026-01-29  2     1h01m01s\n"
            "2026-01-31  1     1m02s\n"
        ),
        "",
    )
    assert api.requests[0].query == {"window_days": "30"}


def test_usage_for_programs(api, run):
    api.on("GET", f"{JOBS}/usage", USED)

    code, out, _ = run("usage", "--json")

    assert (code, json.loads(out)) == (0, USED)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0s"), (0.04, "0.0s"), (59.94, "59.9s"), (60, "1m00s"), (3599.6, "1h00m00s")],
)
def test_durations(seconds, shown):
    assert usage.duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 40, "5.0 TiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_sizes(count, shown):
    assert usage.size(count) == shown
