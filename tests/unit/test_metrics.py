"""What the daemon measures, as Prometheus reads it."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from magsd.aio import SystemClock
from magsd.core.loop_watch import watch_loop
from magsd.metrics import Metrics

HOW_TO = Path(__file__).parents[2] / "docs/how-to/monitor.md"


@pytest.fixture
def metrics():
    return Metrics()


def read(metrics):
    """Return the value of every sample by name and labels."""
    text, _ = metrics.exposition()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_events_are_counted_by_their_labels(metrics):
    metrics.job_submitted("gvisor")
    metrics.job_ended("gvisor", None)
    metrics.job_ended("gvisor", "timeout")
    metrics.job_ended("gvisor", "timeout")
    metrics.pool_asked("gvisor", is_hit=True)
    metrics.pool_asked("gvisor", is_hit=False)
    metrics.refused("quota")
    metrics.launch_failed("gvisor", "launch_failed")
    metrics.give_back_failed()
    metrics.archived(True)
    metrics.archived(False)
    found = read(metrics)
    assert found["mags_jobs_submitted_total", "gvisor"] == 1
    assert found["mags_jobs_ended_total", "completed", "gvisor"] == 1
    assert found["mags_jobs_ended_total", "gvisor", "timeout"] == 2
    assert found["mags_pool_requests_total", "gvisor", "hit"] == 1
    assert found["mags_pool_requests_total", "gvisor", "miss"] == 1
    assert found["mags_refusals_total", "quota"] == 1
    assert found["mags_launch_failures_total", "gvisor", "launch_failed"] == 1
    assert found["mags_give_back_failures_total",] == 1
    assert found["mags_logs_archived_total", "ok"] == 1
    assert found["mags_logs_archived_total", "failed"] == 1


def test_times_fall_into_buckets_and_sum_up(metrics):
    metrics.claimed("gvisor", 0.004)
    metrics.claimed("gvisor", 3)
    metrics.launched("gvisor", 0.2)
    metrics.pooled("gvisor", 0.2)
    metrics.committed(0.003, writes=5)
    metrics.loop_lag(0.0001)
    found = read(metrics)
    assert found["mags_claim_seconds_bucket", "0.003", "gvisor"] == 0
    assert found["mags_claim_seconds_bucket", "0.005", "gvisor"] == 1
    assert found["mags_claim_seconds_bucket", "1.0", "gvisor"] == 1
    assert found["mags_claim_seconds_count", "gvisor"] == 2
    assert found["mags_claim_seconds_sum", "gvisor"] == pytest.approx(3.004)
    assert found["mags_launch_seconds_count", "gvisor"] == 1
    assert found["mags_pool_fill_seconds_count", "gvisor"] == 1
    assert found["mags_database_commit_seconds_count",] == 1
    assert found["mags_database_writes_total",] == 5
    assert found["mags_event_loop_lag_seconds_bucket", "0.0005"] == 1


def test_states_are_read_at_each_scrape(metrics):
    queue, vms, reason = [1], {("gvisor", "busy"): 2, ("gvisor", "idle"): 1}, ["no image"]
    metrics.watch_queue(lambda: queue[0])
    metrics.watch_vms(lambda: vms)
    metrics.watch_readiness(lambda: reason[0])
    first = read(metrics)
    queue[0], reason[0] = 0, None
    del vms["gvisor", "idle"]
    second = read(metrics)
    assert (first["mags_queued_jobs",], second["mags_queued_jobs",]) == (1, 0)
    assert (first["mags_ready",], second["mags_ready",]) == (0, 1)
    assert first["mags_vms", "gvisor", "idle"] == 1
    assert ("mags_vms", "gvisor", "idle") not in second


def test_a_leak_that_is_gone_is_zero(metrics):
    metrics.leaked("control group", 2)
    assert read(metrics)["mags_leaked", "control group"] == 2
    metrics.leaked("control group", 0)
    assert read(metrics)["mags_leaked", "control group"] == 0


def test_two_in_one_process_do_not_disturb_each_other(metrics):
    other = Metrics()
    metrics.give_back_failed()
    assert read(other)["mags_give_back_failures_total",] == 0


def test_the_process_is_measured_too_and_series_have_no_birthdays(metrics):
    metrics.job_submitted("gvisor")
    names = {name for name, *_ in read(metrics)}
    assert "process_resident_memory_bytes" in names
    assert not [name for name in names if name.endswith("_created")]


def test_every_metric_is_described_once_with_a_unit_that_prometheus_knows(metrics):
    lines = metrics.reference().splitlines()[2:]
    names = [line.split("`")[1] for line in lines]
    assert len(set(names)) == len(names)
    for line, name in zip(lines, names, strict=True):
        if "| counter |" in line:
            assert name.endswith("_total")
        if "| histogram |" in line:
            assert name.endswith("_seconds")


def test_the_table_of_the_how_to_is_the_table(metrics):
    page = HOW_TO.read_text(encoding="utf-8")
    assert metrics.reference() in page, "run tools/write_openapi.py"


class _SteppedClock(SystemClock):
    """Says that sleeping took longer than asked, and ends the third sleep by a stop."""

    def __init__(self):
        self.at = 0.0
        self.sleeps = 0

    def monotonic(self):
        return self.at

    async def sleep(self, seconds):
        self.sleeps += 1
        if self.sleeps == 3:
            raise InterruptedError
        self.at += seconds + 0.2


async def test_the_lag_of_the_loop_is_what_a_sleep_took_too_long(metrics):
    with pytest.raises(InterruptedError):
        await watch_loop(metrics, _SteppedClock())
    found = read(metrics)
    assert found["mags_event_loop_lag_seconds_count",] == 2
    assert found["mags_event_loop_lag_seconds_sum",] == pytest.approx(0.4)
