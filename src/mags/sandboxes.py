"""What a client can ask about sandboxes that stay. Replies are the server's JSON objects, as dicts."""

import time
from typing import Any, Final, Protocol

from mags.calls import JsonObject
from mags.errors import MagsError

FINAL_STATUSES: Final = frozenset({"completed", "error"})
_EXEC_MORE_S: Final = 45
"""How much longer than its command a request may take: a sandbox that sleeps is woken first."""
_SYNC_S: Final = 30
"""The server answers within 25 s."""


class _Client(Protocol):
    """What these methods use of the client that they belong to."""

    def run(self, script: str, **arguments: Any) -> JsonObject: ...

    def status(self, request_id: str) -> JsonObject: ...

    def stop(self, name_or_id: str) -> JsonObject: ...

    def sync(self, request_id: str) -> JsonObject: ...

    def find_job(self, name_or_id: str) -> JsonObject | None: ...

    def new(self, name: str, **arguments: Any) -> JsonObject: ...

    def _job_path(self, name_or_id: str, what: str = "") -> str: ...

    def _object(self, method: str, path: str, **request: Any) -> JsonObject: ...


class SandboxCalls:
    """Methods of a client. All raise `MagsError` for what the server refuses."""

    def new(
        self: _Client,
        name: str,
        *,
        persistent: bool = False,
        base_workspace_id: str | None = None,
        disk_gb: int | None = None,
        timeout: float = 30.0,
        poll_interval: float = 1.0,
    ) -> JsonObject:
        """Make a sandbox that stays until it is stopped, and return when it runs.

        `persistent`: what changes in it is kept in the workspace `name`. Returns
        `{"request_id", "status": "running"}`. Raises `MagsError` after `timeout` seconds.
        """
        request_id = self.run(
            "sleep infinity",
            workspace_id=name,
            persistent=True,
            no_sync=not persistent,
            base_workspace_id=base_workspace_id,
            disk_gb=disk_gb,
        )["request_id"]
        deadline = time.monotonic() + timeout
        while True:
            status = self.status(request_id)
            if status["status"] == "running" and status.get("vm_id"):
                return {"request_id": request_id, "status": "running"}
            if status["status"] in FINAL_STATUSES:
                why = status.get("error") or status["status"]
                raise MagsError(f"Job {request_id} ended unexpectedly: {why}")
            if (left_s := deadline - time.monotonic()) <= 0:
                raise MagsError(f"Job {request_id} did not start within {timeout}s")
            time.sleep(min(poll_interval, left_s))

    def exec(self: _Client, name_or_id: str, command: str, *, timeout: int = 30) -> JsonObject:
        """Run a command in the sandbox of a job, named by id, name or workspace; one that sleeps
        is woken.

        Returns `{"exit_code", "output", "stderr"}`; after `timeout` seconds it
        is killed, and its exit code is 124.
        """
        reply = self._object(
            "POST",
            self._job_path(name_or_id, "exec"),
            json={"command": command, "timeout": timeout},
            timeout_s=timeout + _EXEC_MORE_S,
        )
        return {
            "exit_code": reply["exit_code"],
            "output": reply["stdout"],
            "stderr": reply["stderr"],
        }

    def update_job(
        self: _Client,
        request_id: str,
        *,
        startup_command: str | None = None,
        no_sleep: bool | None = None,
    ) -> JsonObject:
        """Change settings of a job, named by id, name or workspace; None changes nothing, an
        empty `startup_command` has nothing run."""
        asked = {"startup_command": startup_command, "no_sleep": no_sleep}
        body = {key: value for key, value in asked.items() if value is not None}
        return self._object("PATCH", self._job_path(request_id), json=body)

    def sync(self: _Client, request_id: str) -> JsonObject:
        """Keep what a job has changed so far in its workspace, and return when it is stored.

        The job goes on. Returns `{"success", "workspace_id", "version", "size_bytes", …}`.
        """
        return self._object("POST", self._job_path(request_id, "sync"), timeout_s=_SYNC_S)

    def resize(
        self: _Client,
        workspace: str,
        disk_gb: int,
        *,
        timeout: float = 30.0,
        poll_interval: float = 1.0,
    ) -> JsonObject:
        """Give a workspace's sandbox a disk of another size: it is kept, stopped and made again.

        Returns as `new` does. A sandbox whose files are kept nowhere is refused with a
        `MagsError`, and goes on as it is.
        """
        found = self.find_job(workspace)
        if found is not None and found["status"] in ("running", "sleeping"):
            self.sync(found["request_id"])
            self.stop(found["request_id"])
        return self.new(
            workspace,
            persistent=True,
            disk_gb=disk_gb,
            timeout=timeout,
            poll_interval=poll_interval,
        )
