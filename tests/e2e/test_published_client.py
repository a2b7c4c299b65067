"""The client that its users already have: `magpie-mags` from the package index, unchanged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import published
from tests.e2e.server import Server, eventually

pytestmark = pytest.mark.network


@pytest.fixture(scope="session")
def python() -> Path:
    return published.interpreter()


@pytest.fixture
def client(server: Server, python: Path) -> Callable[[str], Any]:
    """Run Python code with the published client as `mags`; return what it gave to `show`."""
    return lambda code: published.call(python, server, code)


def test_a_script_runs_and_its_result_comes_back(client):
    result = client(
        "show(mags.run_and_wait('echo $GREETING; echo oops >&2; exit 7',"
        " environment={'GREETING': 'hello'}, poll_interval=0.1))"
    )

    assert result["status"] == "error"
    assert result["exit_code"] == 7
    assert result["duration_ms"] >= 0
    lines = {(entry["source"], entry["message"]) for entry in result["logs"]}
    assert {("stdout", "hello"), ("stderr", "oops")} <= lines


def test_a_script_that_succeeds_completes(client):
    result = client("show(mags.run_and_wait('true', ephemeral=True, poll_interval=0.1))")

    assert (result["status"], result["exit_code"]) == ("completed", 0)


def test_logs_can_be_read_again(client):
    first, second = client(
        "done = mags.run_and_wait('seq 3', poll_interval=0.1)\n"
        "show([done['logs'], mags.logs(done['request_id'])['logs']])"
    )

    assert [entry["message"] for entry in second if entry["source"] == "stdout"] == ["1", "2", "3"]
    assert first == second


def test_a_job_is_in_the_list_with_its_name(client):
    page = client(
        "mags.run_and_wait('true', name='listed by name', poll_interval=0.1)\n"
        "show([mags.list_jobs(page_size=100), mags.find_job('listed by name')])"
    )

    listed, found = page
    assert found in listed["jobs"]
    assert found["status"] == "completed"
    assert listed["page"] == 1
    assert listed["total"] >= 1


def test_a_command_wakes_a_job_that_sleeps(client, server):
    job = server.submit("sleep infinity", name="dozing", persistent=True, idle_timeout=10)
    eventually(lambda: server.status(job)["sleeping"], 60)
    done, status = client("show([mags.exec('dozing', 'echo here'), mags.status('dozing')])")

    assert (done["exit_code"], done["output"]) == (0, "here\n")
    assert (status["status"], status["sleeping"]) == ("running", False)
    client("show(mags.stop('dozing'))")


def test_a_job_is_stopped_by_its_name(client):
    stopped, status = client(
        "import time\n"
        "job = mags.run('sleep 1000', name='to be stopped')['request_id']\n"
        "deadline = time.monotonic() + 30\n"
        "while mags.status(job)['status'] != 'running' and time.monotonic() < deadline:\n"
        "    time.sleep(0.05)\n"
        "show([mags.stop('to be stopped'), mags.status(job)])"
    )

    assert stopped["success"] is True
    assert (status["status"], status["exit_code"]) == ("error", 143)


def test_refusals_carry_a_text_and_a_status(client):
    refusals = client(
        "def refused(call):\n"
        "    try:\n"
        "        call()\n"
        "    except MagsError as error:\n"
        "        return [error.status_code, str(error)]\n"
        "unknown = '00000000-0000-4000-8000-000000000000'\n"
        "stranger = Mags(api_token='nobody', api_url=sys.argv[2])\n"
        "show([refused(lambda: mags.status(unknown)), refused(lambda: mags.run('  ')),\n"
        "      refused(lambda: stranger.list_jobs())])"
    )

    assert [status for status, _ in refusals] == [404, 400, 401]
    assert all(text and not text.startswith("{") for _, text in refusals)


def test_files_are_uploaded_and_found(client, tmp_path):
    for name in ("one.txt", "two words.txt"):
        (tmp_path / name).write_text(f"this is {name}\n")
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    ids, result = client(
        f"ids = mags.upload_files({paths})\n"
        "done = mags.run_and_wait('cat /uploads/one.txt \"/root/two words.txt\"',"
        " file_ids=ids, poll_interval=0.1)\n"
        "show([ids, done])"
    )

    assert len(set(ids)) == 2
    assert result["exit_code"] == 0
    lines = [entry["message"] for entry in result["logs"] if entry["source"] == "stdout"]
    assert lines == ["this is one.txt", "this is two words.txt"]


def test_usage_is_shown(client):
    before, after = client(
        "before = mags.usage()\n"
        "mags.run_and_wait('sleep 0.2', poll_interval=0.1)\n"
        "show([before, mags.usage(window_days=7)])"
    )

    assert (before["window_days"], len(before["by_day"])) == (30, 30)
    assert (after["window_days"], len(after["by_day"])) == (7, 7)
    assert after["total_jobs"] == before["total_jobs"] + 1
    assert after["completed_jobs"] == before["completed_jobs"] + 1
    assert after["vm_seconds"] > before["vm_seconds"]


def test_a_sandbox_is_made_used_changed_resized_and_stopped(client):
    new, done, failed, updated, resized, kept, stopped, status = client(
        "new = mags.new('a-sandbox', persistent=True, poll_interval=0.1)\n"
        "done = mags.exec('a-sandbox', 'echo $HOME; echo kept > /root/file')\n"
        "failed = mags.exec('a-sandbox', 'echo oops >&2; exit 7', timeout=5)\n"
        "updated = mags.update_job(new['request_id'], no_sleep=True)\n"
        "resized = mags.resize('a-sandbox', 3, poll_interval=0.1)\n"
        "kept = mags.exec('a-sandbox', 'cat /root/file; df --output=size -BG / | tail -1')\n"
        "stopped = mags.stop('a-sandbox')\n"
        "status = mags.status(resized['request_id'])\n"
        "show([new, done, failed, updated, resized, kept, stopped, status])"
    )

    assert new["status"] == resized["status"] == "running"
    assert new["request_id"] != resized["request_id"]
    assert done == {"exit_code": 0, "output": "/root\n", "stderr": ""}
    assert failed == {"exit_code": 7, "output": "", "stderr": "oops\n"}
    assert updated == {"success": True, "message": "Job updated"}
    name, size = kept["output"].split()
    assert (name, size) == ("kept", "3G")
    assert stopped["success"] is True
    assert (status["status"], status["persistent"]) == ("completed", True)


def test_a_sandbox_without_a_name_in_the_store_is_gone_when_it_is_stopped(client):
    stopped, again = client(
        "mags.new('passing-by', poll_interval=0.1)\n"
        "mags.exec('passing-by', 'echo gone > /root/file')\n"
        "stopped = mags.stop('passing-by')\n"
        "mags.new('passing-by', poll_interval=0.1)\n"
        "again = mags.exec('passing-by', 'cat /root/file')\n"
        "mags.stop('passing-by')\n"
        "show([stopped, again])"
    )

    assert stopped["status"] == "completed"
    assert again["exit_code"] == 1


def test_a_base_workspace_is_made_forked_listed_and_deleted(client):
    told = client(
        "def run(script, **fields):\n"
        "    done = mags.run_and_wait(script, poll_interval=0.1, **fields)\n"
        "    lines = [e['message'] for e in done['logs'] if e['source'] == 'stdout']\n"
        "    return [done['status'], lines]\n"
        "def names():\n"
        "    return sorted(w['workspace_id'] for w in mags.list_workspaces()['workspaces'])\n"
        "before = names()\n"
        "made = run('echo base > /root/base', workspace_id='published-base')\n"
        "fork = {'workspace_id': 'published-fork', 'base_workspace_id': 'published-base'}\n"
        "forked = run('cat /root/base; echo fork > /root/base', **fork)\n"
        "read = [run('cat /root/base', workspace_id='published-fork'),\n"
        "        run('cat /root/base', base_workspace_id='published-base')]\n"
        "listed = [name for name in names() if name not in before]\n"
        "deleted = [mags.delete_workspace(name)['success'] for name in listed]\n"
        "show([made, forked, read, listed, deleted, names() == before])"
    )

    made, forked, read, listed, deleted, is_as_before = told
    assert made == ["completed", []]
    assert forked == ["completed", ["base"]]
    assert read == [["completed", ["fork"]], ["completed", ["base"]]]
    assert listed == ["published-base", "published-fork"]
    assert deleted == [True, True]
    assert is_as_before


def test_a_job_that_runs_is_synced(client):
    synced, status, lines = client(
        "import time\n"
        "job = mags.run('echo synced > /root/a; echo done; sleep 1000', workspace_id='synced')\n"
        "job = job['request_id']\n"
        "deadline = time.monotonic() + 30\n"
        "def printed():\n"
        "    return any(e['message'] == 'done' for e in mags.logs(job)['logs'])\n"
        "while not printed() and time.monotonic() < deadline:\n"
        "    time.sleep(0.05)\n"
        "synced = mags.sync(job)['success']\n"
        "mags.stop(job)\n"
        "done = mags.run_and_wait('cat /root/a', workspace_id='synced', poll_interval=0.1)\n"
        "mags.delete_workspace('synced')\n"
        "lines = [e['message'] for e in done['logs'] if e['source'] == 'stdout']\n"
        "show([synced, done['status'], lines])"
    )

    assert (synced, status, lines) == (True, "completed", ["synced"])
