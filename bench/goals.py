"""The goals, stated here and nowhere else in code; `docs/explanation/performance.md` explains them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from magsd.engines import GVISOR, QEMU


@dataclass(frozen=True)
class Goal:
    """One number that this project wants to reach."""

    key: str
    number: str
    """As in `docs/explanation/performance.md`; several goals share one."""
    what: str
    target: str
    """`{limit}` stands for the engine's number in `limits`."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """By engine; one that is not in it has no such goal. Empty: the same for all."""

    def target_of(self, engine: str) -> str:
        """Return the target as the table of goals shows it. Raises `KeyError` without one."""
        if not self.limits:
            return self.target
        return self.target.format(limit=f"{self.limits[engine]:g}")


GOALS: Final = {
    goal.key: goal
    for goal in (
        Goal(
            "overhead",
            "P1",
            "what the platform adds to a claim: submit to completed, minus bare claim to done",
            "p50 ≤ 8 ms, p99 ≤ 30 ms",
        ),
        Goal(
            "runsc",
            "P2",
            "submit to completed, to `runsc run /bin/true`",
            "≤ {limit} x",
            {GVISOR: 0.25},
        ),
        Goal(
            "podman",
            "P2",
            "submit to completed, to `podman run /bin/true`",
            "≤ {limit} x",
            {GVISOR: 0.25, QEMU: 0.5},
        ),
        Goal("quick_sandbox", "P2", "submit to completed, to a `quick-sandbox` start", "≤ 0.01 x"),
        Goal("hits", "P3", "pool hits at one job a second", "100 %"),
        Goal("miss", "P3", "pool miss, to bare launch to done", "≤ 1.2 x"),
        Goal("clone", "P3", "launch from a template, to a boot", "≤ {limit} x", {QEMU: 0.05}),
        Goal("refill", "P3", "VMs fit for a script made for the pool", "≥ {limit} /s", {QEMU: 10}),
        Goal(
            "burst",
            "P4",
            "100 jobs submitted at once, to 100 bare launches at the same parallelism",
            "all complete, ≤ 1.3 x",
        ),
        Goal("exec_runsc", "P5", "exec of `true`, to `runsc exec`", "≤ 0.5 x"),
        Goal("exec_bare", "P5", "exec of `true` by the API, minus bare", "≤ 3 ms"),
        Goal("submits", "P6", "submits", "≥ 300 /s"),
        Goal("polls", "P6", "status polls a core", "≥ 2000 /s"),
        Goal("ingress_large", "P7", "a large body by the gateway, to the bare channel", "≥ 0.8 x"),
        Goal(
            "ingress_small",
            "P7",
            "small requests by the gateway, to nginx before the same server on the host",
            "≥ 0.5 x",
        ),
        Goal(
            "ingress_neighbours",
            "P7",
            "a small request while another VM sends 1 GB, p99, to one while it does not",
            "≤ 2 x",
        ),
        Goal(
            "capture",
            "P9",
            "first sync of a workspace of 500 MB, to `tar | zstd -3`",
            "≤ 1.5 x",
        ),
        Goal("unchanged", "P9", "a sync after nothing was changed", "≤ 100 ms, 0 bytes"),
        Goal("changed", "P9", "sent by a sync after 1 MB was changed", "≤ 4 MB"),
        Goal(
            "cached_start",
            "P9",
            "start from a cached workspace of 500 MB, minus a pool miss",
            "≤ 50 ms",
        ),
        Goal("sync_memory", "P9", "the daemon's growth while 2 GB pass", "≤ 64 MB"),
        Goal(
            "idle_memory",
            "P10",
            "memory of a VM that waits (PSS)",
            "≤ {limit} MB",
            {GVISOR: 15, QEMU: 30},
        ),
        Goal("idle_cpu", "P10", "processor time of a VM that waits", "≤ 0.2 %"),
        Goal(
            "idle_claims",
            "P10",
            "100 claims after ten idle minutes, to 100 before them (medians)",
            "as quick (≤ 1.1 x)",
        ),
        Goal("memory", "P11", "the daemon with 1000 finished jobs", "≤ 150 MB"),
        Goal("lag", "P11", "event loop lag under this bench, p99", "≤ 10 ms"),
        Goal("scale_claims", "P12", "claim, p99, with 10000 VMs alive to none", "flat (≤ 1.5 x)"),
        Goal(
            "scale_restart",
            "P12",
            "10000 VMs adopted by a restarted daemon, to a start with none",
            "≤ 2 s more",
        ),
    )
}
