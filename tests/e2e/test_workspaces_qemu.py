"""Workspaces of jobs in microVMs: what is asked of them on gVisor, and what only a kernel can."""

from collections.abc import Iterator

import pytest

from tests.e2e.engines import serving_on
from tests.e2e.server import Server
from tests.e2e.test_workspace_faults import (
    test_awkward_files_come_back as test_awkward,
)
from tests.e2e.test_workspace_faults import (
    test_what_a_layer_cannot_hold_is_left_out_and_the_rest_kept as test_hostile,
)
from tests.e2e.test_workspaces import test_a_fork_goes_its_own_way as test_fork
from tests.e2e.test_workspaces import (
    test_a_job_that_failed_keeps_its_changes_and_no_sync_none as test_failed,
)
from tests.e2e.test_workspaces import test_a_job_that_runs_is_synced as test_sync
from tests.e2e.test_workspaces import (
    test_what_a_job_changed_is_there_for_the_next as test_changes,
)

__all__ = [
    "test_awkward",
    "test_changes",
    "test_failed",
    "test_fork",
    "test_hostile",
    "test_sync",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all, which each test leaves running."""
    with serving_on("qemu", tmp_path_factory.mktemp("qemu")) as running:
        yield running


def test_what_only_a_kernel_keeps(server: Server) -> None:
    """Attributes of users, capabilities of programs, FIFOs."""
    made = server.run(
        "set -e; cd /root; mkfifo fifo; cp /bin/true can; echo x > has\n"
        "python3 -c '\n"
        "import os\n"
        'os.setxattr("has", "user.mine", b"a\\0b")\n'
        'os.setxattr("can", "security.capability", bytes.fromhex("0100000200200000" + "00" * 12))\n'
        "'",
        workspace_id="special",
    )
    assert made["status"] == "completed", made
    seen = server.run(
        "cd /root; test -p fifo && echo fifo\n"
        "python3 -c '\n"
        "import os\n"
        'print(os.getxattr("has", "user.mine"))\n'
        'print(os.getxattr("can", "security.capability").hex())\n'
        "'",
        workspace_id="special",
    )
    assert seen["stdout"] == ["fifo", "b'a\\x00b'", "0100000200200000" + "00" * 12]


def test_all_versions_go_on_from_one_template(server: Server) -> None:
    for number in range(3):
        done = server.run(f"echo {number} > /root/number", workspace_id="numbered")
        assert done["status"] == "completed", done
    # One of the image for jobs that change nothing kept, and a bare one for all others.
    made = list((server.data / "templates").glob("[!.]*/manifest.json"))
    assert len(made) <= 2
    assert "cold_boot" not in server.log.read_text()
