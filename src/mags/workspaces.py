"""What a client can ask about workspaces. Replies are the server's JSON objects, as dicts."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import quote

from mags.calls import Calls, JsonObject, checked
from mags.errors import MagsError
from mags.transport import Download

_PREPARING_S: Final = 1800
"""How long the server may take to make an image of a workspace, or a workspace of an archive."""
_COLLECT_S: Final = 120


class WorkspaceCalls(Calls):
    """Methods of a client. All raise `MagsError` for what the server refuses."""

    def list_workspaces(self) -> JsonObject:
        """Return `{"workspaces": […], "total"}`, by name."""
        return self._object("GET", "/mags-workspaces")

    def delete_workspace(self, workspace_id: str) -> JsonObject:
        """Delete a workspace with all its versions. No job may use it."""
        return self._object("DELETE", _path(workspace_id))

    def workspace_versions(self, workspace_id: str) -> JsonObject:
        """Return `{"versions": […], "total"}`, the newest first."""
        return self._object("GET", _path(workspace_id, "/versions"))

    def restore_workspace(self, workspace_id: str, version: int) -> JsonObject:
        """Make an earlier version the newest again; return it under its new number."""
        body = {"version": version}
        return self._object("POST", _path(workspace_id, "/restore"), json=body)

    def fork_workspace(
        self, workspace_id: str, into: str, *, version: int | None = None
    ) -> JsonObject:
        """Make a new workspace, `into`, that begins as a version, by default the newest."""
        body = {"workspace_id": into, "version": version}
        return self._object("POST", _path(workspace_id, "/fork"), json=body)

    @contextmanager
    def export_workspace(
        self, workspace_id: str, *, format: str = "oci", version: int | None = None
    ) -> Iterator[Download]:
        """Give a workspace as an archive, inside the block: its size if known, and its pieces.

        `format`: `oci`, an image, or `tar`, the root filesystem. `MagsError`
        is raised also when the archive ends early.
        """
        params: JsonObject = {"format": format}
        if version is not None:
            params["version"] = version
        path = _path(workspace_id, "/export")
        with self._transport.download(path, params=params, silence_s=_PREPARING_S) as found:
            yield found

    def import_workspace(
        self,
        workspace_id: str,
        content: Iterable[bytes],
        *,
        size_bytes: int | None = None,
        format: str = "auto",
    ) -> JsonObject:
        """Make a new workspace of the root filesystem in an archive; return its first version.

        `content`: the pieces of an OCI image, of what `docker save` writes, or
        of a tar. `size_bytes`: of all of them, where known.
        """
        path = _path(workspace_id, "/import")
        reply = self._transport.upload(
            path,
            content,
            size_bytes=size_bytes,
            params={"format": format},
            silence_s=_PREPARING_S,
        )
        return checked(reply, f"POST {path}")

    def collect_workspaces(self, *, keep: int | None = None) -> JsonObject:
        """Delete versions but the newest `keep` of each workspace, and layers nothing needs.

        Returns `{"versions_deleted", "layers_deleted", "freed_bytes"}`.
        """
        return self._object("POST", "/mags-gc", json={"keep": keep}, timeout_s=_COLLECT_S)


def _path(workspace_id: str, what: str = "") -> str:
    if not workspace_id.strip(".") or "/" in workspace_id:
        # No path segment can carry such a name.
        raise MagsError(f"there is no workspace {workspace_id!r}", code="not_found")
    return f"/mags-workspaces/{quote(workspace_id, safe='')}{what}"
