"""What a sandbox may reach: the outside, and nothing of this host."""

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.server import Server

pytestmark = pytest.mark.usefixtures("nothing_left")


class _Canary(http.server.ThreadingHTTPServer):
    """A server that counts whoever connects."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("0.0.0.0", 0), http.server.SimpleHTTPRequestHandler)
        self.connections = 0

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        self.connections += 1
        return super().get_request()


@pytest.fixture
def canary() -> Iterator[_Canary]:
    with _Canary() as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


def _own_addresses() -> list[str]:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        found = [dict(message["attrs"])["IFA_ADDRESS"] for message in route.get_addr(family=2)]
    return sorted(set(found))


def test_the_host_is_out_of_reach(server: Server, canary: _Canary) -> None:
    port = canary.server_address[1]
    targets = {*_own_addresses(), "10.0.2.2", "198.18.0.1", "169.254.169.254"}
    tries = "\n".join(
        f"curl -s -o /dev/null -m 2 http://{target}:{p}/ && echo reached {target}:{p}"
        for target in sorted(targets)
        for p in (port, server.port)
    )
    done = server.run(f"({tries})\necho done", within_s=120)
    assert done["stdout"] == ["done"]
    assert canary.connections == 0


def test_the_host_is_out_of_reach_by_name_and_by_ipv6(server: Server, canary: _Canary) -> None:
    port = canary.server_address[1]
    done = server.run(
        f"for h in localhost $(hostname) gateway; do curl -s -m 2 http://$h:{port}/ && echo $h; done;"
        f"curl -s -g -m 2 'http://[::1]:{port}/' && echo six; echo done"
    )
    assert done["stdout"] == ["done"]
    assert canary.connections == 0


def test_sandboxes_do_not_reach_each_other(server: Server) -> None:
    script = "ip -4 -o addr show 2>/dev/null | head -3; python3 -m http.server 8000 & sleep 600"
    first = server.submit(script)
    server.running(first)
    done = server.run(
        f"for a in 10.0.2.15 $(seq -f {server.slot_net}.%g 0 40); do"
        " curl -s -o /dev/null -m 0.5 http://$a:8000/ && echo reached $a; done; echo done",
        within_s=90,
    )
    assert done["stdout"] == ["done"]
    with server.http() as http:
        http.post(f"/mags-jobs/{first}/stop")
    server.final(first)
