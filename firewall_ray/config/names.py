"""The names by which clients ask for the router: `firewall`, and `firewall-0.3` for a strong fraction of their own."""

import re

FIREWALL = "firewall"
# ASCII: float() would read the digits of other alphabets too.
_FRACTION = re.compile(rf"{FIREWALL}-(\d+\.?\d*|\.\d+)", re.ASCII)


def is_reserved(name: str) -> bool:
    """Whether no model or alias can have this name, because the router answers to it.

    >>> [is_reserved(name) for name in ("firewall", "firewall-7b", "strong")]
    [True, True, False]
    """
    return name == FIREWALL or name.startswith(f"{FIREWALL}-")


def fraction_in(name: str) -> float | None:
    """The strong fraction that a name asks for, in [0, 1]; None where it is no such name.

    >>> fraction_in("firewall-0.3"), fraction_in("firewall"), fraction_in("firewall-2")
    (0.3, None, None)
    """
    found = _FRACTION.fullmatch(name)
    fraction = float(found.group(1)) if found else None
    return None if fraction is None or fraction > 1 else fraction


def asks_router(name: str) -> bool:
    """Whether whoever asks for this name asks the router."""
    return name == FIREWALL or fraction_in(name) is not None
