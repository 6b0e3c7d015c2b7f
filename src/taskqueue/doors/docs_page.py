"""The page at /docs: the OpenAPI document as HTML that needs no script and no other network."""

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator
from hashlib import sha256
from html import escape
from typing import Any, Final

Json = dict[str, Any]

STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --get: #1a7f4b; --post: #2b5fd9;
  --delete: #c0392b; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 6rem;
  font: 16px/1.55 system-ui, sans-serif; }
h1 { margin: 0; font-size: 2rem; }
h2 { margin: 0; font-size: 1.15rem; font-weight: 600; }
h3 { margin: 1.4rem 0 .4rem; font-size: .8rem; letter-spacing: .06em; text-transform: uppercase;
  opacity: .7; }
nav ul { columns: 2; padding: 0; list-style: none; }
nav a { color: inherit; text-decoration: none; }
nav a:hover, nav a:focus { text-decoration: underline; }
article { margin: 1.5rem 0; padding: 1.25rem; border: 1px solid var(--line); border-radius: .6rem; }
code, pre { font: .88em/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { margin: 0; padding: .8rem 1rem; overflow-x: auto; background: var(--soft);
  border-radius: .4rem; overflow-wrap: normal; }
.method { display: inline-block; min-width: 4.2rem; padding: .1rem .5rem; border-radius: .3rem;
  color: #fff; font: 600 .8rem/1.6 ui-monospace, monospace; text-align: center; }
.get { background: var(--get); } .post { background: var(--post); }
.delete { background: var(--delete); }
.path { margin-left: .6rem; font-weight: 600; }
.table { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .92rem; }
th, td { padding: .35rem .7rem .35rem 0; border-top: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { border: 0; font-weight: 600; opacity: .7; }
.required { color: var(--delete); font-size: .8em; }
@media (max-width: 40rem) { nav ul { columns: 1; } .path { display: block; margin: .5rem 0 0; } }
"""

_STYLE_HASH: Final = b64encode(sha256(STYLE.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS: Final = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

_RANGES: Final = (
    ("minimum", "maximum", ""),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " entries"),
)


def docs_page(document: Json) -> bytes:
    """The whole page for an OpenAPI document."""
    info = document["info"]
    operations = [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])} REST API</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{escape(info['title'])} REST API</h1>"
        f"<p>Version {escape(info['version'])}. {escape(info['description'])} "
        'For programs: <a href="/openapi.json">openapi.json</a>.</p></header>'
        f"<nav><ul>{''.join(_entry(*one) for one in operations)}</ul></nav>"
        f"<main>{''.join(_article(document, *one) for one in operations)}</main></body></html>"
    )
    return page.encode()


def _entry(method: str, path: str, operation: Json) -> str:
    name = escape(operation["operationId"])
    return f'<li><a href="#{name}"><code>{method.upper()} {escape(path)}</code></a></li>'


def _article(document: Json, method: str, path: str, operation: Json) -> str:
    return (
        f'<article id="{escape(operation["operationId"])}">'
        f"<h2>{escape(operation['summary'])}</h2>"
        f'<p><span class="method {method}">{method.upper()}</span>'
        f'<code class="path">{escape(path)}</code></p>'
        f"{_parameters(document, operation.get('parameters', []))}"
        f"{_body(document, operation.get('requestBody'))}"
        f"<h3>Answers</h3>{_answers(document, operation['responses'])}"
        f"<h3>Example</h3><pre>{escape(curl_example(method, path, operation))}</pre></article>"
    )


def _parameters(document: Json, parameters: Iterable[Json]) -> str:
    rows = [
        _field_row(document, one["name"], {**one["schema"], **_described(one)}, one["required"])
        for one in parameters
    ]
    return f"<h3>Parameters</h3>{_table(rows)}" if rows else ""


def _described(parameter: Json) -> Json:
    return {"description": parameter["description"]} if "description" in parameter else {}


def _body(document: Json, body: Json | None) -> str:
    if body is None:
        return ""
    return f"<h3>Body</h3>{_fields(document, body['content']['application/json']['schema'])}"


def _fields(document: Json, schema: Json) -> str:
    found = _resolved(document, schema)
    required = found.get("required", [])
    rows = (
        _field_row(document, name, field, name in required and "additionalProperties" in found)
        for name, field in found["properties"].items()
    )
    return _table(rows)


def _field_row(document: Json, name: str, schema: Json, is_required: bool) -> str:
    mark = ' <span class="required">required</span>' if is_required else ""
    cells = (_kind(document, schema), "; ".join(_notes(document, schema)))
    told = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f"<tr><td><code>{escape(name)}</code>{mark}</td>{told}</tr>"


def _table(rows: Iterable[str]) -> str:
    head = "<tr><th>Field</th><th>Type</th><th>Meaning and limits</th></tr>"
    return f'<div class="table"><table>{head}{"".join(rows)}</table></div>'


def _answers(document: Json, responses: Json) -> str:
    rows: list[str] = []
    tables: list[str] = []
    for status, response in responses.items():
        text = escape(response["description"].replace("`", "")).replace("\n\n", "<br>")
        rows.append(f"<tr><td><code>{status}</code></td><td>{text}</td></tr>")
        schema = response.get("content", {}).get("application/json", {}).get("schema")
        if schema is not None and status.startswith("2"):
            tables.append(_fields(document, schema))
    return f'<div class="table"><table>{"".join(rows)}</table></div>{"".join(tables)}'


def _kind(document: Json, schema: Json) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(document, one) for one in schema["anyOf"]))
    found = _resolved(document, schema)
    if "enum" in found:
        return "text"
    if found.get("contentEncoding") == "base64":
        return "base64"
    if found.get("format") == "date-time":
        return "date and time"
    if found.get("type") == "array":
        return f"list of {_kind(document, found['items'])}"
    if found.get("type") == "object":
        return str(found.get("title", "object"))
    kind = str(found.get("type", "object"))
    return {"string": "text"}.get(kind, kind)


def _notes(document: Json, schema: Json) -> Iterator[str]:
    if "description" in schema:
        yield schema["description"]
    for one in schema.get("anyOf", [schema]):
        found = _resolved(document, one)
        if "enum" in found:
            yield "one of " + ", ".join(found["enum"])
        for least, most, unit in _RANGES:
            if most in found:
                yield f"{found.get(least, 0):,} to {found[most]:,}{unit}"
    if schema.get("default") is not None:
        yield f"default {schema['default']}"


def _resolved(document: Json, schema: Json) -> Json:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: Json = document["components"]["schemas"][reference.rpartition("/")[2]]
    return found


def curl_example(method: str, path: str, operation: Json) -> str:
    """A curl line that does the operation on a broker with the default address."""
    query: list[str] = []
    for parameter in operation.get("parameters", []):
        if "example" in parameter and parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", str(parameter["example"]))
        elif "example" in parameter:
            query.append(f"{parameter['name']}={parameter['example']}")
    address = f"http://localhost:8080{path}" + (f"?{'&'.join(query)}" if query else "")
    words = ["curl"] + ([] if method == "get" else ["-X", method.upper()])
    words.append(f"'{address}'" if query else address)
    body = operation.get("requestBody")
    if body is not None:
        example = json.dumps(body["content"]["application/json"]["example"], indent=2)
        words += ["\\\n  -H 'Content-Type: application/json'", f"\\\n  -d '{example}'"]
    return " ".join(words)
