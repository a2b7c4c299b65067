"""One SSH connection from its accept to its end: whose VM it uses, and all that runs for it.

Owns the lease and the tasks. What is said to the client is decided by `ssh_session`
and `ssh_forward`, for which this is the way to the VM.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog

from magsd.aio import Tasks, finish, unless
from magsd.gateway.base import KeyTarget, Node
from magsd.gateway.ssh_connection import SshConnection
from magsd.gateway.ssh_settings import SshSettings
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import ConflictError, MagsError

ENDED: Final = "the sandbox has ended"
_STOPPING: Final = "the service is stopping: connect again"

_log = structlog.get_logger()


class Visit:
    """What an SSH connection may use. One task runs it, by `run`."""

    def __init__(
        self, node: Node, settings: SshSettings, address: str, on_known: Callable[[], None]
    ) -> None:
        self.node = node
        self.settings = settings
        self.address = address
        self._on_known = on_known
        self._tasks = Tasks(self._failed)
        self.sessions = 0
        """Those that are to hear the end."""
        self._is_proved = asyncio.Event()
        self._is_over = asyncio.Event()
        self._is_decided = asyncio.Event()
        self._target: KeyTarget | None = None
        self._shim: ShimConnection | None = None
        self._refusal = ENDED

    # --- for what the client asks for --------------------------------------------

    @property
    def target(self) -> KeyTarget:
        """What the client's key opens. Only after the login."""
        assert self._target is not None
        return self._target

    async def shim(self) -> ShimConnection:
        """Wait until the VM is awake, and return the way to it.

        Raises `ConflictError` with what to tell the client when it cannot be used.
        """
        await self._is_decided.wait()
        if self._shim is None:
            raise ConflictError(self._refusal)
        return self._shim

    def why(self, error: Exception) -> str:
        """Return what to tell the client of an error that came from the VM."""
        if isinstance(error, MagsError):
            return error.message
        return ENDED if self.has_lost_vm else str(error)

    @property
    def has_lost_vm(self) -> bool:
        """Whether there is no way to the VM any more."""
        return self._shim is None or not self._shim.is_open

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start `work`, which ends no later than the connection."""
        return self._tasks.spawn(name, work)

    @asynccontextmanager
    async def beside(self, *works: Coroutine[Any, Any, Any]) -> AsyncIterator[None]:
        """Run `works` while the block does, and end them with it.

        What they meet in the VM the block does too, so that it is passed over.
        """
        tasks = Tasks(self._failed_beside)
        try:
            for work in works:
                tasks.spawn("ssh-beside", work)
            yield
        finally:
            await tasks.aclose()

    # --- for the server ----------------------------------------------------------

    def open_to(self, target: KeyTarget) -> None:
        """Note that the client has proved to have the key of `target`."""
        self._target = target
        self._on_known()
        self._is_proved.set()

    def close(self) -> None:
        """Note that the connection has ended."""
        self._is_over.set()

    async def run(self, connection: SshConnection) -> None:
        """Hold the lease for as long as the connection lasts; return when nothing is left of it."""
        try:
            await unless(self._is_over, self._is_proved.wait())
            if self._is_proved.is_set():
                _log.debug("ssh_opened", job=self.target.request_id, peer=self.address)
                await unless(self._is_over, self._use())
                if self._shim is None or self.sessions:
                    await self._farewell()
                connection.dismiss(self._refusal)
        except asyncio.CancelledError:
            connection.dismiss(_STOPPING)
            raise
        finally:
            await finish(self._end(connection))

    async def _use(self) -> None:
        """Hold the lease until the VM has ended, or return with why there is none."""
        try:
            async with self.node.lease(self.target.request_id) as lease:
                self._shim = await lease.connection()
                self._is_decided.set()
                await self._shim.closed()
        except MagsError as error:
            self._refusal = error.message
            _log.info("ssh_refused", job=self.target.request_id, error=error.message)
        except ShimError as error:
            _log.debug("ssh_vm_lost", job=self.target.request_id, error=str(error))
        finally:
            self._is_decided.set()

    async def _farewell(self) -> None:
        """Give a client the time to take what it was told, and to leave by itself."""
        try:
            async with asyncio.timeout(self.settings.farewell_s):
                await self._is_over.wait()
        except TimeoutError:
            _log.debug("ssh_client_stays", job=self.target.request_id)

    async def _end(self, connection: SshConnection) -> None:
        await connection.ended()
        await self._tasks.aclose()

    def _failed_beside(self, name: str, error: BaseException) -> None:
        if not isinstance(error, ShimError):
            self._failed(name, error)

    def _failed(self, name: str, error: BaseException) -> None:
        _log.error("ssh_task_failed", task=name, exc_info=error)
