"""One server for the tests that leave it standing, and a census around every test."""

from collections.abc import Iterator

import pytest

from tests import census
from tests.e2e.pool_census import assert_same, at_rest, full_census
from tests.e2e.server import Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that no test may kill."""
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the test's own, to be killed at will."""
    folder = tmp_path_factory.mktemp("own")
    before = census.take(folder / "data")
    with serving(folder) as running:
        yield running
        at_rest(running)
    census.assert_same(before, folder / "data")


@pytest.fixture
def nothing_left(server: Server) -> Iterator[None]:
    """Fail when the test leaves anything on the host that was not there before it."""
    before = full_census(server)
    yield
    assert_same(server, before)
