"""What the gateway answers itself: errors, as JSON, and as pages for people."""

import html
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

_RELOAD_S: Final = 3
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>{reload}
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:32em;margin:20vh auto;padding:0 1em}}
h1{{font-size:1.2em}}@media(prefers-color-scheme:dark){{body{{background:#111;color:#ddd}}}}</style>
</head><body><h1>{title}</h1><p>{text}</p></body></html>
"""


@dataclass(frozen=True, slots=True)
class Refusal(Exception):
    """Why a request has no answer of a server inside."""

    status: int
    message: str
    """What is wrong and what to do next."""
    retry_after_s: int | None = None
    """It may work then: told to programs, and pages reload themselves."""


def refusal_answer(
    refusal: Refusal, *, is_html: bool, has_body: bool = True, is_last: bool = False
) -> bytes:
    """Return the whole answer. `has_body`: it is not for HEAD; `is_last`: the connection ends."""
    content = _page(refusal) if is_html else json.dumps({"error": refusal.message}).encode()
    kind = "text/html; charset=utf-8" if is_html else "application/json"
    lines = [
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(content)}",
        "Cache-Control: no-store",
    ]
    if refusal.retry_after_s is not None:
        lines.append(f"Retry-After: {refusal.retry_after_s}")
    if refusal.status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
    lines.append(f"Connection: {'close' if is_last else 'keep-alive'}")
    head = "\r\n".join([*lines, "", ""]).encode()
    return head + content if has_body else head


def _page(refusal: Refusal) -> bytes:
    is_reloading = refusal.retry_after_s is not None
    reload = f'<meta http-equiv="refresh" content="{_RELOAD_S}">' if is_reloading else ""
    title = "Starting" if is_reloading else HTTPStatus(refusal.status).phrase
    text = html.escape(refusal.message)
    return _PAGE.format(title=title, text=text, reload=reload).encode()
