"""The same service on PostgreSQL: what is asked of jobs, restarts and rows, over again.

What a test is about is said where it is written; here it meets another `service`.
"""

import pytest

from magsd.storage.images import ImageStore
from tests.integration.core.service import Service
from tests.integration.core.test_jobs import (
    test_a_job_stopped_during_its_launch_ends_without_having_begun as test_stop_in_launch,
)
from tests.integration.core.test_jobs import (
    test_a_script_runs_and_its_log_and_exit_code_are_kept as test_result,
)
from tests.integration.core.test_jobs import (
    test_another_account_sees_nothing as test_accounts,
)
from tests.integration.core.test_jobs import (
    test_many_jobs_at_once_all_complete as test_many_jobs,
)
from tests.integration.core.test_jobs import (
    test_stop_ends_the_script_and_is_asked_twice_without_harm as test_stop,
)
from tests.integration.core.test_jobs import test_the_same_key_gives_the_same_job as test_key
from tests.integration.core.test_restart import (
    test_a_claim_without_a_vm_gets_another_vm as test_lost_claim,
)
from tests.integration.core.test_restart import (
    test_a_job_goes_on_while_no_daemon_runs as test_restart,
)
from tests.integration.core.test_restart import (
    test_a_stop_that_was_asked_for_goes_on_after_a_restart as test_stop_and_restart,
)
from tests.integration.core.test_restart import (
    test_what_a_crash_kept_from_being_given_back_is_at_the_next_start as test_give_back,
)

__all__ = [
    "test_accounts",
    "test_give_back",
    "test_key",
    "test_lost_claim",
    "test_many_jobs",
    "test_restart",
    "test_result",
    "test_stop",
    "test_stop_and_restart",
    "test_stop_in_launch",
]


@pytest.fixture
async def service(tmp_path, postgres_url):
    layer = tmp_path / "layer.sqfs"
    layer.write_bytes(b"hsqs, and nothing of it is read")
    data = tmp_path / "data"
    ImageStore(data).add("standard", layer, {})
    service = Service(data)
    service.database_url = postgres_url
    await service.start()
    try:
        yield service
    finally:
        await service.stop()
        await service.engine.sweep(frozenset())
