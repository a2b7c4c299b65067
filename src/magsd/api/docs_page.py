"""The API's document as one HTML page that needs no script and nothing from elsewhere. Pure."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

_STYLE: Final = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1a1a1a;background:#fff}
code,pre{font:14px/1.5 ui-monospace,monospace}
pre{background:#f4f4f4;padding:1rem;overflow-x:auto}
h2{margin-top:3rem;border-bottom:1px solid #ccc}h3{margin-top:2rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1rem}
th,td{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;
border-bottom:1px solid #ddd}
.method{font-weight:700}
@media (prefers-color-scheme:dark){body{color:#ddd;background:#161616}pre{background:#222}
a{color:#8ab4f8}th,td,h2{border-color:#444}}
"""
_EXAMPLE: Final = """\
curl -H "Authorization: Bearer $MAGS_API_TOKEN" -H 'Content-Type: application/json' \\
  -d '{"script": "echo hello"}' http://127.0.0.1:7070/api/v1/mags-jobs
"""
_Schema = Mapping[str, Any]


def docs_page(document: Mapping[str, Any]) -> str:
    """Return the page for an OpenAPI document."""
    info = document["info"]
    title = f"{escape(info['title'])} API {escape(info['version'])}"
    body = "".join(_body(document))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>{_prose(info['description'])}"
        f"<pre>{escape(_EXAMPLE)}</pre>{body}</body></html>\n"
    )


def _body(document: Mapping[str, Any]) -> Iterator[str]:
    operations = [
        (operation["tags"][0], path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    tags = list(dict.fromkeys(tag for tag, *_ in operations))
    for tag in sorted(tags, key=lambda tag: tag == "system"):
        yield f"<h2>{escape(tag.capitalize())}</h2>"
        for of_tag, path, method, operation in operations:
            if of_tag == tag:
                yield from _operation(document, path, method, operation)


def _operation(
    document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]
) -> Iterator[str]:
    yield (
        f'<h3><code><span class="method">{method.upper()}</span> {escape(path)}</code></h3>'
        f"<p><strong>{escape(operation['summary'])}.</strong></p>"
    )
    yield _prose(operation.get("description", ""))
    if parameters := operation.get("parameters"):
        yield _table(
            "Parameters",
            [
                (
                    parameter["name"],
                    f"{parameter['in']}, {_type(document, parameter['schema'])}",
                    parameter.get("description") or parameter["schema"].get("description", ""),
                )
                for parameter in parameters
            ],
        )
    if "requestBody" in operation:
        for kind, body in operation["requestBody"]["content"].items():
            caption = "Body" if kind == "application/json" else f"Body, {kind}"
            schema = body["schema"]
            fields = _fields(document, schema) or [(kind, _type(document, schema), "")]
            yield _table(caption, fields)
    for status, response in operation["responses"].items():
        content = response.get("content", {})
        if status.startswith("2") and "application/json" in content:
            yield _table(
                f"Reply {status}", _fields(document, content["application/json"]["schema"])
            )


def _table(caption: str, rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}</td>"
        f"<td>{_inline(text)}</td></tr>"
        for name, kind, text in rows
    )
    return f"<table><thead><tr><th colspan=3>{escape(caption)}</th></tr></thead>{cells}</table>"


def _fields(
    document: Mapping[str, Any], schema: _Schema, prefix: str = ""
) -> list[tuple[str, str, str]]:
    """Return a row for each field of an object, those of objects in its lists included."""
    schema = _resolved(document, schema)
    required = schema.get("required", [])
    rows = []
    for name, field in schema.get("properties", {}).items():
        need = ", required" if prefix == "" and name in required else ""
        rows.append((prefix + name, _type(document, field) + need, field.get("description", "")))
        if "$ref" in (items := field.get("items", {})):
            rows += _fields(document, items, f"{prefix}{name}[].")
    return rows


def _resolved(document: Mapping[str, Any], schema: _Schema) -> _Schema:
    while (reference := schema.get("$ref")) is not None:
        schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    return schema


def _type(document: Mapping[str, Any], schema: _Schema) -> str:
    if choices := schema.get("anyOf"):
        return " or ".join(dict.fromkeys(_type(document, choice) for choice in choices))
    if "$ref" in schema:
        resolved = _resolved(document, schema)
        return ", ".join(resolved["enum"]) if "enum" in resolved else "object"
    if schema.get("type") == "array":
        return f"list of {_type(document, schema['items'])}"
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if "const" in schema:
        return str(schema["const"]).lower()
    return str(schema.get("format") or schema.get("type", "any"))


def _prose(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in text.split("\n\n") if part.strip())


def _inline(text: str) -> str:
    parts = escape(text).split("`")
    return "".join(
        f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts)
    )
