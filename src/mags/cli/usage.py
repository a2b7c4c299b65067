"""`mags usage`: what the account has used, for people and for programs."""

from typing import Annotated, Any, Final

import typer

from mags.cli import output
from mags.cli.options import JsonOption, client

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def usage(
    days: Annotated[
        int, typer.Option("--days", min=1, max=366, help="Days in UTC, today among them.")
    ] = 30,
    as_json: JsonOption = False,
) -> None:
    """Show what the account has used: jobs, time of sandboxes, storage."""
    with client() as mags:
        reply = mags.usage(window_days=days)
    if as_json:
        output.write_json(reply)
        return
    output.write_pairs(
        {
            "jobs": reply["total_jobs"],
            "completed": reply["completed_jobs"],
            "failed": reply["failed_jobs"],
            "running": reply["running_jobs"],
            "vm time": duration(reply["vm_seconds"]),
            "storage": size(reply["storage_bytes"]),
        }
    )
    used = [day for day in reply["by_day"] if _is_used(day)]
    if used:
        rows = [[day["date"], str(day["jobs"]), duration(day["vm_seconds"])] for day in used]
        output.write_table(["DATE", "JOBS", "VM TIME"], rows)


def _is_used(day: dict[str, Any]) -> bool:
    return bool(day["jobs"] or day["vm_seconds"])


def duration(seconds: float) -> str:
    """Return a time in hours, minutes and seconds, leaving out what is nothing before."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m{rest:02}s" if hours else f"{minutes}m{rest:02}s"


def size(count: int) -> str:
    """Return a number of bytes in the unit that leaves up to four digits before the point."""
    amount, units = float(count), iter(_UNITS)
    unit = next(units)
    for larger in units:
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
