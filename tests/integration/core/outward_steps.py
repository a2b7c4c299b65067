"""Every step by which the core reaches the world outside its memory, told before and after it.

A step is a commit, a word with a shim or an agent, a call of the engine, a
change of files, an object stored. `watched` tells of them by wrapping the
boundaries, each under a name that is the same from run to run.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from magsd.core import log_places
from magsd.core.log_places import LogPlaces
from magsd.db.database import Database
from magsd.engine.launch_shim import StartingShim
from magsd.engine.record import VmRecord
from magsd.guest import streams
from magsd.guest.shim import ShimConnection
from magsd.storage.layer_files import LayerFiles
from magsd.storage.objects import ObjectStore
from tests.integration.core.process_engine import ProcessEngine


class Point(NamedTuple):
    """A moment: just before or just after a step, which happens for the `count`th time."""

    name: str
    count: int
    when: str

    def __str__(self) -> str:
        return f"{self.when} {self.name} {self.count}"


At = Callable[[Point], Any]
"""Told of a point, in whatever thread does the step. What it raises the step raises; where this
returns a coroutine function and the step is a task's, the step waits for it."""

_STEPS: tuple[tuple[Any, str, Callable[..., str]], ...] = (
    (Database, "write", lambda self, work: f"commit {_noun(work)}"),
    (ShimConnection, "open", lambda *_: "connect"),
    (ShimConnection, "request", lambda self, verb, **_: f"ask {verb}"),
    (ShimConnection, "open_durable", lambda *_: "open the script"),
    (ShimConnection, "signal", lambda self, stream, number: f"signal {number}"),
    (ShimConnection, "aclose", lambda self: "disconnect"),
    (streams, "control", lambda connection, what, **_: f"control {what}"),
    (streams, "write_file", lambda *_, **__: "write the script"),
    (streams, "run", lambda *_, **__: "run a command"),
    (ProcessEngine, "launch", lambda *_: "launch"),
    (ProcessEngine, "adopt", lambda *_: "adopt"),
    (ProcessEngine, "wait", lambda *_: "wait"),
    (ProcessEngine, "stop", lambda *_, **__: "stop"),
    (ProcessEngine, "still", lambda *_: "capture"),
    (LayerFiles, "put", lambda *_: "put a layer in its place"),
    (LayerFiles, "remove", lambda *_: "remove a layer"),
    (ProcessEngine, "sweep", lambda *_: "sweep"),
    (StartingShim, "open", lambda *_: "open a shim"),
    (StartingShim, "start", lambda *_: "start a shim"),
    (VmRecord, "write", lambda *_: "write the record"),
    (LogPlaces, "make_run_directory", lambda *_: "make a run directory"),
    (LogPlaces, "put_away", lambda *_: "put away"),
    (LogPlaces, "take_out", lambda *_: "take out"),
    (LogPlaces, "remove", lambda *_: "remove a run directory"),
    (log_places, "_remove", lambda entry: "remove a file"),
    (log_places, "_move", lambda *_: "move a journal"),
    (ObjectStore, "put", lambda *_: "store an object"),
    (ObjectStore, "put_all", lambda *_: "store an object or more"),
    (ObjectStore, "delete", lambda *_: "delete an object"),
)


@contextmanager
def watched(at: At) -> Iterator[None]:
    """Have `at` told of every step inside the block."""
    counts: Counter[tuple[str, str]] = Counter()

    def tell(name: str, when: str) -> Any:
        counts[name, when] += 1
        return at(Point(name, counts[name, when], when))

    with ExitStack() as undo:
        for owner, attribute, named in _STEPS:
            whole = inspect.getattr_static(owner, attribute)
            function = whole.__func__ if isinstance(whole, classmethod) else whole
            is_task = inspect.iscoroutinefunction(function)
            wrapped = (_task_step if is_task else _step)(function, named, tell)
            if isinstance(whole, classmethod):
                wrapped = classmethod(wrapped)
            undo.enter_context(patch.object(owner, attribute, wrapped))
        yield


def _task_step(function: Any, named: Callable[..., str], tell: Callable[[str, str], Any]) -> Any:
    async def step(*args: Any, **fields: Any) -> Any:
        name = named(*args, **fields)
        await _awaited(tell(name, "before"))
        try:
            result = await function(*args, **fields)
        except Exception:
            await _awaited(tell(name, "after"))
            raise
        await _awaited(tell(name, "after"))
        return result

    return step


def _step(function: Any, named: Callable[..., str], tell: Callable[[str, str], Any]) -> Any:
    def step(*args: Any, **fields: Any) -> Any:
        name = named(*args, **fields)
        tell(name, "before")
        result = function(*args, **fields)
        tell(name, "after")
        return result

    return step


async def _awaited(found: Any) -> None:
    if found is not None:
        await found()


def _noun(work: Any) -> str:
    return str(getattr(work, "__qualname__", "work")).replace(".<locals>", "")
