"""`Mags`: the API as methods. Replies are the server's JSON objects, as dicts.

Method names, arguments and results are those of the published `magpie-mags`
client, so that code written for it runs unchanged; what only a self-hosted
server offers comes as further keyword arguments.
"""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

from mags import config
from mags.access import AccessCalls
from mags.calls import JsonObject
from mags.errors import MagsError
from mags.sandboxes import FINAL_STATUSES, SandboxCalls
from mags.transport import Transport
from mags.workspaces import WorkspaceCalls

_LONG_POLL_S: Final = 25
_RECONNECTS_MAX: Final = 10
_RECONNECT_FIRST_S: Final = 0.2
_RECONNECT_MOST_S: Final = 5.0
_STOP_S: Final = 30
"""The server answers a stop within 25 s."""


class Mags(WorkspaceCalls, SandboxCalls, AccessCalls):
    """A server and a token.

    `api_token` and `api_url` default to `MAGS_API_TOKEN` (or `MAGS_TOKEN`) and
    `MAGS_API_URL`, then to what `mags login` saved. `timeout` is for one
    request, in seconds. Raises `MagsError` when there is no token.
    """

    def __init__(
        self, api_token: str | None = None, api_url: str | None = None, timeout: float = 30
    ) -> None:
        configuration = config.load(api_url, api_token)
        if configuration.api_token is None:
            raise MagsError(
                "API token required. Run `mags login`, set MAGS_API_TOKEN or pass api_token.",
                code="unauthorized",
            )
        self.api_url = configuration.api_url
        self.api_token = configuration.api_token
        self.timeout = timeout
        self._transport = Transport(self.api_url, self.api_token, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the server."""
        self._transport.close()

    def run(  # noqa: PLR0913 - the published client's signature, and what we add
        self,
        script: str,
        *,
        name: str | None = None,
        workspace_id: str | None = None,
        base_workspace_id: str | None = None,
        persistent: bool = False,
        no_sleep: bool = False,
        ephemeral: bool = False,
        startup_command: str | None = None,
        environment: Mapping[str, str] | None = None,
        file_ids: Sequence[str] | None = None,
        disk_gb: int | None = None,
        no_sync: bool = False,
        rootfs_type: str | None = None,
        script_timeout: int | None = None,
        vcpus: int | None = None,
        memory_mb: int | None = None,
        engine: str | None = None,
        idle_timeout: int | None = None,
    ) -> JsonObject:
        """Submit `script` and return at once: `{"request_id", "status": "accepted", …}`.

        `script_timeout` and `idle_timeout` are in seconds. A server that lacks a feature asked
        for refuses the job with a `MagsError` that says so.
        """
        if ephemeral and workspace_id:
            raise MagsError("Cannot use ephemeral with workspace_id")
        if ephemeral and persistent:
            raise MagsError("Cannot use ephemeral with persistent")
        if no_sleep and not persistent:
            raise MagsError("no_sleep requires persistent=True")
        optional: JsonObject = {
            "no_sleep": no_sleep,
            "no_sync": no_sync,
            "name": name,
            "workspace_id": workspace_id,
            "base_workspace_id": base_workspace_id,
            "startup_command": startup_command,
            "environment": dict(environment or {}),
            "file_ids": list(file_ids or []),
            "disk_gb": disk_gb,
            "rootfs_type": rootfs_type,
            "timeout": script_timeout,
            "vcpus": vcpus,
            "memory_mb": memory_mb,
            "engine": engine,
            "idle_timeout": idle_timeout,
        }
        body = {"script": script, "type": "inline", "persistent": persistent}
        body |= {
            key: value for key, value in optional.items() if value not in (None, False, [], {})
        }
        # The key makes a repeat after a lost answer give the same job, not a second one.
        return self._object(
            "POST", "/mags-jobs", json=body, headers={"Idempotency-Key": str(uuid.uuid4())}
        )

    def run_and_wait(
        self,
        script: str,
        *,
        timeout: float = 60.0,
        poll_interval: float = 1.0,
        **run_arguments: Any,
    ) -> JsonObject:
        """Submit `script`, wait for its end and return its result and logs.

        Returns `request_id`, `status`, `exit_code`, `duration_ms` and `logs`.
        Raises `MagsError` after `timeout` seconds; the job goes on then.
        `poll_interval` is only slept where the server does not hold the request.
        """
        request_id = self.run(script, **run_arguments)["request_id"]
        status = self.wait(request_id, timeout=timeout, poll_interval=poll_interval)
        return {
            "request_id": request_id,
            "status": status["status"],
            "exit_code": status.get("exit_code", 0),
            "duration_ms": status.get("script_duration_ms", 0),
            "logs": self.logs(request_id).get("logs", []),
        }

    def wait(
        self, request_id: str, *, timeout: float = 60.0, poll_interval: float = 1.0
    ) -> JsonObject:
        """Return the final status of a job. Raises `MagsError` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        seen: int | None = None
        while True:
            asked_at = time.monotonic()
            left_s = max(0.0, deadline - asked_at)
            status = self._awaited_status(request_id, min(_LONG_POLL_S, left_s))
            if status["status"] in FINAL_STATUSES:
                return status
            now = time.monotonic()
            if now >= deadline:
                raise MagsError(f"Job {request_id} timed out after {timeout}s")
            generation = status.get("generation")
            if generation == seen and now - asked_at < poll_interval:
                # Nothing new, and at once: this server does not hold requests.
                time.sleep(min(poll_interval, deadline - now))
            seen = generation

    def _awaited_status(self, request_id: str, wait_s: float) -> JsonObject:
        """Return the status once it has changed or the job is over, or after `wait_s`."""
        return self._object(
            "GET",
            self._job_path(request_id, "status"),
            params={"wait": round(wait_s, 3)},
            timeout_s=wait_s + self.timeout,
        )

    def status(self, request_id: str) -> JsonObject:
        """Return the status of a job, by id or name."""
        return self._object("GET", self._job_path(request_id, "status"))

    def logs(self, request_id: str) -> JsonObject:
        """Return `{"logs": [{"timestamp", "level", "message", "source"}, …]}`."""
        return self._object("GET", self._job_path(request_id, "logs"))

    def follow_logs(self, request_id: str) -> Iterator[JsonObject]:
        """Yield log entries as they are written, from the first; end with the job.

        A lost connection is resumed where it broke. Raises `MagsError` when
        the server refuses, or ten connections in a row brought nothing.
        """
        last_id: str | None = None
        failures = 0
        while True:
            try:
                for event in self._transport.events(
                    self._job_path(request_id, "logs"), params={"after": 0}, last_id=last_id
                ):
                    if event.event == "end":
                        return
                    failures = 0
                    last_id = event.id
                    yield event.data
            except MagsError as error:
                if error.status_code is not None or failures == _RECONNECTS_MAX:
                    raise
            if failures == _RECONNECTS_MAX:
                raise MagsError(f"the log stream of {request_id} keeps ending before the job does")
            time.sleep(min(_RECONNECT_MOST_S, _RECONNECT_FIRST_S * 2**failures))
            failures += 1

    def list_jobs(
        self,
        *,
        page: int = 1,
        page_size: int = 20,
        status: str | None = None,
    ) -> JsonObject:
        """Return one page of the account's jobs: `{"jobs": […], "total", "page", "page_size"}`."""
        params: JsonObject = {"page": page, "page_size": page_size}
        if status is not None:
            params["status"] = status
        return self._object("GET", "/mags-jobs", params=params)

    def find_job(self, name_or_id: str) -> JsonObject | None:
        """Return the job meant by a name, workspace or id, or None.

        A running or sleeping job of that name comes first, then one with that
        workspace, then the newest of any status.
        """
        jobs = self.list_jobs(page_size=50).get("jobs", [])
        live = [job for job in jobs if job.get("status") in ("running", "sleeping")]
        for candidates in (live, jobs):
            for key in ("name", "workspace_id"):
                for job in candidates:
                    if job.get(key) == name_or_id:
                        return dict(job)
        return next((dict(job) for job in jobs if job.get("request_id") == name_or_id), None)

    def stop(self, name_or_id: str) -> JsonObject:
        """Stop a job, by id, name or workspace, and return when it is over.

        One that takes longer than 25 seconds goes on stopping: `status` says so.
        """
        return self._object(
            "POST", self._job_path(name_or_id, "stop"), timeout_s=max(self.timeout, _STOP_S)
        )

    def upload_file(self, file_path: str | Path) -> str:
        """Upload a file, and return its id for `file_ids` of any number of jobs.

        Raises `MagsError` when it cannot be read, and when the server refuses it.
        """
        path = Path(file_path)
        try:
            with path.open("rb") as content:
                reply = self._transport.upload_file("/mags-files", path.name, content)
        except OSError as error:
            raise MagsError(f"cannot read {path}: {error.strerror}") from error
        if not isinstance(reply, dict) or "file_id" not in reply:
            raise MagsError(f"the server did not say how the upload of {path} is called")
        return str(reply["file_id"])

    def upload_files(self, file_paths: Iterable[str | Path]) -> list[str]:
        """Upload files, and return their ids in the same order. See `upload_file`."""
        return [self.upload_file(path) for path in file_paths]

    def usage(self, *, window_days: int = 30) -> JsonObject:
        """Return what the account has used on so many days (UTC), today among them.

        `{"window_days", "total_jobs", "completed_jobs", "failed_jobs", "running_jobs",
        "vm_seconds", "storage_bytes", "by_day": [{"date", "jobs", "vm_seconds"}, …]}`.
        """
        return self._object("GET", "/mags-jobs/usage", params={"window_days": window_days})

    def whoami(self) -> JsonObject:
        """Return `{"account", "token_id", "scopes"}` of the token."""
        return self._object("GET", "/whoami")

    def _job_path(self, name_or_id: str, what: str = "") -> str:
        if not name_or_id.strip(".") or "/" in name_or_id:
            # No path segment can carry such a name.
            job = self.find_job(name_or_id)
            if job is None:
                raise MagsError(f"No job found for '{name_or_id}'", code="not_found")
            name_or_id = job["request_id"]
        path = f"/mags-jobs/{quote(name_or_id, safe='')}"
        return f"{path}/{what}" if what else path
