"""`mags workspace`: what it asks for, what it prints, and what is left of files."""

import hashlib
import io
import json
import sys

import pytest

from mags.cli import main as cli
from mags.cli import output
from tests.unit.client.local_api import Reply

WORKSPACES = "/api/v1/mags-workspaces"
TIME = "2026-01-31T12:00:00Z"
VERSION = {
    "version": 3,
    "state": "live",
    "parent": 2,
    "image": "standard",
    "layers": 2,
    "size_bytes": 1_234_567,
    "created_at": TIME,
}


@pytest.fixture
def run(api, monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("MAGS_API_URL", api.url)
    monkeypatch.setenv("MAGS_API_TOKEN", "secret")
    monkeypatch.chdir(tmp_path)

    def run(*words):
        """Return exit code, stdout and stderr of a command."""
        monkeypatch.setattr(sys, "argv", ["mags", "workspace", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capfd.readouterr()
        return caught.value.code or 0, printed.out, printed.err

    return run


def asked(api):
    request = api.requests[-1]
    return request.method, request.path, request.query, request.body


def test_list(api, run):
    entry = {"workspace_id": "web", "id": "ws_1", "version": 3, "size_bytes": 1_234_567}
    reply = {"workspaces": [entry | {"updated_at": TIME, "in_use_by": None}], "total": 1}
    api.on("GET", WORKSPACES, reply)
    code, printed, _ = run("list")
    assert (code, printed.splitlines()[1].split()) == (0, ["web", "3", "1.2", "MB", TIME])
    assert json.loads(run("list", "--json")[1]) == reply


def test_an_empty_list_says_how_there_comes_to_be_one(api, run):
    api.on("GET", WORKSPACES, {"workspaces": [], "total": 0})
    assert "mags workspace import" in run("list")[2]


def test_versions(api, run):
    reply = {"versions": [VERSION], "total": 1}
    api.on("GET", f"{WORKSPACES}/web/versions", reply)
    row = run("versions", "web")[1].splitlines()[1].split()
    assert row == ["3", "live", "1.2", "MB", "2", "standard", TIME]
    assert json.loads(run("versions", "web", "--json")[1]) == reply


CHANGES = [
    (("restore", "web", "1"), "POST", "/web/restore", {"version": 1}, "version 1 of web is"),
    (
        ("fork", "web", "new", "--version", "2"),
        "POST",
        "/web/fork",
        {"workspace_id": "new", "version": 2},
        "new begins as web",
    ),
    (("fork", "web", "n"), "POST", "/web/fork", {"workspace_id": "n", "version": None}, "n begins"),
    (("delete", "web"), "DELETE", "/web", None, "web is deleted"),
]


@pytest.mark.parametrize(("words", "method", "path", "body", "said"), CHANGES)
def test_changes(api, run, words, method, path, body, said):
    api.on(method, f"{WORKSPACES}{path}", VERSION)
    code, printed, errors = run(*words)
    assert (code, errors) == (0, "")
    assert said in printed
    assert asked(api) == (method, f"{WORKSPACES}{path}", {}, body)
    assert json.loads(run(*words, "--json")[1]) == VERSION


def test_gc(api, run):
    reply = {"versions_deleted": 4, "layers_deleted": 2, "freed_bytes": 5_000_000_000}
    api.on("POST", "/api/v1/mags-gc", reply)
    assert run("gc", "--keep", "1") == (0, "4 versions and 2 layers deleted: 5.0 GB\n", "")
    assert asked(api)[3] == {"keep": 1}
    assert json.loads(run("gc", "--json")[1]) == reply


def test_export_writes_a_file(api, run, tmp_path):
    api.on("GET", f"{WORKSPACES}/web/export", Reply(raw=b"archive"))
    code, printed, errors = run("export", "web", "--version", "2")
    assert (code, printed) == (0, "web.oci.tar\n")
    assert errors == "mags: 7 B; `podman load -i web.oci.tar` takes it\n"
    assert asked(api)[2] == {"format": "oci", "version": "2"}
    assert (tmp_path / "web.oci.tar").read_bytes() == b"archive"
    told = json.loads(run("export", "web", "--format", "tar", "-o", "x", "--json")[1])
    sha256 = hashlib.sha256(b"archive").hexdigest()
    assert told == {"file": "x", "size_bytes": 7, "sha256": sha256}


def test_export_to_standard_output(api, run):
    api.on("GET", f"{WORKSPACES}/web/export", Reply(raw=b"archive"))
    assert run("export", "web", "-o", "-") == (0, "archive", "")


def test_export_replaces_a_file_only_when_told(api, run, tmp_path):
    api.on("GET", f"{WORKSPACES}/web/export", Reply(raw=b"new"))
    (tmp_path / "there").write_text("old")
    code, _, errors = run("export", "web", "-o", "there")
    assert code == 1
    assert "--force" in errors
    assert api.requests == []
    assert run("export", "web", "-o", "there", "--force")[0] == 0
    assert (tmp_path / "there").read_text() == "new"


@pytest.mark.parametrize(
    ("reply", "code", "said"),
    [
        (Reply({"error": "there is no workspace 'web'"}, 404), 4, "no workspace"),
        (Reply(raw=b"half", missing_bytes=4), 5, "ended the answer early"),
        (Reply(is_dropped=True), 5, "ended the answer early"),
    ],
)
def test_an_export_that_fails_leaves_no_file(api, run, tmp_path, reply, code, said):
    api.on("GET", f"{WORKSPACES}/web/export", reply)
    found, _, errors = run("export", "web", "-o", "x")
    assert found == code
    assert said in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_cannot_be_written(api, run):
    code, _, errors = run("export", "web", "-o", "no/folder/x")
    assert (code, errors) == (
        1,
        "mags: no/folder/x.part cannot be written: No such file or directory\n",
    )


def test_import_sends_a_file(api, run, tmp_path):
    api.on("POST", f"{WORKSPACES}/web/import", Reply(VERSION, 201))
    content = bytes(range(256)) * 4000
    (tmp_path / "archive").write_bytes(content)
    code, printed, errors = run("import", "web", "archive", "--format", "tar")
    assert (code, printed, errors) == (0, "web is there: 1.2 MB, version 3\n", "")
    assert asked(api) == ("POST", f"{WORKSPACES}/web/import", {"format": "tar"}, content)
    assert api.requests[0].headers["content-length"] == str(len(content))
    assert json.loads(run("import", "web", "archive", "--json")[1]) == VERSION


def test_import_from_standard_input(api, run, monkeypatch):
    api.on("POST", f"{WORKSPACES}/web/import", Reply(VERSION, 201))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"archive")))
    assert run("import", "web", "-")[0] == 0
    assert asked(api)[2:] == ({"format": "auto"}, b"archive")


def test_a_refused_import_is_one_line(api, run, tmp_path):
    (tmp_path / "archive").write_bytes(b"x")
    api.on("POST", f"{WORKSPACES}/web/import", Reply({"error": "'dev/sda' is a device"}, 400))
    assert run("import", "web", "archive") == (1, "", "mags: 'dev/sda' is a device\n")


def test_import_of_a_file_that_is_not_there(api, run):
    code, _, errors = run("import", "web", "nothing")
    assert (code, errors) == (1, "mags: nothing cannot be read: No such file or directory\n")


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_a_name_that_no_path_can_carry(api, run, name):
    assert run("versions", name)[0] == 4
    assert api.requests == []


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (10**16, "10000.0 TB")],
)
def test_sizes_for_eyes(size, shown):
    assert output.size(size) == shown
