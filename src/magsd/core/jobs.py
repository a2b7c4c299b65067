"""What callers can ask about jobs: submit, status, list, stop.

Decides whether it may be, writes one short transaction, and tells the
supervisor. What happens then is the actors' part.
"""

import asyncio
import dataclasses
import sys
from collections.abc import Callable

from sqlalchemy import Connection

from magsd.aio import finish
from magsd.core import launch, statuses
from magsd.core.admission import Admission, Admitted
from magsd.core.files import Files, use
from magsd.core.goals import with_goal
from magsd.core.idempotency import before, idempotency_of, submitted_before
from magsd.core.launch import Shape
from magsd.core.node import Node
from magsd.core.supervisor import Supervisor
from magsd.core.workspaces import check_free
from magsd.db import jobs
from magsd.model.errors import (
    CapacityError,
    ConflictError,
    InvalidError,
    JobCode,
    LaunchError,
    NotFoundError,
    QuotaError,
)
from magsd.model.lifecycle import Goal, RunState, Status
from magsd.model.names import (
    AccountId,
    RequestId,
    check_job_name,
    check_workspace_name,
    is_request_id,
    new_request_id,
    new_run_id,
    new_subdomain,
)
from magsd.model.quota import check_startup_command, completed
from magsd.model.records import (
    Job,
    JobPage,
    JobSpec,
    JobStatus,
    Principal,
    Run,
    RunSpec,
    Synced,
)
from magsd.model.uploads import check_together


class Jobs:
    """The jobs of a node, as accounts see them."""

    def __init__(self, node: Node, supervisor: Supervisor, files: Files) -> None:
        self._node = node
        self._files = files
        self._supervisor = supervisor
        self._admission = Admission(node)

    async def submit(
        self, principal: Principal, spec: JobSpec, idempotency_key: str | None = None
    ) -> JobStatus:
        """Record a job durably and see to it that it runs.

        With a key that the account used within a day the job of then is
        returned; `ConflictError` when that one asked for something else.
        Raises `QuotaError` and `CapacityError` for what `Admission` refuses, `NotFoundError` for
        an upload that is not the caller's.
        """
        run_spec, shape = self._checked(spec)
        files = await self._files.chosen(principal, spec.file_ids)
        check_together(files, run_spec.disk_gb)
        run_spec = dataclasses.replace(run_spec, files=files)
        idempotency = idempotency_of(spec, idempotency_key)
        now = self._node.clock.now()
        job = Job(
            request_id=new_request_id(),
            account_id=principal.account_id,
            name=f"mags-job-{int(now.timestamp())}" if spec.name is None else spec.name,
            workspace_id=spec.workspace_id,
            persistent=spec.persistent,
            no_sleep=spec.no_sleep,
            subdomain=new_subdomain(),
            goal=Goal.RUNNING,
            goal_version=1,
            generation=1,
            created_at=now,
            base_workspace_id=spec.base_workspace_id,
            no_sync=spec.no_sync,
            idle_timeout_s=spec.idle_timeout_s,
        )
        isolation = self._node.engines[shape.engine].capabilities.isolation
        run = Run(new_run_id(), job.request_id, 1, RunState.PENDING, shape.engine, isolation, now)
        try:
            return await self._admit(job, run, run_spec, shape, idempotency, spec.startup_command)
        except (QuotaError, CapacityError):
            # A submit that is sent again asks for nothing more.
            if (known := await self._known(job, idempotency)) is not None:
                return known
            raise

    async def _admit(
        self,
        job: Job,
        run: Run,
        run_spec: RunSpec,
        shape: Shape,
        idempotency: jobs.Idempotency | None,
        startup_command: str,
    ) -> JobStatus:
        # What has files waits for them first, and then for a VM.
        has_own = run_spec.files or job.workspace_id or job.base_workspace_id
        with self._admission.admitted(
            job.account_id, run_spec, shape, is_pooled=not has_own
        ) as admitted:
            if (vm := admitted.start.vm) is not None:
                # One commit for both: the job, and the VM that it has.
                run = dataclasses.replace(
                    run,
                    state=RunState.LAUNCHING,
                    vm_id=vm.handle.vm,
                    claimed_at=self._node.clock.now(),
                )

            def store(tx: Connection) -> tuple[Job, Run]:
                known = submitted_before(tx, job, idempotency)
                if known is None:
                    check_free(tx, job)
                    use(tx, job.account_id, run_spec.files, job.created_at)
                    node = self._node.settings.node
                    jobs.add(tx, job, run, run_spec, node, idempotency, startup_command)
                return known or (job, run)

            # Once it is asked for it is carried out, whether or not the caller still listens.
            return await finish(self._submitted(store, job, admitted))

    async def status(
        self,
        principal: Principal,
        ref: str,
        *,
        wait_s: float = 0,
        after_generation: int | None = None,
    ) -> JobStatus:
        """Return what a job is; wait up to `wait_s` for something newer than `after_generation`.

        None: until it is over. A final status is returned at once.
        """
        found = await self.find(principal, ref)
        after = sys.maxsize if after_generation is None else after_generation
        if wait_s <= 0 or found.is_final or found.generation > after:
            return found
        try:
            async with asyncio.timeout(wait_s):
                newer = await self._node.events.changed(found.request_id, after)
        except TimeoutError:
            newer = self._node.events.get(found.request_id)
        return newer or found

    async def find(self, principal: Principal, ref: str) -> JobStatus:
        """Return the status of the job that `ref`, an id or a name, means to the caller.

        Raises `NotFoundError`, also for the job of another account.
        """
        if is_request_id(ref):
            status = self._node.events.get(RequestId(ref))
            if status is not None and status.account_id == principal.account_id:
                return status
        return self._shown(*await self.load(principal, ref))

    async def load(self, principal: Principal, ref: str) -> tuple[Job, Run]:
        """Return the job that `ref` means, from its rows. Raises `NotFoundError`."""
        account_id = principal.account_id
        found = await self._node.database.read(lambda tx: _resolved(tx, account_id, ref))
        if found is None:
            raise NotFoundError(f"there is no job {ref[:128]!r}: see the list of jobs")
        return found

    async def list_jobs(
        self,
        principal: Principal,
        *,
        page: int,
        page_size: int,
        status: Status | None = None,
        workspace_id: str | None = None,
    ) -> JobPage:
        """Return page `page` (from 1) of the caller's jobs."""
        rows, total = await self._node.database.read(
            lambda tx: jobs.page(
                tx,
                principal.account_id,
                offset=(page - 1) * page_size,
                limit=page_size,
                status=status,
                workspace_id=workspace_id,
            )
        )
        settings = self._node.settings
        found = tuple(statuses.of_job(job, run, settings) for job, run in rows)
        return JobPage(found, total, page, page_size)

    async def stop(self, principal: Principal, ref: str) -> JobStatus:
        """See to it that a job ends, and wait for that for `stop_wait_s`.

        Its status is not final then if it takes longer. For a job that is
        over nothing happens.
        """
        found = await self.find(principal, ref)
        if found.is_final:
            return found
        account_id, request_id = principal.account_id, found.request_id

        def store(tx: Connection) -> tuple[Job, Run]:
            rows = jobs.get(tx, account_id, request_id)
            if rows is None:
                raise NotFoundError("the job is gone")
            return with_goal(tx, *rows, Goal.STOPPED), rows[1]

        async def ask() -> tuple[Job, Run]:
            job, run = await self._node.database.write(store)
            self._supervisor.want(job)
            return job, run

        found = self._shown(*await finish(ask()))
        try:
            async with asyncio.timeout(self._node.settings.stop_wait_s):
                while not found.is_final:
                    newer = await self._node.events.changed(request_id, found.generation)
                    if newer is None:
                        break
                    found = newer
        except TimeoutError:
            pass
        return found

    async def update(
        self,
        principal: Principal,
        ref: str,
        *,
        no_sleep: bool | None = None,
        startup_command: str | None = None,
    ) -> JobStatus:
        """Change settings of a job that is not over; None changes nothing.

        One that sleeps and may not any more is woken. Raises `InvalidError` for one that is not
        persistent, `ConflictError` for one that is over.
        """
        found = await self.find(principal, ref)
        if no_sleep is None and startup_command is None:
            return found
        if no_sleep and not found.persistent:
            raise InvalidError("no_sleep needs a persistent job: this one ends with its script")
        check_startup_command(startup_command or "")
        if found.is_final:
            raise ConflictError("the job is over: submit it again")
        request_id = found.request_id
        if startup_command is not None:
            command = startup_command
            await finish(
                self._node.database.write(
                    lambda tx: jobs.set_startup_command(tx, request_id, command)
                )
            )
        if no_sleep is not None and no_sleep is not found.no_sleep:
            await finish(self._supervisor.set_no_sleep(request_id, no_sleep))
        return self._node.events.get(request_id) or found

    async def sync(self, principal: Principal, ref: str) -> Synced:
        """Keep what a running job has changed so far, and wait for that for `stop_wait_s`.

        Raises `InvalidError` where nothing is kept, `ConflictError` when it
        does not run, `CapacityError` when it takes longer: it goes on then.
        """
        job, _ = await self.load(principal, ref)
        if not job.is_kept:
            why = "it has no workspace" if job.workspace_id is None else "it was begun with no_sync"
            raise InvalidError(f"there is nothing to sync for this job: {why}")
        try:
            async with asyncio.timeout(self._node.settings.stop_wait_s):
                return await self._supervisor.sync(job.request_id)
        except TimeoutError:
            text = "the object store takes its time: what was captured is stored as soon as it can"
            raise CapacityError(f"{text}; ask again to see whether it is") from None

    # --- parts -----------------------------------------------------------------

    def _checked(self, spec: JobSpec) -> tuple[RunSpec, Shape]:
        settings = self._node.settings
        if spec.name is not None:
            check_job_name(spec.name)
        for field in ("workspace_id", "base_workspace_id"):
            if (name := getattr(spec, field)) is not None:
                check_workspace_name(field, name)
        run_spec = completed(spec, settings.limits)
        engine = self._engine_of(spec)
        most = self._node.engines[engine].capabilities.max_vcpus
        if run_spec.vcpus > most:
            raise InvalidError(f"vcpus: engine {engine} gives a VM at most {most}")
        try:
            shape = launch.shape_of(engine, run_spec, self._node.images, settings)
        except LaunchError as error:
            if error.job_code is not JobCode.LAUNCH_FAILED:
                raise
            raise InvalidError(f"rootfs_type: {error.message}", error.detail) from error
        return run_spec, shape

    def _engine_of(self, spec: JobSpec) -> str:
        """Return the engine of a job. Raises `InvalidError` for one that cannot be had here.

        Whoever leaves the choice to the server is told by its readiness.
        """
        if spec.engine in (None, "auto"):
            return self._node.settings.default_engine
        engines, unusable = self._node.engines, self._node.unusable
        known = ", ".join(["auto", *sorted(engines.keys() - unusable.keys())])
        if spec.engine not in engines:
            raise InvalidError(f"engine: there is no {spec.engine!r} here (known: {known})")
        if (reason := unusable.get(spec.engine)) is not None:
            raise InvalidError(
                f"engine: {spec.engine} cannot be used here (known: {known}): {reason}"
            )
        return spec.engine

    async def _submitted(
        self, store: Callable[[Connection], tuple[Job, Run]], job: Job, admitted: Admitted
    ) -> JobStatus:
        with self._supervisor.expecting(job.request_id):
            stored, run = await self._node.database.write(store)
            if stored.request_id != job.request_id:
                return self._node.events.get(stored.request_id) or self._shown(stored, run)
            status = self._node.publish(stored, run)
            admitted.is_taken_over = True
            self._supervisor.add(stored, run, admitted.need, admitted.start)
        self._node.metrics.job_submitted(run.engine)
        return status

    async def _known(self, job: Job, idempotency: jobs.Idempotency | None) -> JobStatus | None:
        """Return the job that was submitted before with the same key."""
        if idempotency is None:
            return None
        found = await self._node.database.read(lambda tx: before(tx, job, idempotency))
        return None if found is None else self._shown(*found)

    def _shown(self, job: Job, run: Run) -> JobStatus:
        """Return the status of a job from its rows, or what was published meanwhile."""
        status = statuses.of_job(job, run, self._node.settings)
        published = self._node.events.get(job.request_id)
        if published is not None and published.generation >= status.generation:
            return published
        if status.is_final:
            self._node.events.remember(status)
        return status


def _resolved(tx: Connection, account_id: AccountId, ref: str) -> tuple[Job, Run] | None:
    found = jobs.get(tx, account_id, RequestId(ref)) if is_request_id(ref) else None
    return found or jobs.find(tx, account_id, ref)
