"""What the bench makes of its samples."""

import asyncio
import json
import math

import pytest
from bench import traced
from bench.__main__ import PARTS, chosen
from bench.goals import GOALS
from bench.load import read_reply, request_of
from bench.measure import Samples, evenly, in_turn, samples_table
from bench.phases import BESIDE, PATH, Job, Step, phases_of
from bench.report import Report
from bench.scrape import Scrape, quantile
from bench.table import Table

from magsd.engines import GVISOR, QEMU

METRICS = """\
# HELP mags_lag_seconds How late.
# TYPE mags_lag_seconds histogram
mags_lag_seconds_bucket{le="0.01"} 90.0
mags_lag_seconds_bucket{le="0.1"} 100.0
mags_lag_seconds_bucket{le="+Inf"} 100.0
mags_lag_seconds_sum 1.0
mags_lag_seconds_count 100.0
# HELP mags_pool_requests_total Asked.
# TYPE mags_pool_requests_total counter
mags_pool_requests_total{engine="gvisor",result="hit"} 5.0
mags_pool_requests_total{engine="qemu",result="hit"} 2.0
mags_pool_requests_total{engine="gvisor",result="miss"} 1.0
"""


def test_median_and_p99():
    samples = Samples("x", [float(value) for value in range(1, 201)])

    assert samples.median == 100.5
    assert samples.p99 == 199
    assert Samples("few", [3.0, 1.0, 2.0]).p99 == 3.0


async def test_subjects_are_measured_in_turn_and_warm():
    order = []
    once = _counting(order)

    taken = await in_turn({"a": once("a"), "b": once("b")}, 2, warm_up=1)

    assert order == ["a", "b"] * 3
    assert taken["a"].values_ms == [3.0, 5.0]
    assert taken["b"].values_ms == [4.0, 6.0]


async def test_what_takes_long_is_measured_in_some_of_the_rounds():
    order = []
    once = _counting(order)

    taken = await in_turn({"a": once("a")}, 4, warm_up=1, seldom={"s": once("s")}, seldom_count=2)

    assert "".join(order) == "aaasaas"
    assert (taken["a"].n, taken["s"].n) == (4, 2)


def test_turns_are_evenly_spread():
    assert sorted(evenly(30, 3)) == [5, 15, 25]
    assert sorted(evenly(2, 3)) == [0, 1]


def test_ratios_are_to_the_first():
    shown = samples_table("title", [Samples("slow", [10.0]), Samples("quick", [2.5])])

    assert [row[-1] for row in shown.rows] == ["1.00", "0.25"]


def test_a_table_is_text_and_markdown():
    table = Table("title", ("", "n"), [("one", "1"), ("eleven", "11")], "A note.")

    assert table.text() == "title\n           n\n  one      1\n  eleven  11\n  A note.\n"
    assert table.markdown().splitlines() == [
        "**title**",
        "",
        "|   | n |",
        "| --- | --: |",
        "| one | 1 |",
        "| eleven | 11 |",
        "",
        "A note.",
    ]


def test_the_table_of_goals_has_what_was_looked_at_in_its_order():
    report = Report({}, is_markdown=False)
    gvisor, qemu = report.of(GVISOR), report.of(QEMU)
    gvisor.lacks("podman", "not to be had")
    gvisor.found("overhead", "p50 4.0 ms", 100, is_met=True)
    gvisor.found("runsc", "0.31 x", 30, is_met=False)
    qemu.found("podman", "0.40 x", 30, is_met=True)

    rows = report.goals("Goals").rows

    assert [row[:2] for row in rows] == [
        ("P1", GVISOR),
        ("P2", GVISOR),
        ("P2", GVISOR),
        ("P2", QEMU),
    ]
    assert [row[-1] for row in rows] == ["met", "missed", "not measured", "met"]
    assert rows[2][3:6] == ("≤ 0.25 x", "not to be had", "")
    assert rows[3][3] == "≤ 0.5 x"
    assert all(key == goal.key for key, goal in GOALS.items())


def test_a_goal_that_an_engine_does_not_have_is_no_row():
    report = Report({}, is_markdown=False)
    gvisor = report.of(GVISOR)

    gvisor.lacks("clone", "there are no templates")

    assert gvisor.limit("clone") is None
    assert report.of(QEMU).limit("clone") == 0.05
    assert not report.goals("Goals").rows
    with pytest.raises(KeyError):
        gvisor.found("clone", "0.1 x", 1, is_met=True)


def test_samples_are_kept_apart_by_engine(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.report.RESULTS", tmp_path)
    report = Report({"cpus": 2}, is_markdown=False)
    report.of(GVISOR).keep("claims_ms", [1.0])
    report.of(QEMU).keep("claims_ms", [2.0])
    report.of(QEMU).found("clone", "0.04 x", 20, is_met=True)

    kept = json.loads(report.save().read_text())

    assert kept["machine"] == {"cpus": 2}
    assert (kept[GVISOR], kept[QEMU]) == ({"claims_ms": [1.0]}, {"claims_ms": [2.0]})
    assert [(row["key"], row["engine"], row["verdict"]) for row in kept["goals"]] == [
        ("clone", QEMU, "met")
    ]


def test_parts_of_the_server_itself_are_done_once():
    assert chosen([], None, is_first=True) == list(PARTS)
    second = chosen([], None, is_first=False)
    assert {"rates", "daemon", "scale"} == set(PARTS) - set(second)
    assert chosen([], [QEMU], is_first=True) == second
    assert chosen(["scale", "claims"], [QEMU], is_first=True) == ["claims", "scale"]
    assert chosen(["scale", "claims"], None, is_first=False) == ["claims"]


def test_metrics_are_read():
    scrape = Scrape.of(METRICS)

    assert scrape.total("mags_pool_requests_total", result="hit") == 7
    assert scrape.total("mags_pool_requests_total", result="hit", engine="qemu") == 2
    assert scrape.has("mags_lag_seconds_bucket")
    assert not scrape.has("mags_nothing")
    assert scrape.buckets("mags_lag_seconds") == {0.01: 90, 0.1: 100, math.inf: 100}


def test_a_quantile_lies_within_its_bucket():
    buckets = {0.01: 90.0, 0.1: 100.0, math.inf: 100.0}

    assert quantile(buckets, 0.45) == pytest.approx(0.005)
    assert quantile(buckets, 0.95) == pytest.approx(0.055)
    assert math.isnan(quantile({math.inf: 0.0}, 0.5))
    assert quantile({0.1: 0.0, math.inf: 5.0}, 0.5) == 0.1


def test_the_phases_of_a_job_are_the_whole_of_its_time():
    job = Job(submitted=10.0, accepted=13.5, over=40.0)
    steps = [
        Step(traced.COMMIT, 11.0, 13.0),
        Step(traced.CLAIM, 14.0, 15.0),
        Step(traced.EXEC, 19.0, 20.0),
        Step(traced.BEGIN, 14.0, 20.0),
        Step(traced.COMMIT, 21.0, 24.0),
        Step(traced.ENDED, 24.0, 30.0),
        Step(traced.COMMIT, 31.0, 38.0),
    ]

    took = phases_of(job, steps)

    assert took is not None
    path, beside = took[: len(PATH)], took[len(PATH) :]
    assert path == [1.0, 2.0, 1.0, 5.0, 11.0, 8.0, 2.0]
    assert sum(path) == job.over - job.submitted
    assert beside == [1.0, 0.5]
    assert len(beside) == len(BESIDE)
    assert phases_of(job, [step for step in steps if step.name != traced.CLAIM]) is None


async def test_a_reply_is_read_to_its_end_and_no_further():
    reader = asyncio.StreamReader()
    reader.feed_data(b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n\r\n")

    assert await read_reply(reader) == (202, b"{}")
    with pytest.raises(ValueError, match="without Content-Length"):
        await read_reply(reader)


def test_a_request_names_its_length():
    request = request_of("http://127.0.0.1:7070", "t", "POST", "/mags-jobs", b"{}")

    assert request.startswith(b"POST /api/v1/mags-jobs HTTP/1.1\r\nHost: 127.0.0.1:7070\r\n")
    assert request.endswith(b"Content-Length: 2\r\n\r\n{}")


def _counting(order):
    def subject(name):
        async def once():
            order.append(name)
            return float(len(order))

        return once

    return subject
