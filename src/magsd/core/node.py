"""What everybody in the core works with, in one place, and how a change is published."""

from collections.abc import Mapping

from magsd.aio import Clock
from magsd.core import statuses
from magsd.core.events import Events
from magsd.core.log_places import LogPlaces
from magsd.core.pulse import Pulses
from magsd.core.settings import CoreSettings
from magsd.core.slots import Slots
from magsd.db.database import Database
from magsd.engine.base import Engine
from magsd.model.records import Job, JobStatus, Run
from magsd.storage.images import ImageStore


class Node:
    """One node's parts. Whoever makes it owns what is handed in, and closes it last."""

    def __init__(
        self,
        *,
        database: Database,
        engines: Mapping[str, Engine],
        images: ImageStore,
        settings: CoreSettings,
        clock: Clock,
    ) -> None:
        self.database = database
        self.engines = engines
        self.images = images
        self.settings = settings
        self.clock = clock
        self.events = Events(settings.snapshots_max)
        self.places = LogPlaces(settings.data_directory)
        self.launches = Slots(settings.launches_at_once)
        """For a launch that is under way."""
        self.vms = Slots(settings.vms_max)
        """For a VM from its claim until it is given back."""
        self.log_pulses = Pulses()
        """Beats for a `RequestId` when its log grew or its status changed."""

    def publish(self, job: Job, run: Run) -> JobStatus:
        """Show what has been committed. `job.generation` must have risen."""
        status = statuses.of_job(job, run, self.settings)
        self.events.publish(status)
        self.log_pulses.beat(job.request_id)
        return status
