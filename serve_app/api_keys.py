"""Keys that callers show: how one is made, and which it is. `python -m serve_app.api_keys NAME` makes one.

Only hashes are kept. A key holds 256 random bits, so a plain SHA-256 of it cannot be reversed by guessing.
"""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from firewall_ray.config.callers import ApiKeyConfig

PREFIX = "fw-"  # so that people, and scanners for leaked secrets, know one when they see it
_BEARER = re.compile(rb"bearer +(\S+)", re.IGNORECASE)


def make_key(name: str, **rights: Any) -> tuple[str, ApiKeyConfig]:
    """A new key for `name`, and what the config keeps of it. Raises ValidationError for what the config refuses."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, ApiKeyConfig.model_validate({"name": name, "sha256": _sha256(key.encode()), **rights})


def key_in(authorization: Sequence[bytes], keys: Sequence[ApiKeyConfig]) -> ApiKeyConfig | None:
    """The key in a request's Authorization headers; None without a key, or with one that is not among `keys`.

    Two headers are None as well: whoever stands before this server may have read the other one. Every hash is compared, each
    in constant time, so that the time an answer takes tells nothing about the keys.
    """
    found = _BEARER.fullmatch(authorization[0].strip()) if len(authorization) == 1 else None
    # Without a key too there is something to compare with: it takes as long as a wrong one.
    digest = _sha256(found.group(1)) if found else ""
    shown = None
    for key in keys:
        if hmac.compare_digest(key.sha256, digest):
            shown = key
    return shown


def _sha256(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def main(
    name: Annotated[str, typer.Argument(help="Who will hold the key; appears in metrics and in the decision log.")],
    models: Annotated[str | None, typer.Option(help="Names that it may ask for, such as firewall,weak. All without.")] = None,
    fractions: Annotated[
        str | None, typer.Option(help="Lowest and highest strong fraction that it may ask for, such as 0.1,0.5.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="More are refused with a 429.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Of prompts and answers together.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="The last day of the key (UTC), such as 2026-12-31, or a time, 2026-12-31T18:00:00Z.")
    ] = None,
) -> None:
    """Make a key for NAME and print it, this once, with the lines of the run's YAML that let its holder in.

    The lines hold only the key's hash. Remove them and deploy again to revoke the key.
    """
    rights = {
        "models": models and models.split(","),
        "fractions": fractions and fractions.split(","),
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "expires": expires,
    }
    try:
        key, config = make_key(name, **{field: value for field, value in rights.items() if value is not None})
    except ValidationError as e:
        problem = e.errors()[0]
        where = str(problem["loc"][0])
        said = "letters, digits, '.', '_' and '-', at most 64, the first a letter or digit." if where == "name" else problem["msg"]
        raise typer.BadParameter(f"{where}: {said}") from e
    typer.echo(f"The key of {name}, shown only now: {key}\n")
    typer.echo("Its holder sends it as `Authorization: Bearer KEY` (api_key of an OpenAI client). In the run's config:\n")
    typer.echo(lines_of(config))


def lines_of(config: ApiKeyConfig) -> str:
    """As they stand in the run's YAML."""
    # What JSON says, YAML says too; a name such as 123 is no text to it without quotes.
    said = [f"{name}: {json.dumps(value)}" for name, value in config.model_dump(mode="json").items() if value is not None]
    return "\n      ".join(["serving:\n  api_keys:\n    - " + said[0], *said[1:]])


if __name__ == "__main__":
    typer.run(main)
