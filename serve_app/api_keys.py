"""Keys that callers show: how one is made, and whose it is. `python -m serve_app.api_keys NAME` makes one.

Only hashes are kept. A key holds 256 random bits, so a plain SHA-256 of it cannot be reversed by guessing.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from typing import Annotated

import typer
from pydantic import ValidationError

from firewall_ray.config.serving import ApiKeyConfig

PREFIX = "fw-"  # so that people, and scanners for leaked secrets, know one when they see it
_BEARER = re.compile(rb"bearer +(\S+)", re.IGNORECASE)


def make_key(name: str) -> tuple[str, ApiKeyConfig]:
    """A new key for `name`, and what the config keeps of it. Raises ValidationError for a name that the config refuses."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, ApiKeyConfig(name=name, sha256=_sha256(key.encode()))


def holder(authorization: Sequence[bytes], keys: Sequence[ApiKeyConfig]) -> str | None:
    """The name of the key in a request's Authorization headers; None without a key, or with one that is not among `keys`.

    Two headers are None as well: whoever stands before this server may have read the other one. Every hash is compared, each
    in constant time, so that the time an answer takes tells nothing about the keys.
    """
    found = _BEARER.fullmatch(authorization[0].strip()) if len(authorization) == 1 else None
    # Without a key too there is something to compare with: it takes as long as a wrong one.
    digest = _sha256(found.group(1)) if found else ""
    name = None
    for key in keys:
        if hmac.compare_digest(key.sha256, digest):
            name = key.name
    return name


def _sha256(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def main(name: Annotated[str, typer.Argument(help="Who will hold the key; appears in metrics and in the decision log.")]) -> None:
    """Make a key for NAME and print it, this once, with the lines of the run's YAML that let its holder in.

    The lines hold only the key's hash. Remove them and deploy again to revoke the key.
    """
    try:
        key, config = make_key(name)
    except ValidationError as e:
        raise typer.BadParameter("letters, digits, '.', '_' and '-', at most 64, the first a letter or digit.") from e
    typer.echo(f"The key of {name}, shown only now: {key}\n")
    typer.echo("Its holder sends it as `Authorization: Bearer KEY` (api_key of an OpenAI client). In the run's config:\n")
    typer.echo(f'serving:\n  api_keys:\n    - name: "{config.name}"\n      sha256: "{config.sha256}"')


if __name__ == "__main__":
    typer.run(main)
