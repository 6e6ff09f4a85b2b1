"""The page at `/`: one document without a resource from elsewhere, and the headers that keep it so. Runs in the ingress.

Its sources are in web/: page.html, into which the style sheet, the scripts in this order and the examples are put.
"""

import json
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files

from starlette.responses import HTMLResponse

SCRIPTS = ("requests.js", "decision.js", "answers.js", "counters.js", "page.js")


def page_response(examples: Mapping[str, str]) -> HTMLResponse:
    """The same for everybody. examples: questions to click, by what they show."""
    web = files("serve_app.http") / "web"
    html, css = ((web / name).read_text("utf-8") for name in ("page.html", "page.css"))
    js = "\n".join((web / name).read_text("utf-8") for name in SCRIPTS)
    data = json.dumps(examples).replace("<", r"\u003c")  # a data block ends at the first "</script", wherever it stands
    for name, text in {"css": css, "js": js, "examples": data}.items():
        html = html.replace(f"{{{{ {name} }}}}", text)
    return HTMLResponse(html, headers=_headers(css, js))


def _headers(css: str, js: str) -> dict[str, str]:
    policy = {
        "default-src": "'none'",
        "style-src": _source_of(css),
        "script-src": _source_of(js),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",  # the browser itself refuses innerHTML and the like
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def _source_of(inline: str) -> str:
    """What a policy calls an inline block: its hash."""
    return f"'sha256-{b64encode(sha256(inline.encode()).digest()).decode()}'"
