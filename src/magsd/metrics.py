"""What the daemon counts and measures, for Prometheus.

Owns names, units, buckets and help texts of every metric, in a registry of
its own: several daemons in one process do not disturb each other. Whoever
knows that something happened calls the method of that name; all of them are
cheap (microseconds) and may be called from any thread. States that exist
anyway, such as the queue, are not counted here: they are asked for at each
scrape through what the `watch_` methods were given.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from typing_extensions import override

from magsd import __version__

COMPLETED: Final = "completed"
"""Label `code` of a job that did not fail."""

_CLAIM_S: Final = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_LAUNCH_S: Final = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 20, 30, 60)
_COMMIT_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_LAG_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Described(NamedTuple):
    """A metric as the documentation shows it."""

    name: str
    kind: str
    labels: Sequence[str]
    help: str


_QUEUE: Final = Described(
    "mags_queued_jobs",
    "gauge",
    (),
    "Jobs that wait for a VM or a turn. Rising for long: the host is full, or launches fail.",
)
_VMS: Final = Described(
    "mags_vms",
    "gauge",
    ("engine", "state"),
    "VMs that live, `busy` with a job or `idle` in the pool; and those `sleeping`, which are a disk.",
)
_READY: Final = Described(
    "mags_ready", "gauge", (), "1 when a script can run. 0: `/readyz` says why not."
)

_EDGES: Final = Described(
    "mags_edges",
    "gauge",
    (),
    "Processes that serve URLs and SSH. Fewer than `edges` asks for: the log says why they end.",
)
_EDGE_LEASES: Final = Described(
    "mags_edge_leases",
    "gauge",
    (),
    "Uses of VMs by URLs and SSH at this moment, those that wait for a VM to wake included.",
)


class Metrics:
    """Everything that one daemon measures."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._described: list[Described] = []
        self._watched = _Watched()
        self._add_jobs()
        self._add_vms()
        self._add_service()
        self._registry.register(self._watched)
        self._described += (_QUEUE, _VMS, _READY, _EDGES, _EDGE_LEASES)
        ProcessCollector(registry=self._registry)

    def exposition(self) -> tuple[bytes, str]:
        """Return everything as it is now, and its content type."""
        return generate_latest(_WithoutBirths(self._registry)), CONTENT_TYPE_LATEST

    def reference(self) -> str:
        """Return the table of the documentation."""
        table = "| metric | kind | labels | meaning, and what to do |\n|---|---|---|---|\n"
        for metric in self._described:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            table += f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |\n"
        return table

    # --- jobs

    def _add_jobs(self) -> None:
        self._submitted = self._counter("mags_jobs_submitted_total", "Jobs taken on.", "engine")
        self._ended = self._counter(
            "mags_jobs_ended_total",
            "Jobs that are over. `code` is `completed`, or that of the job's error: `script_failed`, "
            "`timeout` and `stopped` are the caller's; many of another code are ours, see how-to "
            "`troubleshoot`.",
            "engine",
            "code",
        )
        self._refused = self._counter(
            "mags_refusals_total",
            "Requests refused by a quota or for want of room, by `code` of the reply. `capacity`: "
            "see why with `/readyz`; `quota`: the account asks for more than it was given.",
            "code",
        )

    def job_submitted(self, engine: str) -> None:
        """Note that a job was taken on."""
        self._submitted.labels(engine).inc()

    def job_ended(self, engine: str, code: str | None) -> None:
        """Note that a job is over; `code` None: completed."""
        self._ended.labels(engine, code or COMPLETED).inc()

    def refused(self, code: str) -> None:
        """Note that a request was refused by a quota or for want of room."""
        self._refused.labels(code).inc()

    # --- VMs

    def _add_vms(self) -> None:
        self._asked = self._counter(
            "mags_pool_requests_total",
            "Jobs that asked the pool for a warm VM; `result` is `hit` or `miss`. Many misses: jobs "
            "come faster than VMs are refilled, keep more of them ready.",
            "engine",
            "result",
        )
        self._claim_s = self._histogram(
            "mags_claim_seconds",
            "From the committed claim of a warm VM to its script's begin. Above 0.1: processors "
            "or disk of the host are overloaded.",
            _CLAIM_S,
            "engine",
        )
        self._launch_s = self._histogram(
            "mags_launch_seconds",
            "The same without a warm VM: the VM is launched first. Above 5: as above, or too many "
            "launches at once.",
            _LAUNCH_S,
            "engine",
        )
        self._woken = self._histogram(
            "mags_wake_seconds",
            "From the turn of a job that sleeps to its VM being awake. Above 5: processors or disk "
            "of the host are overloaded.",
            _LAUNCH_S,
            "engine",
        )
        self._launch_failures = self._counter(
            "mags_launch_failures_total",
            "VMs that did not come up, for a job or for the pool. Run `magsd doctor`; the log has "
            "the reasons.",
            "engine",
            "code",
        )
        self._pool_fill_s = self._histogram(
            "mags_pool_fill_seconds",
            "How long it took to make one warm VM ready.",
            _LAUNCH_S,
            "engine",
        )
        self._execs = self._counter(
            "mags_execs_total",
            "Commands that callers ran in VMs, by `result`: `ended`, or `timeout`.",
            "engine",
            "result",
        )
        self._give_back_failures = self._counter(
            "mags_give_back_failures_total",
            "VMs that could not be put away; it is tried again. If it goes on rising, run "
            "`magsd doctor`: it names what is left behind.",
        )

    def pool_asked(self, engine: str, is_hit: bool) -> None:
        """Note that the pool was asked for a VM, and whether it had one."""
        self._asked.labels(engine, "hit" if is_hit else "miss").inc()

    def claimed(self, engine: str, seconds: float) -> None:
        """Note a script's begin in a pooled VM, `seconds` after its claim was committed."""
        self._claim_s.labels(engine).observe(seconds)

    def launched(self, engine: str, seconds: float) -> None:
        """Note a script's begin in a VM of its own, `seconds` after its claim was committed."""
        self._launch_s.labels(engine).observe(seconds)

    def woken(self, engine: str, seconds: float) -> None:
        """Note that a VM that slept is awake, `seconds` after its turn came."""
        self._woken.labels(engine).observe(seconds)

    def launch_failed(self, engine: str, code: str) -> None:
        """Note that a VM did not come up."""
        self._launch_failures.labels(engine, code).inc()

    def pooled(self, engine: str, seconds: float) -> None:
        """Note that the pool has one more VM, which took `seconds`."""
        self._pool_fill_s.labels(engine).observe(seconds)

    def executed(self, engine: str, *, has_timed_out: bool) -> None:
        """Note that a command which a caller ran in a VM is over."""
        self._execs.labels(engine, "timeout" if has_timed_out else "ended").inc()

    def give_back_failed(self) -> None:
        """Note that a VM could not be put away."""
        self._give_back_failures.inc()

    # --- the service itself

    def _add_service(self) -> None:
        self._commit_s = self._histogram(
            "mags_database_commit_seconds",
            "How long commits took. Every change of a job waits for one: above 0.05 the disk of "
            "the database is slow or overloaded.",
            _COMMIT_S,
        )
        self._writes = self._counter(
            "mags_database_writes_total",
            "Changes committed. Divided by the count of commits: how many shared one.",
        )
        self._lag_s = self._histogram(
            "mags_event_loop_lag_seconds",
            "How much later than asked the event loop woke up. Above 0.1 all of the service is as "
            "late: it has too little processor time, or something blocks the loop.",
            _LAG_S,
        )
        self._archived = self._counter(
            "mags_logs_archived_total",
            "Logs of ended jobs put into the object store; `result` is `ok` or `failed`. Failed "
            "ones are kept here and tried again: see that the store can be reached.",
            "result",
        )
        self._edge_ends = self._counter(
            "mags_edge_ends_total",
            "Processes for URLs and SSH that ended and were started again. Rising: see the log.",
        )
        self._leaked = self._gauge(
            "mags_leaked",
            "What was found on this host that belongs to no living VM, by kind. Above 0: run "
            "`magsd doctor`, which names it and how to remove it.",
            "what",
        )
        build = self._gauge("mags_build_info", "1; the label says what runs here.", "version")
        build.labels(__version__).set(1)

    def committed(self, seconds: float, writes: int) -> None:
        """Note a commit that took `seconds` and that `writes` changes shared."""
        self._commit_s.observe(seconds)
        self._writes.inc(writes)

    def loop_lag(self, seconds: float) -> None:
        """Note how late the event loop was."""
        self._lag_s.observe(seconds)

    def archived(self, ok: bool) -> None:
        """Note that a log was put into the object store, or could not be."""
        self._archived.labels("ok" if ok else "failed").inc()

    def edge_ended(self) -> None:
        """Note that a process for URLs and SSH ended although it should not have."""
        self._edge_ends.inc()

    def leaked(self, what: str, count: int) -> None:
        """Note how many things of a kind exist that belong to no living VM."""
        self._leaked.labels(what).set(count)

    # --- states that are asked for

    def watch_queue(self, read: Callable[[], int]) -> None:
        """Ask `read` how many jobs wait for a VM, at each scrape."""
        self._watched.queue = read

    def watch_vms(self, read: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Ask `read` how many VMs there are by (engine, `busy`, `idle` or `sleeping`), at each
        scrape."""
        self._watched.vms = read

    def watch_edges(self, read: Callable[[], tuple[int, int]]) -> None:
        """Ask `read` how many edges serve and how many leases they hold, at each scrape."""
        self._watched.edges = read

    def watch_readiness(self, read: Callable[[], str | None]) -> None:
        """Ask `read` why no script can run, None when one can, at each scrape."""
        self._watched.readiness = read

    # --- making them

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        self._described.append(Described(name, "counter", labels, text))
        return Counter(name, text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        self._described.append(Described(name, "gauge", labels, text))
        return Gauge(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        self._described.append(Described(name, "histogram", labels, text))
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)


class _Watched(Collector):
    """States that are read when somebody asks."""

    def __init__(self) -> None:
        self.queue: Callable[[], int] | None = None
        self.vms: Callable[[], Mapping[tuple[str, str], int]] | None = None
        self.readiness: Callable[[], str | None] | None = None
        self.edges: Callable[[], tuple[int, int]] | None = None

    @override
    def collect(self) -> Iterator[Metric]:
        """Yield what is watched, as it is now."""
        if self.queue is not None:
            yield GaugeMetricFamily(_QUEUE.name, _QUEUE.help, self.queue())
        if self.vms is not None:
            vms = GaugeMetricFamily(_VMS.name, _VMS.help, labels=_VMS.labels)
            for labels, count in sorted(self.vms().items()):
                vms.add_metric(labels, count)
            yield vms
        if self.edges is not None:
            serving, leases = self.edges()
            yield GaugeMetricFamily(_EDGES.name, _EDGES.help, serving)
            yield GaugeMetricFamily(_EDGE_LEASES.name, _EDGE_LEASES.help, leases)
        if self.readiness is not None:
            yield GaugeMetricFamily(_READY.name, _READY.help, self.readiness() is None)


class _WithoutBirths(Collector):
    """A registry without the time at which each series began, which would double their number."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    @override
    def collect(self) -> Iterator[Metric]:
        """Yield what the registry has."""
        for metric in self._registry.collect():
            metric.samples = [one for one in metric.samples if not one.name.endswith("_created")]
            yield metric
