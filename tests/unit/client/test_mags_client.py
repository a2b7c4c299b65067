"""`Mags`: what it sends, what it makes of answers, and how it waits."""

import threading

import pytest

from mags import Mags, MagsError
from tests.unit.client.local_api import Reply, events, line

JOB = "0b8a4b1e-6f1c-4f8e-9a39-0d5a0c3c4c11"


@pytest.fixture
def mags(api, monkeypatch):
    monkeypatch.setattr("mags.client._RECONNECT_FIRST_S", 0.0)
    with Mags("secret", api.url) as client:
        yield client


def test_a_script_alone_is_sent_as_published_clients_send_it(api, mags):
    api.on("POST", "/api/v1/mags-jobs", Reply({"request_id": JOB, "status": "accepted"}, 202))

    assert mags.run("echo hi") == {"request_id": JOB, "status": "accepted"}

    (request,) = api.requests
    assert request.body == {"script": "echo hi", "type": "inline", "persistent": False}
    assert request.headers["authorization"] == "Bearer secret"


def test_every_argument_has_its_field(api, mags):
    api.on("POST", "/api/v1/mags-jobs", Reply({"request_id": JOB}, 202))

    mags.run(
        "x",
        name="n",
        workspace_id="w",
        base_workspace_id="b",
        persistent=True,
        no_sleep=True,
        no_sync=True,
        startup_command="s",
        environment={"A": "1"},
        file_ids=["f"],
        disk_gb=3,
        rootfs_type="r",
        script_timeout=9,
        vcpus=2,
        memory_mb=256,
        engine="gvisor",
    )

    assert api.requests[0].body == {
        "script": "x",
        "type": "inline",
        "persistent": True,
        "name": "n",
        "workspace_id": "w",
        "base_workspace_id": "b",
        "no_sleep": True,
        "no_sync": True,
        "startup_command": "s",
        "environment": {"A": "1"},
        "file_ids": ["f"],
        "disk_gb": 3,
        "rootfs_type": "r",
        "timeout": 9,
        "vcpus": 2,
        "memory_mb": 256,
        "engine": "gvisor",
    }


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"ephemeral": True, "workspace_id": "w"}, "Cannot use ephemeral with workspace_id"),
        ({"ephemeral": True, "persistent": True}, "Cannot use ephemeral with persistent"),
        ({"no_sleep": True}, "no_sleep requires persistent=True"),
    ],
)
def test_what_contradicts_itself_is_refused_before_it_is_sent(api, mags, arguments, text):
    with pytest.raises(MagsError, match=text):
        mags.run("x", **arguments)
    assert api.requests == []


def test_a_submit_whose_connection_broke_is_repeated_with_the_same_key(api, mags):
    api.on("POST", "/api/v1/mags-jobs", Reply(is_dropped=True), Reply({"request_id": JOB}, 202))

    assert mags.run("x")["request_id"] == JOB

    first, second = api.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_a_stop_is_not_repeated(api, mags):
    api.on("POST", f"/api/v1/mags-jobs/{JOB}/stop", Reply(is_dropped=True))

    with pytest.raises(MagsError, match="cannot reach") as caught:
        mags.stop(JOB)

    assert len(api.requests) == 1
    assert caught.value.code == "unreachable"
    assert caught.value.status_code is None


def test_waiting_holds_the_request_until_the_job_is_over(api, mags):
    api.on(
        "GET",
        f"/api/v1/mags-jobs/{JOB}/status",
        {"status": "running", "generation": 4},
        {"status": "completed", "generation": 5, "exit_code": 0},
    )

    assert mags.wait(JOB)["status"] == "completed"

    assert [request.query for request in api.requests] == [{"wait": "25"}, {"wait": "25"}]


def test_a_server_without_generations_is_polled(api, mags):
    path = f"/api/v1/mags-jobs/{JOB}/status"
    api.on("GET", path, {"status": "running"}, {"status": "error", "exit_code": 3})

    assert mags.wait(JOB, poll_interval=0)["exit_code"] == 3
    assert len(api.requests) == 2


def test_waiting_has_an_end(api, mags):
    api.on("GET", f"/api/v1/mags-jobs/{JOB}/status", {"status": "running"})

    with pytest.raises(MagsError, match=f"Job {JOB} timed out after 0"):
        mags.wait(JOB, timeout=0)


def test_run_and_wait_returns_the_published_result(api, mags):
    final = {"status": "error", "exit_code": 7, "script_duration_ms": 12}
    api.on("POST", "/api/v1/mags-jobs", Reply({"request_id": JOB}, 202))
    api.on("GET", f"/api/v1/mags-jobs/{JOB}/status", final)
    api.on("GET", f"/api/v1/mags-jobs/{JOB}/logs", {"logs": [line("a")]})

    assert mags.run_and_wait("exit 7") == {
        "request_id": JOB,
        "status": "error",
        "exit_code": 7,
        "duration_ms": 12,
        "logs": [line("a")],
    }


def test_a_followed_log_ends_with_the_job(api, mags):
    api.on("GET", f"/api/v1/mags-jobs/{JOB}/logs", events(line("a"), line("b", "stderr")))

    assert list(mags.follow_logs(JOB)) == [line("a"), line("b", "stderr")]

    assert api.requests[0].headers["accept"] == "text/event-stream"


def test_a_broken_log_stream_goes_on_where_it_broke(api, mags):
    path = f"/api/v1/mags-jobs/{JOB}/logs"
    broken = events(line("a"), line("b"), ends=False)
    api.on("GET", path, broken, Reply(is_dropped=True), events(line("c")))

    messages = [entry["message"] for entry in mags.follow_logs(JOB)]

    assert messages == ["a", "b", "c"]
    assert [request.headers.get("last-event-id") for request in api.requests] == [None, "2", "2"]


def test_a_log_stream_that_never_comes_is_given_up(api, mags, monkeypatch):
    monkeypatch.setattr("mags.client._RECONNECTS_MAX", 3)
    api.on("GET", f"/api/v1/mags-jobs/{JOB}/logs", events(ends=False))

    with pytest.raises(MagsError, match="keeps ending"):
        list(mags.follow_logs(JOB))

    assert len(api.requests) == 4


def test_lines_of_a_log_are_not_split_at_unicode_separators(api, mags):
    message = "one\u2028two\x85three\u2029four"
    api.on("GET", f"/api/v1/mags-jobs/{JOB}/logs", events(line(message)))

    assert [entry["message"] for entry in mags.follow_logs(JOB)] == [message]


def test_a_refused_log_stream_is_not_tried_again(api, mags):
    with pytest.raises(MagsError, match="no GET") as caught:
        list(mags.follow_logs(JOB))

    assert caught.value.status_code == 404
    assert len(api.requests) == 1


def test_a_page_of_jobs_can_be_filtered(api, mags):
    page = {"jobs": [], "total": 0, "page": 2, "page_size": 5}
    api.on("GET", "/api/v1/mags-jobs", page)

    assert mags.list_jobs(page=2, page_size=5, status="running") == page

    assert api.requests[0].query == {"page": "2", "page_size": "5", "status": "running"}


def test_a_name_finds_the_live_job_first_then_the_workspace_then_the_newest(api, mags):
    def job(request_id, name, status, workspace="w"):
        return {"request_id": request_id, "name": name, "status": status, "workspace_id": workspace}

    jobs = [
        job("1", "web", "completed"),
        job("2", "web", "sleeping"),
        job("3", "other", "running", "web"),
        job("4", "old", "error", "ws"),
    ]
    api.on("GET", "/api/v1/mags-jobs", {"jobs": jobs})

    def found(name):
        return (mags.find_job(name) or {}).get("request_id")

    assert (found("web"), found("old"), found("ws")) == ("2", "4", "4")
    assert (found("3"), found("nobody")) == ("3", None)


def test_a_name_with_special_characters_stays_one_path_segment(api, mags):
    api.on("POST", "/api/v1/mags-jobs/a%20b..%3Fx/stop", {"success": True})

    assert mags.stop("a b..?x") == {"success": True}


@pytest.mark.parametrize("name", ["a/b", "..", "/"])
def test_a_name_that_no_path_can_carry_is_looked_up(api, mags, name):
    jobs = [{"request_id": JOB, "name": name, "status": "running"}]
    api.on("GET", "/api/v1/mags-jobs", {"jobs": jobs})
    api.on("GET", f"/api/v1/mags-jobs/{JOB}/status", {"status": "running"})

    assert mags.status(name) == {"status": "running"}


@pytest.mark.parametrize("name", ["", ".", "a/b"])
def test_a_name_that_nobody_has_is_no_job(api, mags, name):
    api.on("GET", "/api/v1/mags-jobs", {"jobs": []})

    with pytest.raises(MagsError, match="No job found") as caught:
        mags.status(name)

    assert caught.value.code == "not_found"


@pytest.mark.parametrize(
    ("reply", "text", "code"),
    [
        (Reply({"error": "use another", "code": "quota"}, 429), "use another", "quota"),
        (Reply({"message": "older servers"}, 400), "older servers", None),
        (Reply(raw=b"<h1>Bad Gateway</h1>", status=502), "answered 502: <h1>Bad Gateway", None),
        (Reply(raw=b"", status=503), "answered 503: Service Unavailable", None),
        (Reply(raw=b'["error"]', status=500), "answered 500", None),
    ],
)
def test_a_refusal_says_what_the_server_said(api, mags, reply, text, code):
    api.on("GET", f"/api/v1/mags-jobs/{JOB}/status", reply)

    with pytest.raises(MagsError, match=text) as caught:
        mags.status(JOB)

    assert caught.value.status_code == reply.status
    assert caught.value.code == code


@pytest.mark.parametrize("raw", [b"<html>a login page</html>", b"[1]"])
def test_an_answer_that_is_not_an_object_is_an_error(api, mags, raw):
    api.on("GET", "/api/v1/whoami", Reply(raw=raw))

    with pytest.raises(MagsError, match="not"):
        mags.whoami()


def test_a_slow_answer_is_an_error_that_says_so(api):
    api.on("GET", "/api/v1/whoami", Reply({}, before=threading.Event()))

    with (
        Mags("secret", api.url, timeout=0.05) as mags,
        pytest.raises(MagsError, match="did not answer in time") as caught,
    ):
        mags.whoami()

    assert caught.value.code == "unreachable"
    assert len(api.requests) == 1


def test_no_proxy_stands_before_a_server_on_this_machine(api, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    api.on("GET", "/api/v1/whoami", {"account": "default"})

    with Mags("secret", api.url) as mags:
        assert mags.whoami() == {"account": "default"}


def test_without_a_token_there_is_no_client():
    with pytest.raises(MagsError, match="API token required") as caught:
        Mags()
    assert caught.value.code == "unauthorized"


def test_files_are_uploaded_one_by_one(api, mags, tmp_path):
    api.on("POST", "/api/v1/mags-files", Reply({"file_id": "1"}, 201), Reply({"file_id": "2"}, 201))
    (tmp_path / "a.txt").write_bytes(b"content of a")
    (tmp_path / "b").write_bytes(b"")

    assert mags.upload_files([tmp_path / "a.txt", str(tmp_path / "b")]) == ["1", "2"]

    first, second = api.requests
    assert first.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b'name="file"; filename="a.txt"' in first.body
    assert b"\r\n\r\ncontent of a\r\n" in first.body
    assert b'filename="b"' in second.body


def test_a_file_that_cannot_be_read_or_is_refused(api, mags, tmp_path):
    with pytest.raises(MagsError, match=r"cannot read .*nothing"):
        mags.upload_file(tmp_path / "nothing")
    assert api.requests == []
    (tmp_path / "f").touch()
    api.on("POST", "/api/v1/mags-files", Reply({"error": "too large"}, 413), Reply({}, 201))
    with pytest.raises(MagsError, match="too large") as caught:
        mags.upload_file(tmp_path / "f")
    assert caught.value.status_code == 413
    with pytest.raises(MagsError, match="did not say"):
        mags.upload_file(tmp_path / "f")


def test_usage(api, mags):
    api.on("GET", "/api/v1/mags-jobs/usage", {"window_days": 7})

    assert mags.usage(window_days=7) == {"window_days": 7}

    assert api.requests[0].query == {"window_days": "7"}
