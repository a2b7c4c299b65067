"""Archives of workspaces over HTTP: imported, exported, refused. No VM is needed for that."""

import io
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.api_service import DEADLINE_S, ApiService

WORKSPACES = "/api/v1/mags-workspaces"
LIMIT_BYTES = 3 << 20


def tar(**files):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def files_of(content):
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {
            member.name.removeprefix("./"): archive.extractfile(member).read()
            for member in archive
            if member.isreg()
        }


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    directory = tmp_path_factory.mktemp("service") / "data"
    limits = {"import_bytes": LIMIT_BYTES, "import_entries": 20, "versions_kept": 2}
    with ApiService(directory, **limits).running() as service:
        yield service
    assert list((directory / "layers/.staging").iterdir()) == []


@pytest.fixture
def client(service):
    """An account of the test's own."""
    token = service.token(account=f"account-{time.monotonic_ns()}")
    with httpx.Client(
        base_url=service.url, headers=token.headers, trust_env=False, timeout=DEADLINE_S
    ) as client:
        yield client


@pytest.fixture
def other(service):
    token = service.token(account="another")
    with httpx.Client(
        base_url=service.url, headers=token.headers, trust_env=False, timeout=DEADLINE_S
    ) as client:
        yield client


def imported(client, name, content, **query):
    return client.post(f"{WORKSPACES}/{name}/import", content=content, params=query)


def refused(reply, status, code, said):
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    assert said in reply.json()["error"]


@pytest.mark.parametrize("form", ["tar", "oci"])
def test_what_was_imported_is_exported(client, form):
    files = {"a": b"content", "b": b"b"}
    made = imported(client, "in", tar(**files))
    assert made.status_code == 201, made.text
    assert (made.json()["version"], made.json()["image"]) == (1, "imported")
    out = client.get(f"{WORKSPACES}/in/export", params={"format": form, "version": 1})
    assert out.status_code == 200
    assert out.headers["content-type"] == "application/x-tar"
    suffix = "oci.tar" if form == "oci" else "tar"
    assert out.headers["content-disposition"] == f'attachment; filename="in-v1.{suffix}"'
    assert ("content-length" in out.headers) is (form == "oci")
    if form == "tar":
        assert files_of(out.content) == files
    again = imported(client, "again", out.content)
    assert again.json()["size_bytes"] == made.json()["size_bytes"]
    assert files_of(client.get(f"{WORKSPACES}/again/export?format=tar").content) == files


def test_what_is_there_is_not_replaced(client):
    assert imported(client, "one", tar(a=b"1")).status_code == 201
    refused(imported(client, "one", tar(a=b"2")), 409, "conflict", "another name")
    assert files_of(client.get(f"{WORKSPACES}/one/export?format=tar").content) == {"a": b"1"}
    job = client.post("/api/v1/mags-jobs", json={"script": "sleep 3000", "workspace_id": "busy"})
    assert job.status_code == 202
    refused(imported(client, "busy", tar(a=b"2")), 409, "conflict", "in use")
    client.post(f"/api/v1/mags-jobs/{job.json()['request_id']}/stop")


def test_of_many_who_import_one_name_one_is_served(client):
    contents = [tar(a=b"%d" % number) for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        replies = list(threads.map(lambda each: imported(client, "raced", each), contents))
    assert sorted(reply.status_code for reply in replies) == [201, 409, 409, 409]
    winner = next(number for number, reply in enumerate(replies) if reply.status_code == 201)
    out = client.get(f"{WORKSPACES}/raced/export?format=tar")
    assert files_of(out.content) == {"a": b"%d" % winner}


def test_accounts_have_names_of_their_own(client, other):
    assert imported(client, "mine", tar(a=b"mine")).status_code == 201
    refused(other.get(f"{WORKSPACES}/mine/export"), 404, "not_found", "no workspace")
    assert imported(other, "mine", tar(a=b"theirs")).status_code == 201
    assert files_of(client.get(f"{WORKSPACES}/mine/export?format=tar").content) == {"a": b"mine"}
    assert other.delete(f"{WORKSPACES}/mine").status_code == 200
    assert other.post("/api/v1/mags-gc", json={"keep": 1}).status_code == 200
    assert files_of(client.get(f"{WORKSPACES}/mine/export?format=tar").content) == {"a": b"mine"}


@pytest.mark.parametrize(
    ("content", "status", "code", "said"),
    [
        (b"", 400, "invalid", "ends early"),
        (b"x" * 2000, 400, "invalid", "checksum"),
        (tar(), 400, "invalid", "nothing in it"),
        (tar(**{"../x": b""}), 400, "invalid", "the entry '../x' is not a plain relative path"),
        (tar(a=b"x" * 100)[:560], 400, "invalid", "ends early"),
        (tar(a=bytes(LIMIT_BYTES)), 413, "too_large", "may be imported"),
        (tar(**{str(n): b"" for n in range(21)}), 413, "too_large", "entries become too many"),
    ],
)
def test_what_may_not_be_imported(client, content, status, code, said):
    refused(imported(client, "bad", content), status, code, said)
    assert client.get(WORKSPACES).json()["total"] == 0


def test_questions_that_cannot_be(client):
    refused(imported(client, "a b", tar(a=b"")), 400, "invalid", "workspace_id")
    refused(imported(client, "a", tar(a=b""), format="zip"), 400, "invalid", "format")
    refused(imported(client, "a", tar(a=b""), format="oci"), 400, "invalid", "holds no image")
    refused(client.get(f"{WORKSPACES}/a/export?format=zip"), 400, "invalid", "format")
    refused(client.get(f"{WORKSPACES}/a/export?version=0"), 400, "invalid", "version")
    refused(client.get(f"{WORKSPACES}/a/export"), 404, "not_found", "no workspace")
    assert imported(client, "a", tar(a=b"")).status_code == 201
    refused(client.get(f"{WORKSPACES}/a/export?version=2"), 404, "not_found", "no version 2")


def test_who_leaves_while_sending_leaves_nothing(client, service):
    def half():
        yield tar(a=b"x" * 100_000)[:50_000]
        raise KeyError("the sender's own")

    with pytest.raises(KeyError):
        imported(client, "half", half())
    staging = service.directory / "layers/.staging"
    _until(lambda: not list(staging.iterdir()))
    assert client.get(WORKSPACES).json()["total"] == 0


def test_what_nothing_needs_is_deleted_when_asked(client, service):
    made = imported(client, "old", tar(a=b"old" * 1000)).json()
    layer = made["size_bytes"]
    imported(client, "kept", tar(a=b"kept"))
    _stored(client, "old", "kept")
    nothing = {"versions_deleted": 0, "layers_deleted": 0, "freed_bytes": 0}
    assert client.post("/api/v1/mags-gc").json() == nothing
    for _ in range(2):
        assert client.post(f"{WORKSPACES}/old/restore", json={"version": 1}).status_code == 200
        _stored(client, "old")
    done = client.post("/api/v1/mags-gc", json={"keep": 1}).json()
    assert (done["versions_deleted"], done["layers_deleted"]) == (1, 0)
    assert client.delete(f"{WORKSPACES}/old").status_code == 200
    # Unless the service came first.
    assert client.post("/api/v1/mags-gc").json()["freed_bytes"] in (0, layer)
    assert files_of(client.get(f"{WORKSPACES}/kept/export?format=tar").content) == {"a": b"kept"}
    refused(client.post("/api/v1/mags-gc", json={"keep": 0}), 400, "invalid", "keep")
    refused(client.post("/api/v1/mags-gc", json={"kept": None}), 400, "invalid", "kept")


def _stored(client, *names):
    for name in names:
        _until(lambda name=name: _states(client, name) == {"live"})


def _states(client, name):
    found = client.get(f"{WORKSPACES}/{name}/versions").json()["versions"]
    return {each["state"] for each in found}


def test_an_account_moves_so_many_at_once(client, other, service):
    may_go_on = threading.Event()

    def held():
        content = tar(a=b"held")
        yield content[:512]
        assert may_go_on.wait(DEADLINE_S)
        yield content[512:]

    with ThreadPoolExecutor(4) as threads:
        replies = [threads.submit(imported, client, f"w{number}", held()) for number in range(4)]
        try:
            _until(lambda: sum(service.application.archives._moving.values()) == 4)
            refused(imported(client, "w", tar(a=b"")), 429, "quota", "4 archives")
            assert imported(other, "w", tar(a=b"")).status_code == 201
        finally:
            may_go_on.set()
        assert {reply.result().status_code for reply in replies} == {201}
    assert imported(client, "w", tar(a=b"")).status_code == 201


def _until(is_so):
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_with_a_full_disk_nothing_is_taken(tmp_path):
    full = ApiService(tmp_path / "data", disk_free_min_bytes=1 << 60)
    with full.running(), httpx.Client(trust_env=False, base_url=full.url) as client:
        client.headers.update(full.token().headers)
        reply = imported(client, "a", tar(a=b""))
        refused(reply, 503, "capacity", "free some space")
        assert int(reply.headers["retry-after"]) > 0
