"""GET /docs: the API on one page, written from the OpenAPI document; it needs no script and no other server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse

from nano3.serve.page_routes import HEADERS

_ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 32}
EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": _ASK,
    "/v1/responses": {"input": "Hi", "max_output_tokens": 32},
    "/v1/messages": _ASK,
    "/v1/messages/count_tokens": {"messages": _ASK["messages"]},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 32},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [72, 105]},
}
"""A body to try, for each route that takes one."""
_SIMPLE = {"integer": "whole number", "boolean": "true or false", "null": "null", "object": "object"}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>nano3 API</title>
<link rel="icon" href="icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="style.css">
<link rel="stylesheet" href="docs.css">
</head>
<body>
<main class="docs">
<h1>nano3 API</h1>
<p>{intro}</p>
<nav aria-label="Endpoints"><ul>{contents}</ul></nav>
{operations}
</main>
</body>
</html>
"""


def add_docs(app: FastAPI, model: str) -> None:
    """Serve the page at /docs; `model` is the name that clients send."""

    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi(), str(request.base_url).rstrip("/"), model), headers=HEADERS)

    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False, response_model=None)


def docs_page(document: Mapping[str, Any], url: str, model: str) -> str:
    """The whole page.

    Args:
        document: OpenAPI, as FastAPI writes it.
        url: where the server is, without a slash at the end.
        model: the name of its model.
    """
    found = list(_operations(document))
    intro = (
        f"Version {escape(document['info']['version'])}, model <code>{escape(model)}</code>. For OpenAI's clients the "
        f"base URL is <code>{escape(url)}/v1</code>, for Anthropic's <code>{escape(url)}</code>. "
        '<a href="openapi.json">openapi.json</a> has the same for programs.'
    )
    contents = "".join(
        f'<li><a href="#{_anchor(method, path)}"><b>{method}</b> <code>{escape(path)}</code></a></li>'
        for method, path, _ in found
    )
    operations = "\n".join(_operation(document, url, model, *operation) for operation in found)
    return _PAGE.format(intro=intro, contents=contents, operations=operations)


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _operation(
    document: Mapping[str, Any], url: str, model: str, method: str, path: str, operation: Mapping[str, Any]
) -> str:
    parts = [f'<section id="{_anchor(method, path)}"><h2><b>{method}</b> <code>{escape(path)}</code></h2>']
    parts.append(f"<p>{escape(' '.join(operation.get('description', '').split()))}</p>")
    content = operation.get("requestBody", {}).get("content", {})
    if schema := content.get("application/json", {}).get("schema"):
        parts.append(_fields(document, _resolved(document, schema)))
    parts.append(f"<pre>{escape(_command(url, method, path.replace('{name}', model)))}</pre>")
    parts.append(f"<details><summary>Answers</summary>{_answers(operation['responses'])}</details></section>")
    return "\n".join(parts)


def _fields(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """A table of the body's fields, those that must be given first."""
    required = schema.get("required", ())
    names = sorted(schema.get("properties", {}), key=lambda name: name not in required)
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' <em>required</em>' if name in required else ''}</td>"
        f"<td>{escape(_type(document, schema['properties'][name]))}</td></tr>"
        for name in names
    )
    return f"<table><thead><tr><th>Field</th><th>Type</th></tr></thead><tbody>{rows}</tbody></table>"


def _type(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int = 2) -> str:
    """A field's type in words; null, which every optional field may be, is left out."""
    if "$ref" in schema:
        inner = _resolved(document, schema).get("properties", {})
        return f"object of {', '.join(inner)}" if depth and inner else "object"
    if members := schema.get("anyOf") or schema.get("oneOf"):
        kinds = [_type(document, member, depth - 1) for member in members if member.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema or "const" in schema:
        return " or ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "any value"))
    if kind == "array":
        return f"list of {_type(document, schema.get('items', {}), depth - 1)}"
    return _SIMPLE.get(kind, kind)


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema


def _answers(responses: Mapping[str, Mapping[str, Any]]) -> str:
    rows = (
        f"<tr><td>{escape(status)}</td><td>{escape(responses[status].get('description', ''))}</td></tr>"
        for status in sorted(responses)
    )
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _command(url: str, method: str, path: str) -> str:
    if method == "GET":
        return f"curl {url}{path}"
    body = json.dumps(EXAMPLES.get(path, {}))
    return f"curl {url}{path} \\\n  -H 'content-type: application/json' \\\n  -d '{body}'"


def _anchor(method: str, path: str) -> str:
    return escape(
        f"{method.lower()}{path.replace('/', '-').translate({ord('{'): None, ord('}'): None, ord(':'): '-'})}"
    )
