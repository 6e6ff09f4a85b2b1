"""Who may call, for what and how much: `api_keys` and `aliases` of the section `serving`."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from pydantic import Field, field_validator

from firewall_ray.config.base import HIDDEN, Name, Positive, Strict
from firewall_ray.config.names import FIREWALL, asks_router, is_reserved

# What clients call models elsewhere: gpt-4o, meta-llama/Llama-3.2-1B, llama3:8b.
Alias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/@+-]*$", max_length=128)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ApiKeyConfig(Strict):
    """A key and its rights. Two keys of one name, an old one and a new one, have the same rights and share the limits."""

    name: Name = Field(description="Who holds the key; appears in metrics and in the decision log. The key itself never does.")
    sha256: Annotated[str, HIDDEN] = Field(
        pattern=r"^[0-9a-f]{64}$", description="Hash of the key, from: python -m serve_app.api_keys NAME"
    )
    models: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="Names that it may ask for: firewall (any fraction, and aliases of it), a model's key, an alias. None: all.",
    )
    fractions: tuple[Fraction, Fraction] | None = Field(
        None,
        description="Lowest and highest strong fraction that it may ask for, as firewall-0.3 or by header; `firewall` alone, which "
        "takes what is in force, it may always ask for. It says nothing of models asked for by their own keys: see `models`.",
    )
    requests_per_minute: Positive | None = Field(None, description="Over all ingress replicas; more are refused with a 429.")
    tokens_per_minute: Positive | None = Field(None, description="Of prompts and answers together, as requests_per_minute.")
    expires: date | datetime | None = Field(
        None, description="A date, to whose end (UTC) the key is good, or a time, in UTC unless it says otherwise. Then it's a 401."
    )

    @field_validator("expires", mode="before")
    @classmethod
    def _is_a_date_or_a_time(cls, value: Any) -> Any:
        # pydantic would take 20261231 for seconds since 1970, and a time at midnight for a date.
        if isinstance(value, date | None):
            return value
        try:
            return date.fromisoformat(value) if len(value) == len("2026-12-31") else datetime.fromisoformat(value)
        except (TypeError, ValueError) as e:
            raise ValueError("must be a date, such as 2026-12-31, or a time, such as 2026-12-31T18:00:00Z") from e

    @field_validator("fractions")
    @classmethod
    def _are_ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError("must be the lowest fraction and the highest, such as [0.1, 0.5]")
        return value

    @property
    def expires_at(self) -> datetime | None:
        """From then on it is refused."""
        if self.expires is None:
            return None
        if isinstance(self.expires, datetime):  # which is a date too
            return self.expires if self.expires.tzinfo else self.expires.replace(tzinfo=UTC)
        return datetime(self.expires.year, self.expires.month, self.expires.day, tzinfo=UTC) + timedelta(days=1)

    @property
    def rights(self) -> dict[str, Any]:
        """What keys of one name have in common."""
        return self.model_dump(exclude={"sha256", "expires"})


def check_names(aliases: Mapping[str, str], keys: Sequence[ApiKeyConfig], ids: Collection[str]) -> None:
    """Raises ValueError where an alias or a key names what clients can't ask for. ids: of the pair's models."""
    there_are = f"There are {FIREWALL}, {FIREWALL}-0.3 (any fraction from 0 to 1) and {', '.join(ids)}"
    for alias, target in aliases.items():
        if is_reserved(alias):
            raise ValueError(f"serving.aliases.{alias}: the router answers to such names itself; choose another alias.")
        if alias in ids:
            raise ValueError(f"serving.aliases.{alias}: that is a model's own name, which an alias would hide.")
        if target not in ids and not asks_router(target):
            raise ValueError(f"serving.aliases.{alias} stands for {target!r}, which is not there. {there_are}.")
    for key in keys:
        for name in key.models or ():
            if name not in ids and name not in aliases and not asks_router(name):
                also = f", and the aliases {', '.join(aliases)}" if aliases else ""
                raise ValueError(f"serving.api_keys: {key.name} may ask for {name!r}, which is not there. {there_are}{also}.")


def check_same_rights(keys: Sequence[ApiKeyConfig]) -> None:
    """Raises ValueError where two keys of one name may do different things: limits and rights are the name's."""
    first: dict[str, ApiKeyConfig] = {}
    for key in keys:
        if first.setdefault(key.name, key).rights != key.rights:
            raise ValueError(f"api_keys: two keys have the name {key.name} and other rights. Give them the same, or two names.")
