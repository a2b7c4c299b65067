"""A service that keeps workspaces and kills itself at a chosen point: orders as of `kill_points`.

Its trail has, besides, a line `kept <workspace> <version> <files as JSON>` for each version that
was acknowledged, and `deleted <workspace>`.
"""

import json
from pathlib import Path

from magsd.core.workspace_upkeep import WorkspaceUpkeep
from magsd.model.records import JobSpec
from tests.integration.core.kill_points import Player, Scene, main

WORKSPACE = "kept"
Files = dict[str, str]


def script(directory: Path, name: str) -> str:
    """Return a script that writes a file, waits for its gate, and writes it to its end."""
    return (
        f"cd {directory}/changes/$(hostname) && echo {name} > {name}; echo one; "
        f"until [ -e {directory}/{name}.gate ]; do sleep 0.01; done; "
        f"echo end >> {name}; echo two; exit 5"
    )


def files(name: str, *, is_whole: bool = True) -> Files:
    """Return what a job with that name writes."""
    return {name: f"{name}\nend\n" if is_whole else f"{name}\n"}


class Keeper:
    """A player whose jobs have a workspace."""

    def __init__(self, player: Player) -> None:
        self.player = player
        self.service = player.service
        self.files: Files = {}

    async def running(self, name: str, **fields: str) -> str:
        """Submit a job; return when its script has written the first half of its file."""
        spec = JobSpec(
            script(self.service.directory, name), name=name, workspace_id=WORKSPACE, **fields
        )
        status = await self.service.app.submit(self.service.principal, spec, name)
        self.player.say(f"acknowledged {status.request_id}")
        await self.service.printed(status.request_id, "one")
        return status.request_id

    async def ended(self, name: str, request_id: str) -> None:
        """Let a job go to its end, and take note of what was acknowledged then."""
        self.player.open_gate(name)
        status = await self.service.until(request_id)
        self.files |= files(name)
        assert status.workspace_synced, status
        self.kept((await self.versions())[0].version)

    async def whole(self, name: str) -> None:
        """Have a whole job."""
        await self.ended(name, await self.running(name))

    def kept(self, version: int, what: Files | None = None, where: str = WORKSPACE) -> None:
        """Leave word of a version that was acknowledged."""
        held = self.files if what is None else what
        self.player.say(f"kept {where} {version} {json.dumps(held)}")

    async def versions(self):
        """Return the versions, the newest first."""
        return await self.service.app.workspaces.versions(self.service.principal, WORKSPACE)


async def _end(player: Player) -> None:
    keeper = Keeper(player)
    await player.service.start()
    request_id = await keeper.running("a")
    player.begin()
    await keeper.ended("a", request_id)


async def _stop(player: Player) -> None:
    keeper = Keeper(player)
    await player.service.start()
    await keeper.whole("a")
    request_id = await keeper.running("b")
    player.begin()
    await player.stop(request_id)
    status = await player.service.until(request_id)
    assert status.workspace_synced, status
    keeper.kept(2, files("a") | files("b", is_whole=False))


async def _sync(player: Player) -> None:
    keeper = Keeper(player)
    await player.service.start()
    await keeper.whole("a")
    request_id = await keeper.running("b")
    player.begin()
    synced = await player.service.app.sync(player.service.principal, request_id)
    keeper.kept(synced.version, files("a") | files("b", is_whole=False))
    await keeper.ended("b", request_id)


async def _whole(player: Player) -> None:
    """All of a job's life, on top of another's."""
    keeper = Keeper(player)
    await player.service.start()
    await keeper.whole("a")
    player.begin()
    await keeper.whole("b")


async def _restore_and_fork(player: Player) -> None:
    keeper = Keeper(player)
    service = player.service
    await service.start()
    await keeper.whole("a")
    await keeper.whole("b")
    player.begin()
    workspaces = service.app.workspaces
    restored = await workspaces.restore(service.principal, WORKSPACE, 1)
    keeper.kept(restored.version, files("a"))
    forked = await workspaces.fork(service.principal, WORKSPACE, "fork", 2)
    keeper.kept(forked.version, files("a") | files("b"), "fork")
    for version in (restored, forked):
        await service.node.uploads.stored(version)


async def _upkeep(player: Player) -> None:
    """Long chains become short, what nobody needs goes: nothing of it changes what is kept."""
    keeper = Keeper(player)
    await player.service.start()
    for name in ("a", "b", "c"):
        await keeper.whole(name)
    player.begin()
    upkeep = WorkspaceUpkeep(player.service.node)
    for work in (upkeep.shorten, upkeep.delete_unneeded, upkeep.shrink_cache):
        await work()


async def _delete(player: Player) -> None:
    keeper = Keeper(player)
    service = player.service
    await service.start()
    await keeper.whole("a")
    forked = await service.app.workspaces.fork(service.principal, WORKSPACE, "fork", 1)
    keeper.kept(forked.version, files("a"), "fork")
    await service.node.uploads.stored(forked)
    player.begin()
    await service.app.workspaces.delete(service.principal, WORKSPACE)
    player.say(f"deleted {WORKSPACE}")
    await WorkspaceUpkeep(service.node).delete_unneeded()


SHORT = {"layers_max": 1, "versions_kept": 1, "layers_cache_mb": 0}
SCENES = {
    "end": Scene(_end),
    "stop": Scene(_stop),
    "sync": Scene(_sync),
    "whole life": Scene(_whole),
    "restore and fork": Scene(_restore_and_fork),
    "upkeep": Scene(_upkeep, SHORT),
    "delete": Scene(_delete, SHORT),
}


if __name__ == "__main__":
    main(SCENES)
