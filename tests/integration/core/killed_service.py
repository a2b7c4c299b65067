"""A service as a process, to be killed: `python -m … DIRECTORY JOBS`.

Submits the jobs of the test unless they were, says `submitted`, and works until its end.
"""

import asyncio
import sys
from pathlib import Path

from magsd.model.records import JobSpec
from tests.integration.core.service import Service


def spec(directory: Path, number: int) -> JobSpec:
    """Return a job that leaves a mark each time its script begins."""
    mark = f"echo begun >> {directory}/marks-{number}"
    return JobSpec(f"{mark}; echo one; sleep 0.3; echo two; exit {number}", name=f"job {number}")


async def main(directory: Path, jobs: int) -> None:
    """Work until killed."""
    service = Service(directory)
    await service.start()
    for number in range(jobs):
        await service.app.submit(service.principal, spec(directory, number), f"key {number}")
    print("submitted", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
