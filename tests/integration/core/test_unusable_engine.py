"""A job that asks for an engine gets it, or is told at once why it cannot."""

import pytest

from magsd.model.errors import InvalidError, LaunchError
from magsd.model.lifecycle import Status

OUT_OF_ORDER = LaunchError("the engine is out of order: turn it round", "detail")


async def test_an_engine_that_cannot_be_used_is_refused_at_submit(service):
    await service.stop()
    service.engine.unready = OUT_OF_ORDER
    await service.start()
    with pytest.raises(InvalidError) as refused:
        await service.submit("true", engine="process")
    assert refused.value.message == (
        "engine: process cannot be used here (known: auto): "
        "the engine is out of order: turn it round"
    )
    page = await service.app.list_jobs(service.principal, page=1, page_size=10)
    assert page.total == 0


async def test_an_engine_that_can_be_used_again_is_given_out_again(service):
    await service.stop()
    service.engine.unready = OUT_OF_ORDER
    await service.start()
    service.engine.unready = None
    await service.restart()
    assert (await service.run("true", engine="process")).status is Status.COMPLETED


async def test_an_engine_that_is_not_there_is_refused_at_submit(service):
    with pytest.raises(InvalidError, match=r"there is no 'qemu' here \(known: auto, process\)"):
        await service.submit("true", engine="qemu")
