"""Structured logs of the daemon, set up in one place.

Every module asks for its logger with `structlog.get_logger()`; this file
decides the form: lines for people on a terminal, JSON for everything else, where
each has `event`, `level` and `timestamp`. Always standard error: standard output
belongs to results. What is bound to the context (`bind_contextvars`) is in every
line that is logged in it.
"""

import logging
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, TextIO, cast

import structlog

_LEVELS: Final = ("debug", "info", "warning", "error")


class _Lossy:
    """A stream for logs: what cannot be written, as on a full disk, is lost and nothing else is."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        """Flush what can be flushed."""
        with suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Say whether somebody reads along."""
        return self._stream.isatty()


def configure(
    level: str = "info", *, stream: TextIO | None = None, json: bool | None = None
) -> None:
    """Send logs of `level` and above to `stream` (standard error).

    `json` None: JSON unless the stream is a terminal. The standard library's
    loggers go the same way: ours from `level` up, others (uvicorn, asyncio,
    SQLAlchemy) from warnings up.
    """
    if level not in _LEVELS:
        raise ValueError(f"unknown log level {level!r}: one of {', '.join(_LEVELS)}")
    out = _Lossy(stream or sys.stderr)
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
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", out)),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(cast("TextIO", out))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("magsd").setLevel(level.upper())


def catch_all() -> None:
    """Log what nobody caught, and warnings, as everything else: for a process that is a service."""
    sys.excepthook = _crashed
    threading.excepthook = lambda thread: _crashed(
        thread.exc_type, thread.exc_value or thread.exc_type(), thread.exc_traceback
    )
    logging.captureWarnings(True)


def _crashed(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        structlog.get_logger().critical("crashed", exc_info=(kind, error, traceback))
