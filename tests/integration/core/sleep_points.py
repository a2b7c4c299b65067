"""A service whose jobs sleep and are woken, and which kills itself at a chosen point: orders as of
`kill_points`."""

from pathlib import Path

from magsd.model.records import JobSpec
from tests.integration.core.kill_points import Player, Scene, main

WORKSPACE = "slept"
WRITTEN = "written"


def script(directory: Path) -> str:
    """Return a script that leaves a mark, writes a file, and waits."""
    return (
        f"echo begun >> {directory}/marks; cd {directory}/changes/$(hostname) && "
        f"echo {WRITTEN} > file; echo one; sleep 1000"
    )


async def _running(player: Player, workspace_id: str | None) -> str:
    """Return a job whose script has written its file."""
    service = player.service
    await service.start()
    spec = JobSpec(
        script(service.directory),
        persistent=True,
        workspace_id=workspace_id,
        startup_command="echo started",
    )
    status = await service.app.submit(service.principal, spec)
    player.say(f"acknowledged {status.request_id}")
    await service.printed(status.request_id, "one")
    return status.request_id


async def _fall_asleep(player: Player, request_id: str) -> None:
    await player.service.app._supervisor.put_to_sleep(request_id)
    await player.service.until(request_id, lambda now: now.sleeping)


async def _wake(player: Player, request_id: str) -> None:
    service = player.service
    done = await service.app.execs.run(service.principal, request_id, "echo here", 20)
    assert done.stdout == b"here\n"
    await service.printed(request_id, "started")


def _sleep_scene(workspace_id: str | None) -> Scene:
    async def play(player: Player) -> None:
        request_id = await _running(player, workspace_id)
        player.begin()
        await _fall_asleep(player, request_id)

    return Scene(play)


def _wake_scene(workspace_id: str | None) -> Scene:
    async def play(player: Player) -> None:
        request_id = await _running(player, workspace_id)
        await _fall_asleep(player, request_id)
        player.begin()
        await _wake(player, request_id)

    return Scene(play)


def _stop_scene(workspace_id: str | None) -> Scene:
    async def play(player: Player) -> None:
        request_id = await _running(player, workspace_id)
        await _fall_asleep(player, request_id)
        player.begin()
        await player.stop(request_id)
        await player.archived(request_id)

    return Scene(play)


SCENES = {
    "sleep": _sleep_scene(None),
    "sleep with a workspace": _sleep_scene(WORKSPACE),
    "wake": _wake_scene(None),
    "wake with a workspace": _wake_scene(WORKSPACE),
    "stop asleep": _stop_scene(None),
    "stop asleep with a workspace": _stop_scene(WORKSPACE),
}


if __name__ == "__main__":
    main(SCENES)
