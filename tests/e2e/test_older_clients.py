"""Published clients of before, which somebody still has: unchanged, against this server."""

from pathlib import Path

import pytest

from tests.e2e import published
from tests.e2e.server import Server, eventually
from tests.e2e.test_access import visit

pytestmark = pytest.mark.network

VERSIONS = ("1.0.0", "1.2.0", "1.3.5")
WITH_SANDBOXES = ("1.2.0", "1.3.5")


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_scripts_files_and_lists(server: Server, version: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("b\na\n")
    done, listed, used, refused = published.call(
        published.interpreter(version),
        server,
        f"ids = mags.upload_files([{str(tmp_path / 'names.txt')!r}])\n"
        "done = mags.run_and_wait('sort /uploads/names.txt; echo $A; exit 5', file_ids=ids,"
        " environment={'A': 'of it'}, poll_interval=0.1)\n"
        "try:\n"
        "    mags.status('00000000-0000-4000-8000-000000000000')\n"
        "except MagsError as error:\n"
        "    refused = str(error)\n"
        "show([done, mags.list_jobs(page_size=5), mags.usage(), refused])",
    )
    assert (done["status"], done["exit_code"]) == ("error", 5)
    lines = [entry["message"] for entry in done["logs"] if entry["source"] == "stdout"]
    assert lines == ["a", "b", "of it"]
    assert listed["page_size"] == 5
    assert used["total_jobs"] >= 1
    assert "no job" in refused


def test_a_url_is_opened(server: Server, version: str) -> None:
    access = published.call(
        published.interpreter(version),
        server,
        "import time\n"
        "serve = 'echo old > index.html; exec python3 -m http.server 3000'\n"
        "job = mags.run(serve, persistent=True, name='served')['request_id']\n"
        "while mags.status(job)['status'] != 'running': time.sleep(0.1)\n"
        "show([job, mags.enable_access(job, port=3000)])",
    )
    job, opened = access
    assert opened["success"] is True
    url = server.status(job)["url"]
    eventually(lambda: visit(url).text == "old\n", what="the page is there")
    with server.http() as http:
        http.post(f"/mags-jobs/{job}/stop")
    server.final(job)


@pytest.mark.parametrize("version", WITH_SANDBOXES)
def test_commands_run_by_ssh(server: Server, version: str) -> None:
    done, failed, stopped = published.call(
        published.interpreter(version),
        server,
        "mags.new('by-ssh', poll_interval=0.1)\n"
        "done = mags.exec('by-ssh', 'echo \"it is\" $HOME; pwd')\n"
        "failed = mags.exec('by-ssh', 'exit 7')\n"
        "show([done, failed, mags.stop('by-ssh')])",
    )
    assert (done["exit_code"], done["output"]) == (0, "it is /root\n/root\n")
    assert failed["exit_code"] == 7
    assert stopped["success"] is True
