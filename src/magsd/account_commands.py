"""`magsd account`: who may have how much. Works on the database, also while the service runs."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from magsd.terminal import say, told

if TYPE_CHECKING:
    from magsd.core.accounts import Accounts
    from magsd.model.quota import Quota

app = typer.Typer(help="Accounts and their quotas.", no_args_is_help=True)

_DEFAULT: Final = -1
_HELP: Final = f"{_DEFAULT}: the default of the settings."

_Result = TypeVar("_Result")
Limit = Annotated[int | None, typer.Option(min=_DEFAULT, help=_HELP)]


@app.command("list")
def list_accounts() -> None:
    """Print all accounts and the limits that were decided for each."""
    with told():
        for account, quota in _done(lambda accounts: accounts.listed()):
            say(f"{account.name:24} {_described(quota)}")


@app.command("set")
def set_quota(
    name: Annotated[str, typer.Argument(help="The account.")],
    jobs_max: Limit = None,
    vcpus_max: Limit = None,
    memory_mb_max: Limit = None,
    disk_gb_max: Limit = None,
    files_mb_max: Limit = None,
) -> None:
    """Decide what an account's unfinished jobs may take together, and its uploads; a service
    that runs takes note within seconds."""
    from magsd.model.errors import InvalidError

    given = {
        "jobs_max": jobs_max,
        "vcpus_max": vcpus_max,
        "memory_mb_max": memory_mb_max,
        "disk_gb_max": disk_gb_max,
        "files_mb_max": files_mb_max,
    }
    with told():
        changes = {
            limit: None if value == _DEFAULT else value
            for limit, value in given.items()
            if value is not None
        }
        if not changes:
            raise InvalidError("say which limit: see `magsd account set --help`")
        quota = _done(lambda accounts: accounts.change_quota(name, changes))
        say(f"{name:24} {_described(quota)}")


def _done(work: Callable[["Accounts"], Awaitable[_Result]]) -> _Result:
    """Return what `work` returns for the accounts of the database that is there."""
    from magsd import config
    from magsd.core.accounts import Accounts
    from magsd.db.database import Database

    settings = config.load()
    settings.require_database()

    async def do() -> _Result:
        database = await Database.open(settings.effective_database_url)
        try:
            return await work(Accounts(database))
        finally:
            await database.aclose()

    return asyncio.run(do())


def _described(quota: "Quota") -> str:
    limits = dataclasses.asdict(quota).items()
    own = [f"{name}={value}" for name, value in limits if value is not None]
    return " ".join(own) or "the defaults of the settings"
