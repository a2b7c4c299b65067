"""A daemon whose jobs get sandboxes of a chosen engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from magsd.storage.kernel_package import install_kernel
from tests import census
from tests.e2e.pool_census import at_rest
from tests.e2e.server import REPOSITORY, Server, serving

ENGINES = ("gvisor", "qemu")


@contextmanager
def serving_on(engine: str, folder: Path, **settings: str) -> Iterator[Server]:
    """Serve a fresh data directory inside the block; nothing may be left of it in the end.

    No VM waits: jobs with workspaces start their own.
    """
    settings = {"MAGSD_ENGINE": engine, "MAGSD_POOL_MIN": "0", "MAGSD_POOL_MAX": "0", **settings}
    if engine == "qemu":
        settings["MAGSD_ACCELERATOR"] = "tcg"
        install_kernel(folder / "data", REPOSITORY / "build/kernel", lambda _: None)
    before = census.take(folder / "data")
    with serving(folder, **settings) as server:
        yield server
        at_rest(server)
    census.assert_same(before, folder / "data")
