"""A PostgreSQL server of the tests' own: Debian's programs, a temporary folder, a free port.

`cluster()` makes one and ends it, whatever happens inside; `Cluster` stops, kills and starts
it, and makes databases. It never touches the clusters that Debian's package manages.
"""

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

USER = "mags"
PASSWORD = "a-password/of the tests"  # Its characters must be escaped in a URL.
QUOTED_PASSWORD = "a-password%2Fof%20the%20tests"
_PROGRAMS = Path("/usr/lib/postgresql")
_UNPRIVILEGED = "postgres"
_DEADLINE_S = 60.0
_names = itertools.count()


class Cluster:
    """One server, running or not, and the databases in it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.sockets = folder / "s"
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def initialise(self) -> None:
        """Make the files of an empty cluster whose local users are trusted, others asked."""
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self.sockets.mkdir()
        _give_away(self.folder, self.sockets)
        initdb = [_program("initdb"), "-D", self._data, "-U", USER, "-E", "UTF8"]
        initdb += ["--locale=C.UTF-8", "--auth-local=trust", "--auth-host=scram-sha-256"]
        initdb += [f"--pwfile={secret}", "--no-instructions"]
        done = subprocess.run(
            [*_as_unprivileged(), *initdb],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start the server; return when it answers."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start the server. It ends with the thread that does this, also when that is killed."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.sockets,
            "shared_buffers": "16MB",
            "max_connections": 40,
            "recovery_init_sync_method": "syncfs",  # After a crash: not file by file.
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_unprivileged("--pdeathsig=INT"), _program("postgres"), "-D", self._data,
                 *options],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Return when the server answers."""
        assert self._process is not None
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server, ending sessions."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """End the server without a checkpoint, as when it crashes."""
        self._end(signal.SIGQUIT)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_DEADLINE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let no process of the server do anything inside the block."""
        assert self._process is not None
        # Every backend is a session of its own, so that its children are looked for.
        pids = [self._process.pid, *_children(self._process.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """Return a connection of the superuser."""
        return psycopg.connect(
            host=str(self.sockets), port=self.port, user=USER, dbname=database, autocommit=True
        )

    def execute(self, statement: str, database: str = "postgres") -> list[tuple]:
        """Run a statement; return its rows."""
        with self.connect(database) as connection:
            cursor = connection.execute(statement)
            return [] if cursor.description is None else cursor.fetchall()

    def create(self, options: str = "") -> str:
        """Make an empty database; return its name."""
        name = f"t{next(_names)}"
        self.execute(f"CREATE DATABASE {name} {options}")
        return name

    def drop(self, name: str) -> None:
        """Forget a database, also while it is in use."""
        with self.connect() as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://{USER}:{QUOTED_PASSWORD}@127.0.0.1:{self.port}/{name}"


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Run a server inside the block. Nothing of it is left afterwards."""
    # A path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="mags-pg-", dir="/tmp"))
    made = Cluster(folder, _free_port())
    try:
        made.initialise()
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder)


def _program(name: str) -> Path:
    found = sorted(_PROGRAMS.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    assert found, f"there is no {name}: `make setup-test` installs Debian's package postgresql"
    return found[-1]


def _as_unprivileged(*options: str) -> list[str]:
    """Return how a program begins that refuses to be root's."""
    if os.geteuid() != 0:
        return ["setpriv", *options]
    user = ["--reuid", _UNPRIVILEGED, "--regid", _UNPRIVILEGED, "--clear-groups"]
    return ["setpriv", *user, *options]


def _give_away(*paths: Path) -> None:
    if os.geteuid() == 0:
        user = pwd.getpwnam(_UNPRIVILEGED)
        for path in paths:
            os.chown(path, user.pw_uid, user.pw_gid)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for path in tasks for word in path.read_text().split()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
