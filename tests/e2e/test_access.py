"""Ways into sandboxes, from outside: a URL, who may open one, and what becomes of it."""

import os
import signal
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.server import MAGS, Server, eventually
from tests.integration.test_edges import edges_of, status_of

SERVE = "echo hello from inside > index.html; exec python3 -m http.server -b 127.0.0.1 3000"


@pytest.fixture
def job(server: Server):
    """A persistent job that serves files at port 3000."""
    job = server.submit(SERVE, persistent=True, name="web")
    server.running(job)
    yield job
    with server.http() as http:
        http.post(f"/mags-jobs/{job}/stop")
    server.final(job)


def published(server: Server, job: str, port: int = 3000) -> dict:
    with server.http() as http:
        reply = http.post(f"/mags-jobs/{job}/access", json={"port": port})
    assert reply.status_code == 200, reply.text
    return reply.json()


def visit(url: str) -> httpx.Response:
    """Ask for what a browser would, without a resolver that knows the name."""
    where = urlsplit(url)
    headers = {"Host": where.netloc}
    return httpx.get(f"http://127.0.0.1:{where.port}/", headers=headers, timeout=30)


def test_a_url_leads_inside(server: Server, job: str) -> None:
    url = server.status(job)["url"]
    assert visit(url).status_code == 404
    opened = published(server, job)
    assert opened["url"] == url
    # The script may need a moment until its server listens.
    eventually(lambda: visit(url).status_code == 200, what="the page is there")
    assert visit(url).text == "hello from inside\n"
    with server.http() as http:
        http.post(f"/mags-jobs/{job}/stop")
    server.final(job)
    assert visit(url).status_code == 404


def test_the_command_says_where(server: Server, job: str) -> None:
    environment = {**os.environ, "MAGS_API_URL": server.url, "MAGS_API_TOKEN": server.token}
    done = subprocess.run(
        [MAGS, "url", "web", "3000"], env=environment, capture_output=True, text=True, check=True
    )
    url = done.stdout.strip()
    assert url == server.status(job)["url"]
    eventually(lambda: visit(url).status_code == 200, what="the page is there")


def test_an_alias_follows_its_workspace(server: Server) -> None:
    with server.http() as http:
        body = {"subdomain": "stays", "workspace_id": "aliased", "port": 3000}
        url = http.post("/mags-url-aliases", json=body).json()["url"]
        assert visit(url).status_code == 404
        for text in ("first", "second"):
            job = server.submit(
                SERVE.replace("hello from inside", text), persistent=True, workspace_id="aliased"
            )
            server.running(job)
            eventually(lambda: visit(url).status_code == 200, what="the page is there")
            assert visit(url).text == f"{text}\n"
            http.post(f"/mags-jobs/{job}/stop")
            server.final(job)
        assert visit(url).status_code == 404
        assert http.delete("/mags-url-aliases/stays").status_code == 200


def test_what_is_anothers_cannot_be_opened(server: Server, job: str) -> None:
    with server.http() as http:
        made = http.post("/tokens", json={"name": "theirs", "account": "theirs"}).json()
    with server.http(made["token"]) as http:
        for port in (22, 3000):
            reply = http.post(f"/mags-jobs/{job}/access", json={"port": port})
            assert reply.status_code == 404
        alias = {"subdomain": "theirs", "workspace_id": "web"}
        url = http.post("/mags-url-aliases", json=alias).json()["url"]
        assert visit(url).status_code == 404
        assert http.delete("/mags-url-aliases/theirs").status_code == 200
    assert visit(server.status(job)["url"]).status_code == 404


def test_an_edge_that_dies_is_back_soon(server: Server, job: str) -> None:
    url = published(server, job)["url"]
    eventually(lambda: visit(url).status_code == 200, what="the page is there")
    (edge,) = edges_of(server.process.pid)
    os.kill(edge, signal.SIGKILL)
    # It listens still: the node has the socket too, and who comes meanwhile waits.
    assert visit(url).text == "hello from inside\n"
    (again,) = edges_of(server.process.pid)
    assert again != edge
    assert server.status(job)["status"] == "running"


def test_no_edge_outlives_its_node(own_server: Server) -> None:
    job = own_server.submit(SERVE, persistent=True)
    own_server.running(job)
    url = published(own_server, job)["url"]
    eventually(lambda: visit(url).status_code == 200, what="the page is there")
    (edge,) = edges_of(own_server.process.pid)
    assert int(status_of(edge)["CapEff"], 16) == 0
    own_server.kill()
    eventually(lambda: not Path(f"/proc/{edge}").exists(), what="the edge is gone")
    own_server.start()
    # What was granted is granted still; the port is another one, since any was asked for.
    url = own_server.status(job)["url"]
    eventually(lambda: visit(url).status_code == 200, what="the page is there")
    with own_server.http() as http:
        http.post(f"/mags-jobs/{job}/stop")
    own_server.final(job)
