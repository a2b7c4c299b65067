"""What a client can ask about ways into sandboxes. Replies are the server's JSON objects, as dicts."""

from typing import Any, Final, Protocol
from urllib.parse import quote

from mags.calls import JsonObject

_WAKE_S: Final = 60
"""A sandbox that sleeps is woken first."""


class _Client(Protocol):
    """What these methods use of the client that they belong to."""

    timeout: float

    def enable_access(self, request_id: str, *, port: int = 8080) -> JsonObject: ...

    def _job_path(self, name_or_id: str, what: str = "") -> str: ...

    def _object(self, method: str, path: str, **request: Any) -> JsonObject: ...


class AccessCalls:
    """Methods of a client. All raise `MagsError` for what the server refuses."""

    def enable_access(self: _Client, request_id: str, *, port: int = 8080) -> JsonObject:
        """Open a way into the sandbox of a persistent job, and wake it if it sleeps.

        Port 22 gives an SSH key: `{"ssh_host", "ssh_port", "ssh_private_key", …}`,
        any other a URL: `{"url", "subdomain", "port", …}`.
        """
        return self._object(
            "POST",
            self._job_path(request_id, "access"),
            json={"port": port},
            timeout_s=max(self.timeout, _WAKE_S),
        )

    def url(self: _Client, name_or_id: str, *, port: int = 8080) -> JsonObject:
        """Let a job's URL lead to a port in its sandbox; return it as `url`.

        Named by id, name or workspace. It leads to no other port from then on.
        """
        return self.enable_access(name_or_id, port=port)

    def url_alias_create(
        self: _Client,
        subdomain: str,
        workspace_id: str,
        domain: str = "apps.magpiecloud.com",
        *,
        port: int | None = None,
    ) -> JsonObject:
        """Make a URL that leads to whichever job has a workspace. Returns `{"id", "subdomain", "url", …}`.

        A server takes every `domain` for its own. `port`: where the server
        inside listens; by default the one that the workspace's job shows, else 8080.
        """
        body: JsonObject = {"subdomain": subdomain, "workspace_id": workspace_id, "domain": domain}
        if port is not None:
            body["port"] = port
        return self._object("POST", "/mags-url-aliases", json=body)

    def url_alias_list(self: _Client) -> JsonObject:
        """Return `{"aliases": […], "total"}`, oldest first."""
        return self._object("GET", "/mags-url-aliases")

    def url_alias_delete(self: _Client, subdomain: str) -> JsonObject:
        """Delete an alias."""
        return self._object("DELETE", f"/mags-url-aliases/{quote(subdomain, safe='')}")
