"""Random lives of workspaces, in real sandboxes, against a model that is a folder in memory.

Scripts change files, daemons are killed, versions are synced, restored and
forked; what each job sees is what the model has. In a layer below, hard links
are files of their own once one is changed, as overlays are made: so the model
parts them between runs. `MAGS_TEST_FULL=1` tries many, and both engines.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.e2e import file_steps
from tests.e2e.engines import ENGINES, serving_on
from tests.e2e.server import Server, eventually

IS_FULL = os.environ.get("MAGS_TEST_FULL") == "1"
EXAMPLES, STEPS = (40, 25) if IS_FULL else (2, 7)
TOP = "/srv/tree"
_LAST = "MAGS_LAST"
_TIME = 4
"""Where an entry has its time."""

_names = st.sampled_from(
    ["a", "b", "c", "d e", ".f", "-g", "ä", "new\nline", os.fsdecode(b"\xff\xfe"), "n" * 255]
)
_old = st.integers(0, 1 << 10)
"""Something that is there."""
_new = st.tuples(st.integers(0, 1 << 10), _names)
"""A name in a folder that is there; it may be taken."""
_any = st.one_of(_old, _new)
_seeds = st.integers(0, 1 << 16)
_sizes = st.sampled_from([0, 10, 5_000, 200_000])
_KINDS: tuple[tuple[Any, ...], ...] = (
    ("mkdir", _new),
    ("mkdir", _new),
    ("write", _new, st.sampled_from([0, 4_000, 300_000]), _sizes, _seeds),
    ("write", _new, st.sampled_from([0, 4_000, 300_000]), _sizes, _seeds),
    ("append", _old, _sizes, _seeds),
    ("truncate", _old, st.sampled_from([0, 7, 100_000])),
    ("chmod", _old, st.sampled_from([0o600, 0o755, 0o1777, 0o711])),
    ("chown", _old, st.sampled_from([0, 33, 1000, 60_000]), st.just(12)),
    ("utime", _old, st.integers(0, file_steps.SET_TIMES_BELOW - 1)),
    ("rmdir", _old),
    ("rename", _old, _any),
    ("rename", _old, _new),
    ("symlink", _new, st.sampled_from(["a", "b/c", "no where", "x/" * 150])),
    ("link", _new, _old),
    ("unlink", _old),
    ("to file", _old, _seeds),
    ("to folder", _old),
    ("attribute", _old, st.binary(max_size=9).map(bytes.hex)),
)
_steps = st.one_of(*(st.tuples(st.just(kind), *parts) for kind, *parts in _KINDS))
_many_steps = st.lists(_steps, min_size=15, max_size=50)


def in_order(steps: list[Any], engine: str) -> list[Any]:
    """Return steps as they can be compared: gVisor keeps what it knows of a file for each of the
    file's names, so one does not see at once what was changed by another."""
    return sorted(steps, key=lambda step: step[0] == "link") if engine == "gvisor" else steps


def script(steps: list[Any], *, stays: bool) -> str:
    """Return a script that tells what it finds, does the steps, tells what came of it."""
    program = Path(file_steps.__file__).read_text()
    program += (
        f"\nimport json\ntop = {TOP!r}\nos.makedirs(top, exist_ok=True)\n"
        f"def tell(word, it): print(word, json.dumps(it), flush=True)\n"
        f"def tell_all(word):\n    for item in look(top).items(): tell(word, item)\n"
        f"tell_all('before')\ntell('results', do(top, json.loads({json.dumps(steps)!r})))\n"
        f"tell_all('after')\nprint('{_LAST}', flush=True)\n"
    )
    wait = "sleep 600\n" if stays else ""
    return f"exec 2>&1\npython3 - <<'{_LAST}_LINE'\n{program}{_LAST}_LINE\n{wait}"


@dataclass
class Told:
    """What a job has printed."""

    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    results: list[str] = field(default_factory=list)

    @classmethod
    def by(cls, lines: list[str]) -> "Told":
        told = cls()
        assert lines[-1:] == [_LAST], lines
        for line in lines[:-1]:
            word, _, rest = line.partition(" ")
            if word == "results":
                told.results = json.loads(rest)
            else:
                path, entry = json.loads(rest)
                getattr(told, word)[path] = entry
        return told


def copied(tree: Path, into: Path) -> Path:
    """Copy a tree; names of one file become files of their own."""
    shutil.copytree(tree, into, symlinks=True)
    for path in tree.rglob("*"):
        status = path.lstat()
        os.chown(into / path.relative_to(tree), status.st_uid, status.st_gid, follow_symlinks=False)
    return into


class Lives(RuleBasedStateMachine):
    """Workspaces of one server, and for each the trees that its versions should be."""

    server: Server
    engine: str

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.trees: dict[str, dict[int, Path]] = {}
        self.name = f"w{os.urandom(6).hex()}"
        self.count = 0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def fresh(self) -> Path:
        self.count += 1
        return self.folder / str(self.count)

    def newest(self) -> int:
        with self.server.http() as http:
            reply = http.get(f"/mags-workspaces/{self.name}/versions")
        assert reply.status_code == 200, reply.text
        return int(reply.json()["versions"][0]["version"])

    def begun(self) -> Path:
        """Return a tree of its own that is what the next job finds."""
        trees = self.trees.get(self.name)
        if trees is None:
            empty = self.fresh()
            empty.mkdir()
            return empty
        return copied(trees[max(trees)], self.fresh())

    def compare(self, tree: Path, steps: list[Any], told: Told) -> None:
        """Do in the model what a job did, and compare; the tree is then the newest version."""
        top = str(tree)
        assert told.before == seen(top)
        assert file_steps.do(top, steps, told.results) == told.results
        # gVisor shows some times as they are only when the file is opened anew, by the next job.
        is_timed = self.engine != "gvisor"
        assert timed(told.after, is_timed) == timed(seen(top), is_timed)
        self.trees.setdefault(self.name, {})[self.newest()] = tree

    def has_kept(self, done: dict[str, Any]) -> None:
        told = self.server.stdout(done["request_id"])[-20:]
        assert (done["status"], done["workspace_synced"]) == ("completed", True), (done, told)

    @initialize(steps=_many_steps)
    def first(self, steps: list[Any]) -> None:
        self.run(steps)

    @rule(steps=_many_steps)
    def run(self, steps: list[Any]) -> None:
        steps = in_order(steps, self.engine)
        done = self.server.run(script(steps, stays=False), workspace_id=self.name)
        self.has_kept(done)
        self.compare(self.begun(), steps, Told.by(done["stdout"]))

    @rule(steps=_many_steps, crashes=st.sampled_from(["", "before sync", "after sync", "stop"]))
    def sync(self, steps: list[Any], crashes: str) -> None:
        """Sync a job that runs, then stop it; the daemon is killed at some moment."""
        steps = in_order(steps, self.engine)
        job = self.server.submit(script(steps, stays=True), workspace_id=self.name)
        eventually(lambda: _LAST in self.server.stdout(job), 60, f"{job} has done its steps")
        if crashes == "before sync":
            self.crash()
        with self.server.http() as http:
            reply = http.post(f"/mags-jobs/{job}/sync")
            assert reply.status_code == 200, reply.text
            self.compare(self.begun(), steps, Told.by(self.server.stdout(job)))
            if crashes == "after sync":
                self.crash()
            http.post(f"/mags-jobs/{job}/stop")
        if crashes == "stop":
            self.crash()
        assert self.server.final(job)["workspace_synced"] is True
        trees = self.trees[self.name]
        trees[self.newest()] = trees[max(trees)]

    @rule(steps=_many_steps, moment=st.sampled_from([0.0, 0.3, 0.6, 1.0]))
    def run_and_crash(self, steps: list[Any], moment: float) -> None:
        steps = in_order(steps, self.engine)
        job = self.server.submit(script(steps, stays=False), workspace_id=self.name)
        eventually(lambda: self.server.status(job)["vm_id"], 60, f"{job} has a VM")
        time.sleep(moment)  # What is tested: a crash at any moment.
        self.crash()
        self.has_kept(self.server.final(job))
        self.compare(self.begun(), steps, Told.by(self.server.stdout(job)))

    @rule()
    def crash(self) -> None:
        self.server.kill()
        self.server.start()

    @precondition(lambda self: self.trees)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        trees = self.trees[self.name]
        version = data.draw(st.sampled_from(sorted(trees)[-8:]))
        with self.server.http() as http:
            reply = http.post(f"/mags-workspaces/{self.name}/restore", json={"version": version})
        assert reply.status_code == 200, reply.text
        trees[int(reply.json()["version"])] = trees[version]

    @precondition(lambda self: self.trees)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        """Go on in a fork."""
        trees = self.trees[self.name]
        version = data.draw(st.sampled_from(sorted(trees)[-8:]))
        name = f"w{os.urandom(6).hex()}"
        wanted = {"workspace_id": name, "version": version}
        with self.server.http() as http:
            reply = http.post(f"/mags-workspaces/{self.name}/fork", json=wanted)
        assert reply.status_code == 201, reply.text
        self.trees[name] = {int(reply.json()["version"]): trees[version]}
        self.name = name

    @precondition(lambda self: len(self.trees) > 1)
    @rule(data=st.data())
    def turn(self, data: st.DataObject) -> None:
        """Go on in another workspace."""
        self.name = data.draw(st.sampled_from(sorted(self.trees)))


def timed(tree: dict[str, Any], is_timed: bool) -> dict[str, Any]:
    """Return a tree, or one without times."""
    if is_timed:
        return tree
    return {path: [*entry[:_TIME], *entry[_TIME + 1 :]] for path, entry in tree.items()}


def seen(top: str) -> dict[str, Any]:
    return dict(json.loads(json.dumps(file_steps.look(top))))


@pytest.fixture(params=ENGINES if IS_FULL else ENGINES[:1])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with serving_on(request.param, tmp_path_factory.mktemp("model")) as server:
        yield server


def test_workspaces_are_what_the_model_has(running: Server) -> None:
    class OfThisServer(Lives):
        server = running
        engine = running.environment["MAGSD_ENGINE"]

    run_state_machine_as_test(
        OfThisServer,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            # The gate has the same lives each time; many others are lived in the full suite.
            derandomize=not IS_FULL,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
