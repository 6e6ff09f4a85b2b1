"""What `/openapi.json` and `/docs` answer: every endpoint, with what the gateway itself reads of a request. Runs in the ingress.

The rest of a body is the model's, whose own server refuses what it does not take; vLLM's types are not imported here.
"""

from html import escape
from typing import Any

from starlette.responses import HTMLResponse, JSONResponse

from serve_app.apis.messages.errors import PATH as MESSAGES_PATH
from serve_app.http.admission import OPEN_PATHS

TEXT = {"type": "string"}
MODEL = {
    **TEXT,
    "description": "firewall, firewall-0.3 (any strong fraction from 0 to 1), a model's key, or an alias.",
}
STREAM = {"type": ["boolean", "null"], "description": "Server-sent events instead of one answer."}
MESSAGES = {"type": "array", "items": {"type": "object"}, "description": "As OpenAI's. The router reads the last user text."}
PROMPT = {
    "description": "A text, token ids, or a list of either.",
    "oneOf": [
        TEXT,
        {"type": "array", "items": TEXT},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ],
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")},
        }
    },
}
ANTHROPIC_ERROR = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {"type": "object", "required": ["type", "message"], "properties": {"type": TEXT, "message": TEXT}},
    },
}
INPUT = {
    "description": "A text, or messages, function calls and their outputs, as OpenAI's. No answers are kept here to refer to.",
    "oneOf": [TEXT, {"type": "array", "items": {"type": "object"}}],
}
ANTHROPIC_MESSAGES = {**MESSAGES, "description": "As Anthropic's. The router reads the last user text."}
MAX_TOKENS = {"type": "integer", "minimum": 1, "description": "Of the answer."}
HEADERS = {
    "route": "weak or strong: the model that answered.",
    "reason": "Who decided so.",
    "score": "The router's p_weak, in [0, 1].",
    "threshold": "Scores below it go strong.",
    "router": "The version on the router's card.",
    "decided": "What the score chose, whoever answered.",
    "fallback": "Why the model that was to answer did not.",
}
# path, method, one line, the body's fields (those that must be there first), whether answers carry the headers
ENDPOINTS: tuple[tuple[str, str, str, dict[str, Any], bool], ...] = (
    ("/v1/chat/completions", "post", "A chat, answered by the model that the router chooses.", {"messages": MESSAGES}, True),
    ("/v1/completions", "post", "A completion, answered by the model that the router chooses.", {"prompt": PROMPT}, True),
    ("/v1/responses", "post", "The same in the words of OpenAI's Responses API, without state.", {"input": INPUT}, True),
    (
        MESSAGES_PATH,
        "post",
        "The same in the words of Anthropic's Messages API.",
        {"max_tokens": MAX_TOKENS, "messages": ANTHROPIC_MESSAGES},
        True,
    ),
    ("/v1/route", "post", "The decision alone, for the body of a chat or of a completion.", {}, False),
    ("/v1/route/{path}", "post", "The same, for gateways that put it before the path that they were asked for.", {}, False),
    ("/v1/models", "get", "The names that a request's `model` may have.", {}, False),
    ("/v1/models/{model}", "get", "One of them.", {}, False),
    ("/stats", "get", "What the page counts, of one ingress replica.", {}, False),
    ("/health", "get", "Whether the ingress is up.", {}, False),
    ("/ready", "get", "Whether router and models are; else 503, and which is not.", {}, False),
    ("/", "get", "The page to try it on.", {}, False),
    ("/docs", "get", "These endpoints, to read.", {}, False),
    ("/openapi.json", "get", "These endpoints, for programs.", {}, False),
)


def openapi_response() -> JSONResponse:
    """The document, of OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for path, method, summary, fields, is_routed in ENDPOINTS:
        operation: dict[str, Any] = {"summary": summary, "responses": {"200": _answer(is_routed), "default": _refusal(path)}}
        if path in OPEN_PATHS:
            operation["security"] = []
        if path.endswith("}"):
            name = path[path.index("{") + 1 : -1]
            operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": TEXT}]
        if method == "post":
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _body(fields)}}}
        paths[path] = {method: operation}
    return JSONResponse(
        {
            "openapi": "3.1.0",
            "info": {"title": "firewall-ray", "version": "1", "description": "OpenAI-compatible, routed between two models."},
            "paths": paths,
            "components": {
                "securitySchemes": {
                    "key": {"type": "http", "scheme": "bearer"},
                    "anthropic_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                }
            },
            "security": [{"key": []}, {"anthropic_key": []}, {}],
        }
    )


def docs_response() -> HTMLResponse:
    """The same as a page, without a script or anything from elsewhere."""
    rows = "".join(
        f"<tr><td><code>{method.upper()} {escape(path)}</code></td><td>{escape(summary)}</td></tr>"
        for path, method, summary, _, _ in ENDPOINTS
    )
    html = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>firewall-ray: endpoints</title><h1>Endpoints</h1>"
        f"<table>{rows}</table><p>Bodies and answers: <a href=openapi.json>openapi.json</a>.</p></html>"
    )
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return HTMLResponse(html, headers={"content-security-policy": policy, "x-content-type-options": "nosniff"})


def _body(fields: dict[str, Any]) -> dict[str, Any]:
    if not fields:  # /v1/route: either
        either = {"messages": MESSAGES, "prompt": PROMPT}
        return {"type": "object", "properties": {"model": MODEL, **either}, "oneOf": [{"required": [name]} for name in either]}
    return {"type": "object", "required": ["model", *fields], "properties": {"model": MODEL, **fields, "stream": STREAM}}


def _answer(is_routed: bool) -> dict[str, Any]:
    if not is_routed:
        return {"description": "The answer."}
    headers = {f"x-firewall-{name}": {"schema": TEXT, "description": said} for name, said in HEADERS.items()}
    content = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": TEXT}}
    return {"description": "As that API's.", "headers": headers, "content": content}


def _refusal(path: str) -> dict[str, Any]:
    schema = ANTHROPIC_ERROR if path == MESSAGES_PATH else ERROR
    return {"description": "Why not.", "content": {"application/json": {"schema": schema}}}
