"""By which names this server may be asked. Runs on ingress replicas.

A page of any site can have its own name resolve to 127.0.0.1 (DNS rebinding), and its visitors' browsers then take this server for
that site: same origin, answers readable. Only the Host header tells. An address in it cannot be rebound, so addresses are let in.
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from firewall_ray.config.serving import ServingConfig

LOCAL = "localhost"


def host_is_allowed(host: str | None, serving: ServingConfig) -> bool:
    """host: the header, with or without a port. None: no browser sends none, and only browsers can be tricked."""
    if host is None or serving.allowed_hosts == ["*"]:
        return True
    name = _name(host)
    if serving.allowed_hosts is None:
        # With keys, a page has none to send.
        return serving.api_keys != "disabled" or name == LOCAL or name.endswith(f".{LOCAL}") or _is_address(name)
    return name in [each.lower() for each in serving.allowed_hosts] or name == LOCAL or _is_address(name)


def _name(host: str) -> str:
    """Without the port, in lower case, without the dot of a full name; empty for what is no host.

    >>> _name("Example.COM:8000"), _name("[::1]:8000"), _name("a@b:x")
    ('example.com', '::1', '')
    """
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018 -- raises where it is none
    except ValueError:
        return ""
    whole = parts.netloc == host and "@" not in host
    return (parts.hostname or "").rstrip(".") if whole else ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
