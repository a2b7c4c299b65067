"""Structured logs of the daemon, set up in one place.

Every module asks for its logger with `structlog.get_logger()`; this file
decides the form: lines for people on a terminal, JSON for everything else.
Always standard error: standard output belongs to results.
"""

import logging
import sys
from typing import Any, Final, TextIO

import structlog

_LEVELS: Final = ("debug", "info", "warning", "error")


def configure(
    level: str = "info", *, stream: TextIO | None = None, json: bool | None = None
) -> None:
    """Send logs of `level` and above to `stream` (standard error).

    `json` None: JSON unless the stream is a terminal. The standard library's
    loggers (uvicorn, asyncio, SQLAlchemy) go the same way, from warnings up.
    """
    if level not in _LEVELS:
        raise ValueError(f"unknown log level {level!r}: one of {', '.join(_LEVELS)}")
    out = stream or sys.stderr
    as_json = not out.isatty() if json is None else json
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        # Plain: the usual tracebacks show local variables, and those hold secrets of jobs.
        else [
            structlog.dev.ConsoleRenderer(
                colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
