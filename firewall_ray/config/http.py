"""What every section that talks to a server elsewhere is made of: its base URL, and the name of the variable with its key."""

import re
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import Url

from firewall_ray.config.base import HIDDEN

# What clients append to a base URL themselves; longest first, since the first that fits is cut off.
ENDPOINTS = ("/chat/completions", "/completions", "/embeddings", "/responses", "/messages", "/models")

_EXAMPLE = "write one up to and including /v1, such as https://api.example.com/v1"
# What is served without TLS as a rule, so http is suggested for it where the scheme is missing.
_LOCAL_HOST = re.compile(r"(localhost|\d+\.\d+\.\d+\.\d+|\[[0-9a-fA-F:]+\])(:|/|$)")
# A name or an IPv6 address in brackets, a port, and then a path or nothing.
_HOST = re.compile(r"([\w-]+(\.[\w-]+)*\.?|\[[0-9a-fA-F:.]+\])(:\d+)?(/|$)")
# How keys of well-known services begin, some of which are letters, digits and underscores alone, as names of variables are.
_KEY = re.compile(r"((sk|pk|rk|gsk|csk|hf|ghp|gho|fw|r8|tgp|nvapi|pplx|xai)[_-][\w-]{12,}|(AIza|AKIA|eyJ)\w{12,})$", re.ASCII)
_LONG_PART = 16  # letters and digits without an underscore; OPENAI_API_KEY_2 has parts of at most 6


def _base_url(value: str) -> str:
    """Without a slash at its end. Raises ValueError that says what would be right, and never a user, password or query."""
    text = value.strip()
    if not text:
        raise ValueError(f"is empty; {_EXAMPLE}")
    scheme, separator, rest = text.partition("://")
    # A user and a query may hold a key, so what is suggested is made of the rest.
    bare = re.split(r"[?#]", rest if separator else text)[0].rpartition("@")[2].rstrip("/")
    is_http = bool(separator) and scheme.lower() in ("http", "https")
    # A word alone is more likely the key in the wrong field than a host: not to be suggested, and so repeated, as one.
    is_word = not separator and not re.search("[.:]", bare) and not _LOCAL_HOST.match(bare)
    if not _HOST.match(bare) or is_word or _KEY.match(bare) or re.search(r"[\s\\\x00-\x1f\x7f]", text):
        raise ValueError(f"is no address of a server; {_EXAMPLE}")
    if not is_http:
        scheme = "http" if _LOCAL_HOST.match(bare) else "https"
    path = _without_endpoint(bare)
    instead = f"write {scheme.lower()}://{path}"
    if not is_http:
        raise ValueError(f"must begin with http:// or https://; {instead}")
    try:
        Url(text)
    except ValueError:  # a port that is none, an IPv6 address without its end
        raise ValueError(f"is no address of a server; {_EXAMPLE}") from None
    # After the checks of form, so that the suggestion is an address that would be taken.
    if "@" in rest:
        raise ValueError(f"holds a user or a password; {instead}, and name the variable with the key in api_key_env")
    if re.search("[?#]", rest):
        raise ValueError(f"must end before ? and #, since paths are appended to it; {instead}")
    if path != bare:
        raise ValueError(f"must end before {bare.removeprefix(path)}, which is appended to it; {instead}")
    return text.rstrip("/")


def _without_endpoint(text: str) -> str:
    text = text.rstrip("/")
    found = next((endpoint for endpoint in ENDPOINTS if text.lower().endswith(endpoint)), "")
    return text[: len(text) - len(found)].rstrip("/")


def _variable(value: str) -> str:
    if (
        not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value)
        or _KEY.match(value)
        # Random letters and digits: a key that begins in none of the ways above.
        or any(len(part) >= _LONG_PART and re.search(r"\d", part) for part in value.split("_"))
    ):
        raise ValueError(
            "must be the name of an environment variable, such as OPENAI_API_KEY, that holds the key. What is there looks like "
            "something else, perhaps the key itself, and is not repeated here: put it into a variable, and the variable's name here"
        )
    return value


BaseUrl = Annotated[str, AfterValidator(_base_url), HIDDEN]
KeyVariable = Annotated[str, AfterValidator(_variable), HIDDEN]
