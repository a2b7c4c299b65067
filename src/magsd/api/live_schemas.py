"""The shapes of requests and replies about jobs that run: commands, and settings."""

from pydantic import BaseModel, ConfigDict, Field

from magsd.api.schemas import STARTUP_COMMAND, Done, Number, Reply, Text

TIMEOUT_S = 30


class ExecRequest(BaseModel):
    """A command."""

    model_config = ConfigDict(strict=True, extra="ignore")

    command: str = Field(
        description="Run by `/bin/sh -c` as root in `/root`, with the job's environment. Command "
        "and environment have 64 KiB together.",
        json_schema_extra={"pattern": r"\S"},
    )
    timeout: Number = Field(
        TIMEOUT_S, description="Seconds it may take. It is killed then, and its exit code is 124."
    )


class UpdateRequest(BaseModel):
    """Settings of a job to change."""

    model_config = ConfigDict(strict=True, extra="ignore")

    no_sleep: bool | None = Field(
        None,
        description="Whether the VM is never put to sleep. Needs a persistent job; one that sleeps "
        "is woken.",
    )
    startup_command: Text | None = Field(
        None, description=f"{STARTUP_COMMAND} Empty: nothing is run."
    )


class Executed(Reply):
    """How the command ended, and what it printed."""

    exit_code: int = Field(description="128 and its number for a signal; 124: its time was over.")
    stdout: str = Field(description="What is not UTF-8 is replaced.")
    stderr: str
    duration_ms: int
    truncated: bool = Field(
        False, description="It printed more than 4 MiB to one of both, which was dropped."
    )
    warnings: list[str] = Field([], description="Fields of the request that nobody knows.")


class Updated(Done):
    """The settings are changed."""

    warnings: list[str] = Field([], description="Fields of the request that nobody knows.")
