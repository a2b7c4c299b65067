"""What everybody in the core works with, in one place, and how a change is published."""

import asyncio
from collections.abc import Mapping
from typing import Final

from magsd.aio import Clock, SingleFlight
from magsd.core import statuses
from magsd.core.events import Events
from magsd.core.log_archive import LogArchive
from magsd.core.log_places import LogPlaces
from magsd.core.pool import Pool
from magsd.core.pulse import Pulses
from magsd.core.quotas import Quotas
from magsd.core.room import Room
from magsd.core.run_log import RunLog
from magsd.core.settings import CoreSettings
from magsd.core.snapshots import Snapshots
from magsd.core.uses import Uses
from magsd.core.workspace_uploads import WorkspaceUploads
from magsd.db.database import Database
from magsd.engine.base import Engine
from magsd.metrics import Metrics
from magsd.model.amount import Amount
from magsd.model.records import Job, JobStatus, Run
from magsd.storage.images import ImageStore
from magsd.storage.layers import LayerStore
from magsd.storage.objects import ObjectStore
from magsd.storage.uploads import UploadStore

_RECOVERIES_AT_ONCE: Final = 64


class Node:
    """One node's parts. Whoever makes it owns what is handed in, and closes it last."""

    def __init__(
        self,
        *,
        database: Database,
        engines: Mapping[str, Engine],
        images: ImageStore,
        objects: ObjectStore,
        settings: CoreSettings,
        clock: Clock,
        metrics: Metrics | None = None,
    ) -> None:
        self.database = database
        self.engines = engines
        self.unusable: dict[str, str] = {}
        """Engines that cannot work here as things are, and why, in one sentence each."""
        self.images = images
        self.settings = settings
        self.clock = clock
        self.events = Events(settings.snapshots_max)
        self.places = LogPlaces(settings.data_directory)
        self.archive = LogArchive(
            database=database,
            objects=objects,
            places=self.places,
            settings=settings,
            clock=clock,
        )
        self.layers = LayerStore(
            settings.data_directory,
            objects,
            clock,
            cache_bytes=settings.layers_cache_mb << 20,
        )
        self.uploads = WorkspaceUploads(
            database,
            self.layers,
            clock,
            node=settings.node,
            keep=settings.versions_kept,
        )
        self.files = UploadStore(
            settings.data_directory, objects, free_min_bytes=settings.disk_free_min_bytes
        )
        self.layer_names = asyncio.Lock()
        """Held by whoever names layers in a row, and by whoever removes those that none names."""
        self.metrics = metrics or Metrics()
        self.launches = Room(Amount(vms=settings.launches_at_once))
        """For a launch that is under way."""
        self.room = Room(settings.capacity)
        """For a VM from its claim until it is given back."""
        self.quotas = Quotas(settings.quota)
        self.uses = Uses(clock)
        self.snapshots = Snapshots(settings.data_directory, settings.disk_free_min_bytes)
        self.given_back = SingleFlight()
        """VMs that are being given back, by name."""
        self.pool = Pool(
            engines=engines,
            images=images,
            places=self.places,
            settings=settings,
            launches=self.launches,
            given_back=self.given_back,
            clock=clock,
            metrics=self.metrics,
        )
        self.recoveries = asyncio.Semaphore(_RECOVERIES_AT_ONCE)
        """For finding a VM that an earlier daemon started: each has a deadline, and there may
        be thousands."""
        self.log_pulses = Pulses()
        """Beats for a `RequestId` when its log grew or its status changed."""
        self.run_log = RunLog(self.places, self.log_pulses, clock)

    def publish(self, job: Job, run: Run) -> JobStatus:
        """Show what has been committed. `job.generation` must have risen."""
        status = statuses.of_job(job, run, self.settings)
        self.events.publish(status)
        self.log_pulses.beat(job.request_id)
        return status
