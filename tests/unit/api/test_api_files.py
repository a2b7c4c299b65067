"""Uploads over the API, and jobs that have them."""

import pytest

from magsd.api.file_schemas import UploadReply
from magsd.core import files as core_files
from magsd.model import uploads
from magsd.storage import uploads as storage_uploads

FILES = "/api/v1/mags-files"
JOBS = "/api/v1/mags-jobs"


async def uploaded(client, name="data.txt", content=b"content\n"):
    reply = await client.post(FILES, files={"file": (name, content, "text/plain")})
    assert reply.status_code == 201, reply.text
    return UploadReply.model_validate(reply.json())


async def submitted(client, script, *file_ids, **fields):
    body = {"script": script, "file_ids": list(file_ids), **fields}
    return await client.post(JOBS, json=body)


async def printed(client, admin, reply):
    assert reply.status_code == 202, reply.text
    request_id = reply.json()["request_id"]
    status = await admin.until(request_id)
    logs = (await client.get(f"{JOBS}/{request_id}/logs")).json()["logs"]
    return status, [line["message"] for line in logs if line["source"] == "stdout"]


def in_tmp(application):
    return list((application.settings.data_directory / "tmp").glob("*"))


async def test_a_file_comes_to_a_script(client, admin, application):
    file = await uploaded(client, "../x/dä ta.txt")
    assert (file.file_name, file.size) == ("dä ta.txt", 8)
    other = await uploaded(client, "other", b"")
    script = 'cat "/root/dä ta.txt"; cat "/uploads/dä ta.txt"; test -f /root/other'
    for _ in range(2):
        reply = await submitted(client, script, file.file_id, other.file_id)
        status, lines = await printed(client, admin, reply)
        assert (status.exit_code, lines) == (0, ["content"] * 2)
    assert in_tmp(application) == []


async def test_what_is_not_the_callers_does_not_exist(client, app, admin, stranger):
    theirs = await uploaded(client)
    for file_id in (theirs.file_id, "file_0", "", "x" * 10_000):
        reply = await client.post(
            JOBS,
            json={"script": "true", "file_ids": [file_id]},
            headers=stranger.headers,
        )
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
    assert await stranger.jobs() == ()


@pytest.mark.parametrize(
    ("file_ids", "status", "why"),
    [
        ("x", 400, "file_ids"),
        ([1], 400, "file_ids"),
        (["a"] * 65, 400, "longer"),
        (["a\0"], 400, "NUL"),
    ],
)
async def test_what_are_no_file_ids(client, file_ids, status, why):
    reply = await client.post(JOBS, json={"script": "true", "file_ids": file_ids})
    assert reply.status_code == status
    assert why in reply.json()["error"]


async def test_two_files_of_one_name_are_refused(client, admin):
    first, second = await uploaded(client), await uploaded(client)
    for ids in ((first.file_id, second.file_id), (first.file_id, first.file_id)):
        reply = await submitted(client, "true", *ids)
        assert reply.status_code == 400
        assert "'data.txt'" in reply.json()["error"]
    assert await admin.jobs() == ()


async def test_a_file_that_is_too_large_is_refused_when_it_is_known(
    client, application, monkeypatch
):
    monkeypatch.setattr(storage_uploads, "UPLOAD_MAX_BYTES", 1000)
    assert (await uploaded(client, content=b"x" * 1000)).size == 1000
    sent = 0

    async def body():
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(100):
            sent += 1
            yield b"y" * 100

    type_ = {"Content-Type": "multipart/form-data; boundary=b"}
    reply = await client.post(FILES, content=body(), headers=type_)
    assert (reply.status_code, reply.json()["code"]) == (413, "too_large")
    assert in_tmp(application) == []


async def test_a_declared_size_is_refused_before_anything_comes(client):
    headers = {
        "Content-Type": "multipart/form-data; boundary=b",
        "Content-Length": str(uploads.UPLOAD_MAX_BYTES + (65 << 10)),
    }
    reply = await client.post(FILES, content=b"", headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("content", "headers"),
    [(b"{}", {"Content-Type": "application/json"}), (b"", {}),
     (b"--b--", {"Content-Type": "multipart/form-data; boundary=b"})],
)  # fmt: skip
async def test_what_is_no_form(client, application, content, headers):
    reply = await client.post(FILES, content=content, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid")
    assert in_tmp(application) == []


async def test_a_quota_of_uploads(client, admin, application):
    account = admin.principal.account
    from magsd.core.accounts import Accounts

    database = application._node.database
    await uploaded(client, content=b"x" * (600 << 10))
    await Accounts(database).change_quota(account, {"files_mb_max": 1})
    await application._node.quotas.load(database)
    reply = await client.post(FILES, files={"file": ("f", b"x" * (600 << 10))})
    assert (reply.status_code, reply.json()["code"]) == (429, "quota")
    assert "files_mb_max" in reply.json()["error"]
    await uploaded(client, content=b"x" * (400 << 10))


async def test_uploads_at_once_are_limited(client, admin, monkeypatch):
    monkeypatch.setattr(core_files, "_AT_ONCE_OF_ACCOUNT", 0)
    reply = await client.post(FILES, files={"file": ("f", b"x")})
    assert (reply.status_code, reply.json()["code"]) == (429, "quota")
    monkeypatch.undo()
    monkeypatch.setattr(core_files, "_AT_ONCE", 0)
    reply = await client.post(FILES, files={"file": ("f", b"x")})
    assert (reply.status_code, reply.json()["code"]) == (503, "capacity")


async def test_the_same_submit_with_other_files_is_another(client, admin):
    first, second = await uploaded(client, "a"), await uploaded(client, "b")
    headers = {"Idempotency-Key": "files"}
    for file, status in ((first, 202), (first, 202), (second, 409)):
        body = {"script": "true", "file_ids": [file.file_id]}
        reply = await client.post(JOBS, json=body, headers=headers)
        assert reply.status_code == status
    # What other tests see of this service is to be theirs.
    for job in await admin.jobs():
        await admin.until(job.request_id)
